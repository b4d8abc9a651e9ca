"""Products through cblas_sgemm, found at run as macOS's Accelerate is; test_kernels.py has its properties."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import sgemm

from edgec import kernels as ek


@pytest.fixture
def with_library():
    if not sgemm.use():
        pytest.skip("no C++ compiler to make a library with")
    yield ctypes.c_int.in_dll(ctypes.CDLL(sgemm.built()), "sgemm_calls")
    sgemm.use()


def product(m: int, n: int, k: int, **more) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m + n + k)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (n, k)))
    packed = ek.pack("f32nk", w)
    assert (ek.unpack("f32nk", packed, n, k)[0] == w).all()
    return ek.gemm(x, packed, "f32nk", n, k, threads=2, **more), x.astype(np.float64) @ w.T


@pytest.mark.parametrize(("m", "n", "k"), [(5, 33, 70), (64, 128, 8), (130, 161, 300)])
def test_many_rows_are_its(m, n, k, with_library):
    """Chosen by itself; where there is nothing else to do than the product, the library writes the result in place."""
    before = with_library.value
    got, want = product(m, n, k)
    plain = with_library.value - before
    assert plain > 0 and np.abs(got - want).max() <= 1e-4
    bias = np.arange(n, dtype=np.float32)
    got, want = product(m, n, k, bias=bias, act="relu")
    assert with_library.value - before > plain
    assert np.abs(got - np.maximum(want + bias, 0)).max() <= 2e-4


@pytest.mark.parametrize(("m", "n", "k"), [(4, 33, 70), (40, 33, 300), (7, 20, 0)])
def test_the_same_bytes_without_it(m, n, k, with_library):
    """Few rows are not its on Arm; without it, or for K = 0, other kernels or none read the same weights."""
    one, want = product(m, n, k)
    assert not sgemm.use(False)
    before = with_library.value
    other, _ = product(m, n, k)
    assert with_library.value == before
    assert np.abs(one - want).max(initial=0) <= 1e-4 and np.abs(other - want).max(initial=0) <= 1e-4


def test_a_library_without_the_function_is_none(with_library):
    import _ctypes

    from edgec import _core

    for path in ("/no/such/library", _ctypes.__file__):
        assert not _core.kernels.use_accelerate(path)
    assert (product(9, 17, 3)[0] - product(9, 17, 3)[1] < 1e-5).all()
