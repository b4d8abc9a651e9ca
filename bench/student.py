#!/usr/bin/env python3
"""The students of examples/sentiment beside their teacher: accuracy on the test texts, and latency in turns with onnxruntime.

usage: python bench/student.py [--work build/sentiment] [--tokens 16,28] [--threads 1,2] [--seconds 4] [--json]

Run `python examples/sentiment/make.py --seeds 3` before. Accuracy: of the fp32 teacher in onnxruntime and of each seed's
artifact, with the mean and the spread (sample deviation) of the share of the teacher's. Latency: median milliseconds of one
text of so many tokens, teacher and first student taking turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples/sentiment"))  # before bench, which has a models.py too
import make  # noqa: E402

import edgec  # noqa: E402


def accuracies(work: Path, seeds: list[Path]) -> dict:
    test = make.movie_texts()[1]
    tokenizer = make.tokenizer_of
    teacher = make.accuracy(make.by_onnxruntime(work / "teacher/model.onnx"), tokenizer(work / "teacher"), test)
    found = [make.accuracy(make.by_edgec(s / "sentiment.edgec"), tokenizer(s / "packed"), test) for s in seeds]
    shares = [a / teacher for a in found]
    spread = statistics.stdev(shares) if len(shares) > 1 else 0.0
    return {"texts": len(test), "teacher": teacher, "students": dict(zip([s.name for s in seeds], found)),
            "share_mean": statistics.mean(shares), "share_spread": spread, "share_least": min(shares)}  # fmt: skip


def latency(teacher: Path, artifact: Path, tokens: int, threads: int, seconds: float) -> dict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    peer = onnxruntime.InferenceSession(str(teacher), options, providers=["CPUExecutionProvider"])
    ours = edgec.load(artifact, threads=threads)
    ids = np.full((1, tokens), 200, np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    runs = {
        "teacher_ms": lambda: peer.run(["logits"], feeds | {"token_type_ids": np.zeros_like(ids)}),
        "student_ms": lambda: ours.run(["logits"], feeds),
    }
    took: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in runs.items():
            time.sleep(0.1)  # until the threads of the other no longer spin: onnxruntime's do for more than 20 ms
            for i in range(25):
                start = time.perf_counter()
                run()
                if i >= 5:
                    took[name].append(time.perf_counter() - start)
    found = {name: statistics.median(t) * 1e3 for name, t in took.items()}
    times = found["teacher_ms"] / found["student_ms"]
    return {"tokens": tokens, "threads": threads} | found | {"times_faster": times}


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--work", type=Path, default=ROOT / "build/sentiment")
    ap.add_argument("--tokens", default="16,28")
    ap.add_argument("--threads", default="1,2")
    ap.add_argument("--seconds", type=float, default=4.0, help="of each latency; 0: none")
    ap.add_argument("--no-accuracy", action="store_true")
    ap.add_argument("--json", action="store_true")
    args = ap.parse_args()
    seeds = sorted(p.parent for p in args.work.glob("seed*/sentiment.edgec"))
    if not seeds:
        print(f"no students in {args.work}: run python examples/sentiment/make.py first", file=sys.stderr)
        return 1
    result: dict = {"bytes": (seeds[0] / "sentiment.edgec").stat().st_size}
    if not args.no_accuracy:
        result["accuracy"] = accuracies(args.work, seeds)
    result["latency"] = [
        latency(args.work / "teacher/model.onnx", seeds[0] / "sentiment.edgec", tokens, threads, args.seconds)
        for threads in map(int, args.threads.split(","))
        for tokens in map(int, args.tokens.split(","))
        if args.seconds
    ]
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    if a := result.get("accuracy"):
        students = ", ".join(f"{v:.1%}" for v in a["students"].values())
        print(f"accuracy on {a['texts']} texts: teacher {a['teacher']:.1%}, students {students}")
        print(
            f"of the teacher's: {a['share_mean']:.1%} in the mean, {a['share_spread']:.1%} apart, {a['share_least']:.1%} at least"
        )
    for row in result["latency"]:
        print(f"{row['tokens']} tokens, {row['threads']} threads: teacher {row['teacher_ms']:.2f} ms, "
              f"student {row['student_ms']:.2f} ms, {row['times_faster']:.1f} times faster")  # fmt: skip
    print(f"artifact: {result['bytes'] / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
