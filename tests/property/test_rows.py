"""Random groups around reductions, softmax and norms: compiled code against the numpy references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from test_map import check, leaf, shapes, values

from edgec.ir.dims import evaluate, symbol
from edgec.ir.node import constant, make
from edgec.lower.templates.fusion import can_fuse, refuse, supports
from edgec.testing.groups import CompiledGroups, group_of, reference

SETTINGS = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
REDUCE = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin")
NORMS = ("softmax", "log_softmax", "layer_norm", "rms_norm")
FLOATS = ("f32", "f16", "f64")


def broadcast_operand(draw, name, node):
    shape = tuple(draw(st.sampled_from((d, 1))) for d in node.shape)[draw(st.integers(0, node.rank)) :]
    return leaf(name, node.dtype, shape)


@st.composite
def groups(draw, prefix):
    """Outputs of a group: elementwise work, a reduction or norm, elementwise work."""
    n, m = symbol("n"), symbol("m")
    sizes = draw(st.sampled_from(([1, 2, 3, 7, 8, 33, 70], [1, n, 5, m], [4, n, 37, 1])))
    dtype = draw(st.sampled_from((*FLOATS, "f32", "f32", "i32", "i64", "u8")))
    x = leaf(prefix + "x", dtype, draw(shapes(sizes, 1, 4)))
    node = x
    if draw(st.booleans()):
        node = make(draw(st.sampled_from(("add", "mul", "sub"))), node, broadcast_operand(draw, prefix + "p", node))
    if draw(st.booleans()):
        node = make("abs", node)
    full = node
    op = draw(st.sampled_from((*REDUCE, *NORMS, *NORMS) if dtype in FLOATS else REDUCE))
    axis = draw(st.integers(0, x.rank - 1))
    axes = tuple(i for i in range(x.rank) if draw(st.booleans())) or (axis,)
    if op in ("softmax", "log_softmax"):
        node = make(op, node, axis=axis)
    elif op in NORMS:
        params = [leaf(f"{prefix}{i}", dtype, x.shape[axis:]) for i in range(2 if op == "layer_norm" else 1)]
        keep = draw(st.integers(0, len(params)))
        node = make(op, node, *params[:keep], axis=axis, eps=1e-3)
    elif op in ("argmax", "argmin"):
        node = make(op, node, axis=axis, last=draw(st.booleans()))
    else:
        if op in ("reduce_prod", "reduce_mean") and dtype not in FLOATS:
            op = "reduce_sum"
        node = make(op, node, axes=axes, keepdims=draw(st.booleans()))
    outputs = [node]
    if node.dtype == dtype and draw(st.booleans()):
        outputs = [make("add", node, constant(1, dtype))]
        if draw(st.booleans()):
            outputs.append(node)
        elif len(full.shape) == len(node.shape) and draw(st.booleans()):
            outputs.append(make("sub", full, node))
    return outputs


def feeds_of(outputs, dims, rng):
    feeds = {}
    for n in group_of("rows", outputs).inputs:
        if n.op == "input":
            shape = tuple(evaluate(d, dims) for d in n.shape)
            feeds[n] = values(rng, n.dtype, shape) if n.dtype not in FLOATS else values(rng, n.dtype, shape) / 4 + 0.5
            feeds[n] = feeds[n].astype(values(rng, n.dtype, ()).dtype)
    return feeds


@SETTINGS
@given(st.data())
def test_random_rows(data):
    """Every group agrees with the references, for several sizes of the symbols and however the work is cut."""
    compiled, found = CompiledGroups(), []
    for i in range(10):
        outputs = data.draw(groups(f"g{i}_"))
        group = group_of("rows", outputs)
        if refuse(group) is None:
            found.append((outputs, compiled.add(group)))
    for outputs, index in found:
        for seed in range(2):
            dims = {"n": data.draw(st.integers(1, 40)), "m": data.draw(st.integers(1, 9))}
            feeds = feeds_of(outputs, dims, np.random.default_rng(seed))
            cuts = data.draw(st.lists(st.floats(0, 1), max_size=2))
            actual = compiled.call(index, feeds, dims, cuts)
            for a, e, n in zip(actual, reference(outputs, feeds, dims), outputs, strict=True):
                check(a, e, n)


def test_extremes():
    """Rows of infinities, NaN, huge and equal values, and of no elements."""
    x = leaf("x", "f32", (symbol("n"), symbol("m")))
    outputs = [make(op, x, axis=1) for op in ("softmax", "log_softmax", "argmax", "argmin")]
    outputs += [make(op, x, axes=(1,)) for op in ("reduce_max", "reduce_min", "reduce_sum")]
    compiled = CompiledGroups()
    places = [compiled.add(group_of("rows", [o])) for o in outputs]
    ends = [[np.inf] + [1.0] * 10, [1.0] * 10 + [-np.inf], [np.nan] + [3.0] * 10, [3.0] * 10 + [np.nan]]
    equal = [[value] * 11 for value in (0.0, 3e38, -3e38, -np.inf)]
    rows = np.array([*ends, *equal, np.arange(11) * -20.0], np.float32)
    for width in (11, 8, 3, 1, 0):
        dims = {"n": len(rows), "m": width}
        feeds = {x: rows[:, :width].copy()}
        for o, i in zip(outputs, places, strict=True):
            if width or o.op not in ("argmax", "argmin"):
                check(compiled.call(i, feeds, dims)[0], reference([o], feeds, dims)[0], o)


def test_fusion_predicates():
    """What may join is what the template can do."""
    x = leaf("x", "f32", (4, 8))
    added = make("add", x, x)
    norm = make("softmax", added, axis=1)
    after = make("mul", norm, x)
    assert can_fuse(added, norm) and can_fuse(norm, after) and supports(norm) is None
    assert refuse(group_of("rows", [after])) is None
    moved = make("transpose", norm, perm=(1, 0))
    assert not can_fuse(norm, moved)
    assert refuse(group_of("rows", [moved])) is not None
    assert supports(make("cumsum", x, axis=1)) is not None
    assert not can_fuse(make("softmax", x, axis=0), make("softmax", make("softmax", x, axis=0), axis=1))
