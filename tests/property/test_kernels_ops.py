"""matmul, attention, gather and the activations against numpy, for every instruction set that this CPU has."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec import kernels as ek
from edgec.errors import EdgecError
from edgec.testing import strategies as es


def table(op: str) -> pytest.MarkDecorator:
    skip = pytest.mark.skip
    return pytest.mark.parametrize(
        "kernel",
        [
            pytest.param(k.name, marks=() if k.available else skip(reason=f"no {', '.join(k.features)}"))
            for k in ek.list()
            if k.op == op
        ],
    )


def any_layout(draw: st.DrawFn, array: np.ndarray) -> np.ndarray:
    """The same values with the last two axes' strides swapped, the last axis reversed, or between guard pages."""
    kind = draw(st.sampled_from(("guarded", "swapped", "reversed", "start")))
    if kind == "swapped":
        return es.guarded(np.ascontiguousarray(array.swapaxes(-1, -2))).swapaxes(-1, -2)
    if kind == "reversed":
        return es.guarded(np.ascontiguousarray(array[..., ::-1]))[..., ::-1]
    return es.guarded(array, kind == "guarded")


@table("matmul")
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_matmul(kernel, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    m, n, k = data.draw(es.sizes(40, 6)), data.draw(es.sizes(40)), data.draw(es.sizes(70))
    batch = tuple(data.draw(st.lists(st.integers(1, 3), max_size=3)))
    narrow = [tuple(data.draw(st.sampled_from((1, d))) for d in batch) for _ in range(2)]
    full = tuple(max(a, b) for a, b in zip(*narrow, strict=True))
    a = any_layout(data.draw, rng.standard_normal((*narrow[0], m, k)).astype(np.float32))
    b = any_layout(data.draw, rng.standard_normal((*narrow[1], k, n)).astype(np.float32))
    out = es.guarded(np.zeros((*full, m, n), np.float32))
    ek.matmul(a, b, 0.5, data.draw(st.integers(1, 3)), out, kernel)
    want = 0.5 * (a.astype(np.float64) @ b.astype(np.float64))
    bound = (k + 2) * np.finfo(np.float32).eps * (np.abs(a).astype(np.float64) @ np.abs(b)) + 1e-30
    assert (np.abs(out - want) <= bound).all()


@table("matmul")
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_large_matmul(kernel, data):
    """In blocks: the same numbers as row by row, whatever the layouts; added to what is there, with a factor."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    m, n, k = (data.draw(st.integers(65, 700)) for _ in range(3))
    k = max(k, -(-(1 << 16) // m) + 1)
    a = any_layout(data.draw, rng.standard_normal((m, k)).astype(np.float32))
    b = any_layout(data.draw, rng.standard_normal((k, n)).astype(np.float32))
    threads = data.draw(st.integers(1, 3))
    out = es.guarded(np.zeros((m, n), np.float32))
    ek.matmul(a, b, 1.0, threads, out, kernel)
    few = np.sort(rng.choice(m, 9, replace=False))
    assert np.array_equal(out[few], ek.matmul(np.ascontiguousarray(a[few]), b, kernel=kernel))
    factor = data.draw(st.sampled_from([1.0, -1.0, 0.3]))
    before = out.copy()
    assert ek.matmul(a, b, factor, threads, out, kernel, add=True) is out
    want = before + factor * (a.astype(np.float64) @ b.astype(np.float64))
    bound = (k + 4) * np.finfo(np.float32).eps * (np.abs(a).astype(np.float64) @ np.abs(b) + np.abs(before))
    assert (np.abs(out - want) <= bound).all()


@table("matmul")
def test_matmul_adds(kernel):
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((3, 21), np.float32)
    out = np.full((2, 21), 100, np.float32)
    ek.matmul(a, b, -2.0, 1, out, kernel, add=True)
    assert np.array_equal(out, 100 - 2 * (a @ b))


def test_matmul_of_no_depth_is_zero():
    assert (ek.matmul(np.zeros((2, 3, 0), np.float32), np.zeros((2, 0, 5), np.float32)) == 0).all()


def plain_attention(q, k, v, mask, scale, causal, offset, softcap):
    q, k, v = (t.astype(np.float64) for t in (q, k, v))
    k, v = (np.repeat(t, q.shape[1] // t.shape[1], 1) for t in (k, v))
    with np.errstate(invalid="ignore", divide="ignore"):
        s = q @ k.swapaxes(-1, -2) * scale
        if softcap:
            s = softcap * np.tanh(s / softcap)
        if mask is not None:
            s = (s.astype(np.float32) + mask).astype(np.float64)
        if causal:
            s = np.where(np.arange(k.shape[2]) <= np.arange(q.shape[2])[:, None] + offset, s, -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True) @ v


@table("attention")
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_attention(kernel, data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    batch, kv_heads, shared = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    q_len, kv_len = draw(es.sizes(60, 6)), draw(es.sizes(150, 64))
    dim, v_dim = draw(es.sizes(40)), draw(es.sizes(40))
    heads = kv_heads * shared

    def tensor(h, length, width):
        # Half of the time as a view of [B, S, H, D], as exporters lay them out.
        if draw(st.booleans()):
            return es.guarded(rng.standard_normal((batch, h, length, width)).astype(np.float32))
        return es.guarded(rng.standard_normal((batch, length, h, width)).astype(np.float32)).swapaxes(1, 2)

    q, k, v = tensor(heads, q_len, dim), tensor(kv_heads, kv_len, dim), tensor(kv_heads, kv_len, v_dim)
    mask, tolerance = None, 2e-5
    if draw(st.booleans()):
        shape = tuple(draw(st.sampled_from((1, d))) for d in (batch, heads, q_len, kv_len))
        low = draw(st.sampled_from((-np.inf, np.finfo(np.float32).min, -1e4, -1)))
        # A row that is masked as a whole by -1e4 has scores with an ulp of 1e-3.
        tolerance = 5e-3 if low == -1e4 else tolerance
        mask = np.where(rng.random(shape) < 0.5, np.float32(low), rng.standard_normal(shape)).astype(np.float32)
        mask = es.guarded(mask)
    causal, offset = draw(st.booleans()), draw(st.sampled_from((0, kv_len - q_len, 3)))
    softcap = draw(st.sampled_from((0.0, 2.0)))
    out = es.guarded(np.zeros((batch, q_len, heads, v_dim), np.float32)).swapaxes(1, 2)
    ek.attention(q, k, v, mask, 0.3, causal, offset, softcap, draw(st.integers(1, 3)), out, kernel)
    want = plain_attention(q, k, v, mask, 0.3, causal, offset, softcap)
    np.testing.assert_allclose(out, want, rtol=tolerance, atol=tolerance)


@table("attention")
def test_masked_rows(kernel):
    q, k, v = (
        np.random.default_rng(i).standard_normal((1, 1, s, 8)).astype(np.float32) for i, s in enumerate((3, 70, 70))
    )
    lowest = np.full((1, 1, 1, 70), np.finfo(np.float32).min, np.float32)
    uniform = ek.attention(q, k, v, lowest, kernel=kernel)
    np.testing.assert_allclose(uniform, np.broadcast_to(v.mean(2, keepdims=True), uniform.shape), rtol=1e-4, atol=1e-5)
    assert np.isnan(ek.attention(q, k, v, np.full_like(lowest, -np.inf), kernel=kernel)).all()
    late = np.full_like(lowest, -np.inf)
    late[..., 69] = 0  # the first block of keys is masked entirely
    np.testing.assert_allclose(ek.attention(q, k, v, late, kernel=kernel), np.broadcast_to(v[:, :, 69:], uniform.shape))
    holed = v.copy()
    holed[0, 0, 5] = np.array([0x7FC00001], np.uint32).view(np.float32)  # a NaN with a payload
    assert np.isnan(ek.attention(q, k, holed, kernel=kernel)).all()
    assert np.isnan(ek.attention(q, np.where(np.isnan(holed), holed, k), v, kernel=kernel)).all()
    hidden = ek.attention(q, k, v, causal=True, causal_offset=-1, kernel=kernel)
    assert np.isnan(hidden[0, 0, 0]).all() and np.isfinite(hidden[0, 0, 1:]).all()
    empty = np.zeros((1, 1, 0, 8), np.float32)
    assert (ek.attention(q, empty, empty, kernel=kernel) == 0).all()
    for threads in (1, 2):
        assert ek.attention(q[:0], k[:0], v[:0], threads=threads, kernel=kernel).shape == (0, *uniform.shape[1:])
        assert ek.attention(q[:, :, :0], k, v, threads=threads, kernel=kernel).size == 0


@table("gather")
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_gather(kernel, data):
    w = data.draw(es.quantized_weights(es.formats("gather")))
    rows, dim = w.q.shape
    indices = np.array(data.draw(st.lists(st.integers(-rows, rows - 1), max_size=30)), np.int64)
    packed = es.guarded(w.pack(), data.draw(st.booleans()))
    out = ek.gather(w.format.name, packed, rows, dim, indices, data.draw(st.integers(1, 3)), kernel)
    assert out.shape == (*indices.shape, dim)
    assert (out == w.values().astype(np.float32)[indices]).all()
    for bad in (rows, -rows - 1, 2**62, -(2**63)):
        with pytest.raises(EdgecError):
            ek.gather(w.format.name, packed, rows, dim, np.append(indices, bad), kernel=kernel)


def sylvester(size: int) -> np.ndarray:
    """The oracle: each doubling of [[1, 1], [1, -1]]."""
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]])
    return h / np.sqrt(size)


def in_blocks(x: np.ndarray, block: int) -> np.ndarray:
    y, at = x.astype(np.float64), 0
    while at < x.shape[-1]:
        while at + block > x.shape[-1]:
            block //= 2
        y[..., at : at + block] = y[..., at : at + block] @ sylvester(block)
        at += block
    return y


@table("hadamard")
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_hadamard(kernel, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    rows, n, block = data.draw(es.sizes(5)), data.draw(es.sizes(300)), 2 ** data.draw(st.integers(0, 9))
    x = rng.standard_normal((rows, n)) * 10.0 ** data.draw(st.integers(-30, 30))
    x = es.guarded(np.where(rng.random(x.shape) < 0.05, 100, 1) * x.astype(np.float32), data.draw(st.booleans()))
    got = ek.hadamard(x, block, data.draw(st.integers(1, 3)), kernel)
    # One product, then a sum of up to `block` terms in log2(block) steps.
    depth = block.bit_length() + 1
    bound = depth * np.finfo(np.float32).eps / 2 * in_blocks_magnitude(x, block) + 1e-44 * block
    assert (np.abs(got - in_blocks(x, block)) <= bound).all()
    np.testing.assert_array_equal(got, ek.hadamard(x, block, kernel="hadamard_f32_f32_none_1x8_generic"))
    back = ek.hadamard(got, block, kernel=kernel)
    norm = np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)
    assert (np.abs(back - x) <= 3 * depth * np.finfo(np.float32).eps * norm + 1e-40).all()
    length = np.linalg.norm(got.astype(np.float64), axis=-1, keepdims=True)
    np.testing.assert_allclose(length, norm, rtol=depth * 1e-6, atol=1e-40)


def in_blocks_magnitude(x: np.ndarray, block: int) -> np.ndarray:
    """The sum of the terms' magnitudes."""
    y, at = np.abs(x.astype(np.float64)), 0
    while at < x.shape[-1]:
        while at + block > x.shape[-1]:
            block //= 2
        y[..., at : at + block] = y[..., at : at + block].sum(-1, keepdims=True) / np.sqrt(block)
        at += block
    return y


def test_what_is_not_finite_stays_in_its_block():
    x = np.ones((1, 96), np.float32)
    x[0, 40] = np.inf
    got = ek.hadamard(x, 32)
    assert np.isfinite(got[0, :32]).all() and np.isfinite(got[0, 64:]).all() and not np.isfinite(got[0, 32:64]).any()
    with pytest.raises(EdgecError):
        ek.hadamard(x, 24)


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    return np.abs(got.astype(np.float64) - want) / np.spacing(np.maximum(np.abs(want), 1e-38).astype(np.float32))


@table("matmul")
@pytest.mark.parametrize(
    ("act", "oracle", "bound"),
    [("tanh", np.tanh, 2), ("sigmoid", lambda v: 1 / (1 + np.exp(-v)), 3), ("silu", lambda v: v / (1 + np.exp(-v)), 3)],
)
def test_activation_ulps(kernel, act, oracle, bound):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-80, 80, 40001), rng.standard_normal(40000), np.exp2(rng.uniform(-120, 6, 9999))])
    x = x.astype(np.float32)
    assert ulps(ek.activate(act, x, kernel), oracle(x.astype(np.float64))).max() <= bound


@table("matmul")
def test_gelu_error(kernel):
    x = np.linspace(-12, 12, 100001, dtype=np.float32)
    want = 0.5 * x.astype(np.float64) * (1 + np.vectorize(erf)(x.astype(np.float64) / np.sqrt(2)))
    assert np.abs(ek.activate("gelu", x, kernel) - want).max() <= 6e-7
    v = x.astype(np.float64)
    want = 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
    assert np.abs(ek.activate("gelu_tanh", x, kernel) - want).max() <= 2e-6


@table("matmul")
def test_activations_at_the_ends(kernel):
    x = np.array([np.inf, -np.inf, np.nan, 1e30, -1e30, 3e38, -3e38], np.float32)
    tanh, sigmoid = ek.activate("tanh", x, kernel), ek.activate("sigmoid", x, kernel)
    np.testing.assert_array_equal(tanh, [1, -1, np.nan, 1, -1, 1, -1])
    np.testing.assert_array_equal(sigmoid, [1, 0, np.nan, 1, 0, 1, 0])
    np.testing.assert_array_equal(ek.activate("relu", x, kernel)[:3], [np.inf, 0, np.nan])
    np.testing.assert_array_equal(ek.activate("gelu", x, kernel)[[0, 2, 3, 4]], [np.inf, np.nan, np.float32(1e30), 0])
