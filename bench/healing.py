#!/usr/bin/env python3
"""How much of what quantization (and pruning) cost a model healing wins back, on data kept out of its training.

usage: python bench/healing.py MODEL DATA [--weights int4] [--prune SPEC] [--epochs 4] [--minutes 20] [--lr 0.004] [--seeds 1]
       [--length N] [--samples N] [--batch N] [--weight-epochs 1] [--weight-lr 0.003] [--prune-samples N] [--keep FOLDER]

MODEL: an ONNX file or folder. DATA: texts (.txt, .jsonl) or arrays, as edgec build --distill takes. A line for each seed: the
loss of each output against the source (kl of logits, 1 - cosine of vectors) before and after, and the share of it that is gone.
Weights are rounded without data. With --prune: "opened" is what pruning and rounding cost together, without any healing;
then all weights of the pruned model learn (--weight-...), are rounded, and learn on through the rounding, integers too.
--keep writes the graphs' weights.
"""

from __future__ import annotations

import argparse
import functools
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

from edgec import rewrites
from edgec.calibrate import data
from edgec.calibrate import prune as pruning
from edgec.distill.heal import Options, gap, heal
from edgec.distill.student import plain_graph
from edgec.frontend.folder import model_file, text_files
from edgec.ir.node import Graph
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
    ap.add_argument("--weight-epochs", type=float, default=1.0)
    ap.add_argument("--weight-minutes", type=float, default=20.0)
    ap.add_argument("--weight-lr", type=float, default=3e-3)
    ap.add_argument("--keep", type=Path, metavar="FOLDER")
    for name in ("length", "samples", "batch", "prune-samples"):
        ap.add_argument(f"--{name}", type=int)
    args = ap.parse_args()
    model = model_file(args.model)
    files = text_files(model)
    source = plain_graph(model, {})
    load = functools.partial(data.load, args.data, source, files)
    pruned = None
    if args.prune:
        request = pruning.parse(args.prune, None)
        caches = {c.past["name"]: c.present for c in states.find(source)}
        few = functools.partial(load, length=args.length, limit=args.prune_samples)
        found = pruning.prune_model(
            source, request, few, caches, tick=lambda done, total: say(f"pruning {done}/{total}")
        )
        say(f"dropped {found.dropped}, removed {found.removed}")
        pruned = rewrites.run(found.graph, rewrites.PHASES)
    for seed in range(args.seeds):
        found = load(length=args.length, limit=args.samples, seed=seed)
        options = Options(epochs=args.epochs, minutes=args.minutes, lr=args.lr, batch=args.batch, seed=seed)
        row: dict = {"seed": seed}
        graph = source
        if pruned is not None:
            opened = gap(source, rounded(pruned, args.weights), found, options)
            row["opened"] = opened
            say(f"opened {opened}")
            more = replace(
                options, weights=True, epochs=args.weight_epochs, minutes=args.weight_minutes, lr=args.weight_lr
            )
            graph, report = heal(source, pruned, found, more, tick)
            row["weights"] = report.to_dict()
            say(f"weights {row['weights']}")
            keep(args.keep, f"weights{seed}", graph)
        floats = None if pruned is None else whole(graph, args.weights)
        graph, report = heal(source, rounded(graph, args.weights), found, options, tick, floats)
        row |= report.to_dict()
        if pruned is not None:
            row["closed"] = 1 - sum(report.after.values()) / sum(opened.values())
        keep(args.keep, f"healed{seed}", graph)
        print(json.dumps(row), flush=True)
    return 0


def rounded(graph: Graph, weights: str) -> Graph:
    graph, _, _ = rewrites.as_decoder(graph, "int8")
    return graph if weights == "fp32" else q.quantize(graph, q.Options(weights=weights))[0]


def whole(graph: Graph, weights: str) -> Graph | None:
    """A graph of the rounded one's structure with the weights as they were."""
    graph, _, _ = rewrites.as_decoder(graph, "int8")
    return None if weights == "fp32" else q.products(graph, q.Options(weights=weights))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def tick(t) -> None:
    if t.step % 5 == 0:
        say(f"step {t.step}/{t.steps}, loss {t.mean_loss:.4f}, {t.left:.0f} s left")


def keep(folder: Path | None, name: str, graph: Graph) -> None:
    """The graph's constants in order, and its text."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.pickle", "wb") as f:
            pickle.dump([(n["data"].type, n["data"].parts()) for n in graph.nodes() if n.op == "constant"], f)


if __name__ == "__main__":
    sys.exit(main())
