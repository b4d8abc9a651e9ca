#!/usr/bin/env python3
"""Perplexity of language models on the movie-sentiment texts, and how far each is from the first one given.

usage: python bench/perplexity.py MODEL [MODEL ...] [--texts 300] [--window N] [--tokenizer FILE] [--peers PYTHON] [--json FILE]

MODEL: an artifact (.edgec), an ONNX decoder (.onnx, run by onnxruntime in fp32) or a .gguf (llama.cpp, in the interpreter
that --peers names, which has llama-cpp-python). The first is the reference.

Every snippet stands alone: exp of the mean negative log likelihood of its tokens after the first, over all snippets' tokens.
--window N joins the snippets and cuts them into runs of N tokens instead. KL: mean of KL(reference || model) a token, in nats;
top1: the share of tokens for which both prefer the same next one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

MODELS = Path(os.environ.get("EDGEC_MODELS", Path.home() / ".cache/edgec-models"))
Logits = Callable[[list[int]], np.ndarray]  # token ids -> float32 [tokens, vocab]

LLAMA = """
import sys, struct, numpy as np
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=int(sys.argv[2]), n_batch=int(sys.argv[2]), logits_all=True, verbose=False)
out = sys.stdout.buffer
while head := sys.stdin.buffer.read(8):
    ids = np.frombuffer(sys.stdin.buffer.read(struct.unpack("<q", head)[0] * 8), np.int64).tolist()
    llm.reset(); llm.eval(ids)
    scores = np.ascontiguousarray(llm.scores[: len(ids)], np.float32)
    out.write(struct.pack("<q", scores.shape[1])); out.write(scores.tobytes()); out.flush()
"""


def texts(count: int) -> list[str]:
    """Movie snippets, every n-th of the file, so that they come from all of it."""
    file = MODELS / "movie-sentiment/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.split("\t")[2] for line in lines[:: max(1, len(lines) // count)]][:count]


def feeds_for(ids: list[int], ports: Iterable[tuple[str, tuple, str]]) -> dict[str, np.ndarray]:
    """Inputs of a decoder that starts with `ids`: one row, an empty cache. ports: (name, shape, numpy's dtype name)."""
    feeds = {}
    for name, shape, dtype in ports:
        if len(shape) == 4:
            # symbolic dims of a cache: the batch first, then the length
            sizes = [d if isinstance(d, int) else (1 if axis == 0 else 0) for axis, d in enumerate(shape)]
            if isinstance(shape[-1], str):
                raise SystemExit(f"{name}: the head's size is not known from its shape {shape}")
            feeds[name] = np.zeros(sizes, dtype)
        elif "position" in name:
            feeds[name] = np.arange(len(ids), dtype=dtype)[None]
        elif "mask" in name:
            feeds[name] = np.ones((1, len(ids)), dtype)
        elif len(shape) == 2:
            feeds[name] = np.array([ids], dtype)
        elif dtype == "bool":  # use_cache_branch of a merged decoder
            feeds[name] = np.zeros(1, bool)
        else:
            raise SystemExit(f"{name}: an input {dtype}{list(shape)} that no decoder known here has")
    return feeds


def edgec_logits(path: Path, threads: int | None) -> Logits:
    import edgec

    session = edgec.load(path, threads=threads)
    lm = session.manifest.get("lm") or {}
    output = lm.get("logits") or session.outputs[0].name

    def run(ids: list[int]) -> np.ndarray:
        return session.run([output], feeds_for(ids, session.inputs))[0][0].astype(np.float32, copy=False)

    return run


def onnxruntime_logits(path: Path, threads: int | None) -> Logits:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    config = path.parent / "config.json"
    known = json.loads(config.read_text()) if config.exists() else {}
    heads = known.get("num_attention_heads") or 1
    dim = known.get("head_dim") or known.get("hidden_size", 0) // heads
    types = {
        "tensor(int64)": "int64",
        "tensor(int32)": "int32",
        "tensor(float)": "float32",
        "tensor(float16)": "float16",
    }
    ports = []
    for i in session.get_inputs():
        shape = tuple(d if isinstance(d, int) else d or "?" for d in i.shape)
        if len(shape) == 4 and isinstance(shape[-1], str) and dim:
            shape = (*shape[:-1], dim)
        ports.append((i.name, shape, types.get(i.type, "bool")))
    output = session.get_outputs()[0].name
    return lambda ids: session.run([output], feeds_for(ids, ports))[0][0].astype(np.float32, copy=False)


def llama_logits(path: Path, python: str | None, context: int) -> Logits:
    if python is None:
        raise SystemExit(f"{path}: --peers PYTHON is needed, an interpreter that has llama-cpp-python")
    worker = subprocess.Popen(
        [python, "-c", LLAMA, str(path), str(context)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def run(ids: list[int]) -> np.ndarray:
        worker.stdin.write(np.array([len(ids), *ids], np.int64).tobytes())
        worker.stdin.flush()
        vocab = int(np.frombuffer(worker.stdout.read(8), np.int64)[0])
        return np.frombuffer(worker.stdout.read(4 * vocab * len(ids)), np.float32).reshape(len(ids), vocab)

    return run


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)


def tokenizer_for(models: list[Path], given: Path | None):
    from tokenizers import Tokenizer

    found = [given] if given else [m.parent / "tokenizer.json" for m in models]
    for path in [*found, MODELS / "smollm2/tokenizer.json"]:
        if path.exists():
            return Tokenizer.from_file(str(path))
    raise SystemExit("no tokenizer.json beside the models: name one with --tokenizer")


def measure(models: dict[str, Logits], runs: list[list[int]], quiet: bool = False) -> dict[str, dict[str, float]]:
    """Perplexity of each model over the runs of tokens, KL and top1 against the first."""
    sums = {name: {"nll": 0.0, "kl": 0.0, "top1": 0.0, "seconds": 0.0} for name in models}
    count = 0
    for number, ids in enumerate(runs):
        reference = None
        for name, logits in models.items():
            start = time.perf_counter()
            scores = logits(ids)
            sums[name]["seconds"] += time.perf_counter() - start
            logp = log_softmax(scores[: len(ids) - 1])
            if not np.isfinite(logp[:, :1]).all():
                raise SystemExit(f"{name}: logits are not numbers")
            rows = np.arange(len(ids) - 1)
            sums[name]["nll"] -= float(logp[rows, ids[1:]].sum(dtype=np.float64))
            if reference is None:
                reference = logp
            sums[name]["kl"] += float((np.exp(reference) * (reference - logp)).sum(dtype=np.float64))
            sums[name]["top1"] += float((logp.argmax(-1) == reference.argmax(-1)).sum())
        count += len(ids) - 1
        if not quiet and number % 50 == 49:
            so_far = ", ".join(f"{name} {np.exp(s['nll'] / count):.2f}" for name, s in sums.items())
            print(f"  {number + 1}/{len(runs)}: {so_far}", file=sys.stderr, flush=True)
    first = next(iter(sums.values()))
    return {
        name: {
            "perplexity": float(np.exp(s["nll"] / count)),
            "increase": float(np.exp((s["nll"] - first["nll"]) / count) - 1),
            "kl": s["kl"] / count,
            "top1": s["top1"] / count,
            "tokens": count,
            "tokens_per_s": count / s["seconds"],
        }
        for name, s in sums.items()
    }


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    ap.add_argument("--texts", type=int, default=300)
    ap.add_argument("--window", type=int)
    ap.add_argument("--tokenizer", type=Path)
    ap.add_argument("--threads", type=int)
    ap.add_argument("--peers", metavar="PYTHON")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    tokenizer = tokenizer_for(args.models, args.tokenizer)
    runs = [e.ids for e in tokenizer.encode_batch(texts(args.texts))]
    if args.window:
        joined = [i for ids in runs for i in ids]
        runs = [joined[at : at + args.window] for at in range(0, len(joined), args.window)]
    runs = [ids for ids in runs if len(ids) > 1]
    makers: dict[str, Callable[[Path], Logits]] = {
        ".edgec": lambda p: edgec_logits(p, args.threads),
        ".onnx": lambda p: onnxruntime_logits(p, args.threads),
        ".gguf": lambda p: llama_logits(p, args.peers, max(map(len, runs))),
    }
    if unknown := [str(m) for m in args.models if m.suffix not in makers]:
        ap.error(f"none of .edgec, .onnx, .gguf: {', '.join(unknown)}")
    result = measure({str(m): makers[m.suffix](m) for m in args.models}, runs)
    for name, r in result.items():
        print(
            f"{name}: perplexity {r['perplexity']:.3f} ({r['increase']:+.2%}), KL {r['kl']:.4f}, top1 {r['top1']:.1%}, "
            f"{r['tokens']} tokens, {r['tokens_per_s']:.0f}/s"
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
