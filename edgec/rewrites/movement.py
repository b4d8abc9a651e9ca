"""Identities of ops that move data."""

from __future__ import annotations

import numpy as np

from edgec.ir.node import Node, constant, make
from edgec.ir.ops import OPS
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, i64, value
from edgec.rewrites.pattern import Pattern, b, optional, p, scalar_value, var

RULES: list[Rule] = []


def reshaped(x: Node, shape) -> Node:
    return x if x.shape == tuple(shape) else b.reshape(x, shape=shape)


@rule(
    p.op("reshape expand", var("x")),
    examples=[
        lambda: b.reshape(f32("x", 2, "s"), shape=f32("x", 2, "s").shape),
        lambda: b.expand(f32("x", 3), shape=(3,)),
    ],
    misses=[lambda: b.reshape(f32("x", 2, 3), shape=(3, 2)), lambda: b.expand(f32("x", 1), shape=(3,))],
    into=RULES,
)
def same_shape(m: Match):
    return m.x if m.x.shape == m.root.shape else "another shape"


@rule(
    p.reshape(p.reshape(var("x"))),
    examples=[lambda: b.reshape(b.reshape(f32("x", 2, 3), shape=(6,)), shape=(3, 2))],
    into=RULES,
)
def reshape_of_reshape(m: Match):
    return reshaped(m.x, m.root.shape)


@rule(
    p.transpose(p.transpose(var("x"), name="inner")),
    examples=[lambda: b.transpose(b.transpose(f32("x", 2, 3, 4), perm=(1, 2, 0)), perm=(2, 1, 0))],
    into=RULES,
)
def transpose_of_transpose(m: Match):
    perm = tuple(m.inner["perm"][i] for i in m.root["perm"])
    return m.x if perm == tuple(range(len(perm))) else b.transpose(m.x, perm=perm)


@rule(
    p.transpose(var("x")),
    examples=[lambda: b.transpose(f32("x", 2, 1, 3), perm=(1, 0, 2)), lambda: b.transpose(f32("x", 2, 3), perm=(0, 1))],
    misses=[lambda: b.transpose(f32("x", 2, 1, 3), perm=(2, 1, 0))],
    into=RULES,
)
def transpose_that_moves_nothing(m: Match):
    real = [i for i in m.root["perm"] if m.x.shape[i] != 1]
    return reshaped(m.x, m.root.shape) if real == sorted(real) else "it moves data"


@rule(
    p.expand(p.expand(var("x"))),
    examples=[lambda: b.expand(b.expand(f32("x", 3), shape=(2, 3)), shape=(4, 2, 3))],
    into=RULES,
)
def expand_of_expand(m: Match):
    return b.expand(m.x, shape=m.root.shape)


_BROADCASTING = tuple(name for name, op in OPS.items() if op.kind in ("binary", "elementwise"))


@rule(
    Pattern(ops=_BROADCASTING, name="node", where=lambda n: any(i.op == "expand" for i in n.inputs)),
    examples=[
        lambda: b.add(b.expand(f32("x", 3), shape=(2, 3)), f32("y", 2, 3)),
        lambda: b.where(value("bool", "c", 3), b.expand(f32("x", 1), shape=(3,)), f32("y", 3)),
    ],
    misses=[lambda: b.add(b.expand(f32("x", 3), shape=(2, 3)), f32("y", 3))],
    into=RULES,
)
def expand_before_broadcast(m: Match):
    """The op's own broadcasting does what the expand does."""
    for position, operand in enumerate(m.node.inputs):
        if operand.op == "expand":
            inputs = list(m.node.inputs)
            inputs[position] = operand.inputs[0]
            new = make(m.node.op, *inputs, **m.node.attrs)
            if new.shape == m.root.shape:
                return new
    return "the expand gives the result its shape"


def _small_number(node: Node) -> bool:
    return node.op == "constant" and scalar_value(node) is not None


@rule(
    Pattern(
        ops=tuple(name for name, op in OPS.items() if op.kind in ("unary", "binary", "elementwise")),
        name="node",
        where=lambda n: any(i.op == "expand" for i in n.inputs),
    ),
    examples=[
        lambda: b.exp(b.expand(f32("x", 2, 1), shape=(2, 3))),
        lambda: b.where(
            b.expand(value("bool", "c", 2, 1), shape=(2, 3)), constant(np.float32(0)), constant(np.float32(1))
        ),
        lambda: b.add(f32("x", 2, 1), b.expand(constant(np.float32(1)), shape=(2, 3))),
    ],
    misses=[lambda: b.add(b.expand(f32("x", 2, 1), shape=(2, 3)), f32("y", 1, 3))],
    into=RULES,
)
def expand_after_elementwise(m: Match):
    """Compute on the narrow operands, then expand: what reads the result may broadcast by itself."""
    inputs = [i.inputs[0] if i.op == "expand" else i for i in m.node.inputs]
    if sum(not _small_number(i) for i in inputs) > 1:
        return "several operands give the result its shape"
    narrow = make(m.node.op, *inputs, **m.node.attrs)
    return b.expand(narrow, shape=m.root.shape) if narrow.shape != m.root.shape else "the result is no narrower"


@rule(
    p.slice(var("x")),
    examples=[lambda: b.slice(f32("x", 2, "s"), starts=(0, 0), sizes=f32("x", 2, "s").shape, steps=(1, 1))],
    misses=[
        lambda: b.slice(f32("x", 3), starts=(0,), sizes=(2,), steps=(1,)),
        lambda: b.slice(f32("x", 3), starts=(2,), sizes=(3,), steps=(-1,)),
    ],
    into=RULES,
)
def slice_of_whole(m: Match):
    whole = m.x.shape == m.root.shape and all(
        s == 0 and (t == 1 or n == 1) for s, t, n in zip(m.root["starts"], m.root["steps"], m.root.shape)
    )
    return m.x if whole else "it cuts"


@rule(
    p.slice(p.slice(var("x"), name="inner")),
    examples=[
        lambda: b.slice(b.slice(f32("x", 9), starts=(1,), sizes=(4,), steps=(2,)), starts=(3,), sizes=(2,), steps=(-2,))
    ],
    into=RULES,
)
def slice_of_slice(m: Match):
    inner, outer = m.inner.attrs, m.root.attrs
    starts = tuple(a + c * s for a, c, s in zip(inner["starts"], outer["starts"], inner["steps"]))
    steps = tuple(s * t for s, t in zip(inner["steps"], outer["steps"]))
    return b.slice(m.x, starts=starts, sizes=outer["sizes"], steps=steps)


@rule(
    p.concat(name="cat"),
    examples=[
        lambda: b.concat(f32("x", 3), axis=0),
        lambda: b.concat(f32("x", 2, 3), f32("z", 2, 0), axis=1),
        lambda: b.concat(f32("x", 2), b.concat(f32("y", 2), f32("z", 3), axis=0), axis=0),
        lambda: b.concat(
            *[b.slice(f32("x", 2, 9), starts=(0, i), sizes=(2, n), steps=(1, 1)) for i, n in ((1, 3), (4, 2))], axis=1
        ),
    ],
    misses=[
        lambda: b.concat(f32("x", 2), f32("y", 3), axis=0),
        lambda: b.concat(
            *[b.slice(f32("x", 9), starts=(i,), sizes=(n,), steps=(1,)) for i, n in ((4, 2), (1, 3))], axis=0
        ),
    ],
    into=RULES,
)
def simpler_concat(m: Match):
    """Of one operand, with empty operands, of concats along the same axis, of slices that touch."""
    axis = m.root["axis"]
    parts: list[Node] = []
    for x in m.root.inputs:
        parts.extend(x.inputs if x.op == "concat" and x["axis"] == axis and m.single(x) else (x,))
    parts = [x for x in parts if x.shape[axis] != 0] or parts[:1]
    joined: list[Node] = []
    for x in parts:
        merged = _joined(joined[-1], x, axis) if joined else None
        if merged is None:
            joined.append(x)
        else:
            joined[-1] = merged
    if len(joined) == 1:
        return joined[0] if joined[0].shape == m.root.shape else "the shape of the operand says less"
    return b.concat(*joined, axis=axis) if tuple(joined) != m.root.inputs else "nothing joins"


def _joined(a: Node, c: Node, axis: int) -> Node | None:
    """The slice that two slices of one operand are, if the second starts where the first ends."""
    if a.op != "slice" or c.op != "slice" or a.inputs != c.inputs or a["steps"] != c["steps"]:
        return None
    step = a["steps"][axis]
    if any(i != axis and (a["starts"][i] != c["starts"][i] or a["sizes"][i] != c["sizes"][i]) for i in range(a.rank)):
        return None
    if a["starts"][axis] + a["sizes"][axis] * step != c["starts"][axis]:
        return None
    sizes = tuple(n + c["sizes"][i] if i == axis else n for i, n in enumerate(a["sizes"]))
    return b.slice(a.inputs[0], starts=a["starts"], sizes=sizes, steps=a["steps"])


@rule(
    p.pad(var("x"), optional("value")),
    examples=[lambda: b.pad(f32("x", 3), before=(0,), after=(0,))],
    misses=[lambda: b.pad(f32("x", 3), before=(1,), after=(0,))],
    into=RULES,
)
def pad_by_nothing(m: Match):
    return m.x if not any(v != 0 for v in (*m.root["before"], *m.root["after"])) else "it pads"


@rule(
    p.op("reduce_sum reduce_mean reduce_prod reduce_max reduce_min", var("x")),
    examples=[lambda: b.reduce_sum(f32("x", 3), axes=()), lambda: b.reduce_mean(f32("x", 3, 1), axes=(1,))],
    misses=[lambda: b.reduce_max(f32("x", 3), axes=(0,))],
    into=RULES,
)
def reduce_of_nothing(m: Match):
    return reshaped(m.x, m.root.shape) if all(m.x.shape[a] == 1 for a in m.root["axes"]) else "it reduces"


@rule(
    p.op("reduce_mean reduce_sum", p.op("reduce_mean reduce_sum", var("x"), name="inner"), name="outer"),
    promise="ulp:4",
    examples=[
        lambda: b.reduce_mean(b.reduce_mean(f32("x", 2, 3, 4), axes=(2,)), axes=(1,), keepdims=False),
        lambda: b.reduce_mean(b.reduce_mean(f32("x", 2, 3, 4), axes=(2,), keepdims=True), axes=(1,), keepdims=True),
    ],
    misses=[lambda: b.reduce_mean(b.reduce_sum(f32("x", 2, 3), axes=(1,), keepdims=True), axes=(0,), keepdims=True)],
    into=RULES,
)
def reduce_of_reduce(m: Match):
    if m.inner.op != m.outer.op or m.inner["keepdims"] != m.outer["keepdims"]:
        return "two kinds of reduction"
    left = [i for i in range(m.x.rank) if m.inner["keepdims"] or i not in m.inner["axes"]]
    axes = sorted({*m.inner["axes"], *(left[a] for a in m.outer["axes"])})
    return make(m.root.op, m.x, axes=tuple(axes), keepdims=m.root["keepdims"])


@rule(
    p.op("add sub mul", var("x"), var("y"), where=lambda n: n.shape == () and n.dtype == "i64"),
    examples=[lambda: b.add(b.dim_value(value=f32("x", "s").shape[0]), constant(np.int64(2)))],
    misses=[lambda: b.add(i64("x"), constant(np.int64(2)))],
    into=RULES,
)
def dim_arithmetic(m: Match):
    sizes = [n["value"] if n.op == "dim_value" else scalar_value(n) for n in (m.x, m.y)]
    if None in sizes:
        return "an operand is not a size"
    x, y = sizes
    return b.dim_value(value=x + y if m.root.op == "add" else x - y if m.root.op == "sub" else x * y)


@rule(
    p.cast(p.op("dim_value iota", name="x"), dtype=lambda d: d in ("i32", "i64")),
    examples=[lambda: b.cast(b.iota(size=f32("x", "s").shape[0]), dtype="i32")],
    misses=[lambda: b.cast(b.iota(size=f32("x", "s").shape[0]), dtype="f32")],
    into=RULES,
)
def cast_of_size(m: Match):
    return make(m.x.op, **(dict(m.x.attrs) | {"dtype": m.root.dtype}))


# --- matmul reads its operands transposed ---------------------------------------------------------------------------


def _swaps_last(node: Node) -> bool:
    perm = node["perm"]
    return len(perm) >= 2 and perm == (*range(len(perm) - 2), len(perm) - 1, len(perm) - 2)


@rule(
    Pattern(
        choices=(
            p.matmul(p.transpose(var("a"), where=_swaps_last, name="t"), var("_b")),
            p.matmul(var("_a"), p.transpose(var("b"), where=_swaps_last, name="t")),
        )
    ),
    examples=[
        lambda: b.matmul(b.transpose(f32("x", 2, 3), perm=(1, 0)), f32("y", 2, 4)),
        lambda: b.matmul(f32("x", 5, 2, 3), b.transpose(f32("y", 5, 4, 3), perm=(0, 2, 1))),
    ],
    misses=[lambda: b.matmul(f32("x", 4, 2, 3), b.transpose(f32("y", 3, 4, 3), perm=(1, 0, 2)))],
    into=RULES,
)
def transpose_into_matmul(m: Match):
    attrs = dict(m.root.attrs)
    if m.get("a"):
        return b.matmul(m.a, m.root.inputs[1], **(attrs | {"trans_a": not attrs["trans_a"]}))
    return b.matmul(m.root.inputs[0], m.b, **(attrs | {"trans_b": not attrs["trans_b"]}))


@rule(
    p.slice(p.transpose(var("x"), name="t")),
    examples=[
        lambda: b.slice(
            b.transpose(f32("x", 2, 3, 4), perm=(2, 0, 1)), starts=(1, 0, 0), sizes=(1, 2, 3), steps=(1, 1, 1)
        )
    ],
    misses=[
        lambda: b.slice(
            b.transpose(f32("x", 2, 3, 4), perm=(2, 0, 1)), starts=(1, 0, 0), sizes=(2, 2, 3), steps=(1, 1, 1)
        )
    ],
    into=RULES,
)
def slice_of_transpose(m: Match):
    """One of several stacked tensors, as q, k and v are: the transpose then moves less, and may be absorbed."""
    cut = [i for i, (d, n) in enumerate(zip(m.t.shape, m.root.shape)) if d != n]
    if any(m.root.shape[i] != 1 for i in cut):
        return "it takes more than one along an axis"
    perm = m.t["perm"]
    back = [perm.index(i) for i in range(len(perm))]
    attrs = {k: tuple(m.root[k][i] for i in back) for k in ("starts", "sizes", "steps")}
    return b.transpose(b.slice(m.x, **attrs), perm=perm)


@rule(
    p.reshape(p.transpose(var("x"), name="t")),
    examples=[lambda: b.reshape(b.transpose(f32("x", 2, 1, 3), perm=(2, 1, 0)), shape=(3, 2))],
    misses=[
        lambda: b.reshape(b.transpose(f32("x", 2, 3), perm=(1, 0)), shape=(6,)),
        lambda: b.reshape(b.transpose(f32("x", 2, 3), perm=(1, 0)), shape=(1, 3, 2)),
    ],
    into=RULES,
)
def drop_ones_before_transpose(m: Match):
    rest = list(m.t.shape)  # what the reshape leaves, matched from the left
    kept, at = [], 0
    for i, d in enumerate(rest):
        if at < m.root.rank and m.root.shape[at] == d and (d != 1 or m.root.rank - at >= len(rest) - i):
            kept.append(i)
            at += 1
        elif d != 1:
            return "it does more than drop axes of 1"
    if at != m.root.rank or len(kept) == len(rest):
        return "it does more than drop axes of 1"
    axes = [m.t["perm"][i] for i in kept]
    order = sorted(axes)
    narrow = b.reshape(m.x, shape=tuple(m.x.shape[a] for a in order))
    return b.transpose(narrow, perm=tuple(order.index(a) for a in axes))
