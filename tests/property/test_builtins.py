"""Each built-in kernel against the IR's numpy reference of the same op, over shapes with empty and odd dims."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import edgec.kernels
from edgec import EdgecError, _core
from edgec.ir.ops.registry import OPS

DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool", "uint16")
NUMBERS = ("float32", "float64", "float16", "int8", "int32", "int64")
fuzz = settings(max_examples=120, deadline=None)
shapes = st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple)
threads = st.sampled_from((1, 2))


def array(rng, shape, dtype, low=-4, high=5):
    """Small whole numbers: ties, and exact sums whatever their order."""
    dtype = np.dtype(dtype)
    low = 0 if dtype.kind in "ub" else low
    return rng.integers(low, 2 if dtype.kind == "b" else high, shape).astype(dtype)


def run(name, *args, out, threads=1):
    """The kernel's outputs; `out`: a list of (shape, dtype). They begin as rubbish."""
    outs = [np.full(shape, 77, dtype) for shape, dtype in out]
    signature = dict(_core.builtin_kernels())[name]
    inputs = signature.split("->")[0].count(",") + 1
    inputs = inputs if "*" not in signature.split("->")[0] else len(args) - signature.split(";")[1].count(",") - 1
    _core.call_builtin(name, *args[:inputs], *outs, *args[inputs:], threads=threads)
    return outs


def reference(op, *args, **attrs):
    result = OPS[op].reference(*args, **OPS[op].complete(attrs))
    return [np.asarray(r) for r in (result if isinstance(result, tuple) else (result,))]


def agree(name, args, params, want, threads=1):
    got = run(name, *args, *params, out=[(w.shape, w.dtype) for w in want], threads=threads)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


def test_signatures_are_listed_once():
    names = [name for name, _ in _core.builtin_kernels()]
    assert len(set(names)) == len(names) >= 20
    with pytest.raises(EdgecError, match="signature is x -> y; axis, last"):
        _core.call_builtin("argmax", np.zeros(3), np.zeros((), np.int64), 0)


@fuzz
@given(shapes, st.sampled_from(DTYPES), st.randoms(use_true_random=False), threads)
def test_transpose(shape, dtype, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    x = array(rng, shape, dtype)
    perm = tuple(rng.permutation(len(shape)).tolist())
    agree("transpose", (x,), perm, reference("transpose", x, perm=perm), threads)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("perm", [(1, 0, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2), (3, 2, 1, 0), (0, 2, 3, 1)])
def test_transpose_large(dtype, perm):
    x = np.random.default_rng(0).integers(0, 100, (3, 33, 65, 17)).astype(dtype)
    agree("transpose", (x,), perm, [np.ascontiguousarray(x.transpose(perm))], 2)


@fuzz
@given(shapes, st.integers(0, 2), st.sampled_from(DTYPES), st.randoms(use_true_random=False), threads)
def test_expand(shape, lead, dtype, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    small = tuple(1 if random.random() < 0.4 else n for n in shape)
    x = array(rng, small, dtype)
    target = tuple(rng.integers(0, 4, lead).tolist()) + shape
    agree("expand", (x,), (), reference("expand", x, shape=target), threads)


@fuzz
@given(shapes, st.sampled_from(DTYPES), st.randoms(use_true_random=False), threads)
def test_slice(shape, dtype, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    x = array(rng, shape, dtype)
    starts, sizes, steps = [], [], []
    for n in shape:
        step = random.choice((1, 1, 2, 3, -1, -2))
        start = random.randrange(n) if n else 0
        room = (n - 1 - start if step > 0 else start) // abs(step) + 1 if n else 0
        starts.append(start)
        steps.append(step)
        sizes.append(random.randint(0, room))
    want = reference("slice", x, starts=starts, sizes=sizes, steps=steps)
    agree("slice", (x,), (*starts, *steps), want, threads)


@pytest.mark.parametrize(("start", "step"), [(-1, 1), (3, 1), (4, 1), (0, 2), (1, -1), (0, 2**62), (0, 0)])
def test_slice_outside_is_an_error(start, step):
    with pytest.raises(EdgecError, match="outside"):
        run("slice", np.zeros(4), start, step, out=[((3,), "f8")])


@fuzz
@given(shapes, st.integers(1, 4), st.sampled_from(DTYPES), st.randoms(use_true_random=False), threads)
def test_concat(shape, count, dtype, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    axis = random.randrange(len(shape))
    xs = [array(rng, (*shape[:axis], random.randint(0, 5), *shape[axis + 1 :]), dtype) for _ in range(count)]
    agree("concat", xs, (axis,), reference("concat", *xs, axis=axis), threads)


@fuzz
@given(
    shapes,
    st.sampled_from(DTYPES),
    st.sampled_from(("constant", "reflect", "edge", "wrap")),
    st.randoms(use_true_random=False),
    threads,
)
def test_pad(shape, dtype, mode, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    x = array(rng, shape, dtype)
    before = [random.randint(-min(2, n), 9) for n in shape]
    after = [random.randint(-min(2, n + min(b, 0)), 9) for n, b in zip(shape, before, strict=True)]
    kept = [n + min(b, 0) + min(a, 0) for n, b, a in zip(shape, before, after, strict=True)]
    assume(mode == "constant" or all(kept))
    value = None if random.random() < 0.3 else array(rng, (), dtype)
    want = reference("pad", x, value, before=before, after=after, mode=mode)
    agree("pad", (x, value), (mode, *before, *after), want, threads)


def indices_for(rng, shape, size, dtype):
    return rng.integers(0 if np.dtype(dtype).kind == "u" else -size, max(size, 1), shape).astype(dtype)


index_dtypes = st.sampled_from(("int64", "int32", "int64", "uint8"))


@fuzz
@given(
    shapes,
    st.lists(st.integers(0, 4), max_size=2),
    st.sampled_from(DTYPES),
    index_dtypes,
    st.randoms(use_true_random=False),
    threads,
)
def test_gather(shape, index_shape, dtype, index_dtype, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    axis = random.randrange(len(shape))
    assume(shape[axis] > 0 or 0 in index_shape)
    x, indices = array(rng, shape, dtype), indices_for(rng, index_shape, shape[axis], index_dtype)
    agree("gather", (x, indices), (axis,), reference("gather", x, indices, axis=axis), threads)


@fuzz
@given(shapes, st.sampled_from(DTYPES), index_dtypes, st.randoms(use_true_random=False), threads)
def test_gather_elements(shape, dtype, index_dtype, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    axis = random.randrange(len(shape))
    index_shape = tuple(random.randint(0, 7) if i == axis else random.randint(0, n) for i, n in enumerate(shape))
    assume(shape[axis] > 0 or 0 in index_shape)
    x, indices = array(rng, shape, dtype), indices_for(rng, index_shape, shape[axis], index_dtype)
    want = reference("gather_elements", x, indices, axis=axis)
    agree("gather_elements", (x, indices), (axis,), want, threads)


@fuzz
@given(shapes, st.sampled_from(DTYPES), st.randoms(use_true_random=False), threads)
def test_gather_nd(shape, dtype, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    batch_dims = random.randint(0, len(shape) - 1)
    depth = random.randint(1, len(shape) - batch_dims)
    lead = (*shape[:batch_dims], *rng.integers(1, 4, random.randint(0, 2)).tolist())
    assume(all(shape[batch_dims : batch_dims + depth]))
    x = array(rng, shape, dtype)
    columns = [indices_for(rng, lead, shape[batch_dims + i], "int64") for i in range(depth)]
    indices = np.stack(columns, -1)
    want = reference("gather_nd", x, indices, batch_dims=batch_dims)
    agree("gather_nd", (x, indices), (batch_dims,), want, threads)


reductions = st.sampled_from(("none", "add", "mul", "min", "max"))


@fuzz
@given(shapes, st.sampled_from(NUMBERS), reductions, st.randoms(use_true_random=False), threads)
def test_scatter_elements(shape, dtype, reduction, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    axis = random.randrange(len(shape))
    index_shape = tuple(random.randint(0, 5) if i == axis else random.randint(0, n) for i, n in enumerate(shape))
    assume(shape[axis] > 0 or 0 in index_shape)
    x, indices = array(rng, shape, dtype), indices_for(rng, index_shape, shape[axis], "int64")
    updates = array(rng, [n + random.randint(0, 1) for n in index_shape], dtype)
    want = reference("scatter_elements", x, indices, updates, axis=axis, reduction=reduction)
    agree("scatter_elements", (x, indices, updates), (axis, reduction), want, threads)


@fuzz
@given(shapes, st.sampled_from(NUMBERS), reductions, st.randoms(use_true_random=False), threads)
def test_scatter_nd(shape, dtype, reduction, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    depth = random.randint(1, len(shape))
    lead = tuple(rng.integers(0, 4, random.randint(0, 2)).tolist())
    assume(all(shape[:depth]))
    x = array(rng, shape, dtype)
    indices = np.stack([indices_for(rng, lead, n, "int64") for n in shape[:depth]], -1)
    updates = array(rng, lead + shape[depth:], dtype)
    want = reference("scatter_nd", x, indices, updates, reduction=reduction)
    agree("scatter_nd", (x, indices, updates), (reduction,), want, threads)


@pytest.mark.parametrize("index", [5, -6, 2**40, -(2**63)])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_index_outside_is_an_error(index, threads):
    x = np.zeros(5, np.float32)
    many = np.zeros(100_000, np.int64)
    many[77_777] = index
    row = {"threads": threads}
    cases = [
        lambda: run("gather", x, many, 0, out=[(many.shape, "f4")], **row),
        lambda: run("gather_elements", x, many, 0, out=[(many.shape, "f4")], **row),
        lambda: run("gather_nd", x, many[:, None], 0, out=[(many.shape, "f4")], **row),
        lambda: run("scatter_nd", x, many[:, None], np.zeros(many.shape, "f4"), "add", out=[(x.shape, "f4")], **row),
        lambda: run("scatter_elements", x, many, np.zeros(many.shape, "f4"), 0, "none", out=[(x.shape, "f4")], **row),
    ]
    for case in cases:
        with pytest.raises(EdgecError, match=f"EC1605.*index {index} is outside of 5 elements"):
            case()


@fuzz
@given(shapes, st.sampled_from(DTYPES), st.booleans(), st.randoms(use_true_random=False), threads)
def test_topk(shape, dtype, largest, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    axis = random.randrange(len(shape))
    k = random.randint(0, shape[axis])
    x = array(rng, shape, dtype)
    want = reference("topk", x, k=k, axis=axis, largest=largest)
    agree("topk", (x,), (k, axis, int(largest), 1), want, threads)


@pytest.mark.parametrize("k", [1, 5, 400, 1000])
@pytest.mark.parametrize("largest", [True, False])
def test_topk_with_ties_and_nan(k, largest):
    x = np.random.default_rng(k).integers(0, 50, (4, 1000)).astype(np.float32)
    x[0, 10:13] = np.nan
    x[1, 5:7] = -np.inf, np.inf
    agree("topk", (x,), (k, 1, int(largest), 1), reference("topk", x, k=k, axis=1, largest=largest), 2)


@fuzz
@given(shapes, st.sampled_from(NUMBERS), st.booleans(), st.booleans(), st.randoms(use_true_random=False), threads)
def test_cumsum(shape, dtype, exclusive, reverse, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    axis = random.randrange(len(shape))
    assume(shape[axis] > 0)
    x = array(rng, shape, dtype)
    want = reference("cumsum", x, axis=axis, exclusive=exclusive, reverse=reverse)
    agree("cumsum", (x,), (axis, int(exclusive), int(reverse)), want, threads)


@fuzz
@given(
    shapes,
    st.sampled_from(DTYPES),
    st.sampled_from(("argmax", "argmin")),
    st.booleans(),
    st.booleans(),
    st.randoms(use_true_random=False),
    threads,
)
def test_argmax_argmin(shape, dtype, op, last, with_nan, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    axis = random.randrange(len(shape))
    assume(shape[axis] > 0)
    x = array(rng, shape, dtype)
    if with_nan and x.size and x.dtype.kind == "f":
        x.flat[rng.integers(0, x.size, 2)] = np.nan
    agree(op, (x,), (axis, int(last)), reference(op, x, axis=axis, last=last), threads)


@fuzz
@given(
    st.lists(st.integers(0, 3), max_size=3),
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)),
    st.sampled_from(("float32", "float64", "float16", "int32", "int64")),
    st.booleans(),
    st.booleans(),
    st.randoms(use_true_random=False),
    threads,
)
def test_matmul(batch, mnk, dtype, trans_a, trans_b, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    m, n, k = mnk

    def batched():
        dims = [1 if random.random() < 0.3 else d for d in batch]
        return tuple(dims[random.randint(0, len(dims)) :]) if random.random() < 0.3 else tuple(dims)

    a = array(rng, (*batched(), *((k, m) if trans_a else (m, k))), dtype)
    b = array(rng, (*batched(), *((n, k) if trans_b else (k, n))), dtype)
    want = reference("matmul", a, b, trans_a=trans_a, trans_b=trans_b)
    agree("matmul", (a, b), (int(trans_a), int(trans_b)), want, threads)


@fuzz
@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.tuples(st.integers(0, 20), st.integers(0, 40), st.integers(0, 40)),
    st.sampled_from(("int8", "uint8")),
    st.sampled_from(("int8", "uint8")),
    st.randoms(use_true_random=False),
    threads,
)
def test_matmul_int(batch, mnk, a_dtype, b_dtype, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    m, n, k = mnk
    full = {"int8": (-128, 128), "uint8": (0, 256)}
    a = rng.integers(*full[a_dtype], (*batch, m, k)).astype(a_dtype)
    b = rng.integers(*full[b_dtype], (k, n)).astype(b_dtype)
    zeros = [None if random.random() < 0.3 else np.asarray(rng.integers(*full[d]), d) for d in (a_dtype, b_dtype)]
    agree("matmul_int", (a, b, *zeros), (), reference("matmul_int", a, b, *zeros), threads)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 300, 513), (97, 33, 64), (200, 17, 301), (5, 1, 1)])
def test_matmul_int_large(m, n, k):
    rng = np.random.default_rng(m)
    a = rng.integers(0, 256, (2, m, k)).astype(np.uint8)
    b = rng.integers(-128, 128, (2, k, n)).astype(np.int8)
    zeros = (np.uint8(0), np.int8(-128))
    agree("matmul_int", (a, b, *map(np.asarray, zeros)), (), reference("matmul_int", a, b, *zeros), 2)
    rows = np.full((1, k), 255, np.uint8), np.full((k, n), -128, np.int8)
    agree("matmul_int", (*rows, None, None), (), reference("matmul_int", *rows, None, None), 2)


def test_matmul_refuses_what_does_not_fit():
    with pytest.raises(EdgecError, match="inner sizes differ"):
        run("matmul", np.zeros((2, 3), "f4"), np.zeros((4, 2), "f4"), 0, 0, out=[((2, 2), "f4")])
    with pytest.raises(EdgecError, match="broadcast"):
        run("matmul", np.zeros((2, 2, 3), "f4"), np.zeros((3, 3, 2), "f4"), 0, 0, out=[((3, 2, 2), "f4")])


def test_copy():
    for size in (0, 1, 100_001):
        x = np.arange(size, dtype=np.float32)
        agree("copy", (x,), (), [x], 2)
    with pytest.raises(EdgecError, match="different sizes"):
        run("copy", np.zeros(3), out=[((2,), "f8")])


def close(got, want, bound):
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * scale)


@fuzz
@given(
    st.lists(st.integers(0, 5), max_size=2),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(("none", "relu", "relu6", "gelu", "silu", "hard_swish", "hard_sigmoid")),
    st.booleans(),
    st.booleans(),
    st.randoms(use_true_random=False),
    threads,
)
def test_linear_fp32(lead, n, k, act, with_bias, with_residual, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    x = rng.standard_normal((*lead, k)).astype(np.float32)
    w = rng.standard_normal((n, k)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32) if with_bias else None
    residual = rng.standard_normal((*lead, n)).astype(np.float32) if with_residual else None
    form = edgec.kernels.format_name(bits=32)
    packed = edgec.kernels.pack(form, w)
    norm = random.choice(("none", "rms", "layer"))
    gain, shift = (rng.standard_normal(k).astype(np.float32) if norm != "none" else None for _ in range(2))
    (want,) = reference("linear", x, w, bias, residual, gain, shift, act=act, norm=norm, eps=1e-3)
    params = (act, norm, 1e-3, form, n, k, 0)
    (got,) = run("linear", x, packed, bias, residual, gain, shift, *params, out=[(want.shape, "f4")], threads=threads)
    close(got, want, 1e-5)


@fuzz
@given(st.integers(0, 9), st.integers(1, 70), st.integers(1, 3), st.randoms(use_true_random=False), threads)
def test_linear_int4(m, n, blocks, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    k = 32 * blocks
    x = rng.standard_normal((m, k)).astype(np.float32)
    q, scale, _ = edgec.kernels.quantize(rng.standard_normal((n, k)).astype(np.float32))
    form = edgec.kernels.format_name()
    packed = edgec.kernels.pack(form, q, scale)
    act = random.choice(edgec.kernels.GATED) if n % 16 == 0 else "none"
    how = {"activations": "int8", "act": act, "rotate": random.choice((False, True))}
    (want,) = reference("linear", x, edgec.kernels.dequantize(q, scale), *[None] * 4, **how)
    params = (act, "none", 0.0, form, n, k, int(how["rotate"]))
    (got,) = run("linear", x, packed, *[None] * 4, *params, out=[(want.shape, "f4")], threads=threads)
    close(got, want, 1e-4)


def test_linear_refuses_short_weights_and_unknown_names():
    form = edgec.kernels.format_name(bits=32)
    for bytes, act, norm, *sizes, words in (
        (100, "none", "none", form, 16, 8, "too short"),
        (100, "none", "none", "nonsense", 16, 8, "no packed format 'nonsense'"),
        (4096, "swish", "none", form, 16, 8, "no activation 'swish'"),
        (4096, "none", "none", form, 16, 7, "too short|shapes"),
        (4096, "none", "batch", form, 16, 8, "none of none, rms, layer"),
        (4096, "swiglu", "none", form, 8, 8, "panels of 16|shapes"),
    ):
        with pytest.raises(EdgecError, match=words):
            x, w = np.zeros((2, 8), "f4"), np.zeros(bytes, np.uint8)
            run("linear", x, w, *[None] * 4, act, norm, 0.0, *sizes, 0, out=[((2, 16), "f4")])
    with pytest.raises(EdgecError, match="no rotation"):
        run(
            "linear",
            x,
            np.zeros(4096, np.uint8),
            *[None] * 4,
            "none",
            "none",
            0.0,
            form,
            16,
            8,
            1,
            out=[((2, 16), "f4")],
        )


@fuzz
@given(shapes, st.sampled_from((1, 2, 4, 32, 64)), st.randoms(use_true_random=False), threads)
def test_hadamard(shape, block, random, threads):
    x = np.random.default_rng(random.randrange(2**32)).standard_normal((*shape[:-1], shape[-1] * 11)).astype(np.float32)
    (want,) = reference("hadamard", x, block=block)
    (got,) = run("hadamard", x, block, out=[(x.shape, "f4")], threads=threads)
    close(got, want, 1e-6)


def test_hadamard_refuses_what_is_no_power_of_two():
    for block in (0, -4, 24):
        with pytest.raises(EdgecError, match="power of two"):
            run("hadamard", np.zeros((2, 8), "f4"), block, out=[((2, 8), "f4")])


@fuzz
@given(
    st.integers(1, 2),
    st.sampled_from(((1, 1), (4, 2), (3, 3), (6, 1))),
    st.tuples(st.integers(0, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(*[st.sampled_from(("bhsd", "bshd"))] * 4),
    st.sampled_from((None, (1, 1, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0), (1, 1, 0, 0), (1,))),
    st.booleans(),
    st.sampled_from((0, 0, 1, 3)),
    st.sampled_from((0.0, 0.5)),
    st.randoms(use_true_random=False),
    threads,
)
def test_attention(b, heads, lengths, sizes, layouts, mask_dims, causal, window, softcap, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    (h, hk), (s, t), (d, dv) = heads, lengths, sizes
    assume(not causal or s <= t)  # a row that sees nothing is NaN

    def operand(heads, length, dim, layout):
        shape = (b, heads, length, dim) if layout == "bhsd" else (b, length, heads, dim)
        return rng.standard_normal(shape).astype(np.float32)

    q, k, v = operand(h, s, d, layouts[0]), operand(hk, t, d, layouts[1]), operand(hk, t, dv, layouts[2])
    mask = None
    if mask_dims is not None:
        full = (b, h, s, t)[4 - len(mask_dims) :]
        shape = tuple(n if bit else random.choice((1, n)) for bit, n in zip(mask_dims, full, strict=True))
        mask = rng.standard_normal(shape).astype(np.float32)
    names = dict(zip(("q_layout", "k_layout", "v_layout", "out_layout"), layouts, strict=True))
    (want,) = reference("attention", q, k, v, mask, scale=0.3, causal=causal, window=window, softcap=softcap, **names)
    args = (q, k, v, mask, 0.3, int(causal), window, softcap, *layouts)
    (got,) = run("attention", *args, out=[(want.shape, "f4")], threads=threads)
    close(got, want, 1e-5)


@fuzz
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.integers(0, 5), max_size=2),
    index_dtypes,
    st.randoms(use_true_random=False),
    threads,
)
def test_gather_quantized(rows, dim, shape, index_dtype, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    table = rng.standard_normal((rows, dim)).astype(np.float32)
    q, scale, _ = edgec.kernels.quantize(table, bits=8, group=32)
    form = edgec.kernels.format_name(bits=8, group=32, op="gather")
    packed = edgec.kernels.pack(form, q, scale)
    indices = indices_for(rng, shape, rows, index_dtype)
    (want,) = reference("gather", edgec.kernels.dequantize(q, scale), indices, axis=0)
    (got,) = run("gather_quantized", packed, indices, form, rows, dim, out=[(want.shape, "f4")], threads=threads)
    close(got, want, 1e-6)
    with pytest.raises(EdgecError, match=f"index {rows} is outside"):
        bad = np.asarray([rows])
        run("gather_quantized", packed, bad, form, rows, dim, out=[((1, dim), "f4")], threads=threads)


def test_without_avx2():
    """The same tests on the code for any CPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "matmul or reference or activation",
    ]
    files = [str(Path(__file__)), str(Path(__file__).with_name("test_recurrent.py"))]
    done = subprocess.run([*command, *files], env={**os.environ, "EDGEC_DISABLE": "avx2,fma,f16c"}, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()[-3000:]
