"""linear: every kernel of the table against numpy, from packing to the epilogue."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest
import sgemm
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec import kernels as ek
from edgec.errors import EdgecError
from edgec.testing import strategies as es

sgemm.use()
ISAS = {"avx2", "avx512vnni", "neon", "dotprod", "i8mm", "sme2", "amx", "amx2", "accelerate", "generic"}
LINEAR = [k for k in ek.list() if k.op == "linear"]
EPSILON = float(np.finfo(np.float32).eps)


def of_family(kernel: ek.Kernel) -> st.SearchStrategy[ek.Format]:
    return st.sampled_from([f for f in ek.formats().values() if f.family == kernel.family])


def takes_f16(kernel: ek.Kernel) -> bool:
    return "_f16k32_" in kernel.name


def need(kernel: ek.Kernel) -> None:
    if not kernel.available:
        pytest.skip(f"this CPU lacks one of {', '.join(kernel.features)}")


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values as float64 [M, blocks, 32] and float32 scales [M, blocks], as docs/kernels.md states them."""
    m, k = x.shape
    blocks = -(-k // 32)
    padded = np.zeros((m, blocks * 32), np.float32)
    padded[:, :k] = x
    padded = padded.reshape(m, blocks, 32)
    top = np.abs(padded).max(-1)
    top = np.where(top < np.float32(2.0**-119), np.float32(0), top)
    with np.errstate(divide="ignore"):
        inverse = np.where(top > 0, np.float32(127) / top, np.float32(0)).astype(np.float32)
    return np.rint(padded * inverse[..., None]).astype(np.float64), (top / np.float32(127)).astype(np.float32)


def f16_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f16 values as float64 [M, K] and a factor of each row [M, 1], as docs/kernels.md states them for AMX."""
    top = np.abs(x).max(-1, keepdims=True, initial=0).astype(np.float64)
    with np.errstate(divide="ignore"):
        power = np.exp2(np.minimum(np.floor(np.log2(top)), 126))
    factor = np.where((top < 2.0**-119) | ((top >= 2.0**-3) & (top < 2.0**15)), 1.0, power)
    with np.errstate(over="ignore"):
        values = (x.astype(np.float64) / factor).astype(np.float32).astype(np.float16)
    return np.where(top < 2.0**-119, 0, values.astype(np.float64)), factor


def f16_weights(w: es.QuantizedWeight) -> np.ndarray:
    """Of int4: (q - 8) * scale + (8 - zero) * scale, the second term and the whole rounded to f16."""
    k = w.q.shape[1]
    scale = np.repeat(w.scale.astype(np.float64), w.group, axis=1)[:, :k]
    with np.errstate(over="ignore", invalid="ignore"):
        if w.zero is None:
            return (w.integers() * scale).astype(np.float16).astype(np.float64)
        zero = np.repeat(w.zero.astype(np.float64), w.group, axis=1)[:, :k]
        shift = ((8 - zero) * scale).astype(np.float16).astype(np.float64)
        return ((w.q.astype(np.float64) - 8) * scale + shift).astype(np.float16).astype(np.float64)


def reference(kernel: ek.Kernel, x: np.ndarray, w: es.QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """Product in float64 and the sum of its terms' magnitudes: rounding errors are a small multiple of that."""
    if takes_f16(kernel):
        (a, factor), b = f16_activations(x), f16_weights(w)
        with np.errstate(invalid="ignore"):
            return (a @ b.T) * factor, (np.abs(a) @ np.abs(b).T) * factor
    if w.scale is None:
        a, b = x.astype(np.float64), w.values()
        return a @ b.T, np.abs(a) @ np.abs(b).T
    q, scale = quantize_activations(x)
    blocks = q.shape[1]
    integers = np.zeros((w.q.shape[0], blocks * 32))
    integers[:, : w.q.shape[1]] = w.integers()
    dots = np.einsum("mbi,nbi->mnb", q, integers.reshape(-1, blocks, 32))
    steps = w.scale.astype(np.float64)[:, np.arange(blocks) * 32 // w.group]
    terms = dots * scale.astype(np.float64)[:, None] * steps[None]
    return terms.sum(-1), np.abs(terms).sum(-1)


@pytest.mark.parametrize("kernel", LINEAR, ids=lambda k: k.name)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_linear_matches_reference(kernel, data):
    need(kernel)
    w = data.draw(es.quantized_weights(of_family(kernel)))
    n, k = w.q.shape
    m = data.draw(es.sizes(20, 6))
    x = es.guarded(data.draw(es.activations(m, k)), data.draw(st.booleans()))
    packed = es.guarded(w.pack(), data.draw(st.booleans()))
    out = es.guarded(np.full((m, n), np.nan, np.float32), data.draw(st.booleans()))
    threads = data.draw(st.integers(1, 4))
    ek.gemm(x, packed, w.format.name, n, k, threads=threads, kernel=kernel.name, out=out)
    want, magnitude = reference(kernel, x, w)
    depth = k if w.scale is None or takes_f16(kernel) else -(-k // 32)
    # A term's two scale products and each addition round once; below that, float32's own limits.
    bound = (depth + 4) * EPSILON * magnitude + 1e-44 * (depth + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        overflow = ~(magnitude <= np.finfo(np.float32).max)
        if takes_f16(kernel):  # a weight's f16 may be infinite, of padding too
            overflow |= np.abs(w.scale.astype(np.float32)).max(1) > 65504 / 16
        assert (np.abs(out - want) <= bound)[~overflow].all()


@pytest.mark.parametrize("kernel", [k for k in LINEAR if not k.family.startswith("f32")], ids=lambda k: k.name)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_integer_part_is_exact(kernel, data):
    need(kernel)
    w = data.draw(es.quantized_weights(of_family(kernel), k=es.sizes(200, 32), unit_scale=True))
    n, k = w.q.shape
    m = data.draw(es.sizes(14, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = rng.integers(-127, 127, (m, k), endpoint=True).astype(np.float32)
    x[:, ::32] = data.draw(st.sampled_from((-127, 127)))  # scale exactly 1
    if data.draw(st.booleans()):
        x = np.full_like(x, x[0, 0])
    out = ek.gemm(x, w.pack(), w.format.name, n, k, kernel=kernel.name)
    assert (out == x.astype(np.float64) @ w.integers().T).all()


@settings(deadline=None, max_examples=60)
@given(
    w=st.sampled_from(("linear", "gather")).flatmap(lambda op: es.quantized_weights(es.formats(op))),
    threads=st.integers(1, 4),
)
def test_pack_then_unpack_is_identity(w, threads):
    packed = w.pack(threads)
    n, k = w.q.shape
    assert packed.nbytes == ek.packed_nbytes(w.format.name, n, k)
    q, scale, zero = ek.unpack(w.format.name, es.guarded(packed), n, k, threads)
    assert (q == w.q).all()
    for got, want in ((scale, w.scale), (zero, w.zero)):
        assert (got is None and want is None) or got.tobytes() == want.tobytes()


@pytest.mark.parametrize("kernel", LINEAR, ids=lambda k: k.name)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_row_is_nan_and_stays_in_its_row(kernel, bad):
    need(kernel)
    rng = np.random.default_rng(0)
    fmt = next(f for f in ek.formats().values() if f.family == kernel.family)
    w = rng.standard_normal((20, 70)).astype(np.float32)
    packed = (
        ek.pack(fmt.name, w)
        if fmt.bits == 32
        else ek.pack(fmt.name, *ek.quantize(w, fmt.bits, fmt.group, fmt.symmetric, table=fmt.table))
    )
    x = rng.standard_normal((5, 70)).astype(np.float32)
    clean = ek.gemm(x, packed, fmt.name, 20, 70, kernel=kernel.name)
    x[2, 40] = bad
    out = ek.gemm(x, packed, fmt.name, 20, 70, kernel=kernel.name)
    assert not np.isfinite(out[2]).any() and (np.isnan(out[2]).all() or fmt.bits == 32)
    assert (np.delete(out, 2, 0) == np.delete(clean, 2, 0)).all()


ORACLES = {
    "none": lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "gelu": lambda v: 0.5 * v * (1 + np.vectorize(erf)(v / np.sqrt(2))),
    "gelu_tanh": lambda v: 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "tanh": np.tanh,
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
}


@pytest.mark.parametrize("kernel", LINEAR, ids=lambda k: k.name)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_epilogue(kernel, data):
    need(kernel)
    w = data.draw(es.quantized_weights(of_family(kernel), unit_scale=True, k=es.sizes(64, 32)))
    n, k = w.q.shape
    m, act = data.draw(es.sizes(9, 6)), data.draw(st.sampled_from(tuple(ORACLES)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = (rng.standard_normal((m, k)) * 0.01).astype(np.float32)
    bias = es.guarded(rng.standard_normal(n).astype(np.float32)) if data.draw(st.booleans()) else None
    # The residual and the result are columns of wider arrays, so that rows have a stride.
    wide = es.guarded(rng.standard_normal((m, n + 3)).astype(np.float32))
    residual = wide[:, 3:] if data.draw(st.booleans()) else None
    out = es.guarded(np.zeros((m, n + 5), np.float32))
    name = w.format.name
    ek.gemm(x, w.pack(), name, n, k, bias, act, residual, data.draw(st.integers(1, 3)), kernel.name, out[:, 5:])
    want = ek.gemm(x, w.pack(), name, n, k, kernel=kernel.name).astype(np.float64)
    want = ORACLES[act](want + (0 if bias is None else bias)) + (0 if residual is None else residual)
    np.testing.assert_allclose(out[:, 5:], want, rtol=3e-6, atol=3e-6)
    assert (out[:, :5] == 0).all()


def normalized(x: np.ndarray, norm: str, eps: float, gain, bias) -> np.ndarray:
    """The norm in float64."""
    y = x.astype(np.float64)
    y = y - y.mean(-1, keepdims=True) if norm == "layer" else y
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + eps)
    return y * (1 if gain is None else gain.astype(np.float64)) + (0 if bias is None else bias.astype(np.float64))


@pytest.mark.parametrize("kernel", LINEAR, ids=lambda k: k.name)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_norm_before_the_product(kernel, data):
    need(kernel)
    w = data.draw(es.quantized_weights(of_family(kernel), unit_scale=True))
    n, k = w.q.shape
    m = data.draw(es.sizes(20, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    # Beyond 1e19 the squares overflow in float32; far offsets cancel in the mean.
    scale, offset = data.draw(st.sampled_from(((1, 0), (1e-25, 0), (1e25, 0), (1, 30), (0, 0))))
    x = es.guarded((rng.standard_normal((m, k)) * scale + offset).astype(np.float32), data.draw(st.booleans()))
    norm, eps = data.draw(st.sampled_from(("rms", "layer"))), data.draw(st.sampled_from((1e-5, 1e-12)))
    gain, shift = (
        es.guarded(rng.standard_normal(k).astype(np.float32)) if data.draw(st.booleans()) else None for _ in range(2)
    )
    threads = data.draw(st.integers(1, 4))
    normed = {"norm": norm, "eps": eps, "norm_gain": gain, "norm_bias": shift}
    got = ek.gemm(x, w.pack(), w.format.name, n, k, threads=threads, kernel=kernel.name, **normed)
    y = normalized(x, norm, eps, gain, shift)
    # Of each normalised value: the roundings of the sums and of five operations; what the mean takes away cancels.
    deep = (k / 32 + 8) * EPSILON
    slack = deep * (np.abs(y) + (0 if shift is None else np.abs(shift)))
    if norm == "layer":
        top = np.abs(x).max(-1, keepdims=True).astype(np.float64)
        spread = np.sqrt(x.astype(np.float64).var(-1, keepdims=True) + eps)
        slack = slack + deep * top / spread * (1 if gain is None else np.abs(gain))
    values = np.abs(w.values())
    if w.scale is None:
        bound = slack @ values.T + (k + 4) * EPSILON * (np.abs(y) @ values.T) + 1e-30
        assert (np.abs(got - y @ w.values().T) <= bound).all()
        return
    if takes_f16(kernel):
        loose = slack + 2.0**-11 * np.abs(y) + 2.0**-22 * np.abs(y).max(-1, keepdims=True)
        b = np.abs(f16_weights(w))
        bound = loose @ b.T + (k + 4) * EPSILON * (np.abs(y) @ b.T) + 1e-30
        assert (np.abs(got - y @ f16_weights(w).T) <= bound).all()
        return
    # In int8 a value that is within its slack of the middle of two steps may go either way.
    q, step = quantize_activations(y.astype(np.float32))
    steps = np.repeat(step, 32, axis=1)[:, :k].astype(np.float64)
    exact = np.divide(y, steps, where=steps > 0, out=np.zeros_like(y))
    away = np.abs(np.abs(exact - np.floor(exact)) - 0.5) * steps
    block_slack = np.pad(slack + EPSILON * 8 * np.abs(y), ((0, 0), (0, -k % 32))).reshape(m, -1, 32).max(-1)
    either = away <= 2 * np.repeat(block_slack, 32, axis=1)[:, :k]
    dequantized = (q * step[..., None]).reshape(m, -1)[:, :k].astype(np.float64)
    loose = np.where(either, steps, 0) + 2 * np.repeat(block_slack, 32, axis=1)[:, :k]
    bound = loose @ values.T + (k + 4) * EPSILON * (np.abs(dequantized) @ values.T) + 1e-30
    assert (np.abs(got - dequantized @ w.values().T) <= bound).all()


@pytest.mark.parametrize("kernel", [k for k in LINEAR if not k.family.startswith("f32")], ids=lambda k: k.name)
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_rotation_before_the_product(kernel, data):
    need(kernel)
    w = data.draw(es.quantized_weights(of_family(kernel)))
    n, k = w.q.shape
    m, threads = data.draw(es.sizes(20, 6)), data.draw(st.integers(1, 3))
    x = es.guarded(data.draw(es.activations(m, k)), data.draw(st.booleans()))
    packed, how = w.pack(), {"threads": threads, "kernel": kernel.name}
    got = ek.gemm(x, packed, w.format.name, n, k, rotate=True, **how)
    np.testing.assert_array_equal(got, ek.gemm(ek.hadamard(x, 32), packed, w.format.name, n, k, **how))
    with np.errstate(all="ignore"):
        scale = np.float32(np.abs(x).max(initial=0))
        x = x / scale if 0 < scale < np.inf else np.ones_like(x)
    # A row that is its own norm: what is rotated is what the norm gives.
    gain = np.random.default_rng(0).standard_normal(k).astype(np.float32)
    normed = normalized(x, "rms", 1e-5, gain, None).astype(np.float32)
    got = ek.gemm(x, packed, w.format.name, n, k, rotate=True, norm="rms", eps=1e-5, norm_gain=gain, **how)
    want, magnitude = reference(kernel, ek.hadamard(normed, 32), w)
    with np.errstate(over="ignore", invalid="ignore"):
        fits = magnitude < 1e30
        if takes_f16(kernel):  # a weight's f16 may be infinite
            fits &= np.abs(w.scale.astype(np.float32)).max(1) <= 65504 / 16
        assert (np.abs(got - want)[fits] <= 0.02 * magnitude[fits].max(initial=0) + 1e-30).all()


def test_floats_are_not_rotated():
    with pytest.raises(EdgecError, match="no rotation"):
        ek.gemm(
            np.zeros((1, 8), np.float32), ek.pack("f32n16", np.zeros((16, 8), np.float32)), "f32n16", 16, 8, rotate=True
        )


def test_the_norm_of_a_row_that_is_not_finite_is_nan():
    w = np.ones((16, 64), np.float32)
    x = np.ones((3, 64), np.float32)
    x[1, 7], x[2, 7] = np.inf, np.nan
    for fmt in ("f32n16", "f32nk", "s8n16k4", "s4g32n16k4"):
        q = (w,) if fmt[0] == "f" else ek.quantize(w, 4 if fmt[1] == "4" else 8, 32 if fmt[1] == "4" else 0)
        for norm in ("rms", "layer"):
            y = ek.gemm(x, ek.pack(fmt, *q), fmt, 16, 64, norm=norm, eps=1e-5)
            assert np.isfinite(y[0]).all() and np.isnan(y[1:]).all()


@pytest.mark.parametrize("act", ek.GATED)
@pytest.mark.parametrize("fmt", [f.name for f in ek.formats().values() if f.op == "linear"])
def test_gated_products(fmt, act):
    rng = np.random.default_rng(1)
    gate, up = rng.standard_normal((2, 24, 64)).astype(np.float32)
    w = ek.interleave(gate, up)
    f = ek.formats()[fmt]
    q = (w,) if f.bits == 32 else ek.quantize(w, f.bits, f.group, f.symmetric, table=f.table)
    x = np.sign(rng.standard_normal((7, 64))).astype(np.float32)  # exact in int8 but for the rounding of the scale
    bias = rng.standard_normal(48).astype(np.float32)
    oracle = ORACLES[{"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}[act]]
    for kernel in (k for k in LINEAR if k.family == f.family and k.available):
        value = w if f.bits == 32 else ek.dequantize(*q, group=f.group)
        if takes_f16(kernel):
            value = f16_weights(es.QuantizedWeight(f, *q))
        both = (x @ value.T).reshape(7, 3, 2, 8) + bias.reshape(3, 2, 8)
        out = ek.gemm(x, ek.pack(fmt, *q), fmt, 48, 64, bias=bias, act=act, kernel=kernel.name)
        want = oracle(both[:, :, 0]) * both[:, :, 1]
        np.testing.assert_allclose(out, want.reshape(7, 24), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [k for k in ek.list() if k.op == "quantize"], ids=lambda k: k.name)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_quantize(kernel, data):
    need(kernel)
    bits, symmetric = data.draw(st.sampled_from(((4, True), (4, False), (6, True), (8, True))))
    group = data.draw(st.sampled_from((32, 64, 128, 0)))
    shape = (data.draw(es.sizes(6)), data.draw(es.sizes(300, 32)))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    w = rng.standard_normal(shape).astype(np.float32) + np.float32(data.draw(st.sampled_from((0, 0.5, -3))))
    w = es.guarded(w * np.float32(data.draw(st.sampled_from((1, 1e-2, 1e3, 0)))))
    error = []
    for search in (False, True):
        q, scale, zero = ek.quantize(w, bits, group, symmetric, search, threads=2, kernel=kernel.name)
        assert q.dtype == (np.int8 if symmetric else np.uint8) and (zero is None) == symmetric
        low, high = (0, 15) if not symmetric else (-127, 127) if bits == 8 else (-(1 << bits - 1), (1 << bits - 1) - 1)
        assert q.min() >= low and q.max() <= high
        value = ek.dequantize(q, scale, zero, group)
        size = group or shape[1]
        if not search:
            # Nothing is clipped without a search: half a step, and what f16 does to the step over the whole range.
            step = np.abs(scale.astype(np.float32))[:, np.arange(shape[1]) // size]
            slack = 1 if not symmetric else 0.5  # the zero point itself is rounded
            assert (np.abs(value - w) <= step * (slack + 0.01 + high * 2.0**-10) + 1e-6).all()
        pad = ((0, 0), (0, -shape[1] % size))
        error.append((np.pad(value - w.astype(np.float64), pad).reshape(shape[0], -1, size) ** 2).sum(-1))
    # The search does not foresee the rounding of the step to f16, at most 2^-11 of each weight.
    energy = (np.pad(w.astype(np.float64), pad).reshape(shape[0], -1, size) ** 2).sum(-1)
    assert (error[1] <= error[0] * 1.02 + energy * 2.0**-22 + 1e-12).all()


@pytest.mark.parametrize("kernel", [k for k in ek.list() if k.op == "quantize"], ids=lambda k: k.name)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_quantize_to_the_table(kernel, data):
    need(kernel)
    shape = (data.draw(es.sizes(6)), data.draw(es.sizes(300, 32)))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    w = es.guarded(
        rng.standard_normal(shape).astype(np.float32) * np.float32(data.draw(st.sampled_from((1, 1e3, 0.02, 0))))
    )
    error = []
    for search in (False, True):
        q, scale, zero = ek.quantize(w, 4, 32, True, search, threads=2, kernel=kernel.name, table=True)
        assert q.dtype == np.int8 and zero is None and np.isin(q, ek.TABLE).all()
        row = np.abs(scale.astype(np.float64)).max(1, keepdims=True)
        unit = np.where(row > 0, np.exp2(np.ceil(np.log2(np.where(row > 0, row, 1) / 127))), 1)
        assert (scale / unit == np.rint(scale / unit)).all()
        value = ek.dequantize(q, scale)
        error.append(((value - w) ** 2).sum())
        # Each weight has the value that is nearest: no other one of the table is closer.
        others = np.float64(ek.TABLE) * np.repeat(scale.astype(np.float64), 32, 1)[:, : shape[1], None]
        assert (np.abs(value - w) <= np.abs(others - w[..., None]).min(-1) * (1 + 1e-5) + 1e-9).all()
        back = ek.unpack("t4g32n16k4", ek.pack("t4g32n16k4", q, scale), *shape)
        assert (back[0] == q).all() and (back[1] == scale).all()
    assert error[1] <= error[0] * 1.02 + 1e-12


def test_the_table_beats_steps_of_equal_size():
    w = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)

    def error(**kind):
        return float(np.square(ek.dequantize(*ek.quantize(w, **kind)) - w).mean())

    assert error(table=True) < 0.94 * error() and error(table=True) < 1.03 * error(symmetric=False)


def test_importance_moves_error_to_columns_that_do_not_matter():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 256)).astype(np.float32)
    importance = np.where(np.arange(256) % 4 == 0, 100, 1).astype(np.float32)

    def loss(h):
        q, s, z = ek.quantize(w, 4, 32, False, importance=h)
        return (((ek.dequantize(q, s, z) - w) ** 2) * importance).sum()

    assert loss(importance) < 0.7 * loss(None)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ek.pack("nope", np.zeros((1, 1), np.int8), np.ones((1, 1), np.float16)),
        lambda: ek.pack("s4g32n16k4", np.zeros((1, 1), np.uint8), np.ones((1, 1), np.float16)),
        lambda: ek.pack("s4g32n16k4", np.zeros((1, 64), np.int8), np.ones((1, 1), np.float16)),
        lambda: ek.pack("u4g32n16k4", np.zeros((1, 32), np.uint8), np.ones((1, 1), np.float16)),
        lambda: ek.unpack("s4g32n16k4", np.zeros(10, np.uint8), 16, 32),
        lambda: ek.gemm(np.zeros((1, 32), np.float32), np.zeros(9, np.uint8), "s4g32n16k4", 16, 32),
        lambda: ek.gemm(np.zeros((1, 32)), np.zeros(288, np.uint8), "s4g32n16k4", 16, 32),
        lambda: ek.gemm(np.zeros((32, 1), np.float32).T[:, ::-1], np.zeros(288, np.uint8), "s4g32n16k4", 16, 32),
        lambda: ek.gemm(np.zeros((1, 32), np.float32), np.zeros(288, np.uint8), "s4g32n16k4", 16, 32, kernel="no"),
        lambda: ek.gemm(np.zeros((1, 32), np.float32), np.zeros(288, np.uint8), "s4g32n16k4", 16, 32, act="no"),
        lambda: ek.quantize(np.zeros((2, 2), np.float32), bits=3),
    ],
)
def test_wrong_calls_are_refused(call):
    with pytest.raises(EdgecError):
        call()


def test_names_follow_the_grammar():
    for k in ek.list():
        op, dst, *_operands, tile, isa = k.name.split("_")
        assert len(k.name.split("_")) == 6, k.name
        assert op == k.op and dst in {"f32", "u4"}, k.name
        assert isa in ISAS, k.name
        assert all(part.isdigit() for part in tile.split("x")), k.name
    assert len({k.name for k in ek.list()}) == len(ek.list())
    for f in ek.formats().values():
        assert any(k.family == f.family and not k.features for k in LINEAR) or f.op == "gather", f.name
