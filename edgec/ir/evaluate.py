"""Runs a graph with the ops' numpy references: the oracle of everything that is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgec.ir.dims import Dim, Expr, evaluate, symbol_name, symbols_of
from edgec.ir.node import Graph, Node
from edgec.ir.ops import OPS
from edgec.ir.types import numpy_dtype


class FeedError(ValueError):
    """Inputs that do not fit the graph."""


def bind_symbols(inputs: tuple[Node, ...], feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes of the symbols that the inputs' shapes fix. Raises FeedError where a shape does not fit."""
    env: dict[str, int] = {}
    later: list[tuple[str, int, Dim, int]] = []
    for node in inputs:
        name = node["name"]
        if name not in feeds:
            raise FeedError(f"input {name!r} is missing")
        shape = np.shape(feeds[name])
        if len(shape) != node.rank:
            raise FeedError(f"input {name!r} has rank {len(shape)}, expected {node.type}")
        for axis, (want, got) in enumerate(zip(node.shape, shape)):
            sym = symbol_name(want)
            if sym is not None and sym not in env:
                env[sym] = got
            else:
                later.append((name, axis, want, got))
    for name, axis, want, got in later:
        if symbols_of(want) <= env.keys() and evaluate(want, env) != got:
            raise FeedError(f"input {name!r}: axis {axis} is {got}, expected {want} = {evaluate(want, env)}")
    return env


def bind_attrs(attrs: Mapping, env: Mapping[str, int]) -> dict:
    def bind(value):
        if isinstance(value, Expr):
            return evaluate(value, env)
        return tuple(bind(v) for v in value) if isinstance(value, tuple) else value

    return {k: bind(v) for k, v in attrs.items()}


class Evaluator:
    """Evaluates nodes on demand and keeps what it computed; `values` maps node -> array (or tuple of arrays)."""

    def __init__(self, feeds: Mapping[str, np.ndarray], env: Mapping[str, int]):
        self.feeds, self.env = feeds, env
        self.values: dict[Node, np.ndarray | tuple] = {}

    def __call__(self, root: Node):
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.values:
                stack.pop()
                continue
            missing = [n for n in self._needed(node) if n not in self.values]
            if missing:
                stack.extend(reversed(missing))
                continue
            self.values[node] = self._compute(node)
            stack.pop()
        return self.values[root]

    def _needed(self, node: Node) -> list[Node]:
        if node.op != "branch":
            return list(node.operands())
        pred, a, b = node.operands()
        return [pred] if pred not in self.values else [a if self.values[pred] else b]

    def _compute(self, node: Node):
        if node.op == "input":
            return np.asarray(self.feeds[node["name"]], dtype=numpy_dtype(node.dtype))
        if node.op == "branch":
            pred, a, b = node.operands()
            return self.values[a if self.values[pred] else b]
        args = [None if i is None else self.values[i] for i in node.inputs]
        return OPS[node.op].reference(*args, **bind_attrs(node.attrs, self.env))


def run(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    watch: Callable[[Node, object], None] | None = None,
    parameters: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """The graph's outputs by name. watch(node, value) sees every value that was computed."""
    env = bind_symbols(graph.inputs, feeds)
    for name, default in graph.parameters.items():
        env[name] = (parameters or {}).get(name, evaluate(default, env))
    evaluator = Evaluator(feeds, env)
    outputs = {name: evaluator(node) for name, node in graph.outputs}
    if watch:
        for node, value in evaluator.values.items():
            watch(node, value)
    return outputs
