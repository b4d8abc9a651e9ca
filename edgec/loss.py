"""What a build lost: divergence of a language model's logits, and what each quantized weight alone does to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgec.calibrate.capture import Feeds, Stream, capture
from edgec.ir.dims import evaluate
from edgec.ir.evaluate import bind_symbols
from edgec.ir.node import Data, Graph, Node, make, topological
from edgec.ir.types import FLOATS, TensorType

Tick = Callable[[int, int], None]


class Divergence:
    """Sums over tokens, of windows of any number: KL, agreement, perplexity."""

    def __init__(self) -> None:
        self.tokens = self.predicted = 0
        self.kl = self.same = self.nll = self.source_nll = 0.0

    def add(self, got: np.ndarray, want: np.ndarray, ids: np.ndarray) -> None:
        """got, want: logits [batch, tokens, vocab] of the artifact and its source; ids [batch, tokens]."""
        for a, b, row in zip(got, want, ids, strict=True):
            p, q = _log_softmax(b), _log_softmax(a)
            self.kl += float((np.exp(p) * (p - q)).sum())
            self.same += int((p.argmax(-1) == q.argmax(-1)).sum())
            self.tokens += len(row)
            at = np.arange(len(row) - 1), row[1:]
            self.nll -= float(q[at].sum())
            self.source_nll -= float(p[at].sum())
            self.predicted += len(row) - 1

    def result(self) -> dict[str, float | int]:
        """kl: mean of KL(source || artifact) a token, in nats. top1: share of tokens with the same likeliest next one.
        ppl, source_ppl: perplexities of the text; ppl_increase: of 1."""
        n, m = max(self.tokens, 1), max(self.predicted, 1)
        ppl, source = float(np.exp(self.nll / m)), float(np.exp(self.source_nll / m))
        return {
            "tokens": self.tokens, "kl": self.kl / n, "top1": self.same / n, "ppl": ppl, "source_ppl": source,
            "ppl_increase": ppl / source - 1,
        }  # fmt: skip


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def outputs_in_stages(graph: Graph, feeds: Sequence[Feeds], tick: Tick = lambda done, total: None) -> list[Feeds]:
    """The graph's outputs for each feed, by its own kernels, a few layers' weights in memory at a time."""
    wanted = {name: n for name, n in graph.outputs if name not in {p for _, p in graph.states}}
    # products are where a stage may end
    ends = [n for n in topological(wanted.values()) if n.op == "linear" or n in wanted.values()]
    found: list[dict[str, np.ndarray]] = [{} for _ in feeds]
    names: dict[Node, list[str]] = {}
    for name, node in wanted.items():
        names.setdefault(node, []).append(name)

    def visit(node: Node, value: np.ndarray, number: int) -> None:
        for name in names.get(node, ()):
            found[number][name] = value

    capture(graph, ends, feeds, visit, tick=tick)
    return found


# --- what each weight alone does ---------------------------------------------------------------------------------------


def pairs(plain: Graph, quantized: Graph) -> dict[Any, tuple[Data, list[Node]]]:
    """Key of an encoded weight -> (it, the constants of `plain` that it stands for). Two graphs of one structure; where they
    differ, nothing is paired."""
    found: dict[Any, tuple[Data, list[Node]]] = {}
    seen: set[tuple[Node, Node]] = set()
    here = dict(plain.outputs)
    stack = [(here[name], n) for name, n in quantized.outputs if name in here]
    while stack:
        a, b = stack.pop()
        if a is b or (a, b) in seen:
            continue
        seen.add((a, b))
        if a.op == b.op == "constant":
            if b.type.encoding is not None and a.type.encoding is None and a.shape == b.shape:
                nodes = found.setdefault(b["data"].key, (b["data"], []))[1]
                nodes.extend([] if a in nodes else [a])
        elif a.op == b.op and len(a.inputs) == len(b.inputs):
            stack.extend((x, y) for x, y in zip(a.inputs, b.inputs) if x is not None and y is not None)
    return found


def _as_inputs(graph: Graph, constants: Iterable[Node]) -> tuple[Graph, dict[Node, str]]:
    """The graph with these constants as inputs, and their names."""
    names = {node: f"edgec.weight.{i}" for i, node in enumerate(constants)}
    image: dict[Node, Node] = {}
    for node in graph.nodes():
        if node in names:
            image[node] = make("input", name=names[node], type=TensorType(node.dtype, node.shape))
        else:
            image[node] = make(node.op, *(None if i is None else image[i] for i in node.inputs), **node.attrs)
    inputs = [image.get(n, n) for n in graph.inputs] + [image[n] for n in names if n in image]
    outputs = tuple((name, image[n]) for name, n in graph.outputs)
    return replace(graph, inputs=tuple(inputs), outputs=outputs), names


def sensitivities(
    plain: Graph, quantized: Graph, feed: Feeds, tick: Tick = lambda done, total: None
) -> Iterator[tuple[Any, float]]:
    """(key of an encoded weight, what it alone changes): its weights quantized and all else in fp32, the root mean square of
    the change of the float outputs by their own root mean square.

    plain: the graph that was quantized, as `rewrites.quantize.products` gives it. feed: one set of inputs. Raises EdgecError
    where the graph cannot be compiled.
    """
    found = pairs(plain, quantized)
    graph, names = _as_inputs(plain, [n for _, nodes in found.values() for n in nodes])
    kept = {present for _, present in graph.states}
    outputs = [n for name, n in graph.outputs if name not in kept and n.dtype in FLOATS]
    if not found or not outputs:
        return
    feeds = dict(feed) | {name: n["data"].array().astype(np.float32, copy=False) for n, name in names.items()}
    run = Stream(graph, [feeds]).call(outputs)
    base = run(feeds)
    scale = sum(_energy(b) for b in base)
    for number, (key, (data, nodes)) in enumerate(found.items()):
        changed = run(feeds | dict.fromkeys((names[n] for n in nodes), data.array().astype(np.float32, copy=False)))
        apart = sum(_energy(c.astype(np.float64) - b) for c, b in zip(changed, base))
        yield key, float(np.sqrt(apart / scale)) if scale > 0 else 0.0
        tick(number + 1, len(found))


def _energy(x: np.ndarray) -> float:
    """Sum of squares of what is finite."""
    x = x[np.isfinite(x)].astype(np.float64)
    return float(x @ x)


def cost(plain: Graph, quantized: Graph, feed: Feeds) -> int:
    """Multiply-accumulates of `sensitivities`: a run for each weight and one more."""
    from edgec.lower.legalize import macs

    env = bind_symbols(plain.inputs, feed)
    env |= {k: evaluate(d, env) for k, d in plain.parameters.items()}
    return (len(pairs(plain, quantized)) + 1) * sum(evaluate(macs(n), env) for n in plain.nodes())


__all__ = ["Divergence", "cost", "outputs_in_stages", "pairs", "sensitivities"]
