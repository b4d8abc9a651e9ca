"""A library with cblas_sgemm in the place of macOS's Accelerate: so its kernel runs in the tests of all kernels."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgec import _core
from edgec import kernels as ek

SOURCE = Path(__file__).resolve().parents[1] / "cpp/sgemm.cpp"


@functools.cache
def built() -> str:
    """$EDGEC_TEST_SGEMM, for another CPU; else tests/cpp/sgemm.cpp compiled here, "" without a compiler."""
    if named := os.environ.get("EDGEC_TEST_SGEMM"):
        return named
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return ""
    folder = tempfile.TemporaryDirectory(prefix="edgec-sgemm-")
    atexit.register(folder.cleanup)
    made = str(Path(folder.name) / "libsgemm.so")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", str(SOURCE), "-o", made], check=True)
    return made


def use(it: bool = True) -> bool:
    """Kernels multiply by the library from now on, or by none; whether they do."""
    found = _core.kernels.use_accelerate(built() if it else "")
    ek.list.cache_clear()  # it says what is available
    return found
