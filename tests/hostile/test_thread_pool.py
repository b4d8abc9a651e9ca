"""The thread pool under ThreadSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_no_races(tmp_path):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "thread_pool_test"
    sources = [
        ROOT / "tests/cpp/thread_pool_test.cpp",
        *(ROOT / "csrc/runtime" / n for n in ("thread_pool.cpp", "cpu.cpp")),
    ]
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{ROOT / 'csrc'}"]
    built = subprocess.run([compiler, *flags, *sources, "-o", program], capture_output=True, text=True)
    if "tsan" in built.stderr:
        pytest.skip("this compiler has no ThreadSanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr[-3000:]
