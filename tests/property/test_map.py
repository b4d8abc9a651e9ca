"""Random groups of elementwise and movement ops: compiled code against the numpy references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from edgec.ir.dims import evaluate, product, symbol
from edgec.ir.node import constant, make, topological
from edgec.ir.types import TensorType, dtype_of, numpy_dtype
from edgec.testing.groups import CompiledGroups, group_of, reference

SETTINGS = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
FLOAT_UNARY = (
    "neg",
    "abs",
    "sign",
    "floor",
    "ceil",
    "round",
    "exp",
    "tanh",
    "erf",
    "sigmoid",
    "relu",
    "silu",
    "softplus",
    "gelu",
)
BINARY = ("add", "sub", "mul", "max", "min", "div")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
DTYPES = ("f32", "f32", "f32", "f16", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "bool")


def values(rng: np.random.Generator, dtype: str, shape) -> np.ndarray:
    t = numpy_dtype(dtype)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if t.kind == "f":
        return (rng.standard_normal(shape) * 2).astype(t)
    return rng.integers(-100 if t.kind == "i" else 0, 100, shape).astype(t)


def leaf(name: str, dtype: str, shape):
    return make("input", name=name, type=TensorType(dtype, tuple(shape)))


@st.composite
def shapes(draw, sizes, low=0, high=4):
    return tuple(draw(st.sampled_from(sizes)) for _ in range(draw(st.integers(low, high))))


def grow(draw, x, sizes, name):
    """One more op on x, perhaps with a new operand; movement or arithmetic."""
    dtype, shape = x.dtype, x.shape
    kinds = ["binary", "compare", "where", "cast", "unary"]
    if shape:
        kinds += ["transpose", "slice", "pad", "concat", "expand", "gather", "reshape"]
    kind = draw(st.sampled_from(kinds))
    if kind == "unary":
        if dtype == "bool":
            return make("not", x)
        if dtype in ("f32", "f16", "f64"):
            return make(draw(st.sampled_from(FLOAT_UNARY)), x)
        return make(draw(st.sampled_from(("abs", "sign", "relu", "neg", "bitwise_not"))), x)
    if kind == "cast":
        to = draw(st.sampled_from(("f32", "f64", "f16", "i32", "i64", "bool")))
        bounded = make("min", make("max", x, constant(0, dtype)), constant(100, dtype)) if dtype != "bool" else x
        return make("cast", bounded, dtype=to)
    if kind in ("binary", "compare", "where"):
        other_shape = tuple(draw(st.sampled_from((d, 1))) for d in shape)[draw(st.integers(0, len(shape))) :]
        other = leaf(name, dtype, other_shape)
        if kind == "compare":
            return make(draw(st.sampled_from(COMPARE)), x, other)
        if kind == "where" or dtype == "bool":
            return make("where", leaf(name + "c", "bool", other_shape), x, other)
        return make(draw(st.sampled_from(BINARY)), x, other)
    axis = draw(st.integers(0, len(shape) - 1))
    if kind == "transpose":
        return make("transpose", x, perm=tuple(draw(st.permutations(range(len(shape))))))
    if kind == "slice":
        d, starts, sizes_, steps = shape[axis], [0] * len(shape), list(shape), [1] * len(shape)
        if isinstance(d, int):
            starts[axis] = draw(st.integers(0, d - 1)) if d else 0
            steps[axis] = draw(st.sampled_from((1, 2, -1, -3)))
            room = (d - 1 - starts[axis] if steps[axis] > 0 else starts[axis]) // abs(steps[axis]) + 1
            sizes_[axis] = draw(st.integers(0, room)) if d else 0
        else:
            starts[axis], steps[axis] = d - 1, -1
        return make("slice", x, starts=tuple(starts), sizes=tuple(sizes_), steps=tuple(steps))
    if kind == "pad":
        mode = draw(st.sampled_from(("constant", "reflect", "edge", "wrap")))
        least = shape[axis] if isinstance(shape[axis], int) else 2
        if mode != "constant" and least < 2:
            mode = "constant"
        most = 3 if mode == "constant" else min(3, least - 1)
        before, after = [0] * len(shape), [0] * len(shape)
        before[axis], after[axis] = draw(st.integers(0, most)), draw(st.integers(0, most))
        value = constant(1, dtype) if mode == "constant" and draw(st.booleans()) else None
        return make("pad", x, value, before=tuple(before), after=tuple(after), mode=mode)
    if kind == "concat":
        other = list(shape)
        other[axis] = draw(st.sampled_from(sizes))
        parts = [x, leaf(name, dtype, other)] + ([x] if draw(st.booleans()) else [])
        return make("concat", *draw(st.permutations(parts)), axis=axis)
    if kind == "expand":
        return make("expand", x, shape=(draw(st.sampled_from(sizes)), *shape))
    if kind == "gather":
        if shape[axis] == 0:
            return x
        at = leaf(name + "_at", draw(st.sampled_from(("i64", "i32"))), draw(shapes(sizes, 0, 2)))
        return make("gather", x, at, axis=axis)
    cut = draw(st.integers(1, len(shape)))
    merged = (product(shape[:cut]), *shape[cut:])
    if draw(st.booleans()):
        return make("reshape", x, shape=merged)
    d = shape[axis]
    if isinstance(d, int) and d % 2 == 0 and d:
        return make("reshape", x, shape=(*shape[:axis], 2, d // 2, *shape[axis + 1 :]))
    return make("reshape", x, shape=(*shape[:axis], 1, *shape[axis:]))


@st.composite
def groups(draw, prefix):
    n, m = symbol("n"), symbol("m")
    sizes = draw(st.sampled_from(([1, 2, 3, 5, 8, 17], [1, 4, n, 7, m], [1, n, 40, 2])))
    x = leaf(prefix + "x", draw(st.sampled_from(DTYPES)), draw(shapes(sizes)))
    node = x
    for i in range(draw(st.integers(1, 5))):
        if node.rank < 6:
            node = grow(draw, node, sizes, f"{prefix}{i}")
    return None if node is x else node


def feeds_of(outputs, dims, rng):
    feeds = {}
    for n in group_of("map", outputs).inputs:
        if n.op == "input":
            shape = tuple(evaluate(d, dims) for d in n.shape)
            feeds[n] = values(rng, n.dtype, shape)
    for n in topological(outputs):
        if n.op == "gather":
            size = evaluate(n.inputs[0].shape[n["axis"]], dims)
            if size == 0:
                return None
            at = n.inputs[1]
            feeds[at] = rng.integers(-size, size, feeds[at].shape).astype(numpy_dtype(at.dtype))
    return feeds


def check(actual, expected, node):
    """Equal, to what the least exact float type on the way to `node` allows."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if node.dtype in ("f16", "f32", "f64"):
        rounds = [n.dtype for n in topological([node]) if n.op not in ("input", "constant")]
        scale = max({"f16": 1e-2, "f32": 3e-6, "f64": 1e-13}.get(dtype, 0.0) for dtype in rounds)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=scale, atol=scale)
    else:
        np.testing.assert_array_equal(actual, expected)


@SETTINGS
@given(st.data())
def test_random_groups(data):
    """Every group agrees with the references, for several sizes of the symbols and however the work is cut."""
    compiled, nodes = CompiledGroups(), []
    for i in range(12):
        node = data.draw(groups(f"g{i}_"))
        if node is not None:
            nodes.append((node, compiled.add(group_of("map", [node]))))
    for node, index in nodes:
        for seed in range(2):
            dims = {"n": data.draw(st.integers(2, 20)), "m": data.draw(st.integers(2, 9))}
            rng = np.random.default_rng(seed)
            feeds = feeds_of([node], dims, rng)
            if feeds is None:
                continue
            cuts = data.draw(st.lists(st.floats(0, 1), max_size=2))
            (actual,) = compiled.call(index, feeds, dims, cuts)
            (expected,) = reference([node], feeds, dims)
            check(actual, expected, node)


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("shape", [(2, 0), (0, 2), (3, 0, 2)])
def test_an_empty_tensor_of_another_shape_inside_a_pad(shape, after):
    """Found by test_random_groups: its strides are 0, and an index was divided by one."""
    x = leaf("x", "f32", shape)
    y = make("reshape", make("add", x, x), shape=(0,))
    node = make("pad", y, None, before=(1,), after=(after,), mode="constant")
    compiled = CompiledGroups()
    index = compiled.add(group_of("map", [node]))
    feeds = feeds_of([node], {}, np.random.default_rng(0))
    (actual,) = compiled.call(index, feeds, {}, [])
    check(actual, reference([node], feeds, {})[0], node)


@SETTINGS
@given(st.data())
def test_transposes(data):
    """Whole tiles, tails and rows shorter than a tile, every element size, with work before and after."""
    compiled, found = CompiledGroups(), []
    sizes = [1, 7, 8, 9, 16, 23, 33, symbol("n"), symbol("m")]
    for i in range(8):
        dtype = data.draw(st.sampled_from(("f32", "f32", "f16", "f64", "u8", "i64", "bool")))
        x = leaf(f"x{i}", dtype, data.draw(shapes(sizes, 2, 4)))
        perm = tuple(data.draw(st.permutations(range(x.rank))))
        y = make("transpose", x, perm=perm)
        if dtype == "f32" and data.draw(st.booleans()):
            y = make("add", make("transpose", make("tanh", x), perm=perm), leaf(f"y{i}", dtype, y.shape))
        found.append((y, compiled.add(group_of("map", [y]))))
    for y, index in found:
        for seed in range(2):
            dims = {"n": data.draw(st.integers(1, 40)), "m": data.draw(st.integers(1, 20))}
            feeds = feeds_of([y], dims, np.random.default_rng(seed))
            (actual,) = compiled.call(index, feeds, dims, data.draw(st.lists(st.floats(0, 1), max_size=2)))
            check(actual, reference([y], feeds, dims)[0], y)


def test_extremes():
    """Infinities, NaN, signed zeros, the ends of integers, division by zero: as the references have them."""
    n = symbol("n")
    compiled, cases = CompiledGroups(), []

    def add(op, arrays, **attrs):
        operands = [leaf(f"{op}{i}", dtype_of(a.dtype), (n,)) for i, a in enumerate(arrays)]
        node = make(op, *operands, **attrs)
        cases.append((node, compiled.add(group_of("map", [node])), dict(zip(operands, arrays, strict=True))))

    for dtype in ("f32", "f64", "f16"):
        t = numpy_dtype(dtype)
        ends = [np.inf, -np.inf, np.nan, np.finfo(t).max, np.finfo(t).tiny]
        special = np.array([0, -0.0, 1, -1, *ends, 0.5, 1.5, -2.5], t)
        a, b = (g.ravel().astype(t) for g in np.meshgrid(special, special))
        for op in (*FLOAT_UNARY, "isnan", "isinf", "sqrt", "rsqrt", "log", "sin", "acosh"):
            add(op, [special])
        for op in (*BINARY, *COMPARE, "pow", "fmod", "mod", "atan2"):
            add(op, [a, b])
        add("cast", [special], dtype="bool")
    for dtype in ("i8", "u8", "i32", "u32", "i64", "u64"):
        t = numpy_dtype(dtype)
        ends = np.array([np.iinfo(t).min, np.iinfo(t).max, 0, 1, 2, 7, np.iinfo(t).max - 1], t)
        a, b = (g.ravel() for g in np.meshgrid(ends, ends))
        for op in (*BINARY, *COMPARE, "mod", "fmod", "bitwise_xor"):
            add(op, [a, b])
        for op in ("neg", "abs", "sign", "bitwise_not"):
            add(op, [ends])
        for to in ("i8", "u8", "i64", "bool", "f32"):
            add("cast", [ends], dtype=to)
        if dtype.startswith("u"):
            shifts = np.array([0, 1, 7, 8, 31, 32, 63, 64, 200], np.uint64).astype(t)
            a, b = (g.ravel() for g in np.meshgrid(ends, shifts))
            add("shift_left", [a, b])
            add("shift_right", [a, b])
    for node, index, feeds in cases:
        dims = {"n": len(next(iter(feeds.values())))}
        (actual,), (expected,) = compiled.call(index, feeds, dims), reference([node], feeds, dims)
        try:
            check(actual, expected, node)
        except AssertionError as e:
            raise AssertionError(f"{node.op} of {node.inputs[0].dtype} to {node.dtype}: {feeds}") from e


def test_powers():
    """Exponents that are constants, with code of their own or not, of every kind of base."""
    x = leaf("x", "f32", (11,))
    base = np.array([0, -0.0, 1, -1, 2.5, -3.25, np.inf, -np.inf, np.nan, 1e-30, 1e30], np.float32)
    compiled = CompiledGroups()
    nodes = [make("pow", x, constant(e, "f32")) for e in (1, 2, 3, 4, -1, -2, 0.5, 0, 1.5, -0.5, 2.25)]
    for node, index in [(n, compiled.add(group_of("map", [n]))) for n in nodes]:
        check(compiled.call(index, {x: base})[0], reference([node], {x: base})[0], node)


def test_bf16():
    """Rounds to even, keeps NaN, computes in f32."""
    x = np.array([1, 1.00390625, 1.01171875, -3.0, np.nan, np.inf, 3.3e38, 1e-40], np.float32)
    node = leaf("x", "f32", (len(x),))
    half = make("cast", node, dtype="bf16")
    twice = make("cast", make("add", half, half), dtype="f32")
    compiled = CompiledGroups()
    for o in (half, twice):
        index = compiled.add(group_of("map", [o]))
        actual, expected = compiled.call(index, {node: x})[0], reference([o], {node: x})[0]
        np.testing.assert_array_equal(actual.astype(np.float32), expected.astype(np.float32))
        compiled = CompiledGroups()


def test_gathers_stay_inside():
    """An index outside of the axis reads some element of it, never other memory."""
    x, at = leaf("x", "f32", (5, 3)), leaf("at", "i64", (4,))
    nodes = [make("gather", x, at, axis=a) for a in (0, 1)]
    compiled = CompiledGroups()
    places = [compiled.add(group_of("map", [o])) for o in nodes]
    feeds = {x: np.arange(15, dtype=np.float32).reshape(5, 3), at: np.array([2**62, -(2**62), 1, -1])}
    for axis, place in enumerate(places):
        (actual,) = compiled.call(place, feeds)
        last = x.shape[axis] - 1
        np.testing.assert_array_equal(actual, np.take(feeds[x], [last, 0, 1, last], axis=axis))


@pytest.mark.parametrize("sizes", [(4, 4, 2, 2), (20, 1, 10, 10), (1, 12, 5, 6), (6, 8, 3, 4)])
def test_open_dims_that_turn_out_equal_or_one(sizes):
    """Operands of sizes h by w and 2k by 2m: each may be 1, and neither is known to be the other."""
    h, w, k, m = (symbol(c) for c in "hwkm")
    a, s, c = leaf("a", "f32", (3, h, w)), leaf("s", "f32", (3, 1, 1)), leaf("c", "f32", (3, 2 * k, 2 * m))
    y = make("add", make("mul", a, s), c)
    env = dict(zip("hwkm", sizes))
    rng = np.random.default_rng(0)
    feeds = {n: values(rng, "f32", [evaluate(d, env) for d in n.shape]) for n in (a, s, c)}
    groups = CompiledGroups()
    got = groups.call(groups.add(group_of("map", [y])), feeds, env)[0]
    np.testing.assert_allclose(got, reference([y], feeds, env)[0], rtol=1e-6, atol=1e-6)
