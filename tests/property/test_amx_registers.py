"""The software model of AMX against numpy, over random registers and operands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec import _core

if not hasattr(_core.kernels, "AmxModel"):
    pytest.skip("this build has no software model of AMX (make dev has)", allow_module_level=True)

LDX, LDY, STZ, EXTRX, FMA32, FMA16, SETCLR, VECFP, MATINT = 0, 1, 5, 8, 12, 15, 17, 19, 20
LDZ = 4
SEEDS = st.integers(0, 2**32 - 1)


def filled(seed: int, halves: bool) -> tuple:
    """A model with registers of f16 (all kinds but NaN), or of any bytes; and what they hold."""
    rng = np.random.default_rng(seed)
    model = _core.kernels.AmxModel()
    model.execute(SETCLR, 0)
    pools = rng.integers(0, 2**16, (2, 8, 32), dtype=np.uint16)
    pools = np.where((pools & 0x7C00) == 0x7C00, pools & 0x83FF, pools) if halves else pools
    pools = pools.astype(np.uint16)
    z = rng.standard_normal((64, 16)).astype(np.float32)
    for r in range(8):
        model.execute(LDX, pools[0, r].ctypes.data | r << 56)
        model.execute(LDY, pools[1, r].ctypes.data | r << 56)
    for r in range(64):
        model.execute(LDZ, z[r].ctypes.data | r << 56)
    return model, pools[0].view(np.uint8).ravel(), pools[1].view(np.uint8).ravel(), z


def span(pool: np.ndarray, offset: int) -> np.ndarray:
    return np.take(pool, np.arange(offset, offset + 64) % 512)


def nibbles(pool: np.ndarray, offset: int, count: int) -> np.ndarray:
    packed = span(pool, offset)[: count // 2]
    return np.stack([packed & 15, packed >> 4], -1).ravel()


OFFSETS = st.integers(0, 511)


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, x=OFFSETS, y=OFFSETS)
def test_fma16(seed, x, y):
    model, xs, ys, z = filled(seed, True)
    # an odd offset makes other f16 of the bytes: NaN among them
    a, b = (span(p, o).view(np.float16).astype(np.float32) for p, o in ((xs, x), (ys, y)))
    with np.errstate(all="ignore"):
        product = b[:, None] * a  # exact
        want = z.copy()
        want[0::2] += product[:, 0::2]
        want[1::2] += product[:, 1::2]
    model.execute(FMA16, 1 << 62 | x << 10 | y)
    np.testing.assert_array_equal(np.frombuffer(model.z, np.float32).reshape(64, 16), want)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, x=st.integers(0, 127), row=st.integers(0, 3))
def test_fma32(seed, x, row):
    model, xs, ys, z = filled(seed, True)
    a, b = (span(p, 4 * x).view(np.float32).astype(np.float64) for p in (xs, ys))
    model.execute(FMA32, 4 * x << 10 | 4 * x | row << 20)
    got = np.frombuffer(model.z, np.float32).reshape(64, 16)
    with np.errstate(all="ignore"):
        # double holds the product; the sum's rounding there is 2^-29 of the one to float
        want = (b[:, None] * a + z[row::4]).astype(np.float32)
        close = np.abs(got[row::4] - want) <= np.spacing(np.abs(want))
    assert (close | ~np.isfinite(want)).all()
    others = np.arange(64) % 4 != row
    assert (got[others] == z[others]).all()


@settings(deadline=None, max_examples=100)
@given(
    seed=SEEDS, x=OFFSETS, y=st.integers(0, 255), table=st.integers(0, 7), row=st.integers(0, 15), four=st.booleans()
)
def test_vecfp_by_a_table(seed, x, y, table, row, four):
    model, xs, ys, z = filled(seed, True)
    model.execute(
        VECFP,
        1 << 53 | 1 << 48 | 2 << 42 | table << 49 | x << 10 | 2 * y | row << 20 | four * (1 << 31 | 1 << 25 | 3 << 32),
    )
    got = np.frombuffer(model.z, np.float16).reshape(64, 32)
    before, touched = z.view(np.float16), [row + 16 * v for v in range(4 if four else 1)]
    values, factor = xs[64 * table :][:64].view(np.float16), span(ys, 2 * y).view(np.float16)
    for v, r in enumerate(touched):
        lanes = values[nibbles(xs, x + 16 * v, 32)].astype(np.longdouble)
        with np.errstate(all="ignore"):
            exact = lanes * factor.astype(np.longdouble) + before[r].astype(np.longdouble)
            # rounded once: neither neighbour is nearer
            away = [
                np.abs(np.nextafter(got[r], np.float16(to)).astype(np.longdouble) - exact) for to in (-np.inf, np.inf)
            ]
            nearest = np.abs(got[r].astype(np.longdouble) - exact) <= np.minimum(*away)
        beyond = ~(np.abs(exact) < 65520)
        assert (nearest | beyond).all()
        assert (np.isinf(got[r]) & (np.sign(got[r]) == np.sign(exact)) | np.isnan(exact) & np.isnan(got[r]))[
            beyond
        ].all()
    np.testing.assert_array_equal(np.delete(got, touched, 0), np.delete(before, touched, 0))


@settings(deadline=None, max_examples=100)
@given(seed=SEEDS, x=OFFSETS, y=OFFSETS, table=st.integers(0, 7))
def test_matint_by_a_table(seed, x, y, table):
    model, xs, ys, z = filled(seed, False)
    model.execute(MATINT, 1 << 63 | 1 << 26 | 1 << 54 | 1 << 53 | 1 << 48 | 10 << 42 | table << 49 | x << 10 | y)
    a = xs[64 * table :][:64].view(np.int8)[nibbles(xs, x, 64)].astype(np.int64)
    b = span(ys, y).view(np.int8)[::4].astype(np.int64)
    want = z.view(np.int32).astype(np.int64)
    for j in range(16):
        for t in range(4):
            want[4 * j + t] += b[j] * a[t::4]
    assert (np.frombuffer(model.z, np.int32).reshape(64, 16) == want.astype(np.int32)).all()


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, row=st.integers(0, 63), to=OFFSETS)
def test_extrx(seed, row, to):
    model, xs, _, z = filled(seed, False)
    model.execute(EXTRX, 2 << 28 | row << 20 | to << 10)
    want = xs.copy()
    want[np.arange(to, to + 64) % 512] = z[row].view(np.uint8)
    assert model.x == want.tobytes()
