"""Gathers whose indices are known, or count: slices of what they read; and functions of a small table's rows."""

from __future__ import annotations

import numpy as np

from edgec.ir.dims import is_ge
from edgec.ir.node import Node, constant
from edgec.ir.ops import OPS
from edgec.ir.types import INTS
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, i64, weights
from edgec.rewrites.movement import reshaped
from edgec.rewrites.pattern import Pattern, b, const, either, p, scalar_value, var

RULES: list[Rule] = []
TABLE = 1 << 16  # elements of a constant that is worth 8 bits where a gather reads it


def _along(node: Node, axis: int, start, size) -> Node:
    starts = tuple(start if i == axis else 0 for i in range(node.rank))
    sizes = tuple(size if i == axis else d for i, d in enumerate(node.shape))
    return b.slice(node, starts=starts, sizes=sizes, steps=(1,) * node.rank)


@rule(
    p.gather(var("x", where=lambda n: n.type.encoding is None), const("i", where=lambda n: n.shape in ((), (1,)))),
    examples=[
        lambda: b.gather(f32("x", 4, 3), constant(np.int64(-1)), axis=0),
        lambda: b.gather(f32("x", 4, 3), constant([2], "i64"), axis=1),
    ],
    misses=[
        lambda: b.gather(f32("x", 4), constant([1, 2], "i64"), axis=0),
        lambda: b.gather(f32("x", "s"), constant(np.int64(5)), axis=0),
    ],
    into=RULES,
)
def gather_of_one(m: Match):
    axis, index = m.root["axis"], scalar_value(m.i)
    dim = m.x.shape[axis]
    start = index if index >= 0 else dim + index
    if is_ge(start, 0) is not True or is_ge(dim, start + 1) is not True:
        return "the index may be outside"
    return reshaped(_along(m.x, axis, start, 1), m.root.shape)


def as_range(node: Node):
    """(start, size) of a node that counts up by one along its only axis that is not 1; None of another node."""
    if node.dtype not in INTS:
        return None
    if node.op == "iota":
        return 0, node["size"]
    if node.op == "reshape" and sum(d != 1 for d in node.shape) <= 1:
        return as_range(node.inputs[0])
    if node.op == "slice" and sum(d != 1 for d in node.inputs[0].shape) == 1:
        axis = next(i for i, d in enumerate(node.inputs[0].shape) if d != 1)
        inner = as_range(node.inputs[0])
        if inner and node["steps"][axis] == 1:
            return inner[0] + node["starts"][axis], node["sizes"][axis]
    if node.op == "add":
        for x, c in (node.inputs, node.inputs[::-1]):
            offset, inner = scalar_value(c), as_range(x)
            if inner and isinstance(offset, int) and node.shape == x.shape:
                return inner[0] + offset, inner[1]
    if node.op == "constant" and sum(d != 1 for d in node.shape) == 1:
        array = node["data"].array().reshape(-1)
        if array.size <= 1 << 16 and (np.diff(array.astype(np.int64)) == 1).all():
            return int(array[0]), array.size
    return None


@rule(
    p.gather(var("x", where=lambda n: n.type.encoding is None), var("i", where=lambda n: n.rank >= 1)),
    examples=[
        lambda: b.gather(weights(9, 2), b.reshape(b.iota(size=4), shape=(1, 4)), axis=0),
        lambda: b.gather(
            f32("x", 4, 9), b.slice(constant(np.arange(9)[None]), starts=(0, 2), sizes=(1, 5), steps=(1, 1)), axis=1
        ),
    ],
    misses=[
        lambda: b.gather(f32("x", 4), i64("i", 3), axis=0),
        lambda: b.gather(f32("x", 3), b.iota(size=4), axis=0),
    ],
    into=RULES,
)
def gather_of_range(m: Match):
    found, axis = as_range(m.i), m.root["axis"]
    if found is None:
        return "the indices are not a range"
    start, size = found
    if m.x.op == "constant" and np.prod(m.x.shape) >= TABLE:
        return "a large table stays one, that 8 bits may hold"
    if is_ge(start, 0) is not True or is_ge(m.x.shape[axis], start + size) is False:
        return "the range is outside"  # where it may be, the slice is checked at run time as the indices are
    return reshaped(_along(m.x, axis, start, size), m.root.shape)


def _counting_axis(node: Node, rank: int) -> int | None:
    """The axis along which a node counts 0, 1, 2, ... and is the same everywhere else."""
    while node.op == "expand" and node.inputs[0].rank == rank:
        node = node.inputs[0]
    found = as_range(node)
    if node.rank != rank or found is None or found[0] != 0:
        return None
    axes = [i for i, d in enumerate(node.shape) if d != 1]
    return axes[0] if len(axes) == 1 else None


def _grid(first: int, second: int, name: str = "x") -> Node:
    """[..., 2] indices that count the first axis of x[b, s] along one axis and the second along another."""
    size = {first: f32("x", "b").shape[0], second: f32("x", "s").shape[0]}
    shape = tuple(size.get(i, 1) for i in range(3))
    parts = []
    for axis in (first, second):
        counts = b.reshape(b.iota(size=size[axis]), shape=tuple(size[axis] if i == axis else 1 for i in range(3)))
        parts.append(b.reshape(b.expand(counts, shape=shape), shape=(*shape, 1)))
    return b.concat(*parts, axis=3)


@rule(
    p.gather_nd(var("x"), p.concat(name="grid"), batch_dims=0),
    examples=[lambda: b.gather_nd(f32("x", "b", "s"), _grid(0, 2))],
    misses=[
        lambda: b.gather_nd(f32("x", "b", "s"), _grid(2, 0)),
    ],
    into=RULES,
)
def gather_of_grid(m: Match):
    """Reading x[i, j] at all i and j in order is x; at fewer, a slice of it."""
    depth, rank = m.grid.shape[-1], m.grid.rank - 1
    if m.grid["axis"] != rank or len(m.grid.inputs) != depth or depth != m.x.rank:
        return "the indices are not one for each axis"
    axes: list[int] = []
    for part in m.grid.inputs:
        if part.op != "reshape" or part.shape != (*part.inputs[0].shape, 1):
            return "the indices are not ranges"
        axis = _counting_axis(part.inputs[0], rank)
        if axis is None:
            return "the indices are not ranges"
        axes.append(axis)
    if axes != sorted(set(axes)) or any(d != 1 for i, d in enumerate(m.root.shape) if i not in axes):
        return "the axes change places, or repeat"
    sizes = tuple(m.root.shape[a] for a in axes)
    if any(is_ge(d, n) is False for d, n in zip(m.x.shape, sizes)):
        return "an index is outside"
    cut = b.slice(m.x, starts=(0,) * depth, sizes=sizes, steps=(1,) * depth)
    return reshaped(m.x if m.x.shape == sizes else cut, m.root.shape)


_ROWS = p.gather(const("table"), var("i"), axis=0, name="rows").single()


@rule(
    either(
        Pattern(ops=tuple(name for name, op in OPS.items() if op.kind == "unary"), inputs=(_ROWS,)),
        p.op("add mul", _ROWS, const("c")),
    ),
    examples=[
        lambda: b.relu(b.gather(weights(5, 3), i64("i", "s"), axis=0)),
        lambda: b.add(b.gather(weights(5, 3), i64("i", 2, "s"), axis=0), weights(1, 1, 3)),
    ],
    misses=[
        lambda: b.relu(b.gather(f32("x", 5, 3), i64("i", "s"), axis=0)),
        lambda: b.add(b.gather(weights(5, 3), i64("i", 4), axis=0), weights(4, 1)),
    ],
    into=RULES,
)
def elementwise_on_table(m: Match):
    """A function of the rows read from a small table is a row read from the function of the table."""
    from edgec.rewrites.fold import const_node

    if int(np.prod(m.table.shape, dtype=np.int64)) > 1 << 18:
        return "the table is large"
    if m.get("c") is None:
        return b.gather(const_node(m.root.op, m.table, **m.root.attrs), m.i, axis=0)
    lead = m.c.rank - (m.table.rank - 1)
    if m.root.shape != m.rows.shape or any(d != 1 for d in m.c.shape[: max(lead, 0)]):
        return "the constant differs along the indices"
    c = const_node("reshape", m.c, shape=m.c.shape[lead:]) if lead > 0 else m.c
    return b.gather(const_node(m.root.op, m.table, c), m.i, axis=0)
