"""Small helpers to write rules' examples with."""

from __future__ import annotations

from edgec.ir.dims import Dim, symbol, symbols_of
from edgec.ir.node import Graph, Node, constant, make, topological
from edgec.ir.types import TensorType


def value(dtype: str, name: str, *shape: Dim | str) -> Node:
    """A graph input; a dim given as a text is a symbol."""
    dims = tuple(symbol(d) if isinstance(d, str) else d for d in shape)
    return make("input", name=name, type=TensorType(dtype, dims))


def f32(name: str, *shape: Dim | str) -> Node:
    return value("f32", name, *shape)


def i64(name: str, *shape: Dim | str) -> Node:
    return value("i64", name, *shape)


def weights(*shape: int, seed: int = 0, scale: float = 1.0) -> Node:
    """A constant of normal numbers."""
    import numpy as np

    return constant((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32))


def num(x: float) -> Node:
    """An f32 scalar."""
    return constant(x, "f32")


def graph_of(*roots: Node, name: str = "g") -> Graph:
    """The graph of these outputs: y0, y1, ...; its inputs in order of appearance, symbols of at least 1.

    A symbol that no input has gets an unused input of that size."""
    nodes = topological(roots)
    inputs = [n for n in nodes if n.op == "input"]
    known = set().union(*(symbols_of(d) for i in inputs for d in i.shape))
    used = set().union(known, *(symbols_of(d) for n in nodes if isinstance(n.type, TensorType) for d in n.shape))
    used = used.union(*(symbols_of(n["value"]) for n in nodes if n.op == "dim_value"))
    inputs += [f32(f"size_{s}", s) for s in sorted(used - known)]
    return Graph(tuple(inputs), tuple((f"y{i}", r) for i, r in enumerate(roots)), {s: (1, None) for s in used}, name)
