#!/usr/bin/env python3
"""How much of what quantization (and pruning) cost a model healing wins back, on data kept out of its training.

usage: python bench/healing.py MODEL DATA [--weights int4] [--prune SPEC] [--epochs 4] [--minutes 20] [--lr 0.004] [--seeds 1]
       [--length N] [--samples N] [--batch N]

MODEL: an ONNX file or folder. DATA: texts (.txt, .jsonl) or arrays, as edgec build --distill takes. A line for each seed: the
loss of each output against the source (kl of logits, 1 - cosine of vectors) before and after, and the share of it that is gone.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path

from edgec import rewrites
from edgec.calibrate import data
from edgec.calibrate import prune as pruning
from edgec.distill.heal import Options, heal
from edgec.distill.student import plain_graph
from edgec.frontend.folder import model_file, text_files
from edgec.rewrites import quantize as q
from edgec.rewrites import states


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path)
    ap.add_argument("data", type=Path)
    ap.add_argument("--weights", default="int4")
    ap.add_argument("--prune")
    ap.add_argument("--epochs", type=float, default=4.0)
    ap.add_argument("--minutes", type=float, default=20.0)
    ap.add_argument("--lr", type=float, default=4e-3)
    ap.add_argument("--seeds", type=int, default=1)
    for name in ("length", "samples", "batch"):
        ap.add_argument(f"--{name}", type=int)
    args = ap.parse_args()
    model = model_file(args.model)
    files = text_files(model)
    source = plain_graph(model, {})
    load = functools.partial(data.load, args.data, source, files)
    graph = source
    if args.prune:
        request = pruning.parse(args.prune, None)
        caches = {c.past["name"]: c.present for c in states.find(graph)}
        graph = rewrites.run(pruning.prune_model(graph, request, load, caches).graph, rewrites.PHASES)
    graph, lm, _ = rewrites.as_decoder(graph, "int8")
    if args.weights != "fp32":
        graph, _ = q.quantize(graph, q.Options(weights=args.weights))

    def tick(t) -> None:
        print(f"step {t.step}/{t.steps}, loss {t.mean_loss:.4f}, {t.left:.0f} s left", file=sys.stderr, flush=True)

    for seed in range(args.seeds):
        found = load(length=args.length, limit=args.samples, seed=seed)
        options = Options(epochs=args.epochs, minutes=args.minutes, lr=args.lr, batch=args.batch, seed=seed)
        _, report = heal(source, graph, found, options, tick)
        print(json.dumps({"seed": seed, "language_model": lm is not None, **report.to_dict()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
