#!/usr/bin/env python3
"""How much of what quantization (and pruning) cost a model healing wins back, on data kept out of its training.

usage: python bench/healing.py MODEL DATA [--weights int4] [--prune SPEC] [--epochs 4] [--minutes 20] [--lr 0.004] [--seeds 1]
       [--length N] [--samples N] [--batch N] [--weight-epochs 1] [--weight-lr 0.001] [--prune-samples N] [--keep FOLDER]
       [--perplexity N] [--following SHARE] [--calibrate N]

MODEL: an ONNX file or folder. DATA: texts (.txt, .jsonl) or arrays, as edgec build --distill takes. A line for each seed: the
loss of each output against the source (kl of logits, 1 - cosine of vectors) before and after, and the share of it that is gone.
Weights are rounded without data; with --calibrate, weights that have learned are fitted to N windows or texts of it, as in a
build. With --prune: "opened" is what pruning and rounding cost together, without any healing;
then all weights of the pruned model learn (--weight-...), are rounded, and learn on through the rounding, integers too.
--keep writes the graphs' weights. --perplexity: on the first N windows of 256 tokens of bench/perplexity.py's texts, which should
not be in DATA; KL and the share of tokens for which both prefer the same next one go with it.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import perplexity
import torch

from edgec import rewrites
from edgec.calibrate import data
from edgec.calibrate import prune as pruning
from edgec.calibrate.quantize import solve
from edgec.distill.heal import Options, _Narrower, gap, heal
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
    ap.add_argument("--vectors", type=float, default=1.0, help="learning rate of norms and biases, by --lr")
    ap.add_argument("--following", type=float, default=0.0, help="share of the loss that the text's next tokens have")
    ap.add_argument("--seeds", type=int, default=1)
    ap.add_argument("--weight-epochs", type=float, default=1.0)
    ap.add_argument("--weight-minutes", type=float, default=20.0)
    ap.add_argument("--weight-lr", type=float, default=1e-3)
    ap.add_argument("--calibrate", type=int, metavar="N")
    ap.add_argument("--perplexity", type=int, metavar="N")
    ap.add_argument("--keep", type=Path, metavar="FOLDER")
    for name in ("length", "samples", "batch", "prune-samples"):
        ap.add_argument(f"--{name}", type=int)
    args = ap.parse_args()
    model = model_file(args.model)
    files = text_files(model)
    source = plain_graph(model, {})
    load = functools.partial(data.load, args.data, source, files)
    pruned, test = None, windows(args, files) if args.perplexity else []
    if test:
        say(f"source: {judged(source, source, test)}")
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
        options = Options(
            epochs=args.epochs,
            minutes=args.minutes,
            lr=args.lr,
            batch=args.batch,
            seed=seed,
            vectors=args.vectors,
            following=args.following,
        )
        row: dict = {"seed": seed}
        graph = source
        if pruned is not None:
            small = rounded(pruned, args.weights)
            opened = gap(source, small, found, options)
            row["opened"] = opened
            if test:
                row["before"] = judged(source, small, test)
                say(f"pruned and rounded: {row['before']}")
            say(f"opened {opened}")
            more = replace(
                options,
                weights=True,
                vectors=1.0,
                epochs=args.weight_epochs,
                minutes=args.weight_minutes,
                lr=args.weight_lr,
            )
            graph, report = heal(source, pruned, found, more, tick)
            row["weights"] = report.to_dict()
            say(f"weights {row['weights']}")
            keep(args.keep, f"weights{seed}", graph)
        floats = None if pruned is None else whole(graph, args.weights)
        if pruned is not None:  # in another order: not those first that the weights know best
            options = replace(options, seed=seed + 1000)
        fitted = load(length=args.length, limit=args.calibrate, seed=seed) if args.calibrate else None
        graph, report = heal(source, rounded(graph, args.weights, fitted), found, options, tick, floats)
        row |= report.to_dict()
        if pruned is not None:
            row["closed"] = 1 - sum(report.after.values()) / sum(opened.values())
        if test:
            row["test"] = judged(source, graph, test)
        keep(args.keep, f"healed{seed}", graph)
        print(json.dumps(row), flush=True)
    return 0


def rounded(graph: Graph, weights: str, fitted: data.Calibration | None = None) -> Graph:
    graph, _, _ = rewrites.as_decoder(graph, "int8")
    if weights == "fp32":
        return graph
    options = q.Options(weights=weights)
    if fitted is not None:
        graph = q.products(graph, options)
        options = solve(graph, fitted, options, tick=lambda done, total: say(f"rounding {done / total:.0%}"))
    return q.quantize(graph, options)[0]


def whole(graph: Graph, weights: str) -> Graph | None:
    """A graph of the rounded one's structure with the weights as they were."""
    graph, _, _ = rewrites.as_decoder(graph, "int8")
    return None if weights == "fp32" else q.products(graph, q.Options(weights=weights))


def windows(args, files: dict[str, bytes]) -> list[list[int]]:
    """Ids of the texts that bench/perplexity.py takes, without those of the data."""
    from tokenizers import Tokenizer

    taken = {line.strip() for line in args.data.read_text(encoding="utf-8").splitlines()}
    chosen = perplexity.texts(300)
    if shared := sum(t.strip() in taken for t in chosen):
        say(f"{shared} of 300 texts to judge by are in {args.data}")
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    joined = [i for e in tokenizer.encode_batch(chosen) for i in e.ids]
    return [joined[at : at + 256] for at in range(0, args.perplexity * 256, 256)]


def judged(source: Graph, graph: Graph, test: list[list[int]]) -> dict[str, float]:
    """The perplexity of each and its increase, KL and top-1 agreement, in f32."""
    ports = [(n["name"], tuple(d if isinstance(d, int) else str(d) for d in n.shape), n.dtype) for n in source.inputs]
    ports = [(name, shape, {"i64": "int64", "i32": "int32", "f32": "float32"}[dtype]) for name, shape, dtype in ports]
    sums, pair = np.zeros(4), [_Narrower(g, {}) for g in (source, graph)]
    for ids in test:
        feeds = perplexity.feeds_for(ids, ports)
        with torch.no_grad():
            t, s = (torch.log_softmax(next(v for v in m(feeds)[0].values() if v.ndim == 3)[0, :-1], -1) for m in pair)
        at = torch.arange(len(ids) - 1), torch.tensor(ids[1:])
        same = (t.argmax(-1) == s.argmax(-1)).double()
        sums += [float(x.double().sum()) for x in (-t[at], -s[at], (t.exp() * (t - s)).sum(-1), same)]
    whole, ours, kl, same = sums / sum(len(ids) - 1 for ids in test)
    return {
        "source": math.exp(whole),
        "perplexity": math.exp(ours),
        "more": math.exp(ours - whole) - 1,
        "kl": kl,
        "top1": same,
    }


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
