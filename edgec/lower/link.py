"""Objects to the shared library that an artifact carries: zig's lld, which cross-links without a C library at hand."""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgec.errors import EdgecError
from edgec.targets import Target

_EMULATIONS = {"x86_64": "elf_x86_64", "aarch64": "aarch64linux", "riscv64": "elf64lriscv"}
_COMMON = ("-shared", "--strip-all", "--build-id=none", "-z", "noexecstack", "-z", "relro", "-z", "now")


def link(objects: Sequence[bytes], target: Target) -> bytes:
    """The shared library of relocatable objects; it needs libm.so.6 and nothing else. Same input, same bytes.

    Raises EdgecError EC1002 without the ziglang package, EC1401 for a system that it can't link for, EC1403
    if lld fails.
    """
    emulation = _EMULATIONS.get(target.arch)
    if emulation is None or "linux" not in target.triple:
        raise EdgecError(
            "EC1401", f"cannot link for {target.triple}", hint="Linux on x86_64, aarch64 and riscv64 can be"
        )
    zig = _zig()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        names = [f"code{i}.o" for i in range(len(objects))]
        for name, obj in zip(names, objects, strict=True):
            (at / name).write_bytes(obj)
        # An empty library of libm's name: enough for lld to record that the real one is needed.
        (at / "nothing.ld").write_bytes(b"")
        _run(zig, emulation, at, "-shared", "-soname", "libm.so.6", "-o", "libm.so.6", "nothing.ld")
        _run(zig, emulation, at, *_COMMON, "--no-as-needed", "-o", "code.so", *names, "libm.so.6")
        return (at / "code.so").read_bytes()


def _zig() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise EdgecError("EC1002", "the ziglang package is not installed", hint="pip install 'edgec[build]'")
    folder = Path(spec.origin).parent
    return next((p for p in (folder / "zig", folder / "zig.exe") if p.is_file()), folder / "zig")


def _run(zig: Path, emulation: str, folder: Path, *args: str) -> None:
    command = [str(zig), "ld.lld", "-m", emulation, *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise EdgecError("EC1403", f"linking failed: {done.stderr.strip()[:2000]}")
