"""From the start of the process to a language model's first token, with the artifact in the page cache.

    python bench/cold_start.py lm.edgec [--tokens 16] [--runs 9] [--threads 2]

Each run is a process of its own: it imports edgec, loads the artifact (which imports numpy, while the weights are
checked) and runs one prompt of token ids (no tokenizer).
Medians in ms; memory is the largest resident size, the artifact's mapped pages among it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

PROGRAM = """
import sys, time
start = time.perf_counter()
import edgec, json, resource
path, tokens, threads, check = sys.argv[1], *map(int, sys.argv[2:])
imported = time.perf_counter()
session = edgec.load(path, threads=threads, check=bool(check))
loaded = time.perf_counter()
import numpy as np
lm = session.manifest["lm"]
ids = np.arange(tokens, dtype=np.int64)[None] % lm["vocab"]
feeds = {lm["ids"]: ids, lm["mask"]: np.ones_like(ids), lm["positions"]: np.arange(tokens, dtype=np.int64)[None]}
feeds.pop(None, None)
logits = session.run([lm["logits"]], feeds, parameters={"logits": 1} if lm["last"] else None)[0]
token = int(logits[0, -1].argmax())
done = time.perf_counter()
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"import": imported - start, "load": loaded - imported, "first run": done - loaded, "rss": rss}))
"""


def measure(path: pathlib.Path, tokens: int, threads: int, check: bool) -> dict[str, float]:
    """One process: ms of each part, "total" from outside up to the token, "rss" in MB."""
    start = time.perf_counter()
    args = [sys.executable, "-c", PROGRAM, str(path), str(tokens), str(threads), str(int(check))]
    child = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    line = child.stdout.readline()
    total = time.perf_counter() - start
    if child.wait() != 0:
        raise SystemExit(f"it failed: {path}")
    found = json.loads(line)
    rss = found.pop("rss") / 1e6
    parts = {name: 1e3 * seconds for name, seconds in found.items()}
    return {"start": 1e3 * total - sum(parts.values()), **parts, "total": 1e3 * total, "rss": rss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    size = options.artifact.stat().st_size / 1e6
    with open(options.artifact, "rb") as file:  # into the page cache
        while file.read(1 << 24):
            pass
    runs: dict[str, list[dict[str, float]]] = {"checked": [], "unchecked": []}
    for i in range(options.runs + 1):
        for name, check in (("checked", True), ("unchecked", False)):
            found = measure(options.artifact, options.tokens, options.threads, check)
            if i:
                runs[name].append(found)
    result = {n: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for n, rows in runs.items()}
    if options.json:
        print(json.dumps({"artifact_mb": size, "tokens": options.tokens, "threads": options.threads, **result}))
        return
    print(f"{options.artifact.name}: {size:.0f} MB, {options.tokens} tokens, {options.threads} threads")
    for name, row in result.items():
        print(f"{name:>10}: " + ", ".join(f"{k} {v:.0f}" for k, v in row.items()) + f" ({row['rss'] - size:+.0f}) MB")


if __name__ == "__main__":
    main()
