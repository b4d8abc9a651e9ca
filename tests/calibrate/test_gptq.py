"""GPTQ, scales and coordinate descent: never worse than rounding in the same grid, exact where the grid has the weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec import kernels
from edgec.calibrate import gptq
from edgec.errors import EdgecError
from edgec.ir.types import Quantized

ENCODINGS = [
    Quantized(4, 32),
    Quantized(4, 32, zero=True),
    Quantized(4, 32, table=True),
    Quantized(4, 64),
    Quantized(8, 128),
]


def inputs(rng, rows: int, k: int, kind: str) -> np.ndarray:
    """Correlated columns, as real ones are."""
    x = rng.standard_normal((rows, k)) @ (np.eye(k) + rng.standard_normal((k, k)) * 0.3)
    if kind == "outlier":
        x[:, 0] *= 300
    if kind == "dead":
        x[:, ::3] = 0
    if kind == "zero":
        x[:] = 0
    return x.astype(np.float32)


def value(made: gptq.Solution, group: int) -> np.ndarray:
    return kernels.dequantize(made.q, made.scale, made.zero, group).astype(np.float64)


def loss(rest: np.ndarray, h: np.ndarray) -> np.ndarray:
    return np.einsum("nk,kl,nl->n", rest, h, rest)


@given(
    st.integers(1, 20),
    st.integers(1, 130),
    st.sampled_from(ENCODINGS),
    st.sampled_from(["normal", "outlier", "dead", "zero", "few"]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_loss_is_never_above_that_of_rounding_to_nearest(n, k, encoding, kind, seed):
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((n, k)) * np.exp2(rng.integers(-6, 6, (n, 1)))).astype(np.float32)
    x = inputs(rng, max(1, k // 4) if kind == "few" else 2 * k + 1, k, kind)
    hessian = gptq.Hessian.of(x.T @ x)
    made = gptq.solve(w, hessian, encoding)
    h = hessian.h.astype(np.float64)
    diagonal = np.ascontiguousarray(np.diagonal(hessian.h)) / hessian.h.max()
    plain = kernels.quantize(w, encoding.bits, encoding.group, not encoding.zero, True, diagonal, table=encoding.table)
    got = loss(value(made, encoding.group) - w, h)
    signal = loss(w.astype(np.float64), h)
    assert (got <= loss(kernels.dequantize(*plain, encoding.group) - w, h) * (1 + 1e-3) + 1e-9 * signal).all()
    assert np.allclose(made.loss, got, rtol=1e-2, atol=1e-6 * signal.max()) and np.allclose(
        made.signal, signal, rtol=1e-2
    )
    # what is stored is what was meant
    format = kernels.format_name(encoding.bits, encoding.group, not encoding.zero, table=encoding.table)
    q, scale, zero = kernels.unpack(format, kernels.pack(format, made.q, made.scale, made.zero), n, k)
    stored = kernels.dequantize(q, scale, zero, encoding.group)
    assert np.array_equal(stored, value(made, encoding.group).astype(np.float32))


def test_it_gains_on_correlated_inputs():
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((64, 96)).astype(np.float32), inputs(rng, 500, 96, "normal")
    for encoding in ENCODINGS:
        made = gptq.solve(w, gptq.Hessian.of(x.T @ x), encoding)
        assert made.loss.sum() < 0.6 * made.plain.sum(), encoding
        fewer = gptq.solve(w, gptq.Hessian.of(x.T @ x), encoding, rounds=0)
        assert made.loss.sum() < fewer.loss.sum(), encoding


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_weights_of_the_grid_stay_as_they_are(encoding):
    rng = np.random.default_rng(1)
    w = rng.standard_normal((16, 128)).astype(np.float32)
    w = kernels.dequantize(*kernels.quantize(w, encoding.bits, encoding.group, not encoding.zero, table=encoding.table),
                           encoding.group)  # fmt: skip
    again = kernels.dequantize(*kernels.quantize(w, encoding.bits, encoding.group, not encoding.zero, table=encoding.table),
                               encoding.group)  # fmt: skip
    assert np.allclose(again, w, atol=1e-3), "the search itself leaves the grid"
    exact = np.isclose(again, w, atol=0).all(1)
    x = inputs(rng, 300, 128, "normal")
    made = gptq.solve(w, gptq.Hessian.of(x.T @ x), encoding)
    assert exact.any() and np.array_equal(value(made, encoding.group)[exact], w[exact])


def test_order_of_columns_does_not_matter_to_the_inverse():
    rng = np.random.default_rng(2)
    x = inputs(rng, 200, 70, "outlier")
    hessian = gptq.Hessian.of(x.T @ x)
    h = hessian.h.astype(np.float64)[np.ix_(hessian.order, hessian.order)]
    u = hessian.upper.astype(np.float64)
    assert np.allclose(u.T @ u @ h, np.eye(70), atol=1e-3) and np.allclose(u, np.triu(u))
    rows = rng.standard_normal((3, 70)).astype(np.float32)
    wanted = np.linalg.solve(hessian.h.astype(np.float64), rows.T).T
    assert np.abs(hessian.inverse(rows) - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_moments_that_are_no_numbers():
    with pytest.raises(EdgecError, match="EC1302"):
        gptq.Hessian.of(np.full((4, 4), np.nan, np.float32))
