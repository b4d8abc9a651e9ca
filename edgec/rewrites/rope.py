"""Rotary position embedding as one op, from the arithmetic that exporters write."""

from __future__ import annotations

import numpy as np

from edgec.ir.node import Node, make
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32
from edgec.rewrites.fold import const_node
from edgec.rewrites.movement import reshaped
from edgec.rewrites.pattern import b, either, p, scalar_value, var

RULES: list[Rule] = []
_SWAP = (0, 2, 1, 3)
TABLE = 1 << 26  # elements of a table that is compared


def half_of(node: Node) -> Node | None:
    """The first half of a node's last axis, where the second half is known to be the same."""
    width = node.shape[-1] if node.rank else None
    if not isinstance(width, int) or width % 2 or not width:
        return None
    half = width // 2
    op = node.op
    if op == "concat" and node["axis"] == node.rank - 1 and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    if op == "constant":
        if node.type.encoding or np.prod(node.shape) > TABLE:
            return None
        array = node["data"].array()
        return _cut(node, half) if (array[..., :half] == array[..., half:]).all() else None
    if op in ("cos", "sin", "cast", "neg"):
        inner = half_of(node.inputs[0])
        return None if inner is None else make(op, inner, **node.attrs)
    if op in ("reshape", "expand") and node.inputs[0].rank and node.inputs[0].shape[-1] == width:
        inner = half_of(node.inputs[0])
        return None if inner is None else make(op, inner, shape=(*node.shape[:-1], half))
    if op == "gather" and node["axis"] == 0 and node.inputs[0].rank == 2 and node.inputs[1].rank >= 1:
        inner = half_of(node.inputs[0])
        return None if inner is None else make(op, inner, node.inputs[1], axis=0)
    if op == "slice" and node.inputs[0].shape[-1] == width:
        inner = half_of(node.inputs[0])
        return None if inner is None else b.slice(
            inner, starts=node["starts"], sizes=(*node["sizes"][:-1], half), steps=node["steps"]
        )  # fmt: skip
    if op == "mul":
        for x, c in (node.inputs, node.inputs[::-1]):
            if scalar_value(c) is not None and x.shape == node.shape and (inner := half_of(x)) is not None:
                return b.mul(inner, c)
    return None


def _cut(node: Node, half: int) -> Node:
    sizes = (*node.shape[:-1], half)
    return const_node("slice", node, starts=(0,) * node.rank, sizes=sizes, steps=(1,) * node.rank)


def _angles(node: Node, x: Node, steps_axis: int) -> Node | None:
    """[b or 1, s, r] of half a table that broadcasts to x [b, h, s, d] (steps_axis 2) or [b, s, h, d] (1)."""
    half = half_of(node)
    if half is None or node.shape[-1] != x.shape[-1]:
        return None
    shape = (1,) * (4 - half.rank) + half.shape
    if shape[3 - steps_axis] != 1 or shape[steps_axis] != x.shape[steps_axis] or shape[0] not in (1, x.shape[0]):
        return None
    return reshaped(half, (shape[0], shape[steps_axis], shape[3]))


def _turned(last: int = 8, swapped: bool = True, other: bool = False, same: bool = True):
    def build():
        shape = (2, 3, "s", last) if swapped else (2, "s", 3, last)
        x = f32("x", *shape)
        half, sizes = last // 2, (*x.shape[:3], last // 2)
        low, high = (b.slice(x, starts=(0, 0, 0, i), sizes=sizes, steps=(1,) * 4) for i in (0, half))
        turned = b.concat(b.neg(low if other else high), high if other else low, axis=3)
        angles = f32("angles", 2, "s", half)
        both = b.concat(angles, angles if same else f32("more", 2, "s", half), axis=2)
        place = (2, 1, angles.shape[1], last) if swapped else (2, angles.shape[1], 1, last)
        cos, sin = (b.reshape(getattr(b, f)(both), shape=place) for f in ("cos", "sin"))
        return b.add(b.mul(x, cos), b.mul(turned, sin))

    return build


@rule(
    p.add(
        p.mul(var("x", where=lambda n: n.rank == 4), var("cos")),
        p.mul(p.concat(p.neg(p.slice(var("x"), name="high")), p.slice(var("x"), name="low"), axis=3), var("sin")),
    ),
    promise="ulp:4",
    examples=[_turned(), _turned(6, swapped=False)],
    misses=[_turned(other=True), _turned(same=False)],
    into=RULES,
)
def rotate_half(m: Match):
    x, size = m.x, m.x.shape[3]
    if not isinstance(size, int) or size % 2 or m.root.shape != x.shape:
        return "the heads have no two halves"
    whole = (*x.shape[:3], size // 2)
    for part, start in ((m.low, 0), (m.high, size // 2)):
        if part["starts"] != (0, 0, 0, start) or part["sizes"] != whole or part["steps"] != (1, 1, 1, 1):
            return "the parts are not the halves"
    for axis in (2, 1):
        cos, sin = (_angles(t, x, axis) for t in (m.cos, m.sin))
        if cos is None or sin is None or not isinstance(x.shape[3 - axis], int):
            continue
        y = b.transpose(x, perm=_SWAP) if axis == 2 else x
        heads = y.shape[2]
        flat = b.reshape(y, shape=(*y.shape[:2], heads * size))
        y = b.rope(flat, cos, sin, heads=heads, dim=size)
        return b.transpose(y, perm=_SWAP) if axis == 2 else y
    return "the angles are not one a step"


def _roped(start: int = 0, rest: int = 0, width: int = 24, dim: int = 8, shift: int = 0):
    def build():
        x = f32("x", 2, "s", width)
        steps = x.shape[1]
        cos, sin = f32("cos", 2, "s", dim // 2), f32("sin", 2, "s", dim // 2)
        if not rest:
            cut = b.slice(x, starts=(0, 0, start), sizes=(2, steps, 2 * dim), steps=(1, 1, 1))
            return b.rope(cut, cos, sin, heads=2, dim=dim)
        heads = b.reshape(x, shape=(2, steps, width // (dim + rest), dim + rest))
        count = width // (dim + rest)
        first = b.slice(heads, starts=(0,) * 4, sizes=(2, steps, count, dim), steps=(1,) * 4)
        last = b.slice(heads, starts=(0, 0, 0, dim - shift), sizes=(2, steps, count, rest), steps=(1,) * 4)
        y = b.rope(b.reshape(first, shape=(2, steps, count * dim)), cos, sin, heads=count, dim=dim)
        return b.concat(y, last, axis=3)

    return build


@rule(
    p.rope(p.slice(var("x"), name="cut"), var("cos"), var("sin"), name="rope"),
    examples=[_roped(4)],
    misses=[lambda: b.rope(b.slice(f32("x", 2, 5, 8), starts=(0, 1, 0), sizes=(2, 3, 8), steps=(1, 1, 1)),
                           f32("cos", 2, 3, 4), f32("sin", 2, 3, 4), heads=1, dim=8)],
    into=RULES,
)  # fmt: skip
def rope_of_columns(m: Match):
    """Read in place: columns of queries or keys beside each other."""
    cut = m.cut
    if cut["sizes"][:2] != m.x.shape[:2] or cut["starts"][:2] != (0, 0) or cut["steps"] != (1, 1, 1):
        return "it cuts more than columns"
    return b.rope(m.x, m.cos, m.sin, **(dict(m.rope.attrs) | {"start": m.rope["start"] + cut["starts"][2]}))


@rule(
    p.concat(
        p.rope(either(p.reshape(p.slice(var("x"), name="first")), p.slice(var("x"), name="first")), var("cos"),
               var("sin"), start=0, name="rope"),
        p.slice(var("x"), name="last"), axis=3,
    ),
    examples=[_roped(rest=4)],
    misses=[_roped(rest=4, shift=1)],
    into=RULES,
)  # fmt: skip
def partial_rope(m: Match):
    """Heads of which only the first numbers turn."""
    x, dim, heads = m.x, m.rope["dim"], m.rope["heads"]
    if x.rank != 4 or x.shape[2] != heads or m.root.shape != x.shape or m.first.rank != 4:
        return "the rest is not of the same heads"
    for part, start, size in ((m.first, 0, dim), (m.last, dim, x.shape[3] - dim)):
        if part["starts"] != (0, 0, 0, start) or part["sizes"] != (*x.shape[:3], size) or part["steps"] != (1,) * 4:
            return "the parts are not the heads'"
    flat = b.reshape(x, shape=(*x.shape[:2], heads * x.shape[3]))
    return b.rope(flat, m.cos, m.sin, **(dict(m.rope.attrs) | {"dim": x.shape[3]}))
