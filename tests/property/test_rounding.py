"""What calibration does to integers, `kernels.gptq` and `kernels.sweep`, against the same column by column in numpy (f64)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgec.kernels as ek
from edgec.errors import EdgecError

KERNELS = [k.name for k in ek.list() if k.op == "matmul"]
AVAILABLE = {k.name for k in ek.list() if k.available}
GRIDS = [(4, False, False), (4, False, True), (4, True, False), (6, False, False), (8, False, False)]
each_kernel = pytest.mark.parametrize(
    "kernel",
    [pytest.param(k, marks=pytest.mark.skipif(k not in AVAILABLE, reason="this CPU cannot run it")) for k in KERNELS],
)
TABLE = np.array(ek.TABLE, np.float32)


def nearest(value: np.ndarray, scale: np.ndarray, zero, bits: int, table: bool) -> np.ndarray:
    """The integers less zero points for values [N]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(scale != 0, value.astype(np.float32) / scale, 0).astype(np.float32)
    if table:
        return TABLE[np.searchsorted((TABLE[1:] + TABLE[:-1]) / 2, x)]
    if zero is not None:
        return np.clip(np.rint(x), -zero, 2**bits - 1 - zero)
    top = 2 ** (bits - 1) - 1
    return np.clip(np.rint(x), -8 if bits == 4 else -top, top)


def example(rng, rows: int, n: int, grid, scales: int):
    bits, table, zeros = grid
    top = 32 if table else 2.0 ** (bits - 1)
    w = (rng.standard_normal((rows, n)) * np.exp2(rng.integers(-3, 3, n))).astype(np.float32)
    scale = np.float16(
        np.abs(w).max(0) / top * rng.uniform(0.5, 1.5, (scales, n)) * rng.choice([1, 1, -1], (scales, n))
    )
    unit = None
    if table:
        unit = np.exp2(np.ceil(np.log2(np.maximum(np.abs(scale.astype(np.float32)).max(0), 1e-30) / 127))).astype("f4")
        scale = np.rint(scale / unit) * unit
    zero = rng.integers(0, 16, (scales, n)).astype(np.float32) if zeros else None
    scale = scale.astype(np.float32)
    scale[rng.uniform(size=scale.shape) < 0.05] = 0
    return w, scale, zero, unit


def moments(rng, rows: int) -> np.ndarray:
    x = rng.standard_normal((2 * rows + 3, rows)) @ (np.eye(rows) + 0.2 * rng.standard_normal((rows, rows)))
    return (x.T @ x).astype(np.float32)


@each_kernel
@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.integers(1, 75), st.sampled_from(GRIDS), st.integers(1, 3), st.integers(0, 999))
def test_gptq(kernel, rows, n, grid, threads, seed):
    rng = np.random.default_rng(seed)
    w, scale, zero, _ = example(rng, rows, n, grid, 3)
    groups = rng.integers(0, 3, rows)
    upper = np.linalg.cholesky(np.linalg.inv(moments(rng, rows).astype(np.float64))).T
    upper = np.ascontiguousarray(upper, np.float32)
    wide = np.full((rows, n + 5), np.nan, np.float32)  # rows that do not lie together
    wide[:, :n] = w
    q, errors = ek.gptq(wide[:, :n], upper, groups, scale, zero, *grid[:2], threads, kernel)
    for i, g in enumerate(
        groups
    ):  # each choice, given the errors before it: its own may be a tie that rounding decides
        rest = w[i].astype(np.float64) - upper[:i, i].astype(np.float64) @ errors[:i].astype(np.float64)
        z = None if zero is None else zero[g]
        size = np.abs(w[i]) + np.abs(upper[:i, i]) @ np.abs(errors[:i])
        near = 1e-5 * size
        low, high = (nearest(rest + d, scale[g], z, *grid[:2]) for d in (-near, near))
        assert ((q[i] == low) | (q[i] == high)).all()
        got = errors[i].astype(np.float64) * upper[i, i]
        assert (np.abs(got - (rest - q[i] * scale[g])) <= 2 * near + 1e-30).all()


@each_kernel
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 70),
    st.integers(1, 75),
    st.sampled_from(GRIDS),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 999),
)
def test_sweep(kernel, rows, n, grid, threads, refit, seed):
    rng = np.random.default_rng(seed)
    w, scale, zero, unit = (x if x is None or x.ndim == 1 else x[0] if len(x) == 1 else x
                            for x in example(rng, rows, n, grid, 1))  # fmt: skip
    w = w.reshape(rows, n)
    h = moments(rng, rows)
    exact = h.astype(np.float64)
    q = np.stack([nearest(w[i], scale, zero, *grid[:2]) for i in range(rows)]).astype(np.float32)
    before = w.astype(np.float64) - q * scale.astype(np.float64)
    slope = (exact @ before).astype(np.float32)
    new_q, new_scale, gain = q.copy(), scale.copy(), np.ones(n)
    change = ek.sweep(h, slope, new_q, new_scale, zero, unit, gain, *grid[:2], threads, kernel, refit)
    after = w.astype(np.float64) - new_q * new_scale.astype(np.float64)
    loss = [np.einsum("kn,kl,ln->n", r, exact, r) for r in (before, after)]
    signal = np.einsum("kn,kl,ln->n", w, exact, w) + loss[0]
    assert np.allclose(change, before - after, rtol=1e-4, atol=1e-5 * np.abs(w).max())
    assert (np.abs(gain - 1 - (loss[0] - loss[1])) <= 1e-4 * signal).all()
    assert (loss[1] <= loss[0] + 1e-5 * signal).all()
    # on the grid, and the scale one that can be stored
    if grid[1]:
        assert np.isin(new_q, TABLE).all() and (np.abs(new_scale) <= 127 * unit).all()
        assert np.array_equal(new_scale, np.rint(new_scale / unit) * unit)
    else:
        z = 0 if zero is None else zero
        assert np.array_equal(new_q, np.stack([nearest(r * 1.0, np.ones(n, "f4"), zero, *grid[:2]) for r in new_q]))
        assert (new_q + z == np.rint(new_q + z)).all()
        assert np.array_equal(new_scale, new_scale.astype(np.float16).astype(np.float32))
    if not refit:
        assert np.array_equal(new_scale, scale)
    else:  # of the scales near it, none is better for the integers that it was made for
        value = q.astype(np.float64)
        curve, along = np.einsum("kn,kl,ln->n", value, exact, value), np.einsum("kn,kn->n", value, exact @ before)
        worth = lambda s: (s - scale) * (2 * along - (s - scale) * curve)  # noqa: E731
        moved = new_scale != scale
        size = np.abs(worth(new_scale)) + signal
        assert (worth(new_scale)[moved] >= -1e-5 * size[moved]).all()
    # the last integer is the best for all others as they are
    last = new_q[-1] * new_scale + (exact @ after)[-1] / exact[-1, -1]
    near = 1e-4 * (np.abs(last) + np.abs(exact[-1]) @ np.abs(after) / exact[-1, -1])
    low, high = (nearest(last + d, new_scale, zero, *grid[:2]) for d in (-near, near))
    assert ((new_q[-1] >= np.minimum(low, high)) & (new_q[-1] <= np.maximum(low, high))).all()


def test_what_does_not_fit_is_refused():
    f = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    with pytest.raises(EdgecError, match=r"EC1605.*a group is out of range"):
        ek.gptq(f(2, 3), f(2, 2), np.array([0, 1]), f(1, 3), None, 4)
    with pytest.raises(EdgecError, match=r"EC1605.*upper has another shape"):
        ek.gptq(f(2, 3), f(2, 3), np.array([0, 0]), f(1, 3), None, 4)
    with pytest.raises(EdgecError, match=r"EC1605.*zero has another shape"):
        ek.gptq(f(2, 3), f(2, 2), np.array([0, 0]), f(1, 3), f(2, 3), 4)
    with pytest.raises(EdgecError, match=r"EC1605.*slope has another shape"):
        ek.sweep(f(2, 2), f(2, 4), f(2, 3), f(3), None, None, np.zeros(3), 4)
    with pytest.raises(EdgecError, match=r"EC1605.*no grid"):
        ek.sweep(f(2, 2), f(2, 3), f(2, 3), f(3), f(3), None, np.zeros(3), 8)
