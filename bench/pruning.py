#!/usr/bin/env python3
"""What structured pruning gives and costs, without any training.

usage: python bench/pruning.py minilm  [--prune SPEC ...] [--texts 4000] [--weights int4] [--seed 0] [--json FILE]
       python bench/pruning.py smollm2 [--prune SPEC ...] [--texts 100] [--weights int4] [--distill FILE] [--json FILE]
       ... --folder F [--only quality | latency] [--threads N]

minilm: accuracy of a linear probe (logistic regression on mean-pooled sentence embeddings; the label is the sign of a movie
snippet's rating) on half of the texts, fitted to the other half, and latency of 16 and 128 tokens, batch 1. "transferred":
the probe that was fitted to the embeddings of the whole model. Calibration takes 1024 of the texts that probes are fitted
to, without labels. smollm2: perplexity of movie snippets and KL to fp32, and tokens a second behind 128 tokens; calibration
takes others, and --distill heals the pruned ones on texts of a file.
Latencies: the whole model and the pruned ones take turns in one process, medians. --folder keeps the artifacts, and takes
those that are there as they are: so --only latency can be had on a quiet machine later.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import edgec

sys.path.insert(0, str(Path(__file__).parent))
MODELS = Path(os.environ.get("EDGEC_MODELS", Path.home() / ".cache/edgec-models"))
SNIPPETS = MODELS / "movie-sentiment/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def snippets(seed: int) -> tuple[list[str], np.ndarray]:
    """Texts in random order, and whether each one's rating is positive."""
    rows = [line.split("\t") for line in SNIPPETS.read_text(encoding="utf-8", errors="replace").splitlines()]
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i][2] for i in order], np.array([float(rows[i][1]) > 0 for i in order])


def embed(session, tokenizer, texts: list[str]) -> np.ndarray:
    """Unit vectors [texts, hidden]."""
    tokenizer.enable_padding()
    tokenizer.enable_truncation(128)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found: dict[int, np.ndarray] = {}
    for at in range(0, len(order), 32):
        batch = order[at : at + 32]
        encoded = tokenizer.encode_batch([texts[i] for i in batch])
        ids = np.array([e.ids for e in encoded], np.int64)
        mask = np.array([e.attention_mask for e in encoded], np.int64)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        pooled = (session.run(None, feeds)[0] * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        found |= dict(zip(batch, pooled / np.linalg.norm(pooled, axis=1, keepdims=True)))
    return np.array([found[i] for i in range(len(texts))])


def probe(x: np.ndarray, labels: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """Weights of a logistic regression with a bias, by Newton's method."""
    x = _with_bias(x)
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (p - labels) / len(x) + ridge * w
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x / len(x) + ridge * np.eye(len(w)), gradient)
        w -= step
        if np.abs(step).max() < 1e-8:
            break
    return w


def _with_bias(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x * 10, np.ones((len(x), 1))], axis=1).astype(np.float64)


def accuracy(w: np.ndarray, x: np.ndarray, labels: np.ndarray) -> float:
    return float(((_with_bias(x) @ w > 0) == labels).mean())


def take_turns(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Milliseconds of each call: medians of calls that take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(t)) for name, t in times.items()}


def builds(args, model: Path, calib: Path, folder: Path) -> dict[str, tuple]:
    """Name -> (the artifact, seconds of its build or None)."""
    found = {}
    for spec in [None, *args.prune]:
        name, start = spec or "whole", time.perf_counter()
        out = folder / f"{name.replace('%', '').replace(',', '-')}.edgec"
        taken = out.exists()
        if not taken:
            healing = {"distill": args.distill} if spec and args.distill else {}
            edgec.build(model, weights=args.weights, prune=spec, calib=calib, out=out, **healing)
        seconds = None if taken else time.perf_counter() - start
        found[name] = (out, seconds)
        print(f"{name}: {'taken' if taken else f'built in {seconds:.0f} s'}", file=sys.stderr, flush=True)
    return found


def facts(found: tuple) -> dict:
    path, seconds = found
    report = edgec.load(path).manifest["report"]
    return {"artifact_mb": path.stat().st_size / 1e6, "build_s": seconds, "pruning": report.get("pruning"),
            "healing": report.get("healing")}  # fmt: skip


def minilm(args, folder: Path) -> dict:
    from tokenizers import Tokenizer

    model = MODELS / "minilm/model.onnx"
    tokenizer = Tokenizer.from_file(str(model.parent / "tokenizer.json"))
    texts, labels = snippets(args.seed)
    texts, labels, half = texts[: args.texts], labels[: args.texts], args.texts // 2
    calib = folder / "calib.txt"
    calib.write_text("\n".join(texts[: min(1024, half)]))
    found = builds(args, model, calib, folder)
    sessions = {name: edgec.load(path, threads=args.threads) for name, (path, _) in found.items()}
    result: dict[str, dict] = {name: facts(f) for name, f in found.items()}
    if args.only != "latency":
        embedded = {name: embed(session, tokenizer, texts) for name, session in sessions.items()}
        whole = embedded["whole"]
        first = probe(whole[:half], labels[:half])
        for name, e in embedded.items():
            result[name] |= {
                "accuracy": accuracy(probe(e[:half], labels[:half]), e[half:], labels[half:]),
                "transferred": accuracy(first, e[half:], labels[half:]),
                "cosine": float((e[half:] * whole[half:]).sum(1).mean()),
            }
    for tokens in (16, 128) if args.only != "quality" else ():
        ids = np.random.default_rng(0).integers(1000, 20000, (1, tokens))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        latency = take_turns({n: lambda s=s: s.run(None, feeds) for n, s in sessions.items()}, args.seconds)
        for name, ms in latency.items():
            result[name] |= {f"latency_{tokens}_ms": ms, f"speedup_{tokens}": latency["whole"] / ms}
    return result


def smollm2(args, folder: Path) -> dict:
    from perplexity import edgec_logits, measure, tokenizer_for

    model = MODELS / "smollm2/model.onnx"
    texts, _ = snippets(args.seed)
    calib = folder / "calib.txt"
    calib.write_text("\n".join(texts[args.texts : args.texts + 350]))
    found = builds(args, model, calib, folder)
    result: dict[str, dict] = {name: facts(f) for name, f in found.items()}
    if args.only != "latency":
        full = folder / "fp32.edgec"
        if not full.exists():
            edgec.build(model, weights="fp32", kv_cache="fp32", out=full)
        runs = [e.ids for e in tokenizer_for([model], None).encode_batch(texts[: args.texts])]
        joined = [i for ids in runs for i in ids]
        windows = [joined[at : at + 256] for at in range(0, len(joined), 256)]
        names = {
            name: edgec_logits(path, args.threads)
            for name, path in {"fp32": full} | {n: p for n, (p, _) in found.items()}.items()
        }
        for name, row in measure(names, [ids for ids in windows if len(ids) > 1], quiet=True).items():
            result.setdefault(name, {}).update(row)

    def decoding(session) -> Callable[[], object]:
        lm = session.manifest["lm"]
        past = np.arange(1, 129)[None]
        feeds = {lm["ids"]: past, lm["mask"]: np.ones((1, 128), np.int64), lm["positions"]: np.arange(128)[None]}
        token = {lm["ids"]: past[:, :1], lm["mask"]: np.ones((1, 129), np.int64), lm["positions"]: np.array([[128]])}
        session.reserve(1, 256)
        session.run(None, feeds, slots=[0], parameters={"logits": 1})

        def step():
            session.set_length(0, 128)
            return session.run(None, token, slots=[0], parameters={"logits": 1})

        return step

    if args.only != "quality":
        sessions = {name: edgec.load(path, threads=args.threads) for name, (path, _) in found.items()}
        latency = take_turns({n: decoding(s) for n, s in sessions.items()}, args.seconds)
        for name, ms in latency.items():
            result[name] |= {"ms_per_token": ms, "speedup": latency["whole"] / ms}
    return result


SPECS = {"minilm": ["ffn=50%,heads=33%"], "smollm2": ["layers=3,attention=10"]}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", choices=sorted(SPECS))
    ap.add_argument("--prune", nargs="+", metavar="SPEC")
    ap.add_argument("--texts", type=int)
    ap.add_argument("--weights", default="int4")
    ap.add_argument("--seconds", type=float, default=10.0, help="of latency measurements")
    ap.add_argument("--distill", type=Path, help="texts that the pruned models are healed on")
    ap.add_argument("--only", choices=("quality", "latency"))
    ap.add_argument("--threads", type=int, help="of runs; default as many as the machine has")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--folder", type=Path, help="where the artifacts stay")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    args.prune = args.prune or SPECS[args.model]
    args.texts = args.texts or {"minilm": 4000, "smollm2": 100}[args.model]
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.folder or Path(tmp)
        folder.mkdir(parents=True, exist_ok=True)
        result = {"minilm": minilm, "smollm2": smollm2}[args.model](args, folder)
    for name, row in result.items():
        shown = {k: v for k, v in row.items() if isinstance(v, float)}
        print(name, json.dumps({k: round(v, 4) for k, v in shown.items()}))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
