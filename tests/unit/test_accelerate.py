"""Products through cblas_sgemm, found in a library at run as macOS's Accelerate is: another library takes its place."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from edgec import _core

if not hasattr(_core.kernels, "use_accelerate"):
    pytest.skip("this build cannot name another library (make dev can)", allow_module_level=True)

SGEMM = """
int calls = 0;
void cblas_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
                 int ldb, float beta, float* y, int ldy) {
  ++calls;
  if (order != 101 || ta != 111 || tb != 112) return;
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      float sum = 0;
      for (int l = 0; l < k; ++l) sum += a[i * (long)lda + l] * b[j * (long)ldb + l];
      y[i * (long)ldy + j] = alpha * sum + (beta == 0 ? 0 : beta * y[i * (long)ldy + j]);
    }
  }
}
"""

# In a process of its own: the library is asked for once.
CHECK = """
import ctypes, sys
import numpy as np
from edgec import _core, kernels as ek
assert _core.kernels.use_accelerate(sys.argv[1])
name = "linear_f32_f32_f32nk_64x128_accelerate"
assert next(k for k in ek.list() if k.name == name).available
calls = ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[1]), "calls")
rng = np.random.default_rng(0)
for m, n, k in ((1, 1, 1), (5, 33, 70), (130, 161, 40), (64, 128, 8), (3, 20, 0)):
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (n, k)))
    bias, residual = (rng.standard_normal(s).astype(np.float32) for s in ((n,), (m, n)))
    packed = ek.pack("f32nk", w)
    before = calls.value
    for given in ({}, {"bias": bias}, {"act": "relu", "residual": residual.copy()}, {"norm": "rms", "eps": 1e-5}):
        if given.get("norm") and not k:
            continue
        got = ek.gemm(x, packed, "f32nk", n, k, threads=2, **given)  # chosen without its name
        a = x.astype(np.float64)
        if "norm" in given:
            a = a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5)
        want = a @ w.T + given.get("bias", 0)
        want = np.maximum(want, 0) if "act" in given else want
        want = want + given.get("residual", 0)
        assert np.abs(got - want).max() <= 1e-4, (m, n, k, list(given))
    assert calls.value > before or not k
    assert (ek.unpack("f32nk", packed, n, k)[0] == w).all()
print("ok")
"""


def test_products_by_another_library(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to make a library with")
    (tmp_path / "sgemm.c").write_text(SGEMM)
    library = tmp_path / "libsgemm.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", tmp_path / "sgemm.c", "-o", library], check=True)
    done = subprocess.run([sys.executable, "-c", CHECK, str(library)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "ok\n", done.stdout + done.stderr


def test_without_it_the_same_format_runs():
    import numpy as np

    from edgec import kernels as ek

    x, w = np.ones((3, 20), np.float32), np.arange(340, dtype=np.float32).reshape(17, 20)
    assert (ek.gemm(x, ek.pack("f32nk", w), "f32nk", 17, 20) == w.sum(1)).all()
