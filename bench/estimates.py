#!/usr/bin/env python3
"""Estimated latency beside the measured one, on this machine: whole models, and decode and prefill of language models.

usage: python bench/estimates.py [--models minilm,...] [--weights int4,fp32] [--threads 1,2] [--lm FOLDER,...] [--keep DIR]
       [--json FILE]

First the rates of this machine are measured (`edgec doctor --measure` does the same), then each model is built, estimated
and run: the median of its calls after 0.1 s of warming up, in three rounds over all models. --json keeps each step's work,
estimate and measurement, which is what the shares of edgec/rates.py are fitted to: the same table for all models.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models import MODELS, ROWS

import edgec
from edgec import estimate, rates, targets
from edgec.compiler import Build, Options, estimate_cases
from edgec.ir.dims import symbol_name
from edgec.lower import cost

ROUNDS, SECONDS = 3, 0.12


def sizes(graph, feeds: dict) -> dict[str, int]:
    """The symbols' sizes for these inputs."""
    found = {}
    for n in graph.inputs:
        for dim, size in zip(n.shape, feeds[n["name"]].shape) if n["name"] in feeds else ():
            found |= {s: size for s in (symbol_name(dim),) if s is not None}
    return found


def models(names: list[str], weights: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each model, kind of weights and input, with the work of its steps."""
    for name in names:
        file, cases = ROWS[name]
        if not (MODELS / file).exists():
            print(f"left out: {name}: there is no {MODELS / file}")
            continue
        for w in weights:
            job = Build(Options(weights=w))
            job.load(MODELS / file)
            job.rewrite()
            job.quantize()
            low = job.lower()
            path = folder / f"{name}-{w}.edgec"
            job.write(path)
            costs = list(cost.steps(low.assembled, low.graph))
            for label, make in cases.items():
                feeds = make()
                dims = sizes(low.graph, feeds)
                work = [c.at(dims) for c in costs]
                yield {
                    "model": f"{name} {w}, {label}",
                    "path": path,
                    "feeds": feeds,
                    "work": work,
                    "us": {},
                    "steps": {},
                }


def language_models(folders: list[Path], weights: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    for source in folders:
        for w in weights:
            out = folder / f"{source.name}-{w}.edgec"
            job = Build(Options(weights=w, max_context=1024))
            from edgec.frontend.folder import model_file, text_files

            file = model_file(source)
            job.files = text_files(file, "none")
            job.load(file)
            job.rewrite()
            job.quantize()
            low = job.lower()
            job.write(out)
            costs = list(cost.steps(low.assembled, low.graph))
            for case, dims, tokens in estimate_cases(low.graph, job.lm, {}):
                work = [c.at(dims) for c in costs]
                yield {"model": f"{source.name} {w}, {case}", "path": out, "case": case, "tokens": tokens, "work": work,
                       "us": {}, "steps": {}}  # fmt: skip


def measure(row: dict[str, Any], threads: int) -> list[float]:
    """Microseconds of some calls."""
    session = edgec.load(row["path"], threads=threads, check=False)
    if "feeds" in row:
        feeds = row["feeds"]

        def call() -> float:
            start = time.perf_counter()
            session.run(None, feeds)
            return time.perf_counter() - start
    else:
        from edgec.cli.bench_lm import _ids, decode_rates, prefill_rates

        ids = _ids(session, 128, 0)

        def call() -> float:
            if row["case"] == "decode":
                return 1 / decode_rates(session, ids, 16, 1)[0]
            return 128 / prefill_rates(session, ids, 1)[0]

    end, times = time.perf_counter() + 0.1, []
    while time.perf_counter() < end:
        call()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 3:
        times.append(call() * 1e6)
    if "feeds" in row and threads not in row["steps"]:
        seen = [session.profile(row["feeds"])[1] for _ in range(6)][1:]
        row["steps"][threads] = [statistics.median(s.microseconds for s in of_one) for of_one in zip(*seen)]
    return times


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--models", default=",".join(ROWS))
    ap.add_argument("--weights", default="int4,fp32")
    ap.add_argument("--threads", default="1,2")
    ap.add_argument("--lm", default=str(MODELS / "smollm2"))
    ap.add_argument("--keep", type=Path, help="build into this folder")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    counts = [int(t) for t in args.threads.split(",")]
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.keep or Path(tmp)
        weights = args.weights.split(",")
        rows = list(models([m for m in args.models.split(",") if m], weights, folder))
        rows += language_models([Path(p) for p in args.lm.split(",") if p], ["int4"], folder)
        rates.forget()
        machine = {t: rates.of(targets.load("host"), t, measure_now=True) for t in counts}
        for _ in range(ROUNDS):
            for row in rows:
                for t in counts:
                    row["us"].setdefault(t, []).extend(measure(row, t))
    print("| model | threads | estimate | measured | ratio |")
    print("|---|---|---|---|---|")
    ratios = []
    for row in rows:
        for t in counts:
            guess, real = estimate.estimate(row["work"], machine[t]).latency_us, statistics.median(row["us"][t])
            ratios.append(guess / real)
            print(f"| {row['model']} | {t} | {guess / 1e3:.3f} ms | {real / 1e3:.3f} ms | {guess / real:.2f} |")
    inside = sum(0.75 <= r <= 1.25 for r in ratios)
    print(f"\n{inside} of {len(ratios)} within 25%; from {min(ratios):.2f} to {max(ratios):.2f}")
    if args.json:
        plain = [{**r, "path": str(r["path"]), "feeds": None, "work": [w.__dict__ for w in r["work"]]} for r in rows]
        known = {t: m.__dict__ for t, m in machine.items()}
        args.json.write_text(json.dumps({"rates": known, "rows": plain}))


if __name__ == "__main__":
    main()
