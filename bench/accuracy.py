#!/usr/bin/env python3
"""What int4 costs MiniLM: cosine of its sentence embeddings with the fp32 model's, on the movie-sentiment texts.

usage: python bench/accuracy.py [--texts 1000] [--weights int4] [--group 32] [--json FILE]

Mean pooling over the attention mask; the reference is onnxruntime in fp32. Needs minilm/model.onnx and its tokenizer.json,
and the texts of movie-sentiment, under $EDGEC_MODELS (~/.cache/edgec-models).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

import edgec

MODELS = Path(os.environ.get("EDGEC_MODELS", Path.home() / ".cache/edgec-models"))


def texts(count: int) -> list[str]:
    """Movie snippets, every n-th of the file, so that they come from all of it."""
    file = MODELS / "movie-sentiment/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split("\t")[2] for line in lines[:: max(1, len(lines) // count)]][:count]


def embed(run, tokenizer: Tokenizer, batch: list[str]) -> np.ndarray:
    """Unit vectors [len(batch), hidden]."""
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    encoded = tokenizer.encode_batch(batch)
    ids = np.array([e.ids for e in encoded], np.int64)
    mask = np.array([e.attention_mask for e in encoded], np.int64)
    hidden = run({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--texts", type=int, default=1000)
    ap.add_argument("--weights", default="int4")
    ap.add_argument("--group", type=int)
    ap.add_argument("--bits", type=float)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    source = MODELS / "minilm/model.onnx"
    tokenizer = Tokenizer.from_file(str(source.parent / "tokenizer.json"))
    peer = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory() as tmp:
        report = edgec.build(
            source, weights=args.weights, group=args.group, bits=args.bits, out=Path(tmp) / "minilm.edgec"
        )
        session = edgec.load(report.path)
        chosen = texts(args.texts)
        cosines = []
        for i in range(0, len(chosen), 16):
            batch = chosen[i : i + 16]
            ours = embed(lambda feeds: session.run(None, feeds)[0], tokenizer, batch)
            theirs = embed(lambda feeds: peer.run(None, feeds)[0], tokenizer, batch)
            cosines.extend((ours * theirs).sum(1).tolist())
    result = {
        "texts": len(cosines),
        "weights": args.weights,
        "group": args.group,
        "artifact_mb": report.artifact_bytes / 1e6,
        "mean_cosine": float(np.mean(cosines)),
        "worst_cosine": float(np.min(cosines)),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
