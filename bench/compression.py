#!/usr/bin/env python3
"""Size against what is lost: MiniLM's sentence embeddings, and SmolLM2 beside llama.cpp's own quantizations of the same weights.

usage: python bench/compression.py minilm|smollm2 [--only NAME ...] [--windows 32] [--peers PYTHON] [--json FILE] [--svg FILE]

Calibration reads the movie snippets that the evaluation does not (seed 0). minilm: mean and worst cosine with the fp32 model's
embeddings on 200 snippets. smollm2: perplexity and mean KL from the fp32 model on windows of 256 tokens of 300 snippets;
--peers names an interpreter with llama-cpp-python, whose quantizer makes Q4_0, Q4_K_M, Q5_K_M and Q8_0 of the same numbers
(the GGUF that the ONNX model was made of). Models are those of $EDGEC_MODELS (~/.cache/edgec-models).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import accuracy
import numpy as np
import onnxruntime
import perplexity
from tokenizers import Tokenizer

import edgec

MODELS = perplexity.MODELS
SNIPPETS, HELD = 300, 200  # of the evaluation; of them, those that MiniLM is measured on
WINDOW = 256
BUILDS = {
    "minilm": {
        "4 bits, no data": {"bits": 4.25, "embedding": 4},
        "4 bits": {"bits": 4.25, "embedding": 4, "calib": True},
        "4 bits, table of 8": {"bits": 4.25, "embedding": 8, "calib": True},
        "7.5 bits, table of 4": {"bits": 7.5, "embedding": 4, "calib": True},
    },
    "smollm2": {
        "4 bits, no data": {"bits": 4.25, "embedding": 4},
        "4 bits, table of 8, no data": {"bits": 4.25},
        "4 bits": {"bits": 4.25, "embedding": 4, "calib": True},
        "4.65 bits, table of 4": {"bits": 4.65, "embedding": 4, "calib": True},
        "4 bits, table of 6": {"bits": 4.25, "embedding": 6, "calib": True},
        "4 bits, table of 8": {"bits": 4.25, "calib": True},
    },
}
LLAMA_TYPES = {"Q4_0": 2, "Q4_K_M": 15, "Q5_K_M": 17, "Q8_0": 7}
QUANTIZE = """
import sys, llama_cpp as l
p = l.llama_model_quantize_default_params()
p.ftype, p.allow_requantize = int(sys.argv[3]), True
sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))
"""


def calibration_texts(folder: Path) -> Path:
    """The snippets that no evaluation reads."""
    file = MODELS / "movie-sentiment/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    lines = [line.split("\t")[2] for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    held = set(perplexity.texts(SNIPPETS))
    path = folder / "calibration.txt"
    path.write_text("\n".join(line for line in lines if line not in held) + "\n", encoding="utf-8")
    return path


def builds(model: str, folder: Path, only: list[str], calib: Path) -> dict[str, dict]:
    """Name -> artifact's path, MB, seconds."""
    source, made = MODELS / model / "model.onnx", {}
    for name, options in BUILDS[model].items():
        if only and name not in only:
            continue
        start, out = time.perf_counter(), folder / f"{len(made)}.edgec"
        given = options | {"calib": calib if options.get("calib") else None}
        report = edgec.build(source, out=out, **given)
        seconds = time.perf_counter() - start
        made[f"edgec {name}"] = {"path": out, "mb": report.artifact_bytes / 1e6, "seconds": seconds}
        print(f"  built {name}: {report.artifact_bytes / 1e6:.2f} MB, {seconds:.0f} s", file=sys.stderr, flush=True)
    return made


def minilm(args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    source = MODELS / "minilm/model.onnx"
    tokenizer = Tokenizer.from_file(str(source.parent / "tokenizer.json"))
    texts = perplexity.texts(SNIPPETS)[:HELD]
    peer = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])

    def vectors(run) -> np.ndarray:
        return np.concatenate([accuracy.embed(run, tokenizer, texts[i : i + 16]) for i in range(0, HELD, 16)])

    want = vectors(lambda feeds: peer.run(None, feeds)[0])
    found = builds("minilm", folder, args.only, calibration_texts(folder))
    for row in found.values():
        session = edgec.load(row.pop("path"))
        cosines = (vectors(lambda feeds, session=session: session.run(None, feeds)[0]) * want).sum(1)
        row |= {"mean_cosine": float(cosines.mean()), "worst_cosine": float(cosines.min())}
    return found


def smollm2(args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    source = MODELS / "smollm2/model.onnx"
    tokenizer = Tokenizer.from_file(str(source.parent / "tokenizer.json"))
    joined = [i for e in tokenizer.encode_batch(perplexity.texts(SNIPPETS)) for i in e.ids]
    runs = [joined[at : at + WINDOW] for at in range(0, len(joined) - WINDOW + 1, WINDOW)][: args.windows]
    found = builds("smollm2", folder, args.only, calibration_texts(folder))
    logits = {"fp32": perplexity.onnxruntime_logits(source, None)}
    logits |= {name: perplexity.edgec_logits(row.pop("path"), None) for name, row in found.items()}
    gguf = next(iter(sorted((MODELS / "smollm2-gguf").glob("*.gguf"))), None)
    for name, kind in LLAMA_TYPES.items() if args.peers and gguf else ():
        out = folder / f"{name}.gguf"
        command = [args.peers, "-c", QUANTIZE, str(gguf), str(out), str(kind)]
        subprocess.run(command, check=True, capture_output=True)
        found[f"llama.cpp {name}"] = {"mb": out.stat().st_size / 1e6}
        logits[f"llama.cpp {name}"] = perplexity.llama_logits(out, args.peers, WINDOW)
    measured = perplexity.measure(logits, runs)
    print(
        f"fp32 perplexity {measured['fp32']['perplexity']:.2f} on {measured['fp32']['tokens']} tokens", file=sys.stderr
    )
    return {name: row | {k: measured[name][k] for k in ("increase", "kl", "top1")} for name, row in found.items()}


def chart(found: dict[str, dict], key: str) -> str:
    """An SVG of size against `key`, both axes logarithmic."""
    points = [(row["mb"], max(row[key], 1e-6), name) for name, row in found.items()]
    xs, ys = (np.log([p[i] for p in points]) for i in range(2))

    def place(values: np.ndarray, low: float, high: float) -> np.ndarray:
        span = max(np.ptp(values), 1e-9)
        return low + (values - values.min()) / span * (high - low)

    body = []
    for (mb, value, name), x, y in zip(points, place(xs, 60, 560), place(ys, 340, 40), strict=True):
        color = "#06c" if name.startswith("edgec") else "#c50"
        body.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5" fill="{color}"/>')
        body.append(f'<text x="{x + 8:.0f}" y="{y + 4:.0f}">{name}: {mb:.1f} MB, {value:.4f}</text>')
    style = "font:11px sans-serif"
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="380" style="{style}">{"".join(body)}</svg>\n'


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", choices=list(BUILDS))
    ap.add_argument("--only", nargs="+", default=[])
    ap.add_argument("--windows", type=int, default=32)
    ap.add_argument("--peers", metavar="PYTHON")
    ap.add_argument("--json", type=Path)
    ap.add_argument("--svg", type=Path)
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {"minilm": minilm, "smollm2": smollm2}[args.model](args, Path(folder))
    for name, row in found.items():
        print(f"{name}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items()))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if args.svg:
        for row in found.values():
            row["lost"] = row["kl"] if "kl" in row else 1 - row["mean_cosine"]
        args.svg.write_text(chart(found, "lost"))


if __name__ == "__main__":
    main()
