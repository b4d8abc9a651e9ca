"""Hypothesis: random ONNX graphs whose numbers stay small, with symbolic leading dims."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

UNARY = (
    "Relu",
    "Tanh",
    "Sigmoid",
    "Neg",
    "Abs",
    "Floor",
    "Erf",
    "Sin",
    "Cos",
    "Softplus",
    "HardSigmoid",
    "Elu",
    "Softsign",
)
BINARY = ("Add", "Sub", "Mul", "Max", "Min")
REDUCE = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
BATCH = "n"


@dataclass
class Draft:
    """A graph while it grows. Shapes hold ints, or BATCH for the symbolic dim (only ever the first axis)."""

    rng: np.random.Generator
    nodes: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    values: list[tuple[str, tuple]] = field(default_factory=list)
    inputs: list[tuple[str, tuple]] = field(default_factory=list)

    def add(self, op: str, inputs: list[str], shape: tuple, **attrs) -> tuple[str, tuple]:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attrs))
        self.values.append((name, shape))
        return name, shape

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def floats(self, *shape: int) -> str:
        return self.weight((self.rng.standard_normal(shape) * 0.5).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.weight(np.array(values, np.int64))


def _broadcast(a: tuple, b: tuple) -> tuple | None:
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    out = []
    for x, y in zip(a, b):
        if x != y and 1 not in (x, y):
            return None
        out.append(y if x == 1 else x)
    # The symbolic dim stays in front, so that the other generators know where it is.
    return tuple(out) if BATCH not in out[1:] else None


def _elementwise(draw, g: Draft):
    name, shape = draw(st.sampled_from(g.values))
    if draw(st.booleans()):
        g.add(draw(st.sampled_from(UNARY)), [name], shape)
        return
    fits = [(n, s) for n, s in g.values if _broadcast(shape, s) is not None]
    other, other_shape = draw(st.sampled_from(fits))
    if draw(st.booleans()):
        other_shape = tuple(d if d != BATCH and draw(st.booleans()) else 1 for d in shape)[
            draw(st.integers(0, len(shape))) :
        ]
        other = g.floats(*other_shape)
    pair = [name, other] if draw(st.booleans()) else [other, name]
    out = _broadcast(shape, other_shape)
    if draw(st.integers(0, 4)) == 0:
        flag, _ = g.add("Greater", pair, out)
        g.values.pop()
        g.add("Where", [flag, *pair], out)
    else:
        g.add(draw(st.sampled_from(BINARY)), pair, out)


def _matmul(draw, g: Draft):
    name, shape = draw(st.sampled_from(g.values))
    if len(shape) < 2 or shape[-1] == BATCH or (shape[-2] == BATCH and len(shape) != 2):
        return
    n = draw(st.integers(1, 40))
    kind = draw(st.sampled_from(("weight", "gemm", "self")))
    if kind == "gemm" and len(shape) == 2:
        g.add("Gemm", [name, g.floats(n, shape[-1]), g.floats(n)], (shape[0], n), transB=1, alpha=0.5)
    elif kind == "self" and shape[-2] != BATCH:
        perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        turned, _ = g.add("Transpose", [name], tuple(shape[p] for p in perm), perm=perm)
        g.add("Tanh", [g.add("MatMul", [name, turned], (*shape[:-1], shape[-2]))[0]], (*shape[:-1], shape[-2]))
    else:
        y = g.add("MatMul", [name, g.floats(shape[-1], n)], (*shape[:-1], n))
        if draw(st.booleans()):
            g.add("Add", [y[0], g.floats(n)], y[1])


def _reduce(draw, g: Draft):
    name, shape = draw(st.sampled_from(g.values))
    if not shape:
        return
    axis = draw(st.integers(0, len(shape) - 1))
    if draw(st.booleans()):
        g.add("Softmax", [name], shape, axis=axis)
        return
    axes = sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1, max_size=2)))
    if any(shape[a] == BATCH for a in axes):
        axes = [a for a in axes if shape[a] != BATCH]
    if not axes:
        return
    keep = draw(st.booleans())
    out = tuple(1 if i in axes else d for i, d in enumerate(shape) if keep or i not in axes)
    g.add(draw(st.sampled_from(REDUCE)), [name, g.ints(*axes)], out, keepdims=int(keep))


def _movement(draw, g: Draft):
    name, shape = draw(st.sampled_from(g.values))
    rank = len(shape)
    fixed = [i for i, d in enumerate(shape) if d != BATCH]
    if not fixed:
        return
    axis = draw(st.sampled_from(fixed))
    size = shape[axis]
    kind = draw(st.sampled_from(("transpose", "reshape", "slice", "concat", "pad", "gather", "expand", "split")))
    if kind == "transpose" and rank > 1:
        first = [0] if shape[0] == BATCH else []
        perm = first + draw(st.permutations(fixed))
        g.add("Transpose", [name], tuple(shape[p] for p in perm), perm=perm)
    elif kind == "reshape":
        total = int(np.prod([shape[i] for i in fixed]))
        split = draw(st.sampled_from([d for d in range(1, total + 1) if total % d == 0]))
        front = (BATCH,) if shape[0] == BATCH else ()
        target = [-1, split, total // split] if front else [split, -1]
        g.add("Reshape", [name, g.ints(*target)], (*front, split, total // split))
    elif kind == "slice":
        step = draw(st.sampled_from((1, 1, 2, -1)))
        start, end = draw(st.integers(0, size - 1)), draw(st.integers(1, size))
        indices = range(size)[start::step] if step < 0 else range(size)[min(start, end - 1) : end : step]
        bounds = (start, -size - 1) if step < 0 else (min(start, end - 1), end)
        out = (*shape[:axis], len(indices), *shape[axis + 1 :])
        g.add("Slice", [name, g.ints(bounds[0]), g.ints(bounds[1]), g.ints(axis), g.ints(step)], out)
    elif kind == "concat":
        alike = [
            (n, s) for n, s in g.values if len(s) == rank and all(s[i] == shape[i] for i in range(rank) if i != axis)
        ]
        others = [v for v in alike if v[1][axis] != BATCH]
        second, second_shape = draw(st.sampled_from(others))
        g.add("Concat", [name, second], (*shape[:axis], size + second_shape[axis], *shape[axis + 1 :]), axis=axis)
    elif kind == "pad":
        mode = draw(st.sampled_from(("constant", "edge", "reflect")))
        before, after = draw(st.integers(0, min(2, size - 1))), draw(st.integers(0, min(2, size - 1)))
        pads = [before if i == axis else 0 for i in range(rank)] + [after if i == axis else 0 for i in range(rank)]
        g.add("Pad", [name, g.ints(*pads)], (*shape[:axis], before + size + after, *shape[axis + 1 :]), mode=mode)
    elif kind == "gather":
        picks = draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=4))
        g.add("Gather", [name, g.ints(*picks)], (*shape[:axis], len(picks), *shape[axis + 1 :]), axis=axis)
    elif kind == "expand" and shape[0] != BATCH:
        g.add("Expand", [name, g.ints(3, *[1] * rank)], (3, *shape))
    elif kind == "split" and size >= 2:
        g.nodes.append(
            helper.make_node(
                "Split", [name, g.ints(1, size - 1)], [f"{name}_a{len(g.nodes)}", f"{name}_b{len(g.nodes)}"], axis=axis
            )
        )
        for part, extent in zip(g.nodes[-1].output, (1, size - 1)):
            g.values.append((part, (*shape[:axis], extent, *shape[axis + 1 :])))


def _convolution(draw, g: Draft):
    maps = [(n, s) for n, s in g.values if len(s) == 4 and BATCH not in s[1:]]
    if not maps:
        return
    name, (n, c, h, w) = draw(st.sampled_from(maps))
    k = draw(st.integers(1, min(3, h, w)))
    stride, pad = draw(st.integers(1, 2)), draw(st.integers(0, k - 1))
    out = tuple((d + 2 * pad - k) // stride + 1 for d in (h, w))
    attrs = {"kernel_shape": [k, k], "strides": [stride, stride], "pads": [pad] * 4}
    if draw(st.booleans()):
        g.add(draw(st.sampled_from(("MaxPool", "AveragePool"))), [name], (n, c, *out), **attrs)
        return
    group = draw(st.sampled_from([d for d in (1, c) if c % d == 0]))
    m = group * draw(st.integers(1, max(1, 12 // group)))
    y = g.add("Conv", [name, g.floats(m, c // group, k, k), g.floats(m)], (n, m, *out), group=group, **attrs)
    if draw(st.booleans()):
        g.add("Relu", [y[0]], y[1])


@st.composite
def onnx_graphs(draw, max_ops: int = 8) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A model and the feeds of two runs, with different sizes of the symbolic dim."""
    g = Draft(np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    symbolic = draw(st.booleans())
    for i in range(draw(st.integers(1, 2))):
        rank = draw(st.sampled_from((1, 2, 3, 4, 4)))
        shape = tuple(draw(st.integers(1, 9)) for _ in range(rank))
        if symbolic and rank > 1:
            shape = (BATCH, *shape[1:])
        g.inputs.append((f"x{i}", shape))
    g.values = list(g.inputs)
    steps = st.sampled_from(
        (_elementwise, _elementwise, _elementwise, _matmul, _reduce, _movement, _movement, _convolution)
    )
    for _ in range(draw(st.integers(1, max_ops))):
        draw(steps)(draw, g)
    if not g.nodes:
        g.add("Relu", [g.inputs[0][0]], g.inputs[0][1])
    made = [v for v in g.values if v not in g.inputs]
    last = made[-1:]
    if len(made) > 1 and draw(st.booleans()):
        last.append(draw(st.sampled_from(made[:-1])))

    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    graph = helper.make_graph(g.nodes, "random", [info(*v) for v in g.inputs], [info(*v) for v in last], g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    feeds = []
    for size in (draw(st.integers(1, 5)), draw(st.integers(1, 5))):
        shapes = [(n, [size if d == BATCH else d for d in s]) for n, s in g.inputs]
        feeds.append({n: g.rng.standard_normal(s).astype(np.float32) for n, s in shapes})
    return model, feeds
