"""Random graphs of the IR, as a Hypothesis strategy: elementwise, broadcasting, movement, reductions, products."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from edgec.ir.dims import Dim, product, symbol
from edgec.ir.node import Graph, Node, constant, make
from edgec.ir.types import TensorType

UNARY = ("neg", "abs", "floor", "sqrt", "exp", "sin", "tanh", "erf", "sigmoid", "relu", "silu", "gelu", "round", "sign")
BINARY = ("add", "sub", "mul", "div", "max", "min")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
NUMBERS = (0.0, 1.0, -1.0, 0.5, 2.0, 3.0, -2.5, 1e-3)
KINDS = (
    *(
        "unary",
        "unary",
        "binary",
        "binary",
        "number",
        "compare",
        "where",
        "cast",
        "reduce",
        "softmax",
        "norm",
        "transpose",
    ),
    *("reshape", "expand", "slice", "concat", "matmul", "linear", "gather", "pad", "conv"),
)
SYMBOLS = {"a": (1, 6), "b": (1, None)}


def _broadcast(x: Node, y: Node) -> bool:
    n = min(x.rank, y.rank)
    return all(d == e or d == 1 or e == 1 for d, e in zip(x.shape[x.rank - n :], y.shape[y.rank - n :]))


def _array(draw, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return rng.integers(-8, 9, shape).astype(np.float32) / 4


@st.composite
def dims(draw) -> Dim:
    """An int from 1 to 4 or one of the symbols a and b."""
    return draw(st.sampled_from((1, 2, 3, 4, symbol("a"), symbol("b"))))


@st.composite
def nodes(draw, pool: list[Node]) -> Node | None:
    """One op over nodes of the pool; None where the drawn op finds no operands."""
    floats = [n for n in pool if n.dtype == "f32"]
    x = draw(st.sampled_from(floats))
    partners = [n for n in floats if _broadcast(x, n)]
    kind = draw(st.sampled_from(KINDS))
    axis = draw(st.integers(0, x.rank - 1)) if x.rank else 0
    if kind == "unary":
        return make(draw(st.sampled_from(UNARY)), x)
    if kind == "binary":
        return make(draw(st.sampled_from(BINARY)), x, draw(st.sampled_from(partners)))
    if kind == "number":
        c = constant(draw(st.sampled_from(NUMBERS)), "f32")
        op = draw(st.sampled_from([*BINARY, "pow"]))
        return make(op, x, c) if op == "pow" or draw(st.booleans()) else make(op, c, x)
    if kind == "compare":
        return make(draw(st.sampled_from(COMPARE)), x, draw(st.sampled_from(partners)))
    if kind == "where":
        conditions = [n for n in pool if n.dtype == "bool" and _broadcast(n, x)]
        if not conditions:
            return None
        other = draw(st.sampled_from((x, constant(np.float32(0)))))
        return make("where", draw(st.sampled_from(conditions)), x, other)
    if kind == "cast":
        bools = [n for n in pool if n.dtype == "bool"]
        return make("cast", draw(st.sampled_from(bools)), dtype="f32") if bools else None
    if x.rank == 0:
        return make("reshape", x, shape=(1,))
    if kind == "reduce":
        axes = tuple(sorted(draw(st.sets(st.integers(0, x.rank - 1)))))
        op = draw(st.sampled_from(("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")))
        return make(op, x, axes=axes, keepdims=draw(st.booleans()))
    if kind == "softmax":
        return make("softmax", x, axis=axis)
    if kind == "norm":
        return make(draw(st.sampled_from(("layer_norm", "rms_norm"))), x, axis=axis, eps=1e-3)
    if kind == "transpose":
        return make("transpose", x, perm=draw(st.permutations(range(x.rank))))
    if kind == "reshape":
        shape = list(x.shape)
        if draw(st.booleans()) and x.rank < 5:
            shape.insert(axis, 1)
        elif x.rank > 1 and axis + 1 < x.rank:
            shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
        else:
            shape = [product(shape)]
        return make("reshape", x, shape=tuple(shape))
    if kind == "expand":
        shape = tuple(draw(dims()) if d == 1 else d for d in x.shape)
        return make("expand", x, shape=((draw(dims()), *shape) if x.rank < 4 else shape))
    if kind == "slice":
        d = x.shape[axis]
        if not isinstance(d, int):
            return None
        start = draw(st.integers(0, d - 1))
        reverse = draw(st.booleans())
        size = draw(st.integers(1, start + 1 if reverse else d - start))
        picks = [(start, size, -1 if reverse else 1) if i == axis else (0, n, 1) for i, n in enumerate(x.shape)]
        return make("slice", x, **dict(zip(("starts", "sizes", "steps"), zip(*picks))))
    if kind == "concat":
        others = [
            n
            for n in floats
            if n.rank == x.rank and all(i == axis or d == e for i, (d, e) in enumerate(zip(n.shape, x.shape)))
        ]
        return make("concat", *[x, draw(st.sampled_from(others))], axis=axis)
    if kind in ("matmul", "linear"):
        k, n = x.shape[-1], draw(st.integers(1, 4))
        if not isinstance(k, int) or x.rank < 2:
            return None
        if kind == "linear":
            bias = constant(_array(draw, (n,))) if draw(st.booleans()) else None
            return make("linear", x, constant(_array(draw, (n, k))), bias, act=draw(st.sampled_from(("none", "relu"))))
        flip = draw(st.booleans())
        return make("matmul", x, constant(_array(draw, (n, k) if flip else (k, n))), trans_b=flip)
    if kind == "gather":
        d = x.shape[axis]
        if not isinstance(d, int):
            return None
        indices = draw(st.lists(st.integers(-d, d - 1), min_size=1, max_size=3))
        picked = indices if draw(st.booleans()) else indices[0]
        return make("gather", x, constant(np.array(picked, np.int64)), axis=axis)
    if kind == "pad":
        before = tuple(draw(st.integers(0, 2)) if i == axis else 0 for i in range(x.rank))
        return make("pad", x, before=before, after=before[::-1] if draw(st.booleans()) else before)
    c = x.shape[1] if x.rank in (3, 4) else None
    if not isinstance(c, int) or not all(isinstance(d, int) and d >= 2 for d in x.shape[2:]):
        return None
    n = x.rank - 2
    w = constant(_array(draw, (draw(st.integers(1, 3)), c, *[draw(st.integers(1, 2)) for _ in range(n)])))
    return make("conv", x, w, strides=(1,) * n, pads=(draw(st.integers(0, 1)),) * 2 * n, dilations=(1,) * n)


@st.composite
def graphs(draw, max_nodes: int = 12, symbolic: bool = True) -> Graph:
    """A graph of up to max_nodes ops over one to three f32 inputs (symbols a: 1..6 and b: 1..), and some outputs.

    Its sizes stay small: dims multiply at most a few times."""
    choice = dims() if symbolic else st.integers(1, 4)
    pool: list[Node] = [
        make("input", name=f"x{i}", type=TensorType("f32", tuple(draw(st.lists(choice, max_size=4)))))
        for i in range(draw(st.integers(1, 3)))
    ]
    if symbolic:
        pool.append(make("input", name="sizes", type=TensorType("f32", (symbol("a"), symbol("b")))))
    inputs = tuple(pool)
    for _ in range(draw(st.integers(1, max_nodes))):
        node = draw(nodes(pool))
        if node is None or node.rank > 5:
            continue
        fixed = math.prod(d if isinstance(d, int) else 6 for d in node.shape)
        if node not in pool and fixed <= 5000:
            pool.append(node)
    made = pool[len(inputs) :] or pool
    picks = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    if made[-1] not in picks:
        picks.append(made[-1])
    symbols = SYMBOLS if symbolic else {}
    return Graph(inputs, tuple((f"y{i}", n) for i, n in enumerate(picks)), dict(symbols), "random")
