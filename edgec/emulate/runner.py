"""The emulator, and the program that runs artifacts in it: the runtime and kernels for the artifact's CPU, static."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgec.errors import EdgecError
from edgec.targets import Target

LEAST = 11  # earlier ones compute SMOPA wrong and lack SME2
INSTALL = "Install Debian's qemu-user (11 or newer: trixie-backports), or set EDGEC_QEMU to a qemu-ARCH program"
# zig's name of a static Linux, and of the CPU that sources with instructions of their own are compiled for
_TARGETS = {"aarch64": "aarch64-linux-musl", "x86_64": "x86_64-linux-musl"}
_BASE = {"aarch64": "generic", "x86_64": "x86_64_v2"}
_CPUS = {
    "aarch64": {"neon_dotprod": "generic+dotprod", "neon_i8mm": "generic+dotprod+i8mm", "sme2": "generic+v9_2a+sme2"},
    "x86_64": dict.fromkeys(("avx2", "int_product_avx2", "rnn_avx2"), "x86_64_v3")
    | {"avx512vnni": "x86_64_v4+avx512vnni"},
}
# AMX is trapped and computed by a software model (csrc/emulate/amx_trap.cpp)
_DEFINES = {"aarch64": ("-DEDGEC_AMX",), "x86_64": ()}
_FLAGS = ("-std=c++20", "-O2", "-DNDEBUG", "-fvisibility=hidden", "-fwrapv", "-Wno-psabi", "-w", "-DEDGEC_SME2")
# of qemu's CPUs, the one that has what a target has and little more; else "max" with features taken away
_QEMU_CPUS = {"cortex-a72": "cortex-a72", "cortex-a76": "cortex-a76", "cortex-a55": "cortex-a55",
              "neoverse-n1": "neoverse-n1"}  # fmt: skip
_OPTIONAL = ("dotprod", "i8mm", "sme2", "amx", "amx2", "avx2", "avx512vnni")  # kernels choose by these at load


def sources() -> Path:
    """The C++ sources: inside the installed package, or at the top of a checkout. Raises EdgecError EC1801."""
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "csrc", here.parent / "csrc"):
        if (folder / "emulate").is_dir():
            return folder
    raise EdgecError("EC1801", "this installation has no csrc folder", hint="Install edgec's wheel or use a checkout")


def arm_root() -> Path:
    """Where `make test-arm` keeps an arm64 Linux to test in, and the qemu that it fetched."""
    return Path(os.environ.get("EDGEC_ARM_ROOT") or Path.home() / ".cache/edgec-arm")


def find_qemu(arch: str) -> Path:
    """qemu's user-mode program for this CPU: $EDGEC_QEMU, on the path, or in the arm root. Raises EdgecError EC1801
    where there is none or it is too old."""
    named = os.environ.get("EDGEC_QEMU")
    names = [named] if named else [f"qemu-{arch}", f"qemu-{arch}-static", str(arm_root() / f"qemu-{arch}")]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise EdgecError("EC1801", f"there is no emulator of {arch} ({named or f'qemu-{arch}'})", hint=INSTALL)
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EdgecError("EC1801", f"{path} does not run: {error}", hint=INSTALL) from None
    version = re.search(r"version ([0-9]+)", text)
    if version is None or int(version[1]) < LEAST:
        what = version[1] if version else "none that it tells"
        raise EdgecError("EC1801", f"{path} is of version {what}; {LEAST} is needed", hint=INSTALL)
    return Path(path)


def command(target: Target, vector_bits: int = 512) -> tuple[list[str], dict[str, str]]:
    """The command that runs a program as on the target, and its environment. vector_bits: of SME's streaming mode.

    Raises EdgecError EC1801 where no emulator has what the target needs."""
    if any(f.startswith("avx512") for f in target.requires):
        reason = f"{target.name} needs AVX-512, which qemu does not emulate"
        raise EdgecError("EC1801", reason, hint="Build with --target x86-64-v3, or leave --emulate out on such a CPU")
    cpu = _QEMU_CPUS.get(target.cpu, "max")
    if cpu == "max" and "sme2" in target.requires:
        cpu += f",sme-default-vector-length={vector_bits // 8}"
    missing = ",".join(f for f in _OPTIONAL if f not in target.kernel_features)
    return [str(find_qemu(target.arch)), "-cpu", cpu], {"EDGEC_DISABLE": missing, "PATH": os.environ.get("PATH", "")}


def cache() -> Path:
    """Where compiled programs are kept."""
    home = os.environ.get("EDGEC_CACHE")
    if home:
        return Path(home)
    base = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME", base)) / "edgec"


def program(arch: str, progress=lambda text: None) -> Path:
    """The program for this CPU, compiled once for each state of the sources. Raises EdgecError EC1801, EC1002."""
    if arch not in _TARGETS:
        raise EdgecError("EC1801", f"{arch} cannot be emulated", hint=f"{', '.join(_TARGETS)} can be")
    root = sources()
    files = [p for f in ("kernels", "runtime", "emulate") for p in sorted((root / f).rglob("*.cpp"))]
    files = [p for p in files if p != root / "runtime/code.cpp"]
    digest = hashlib.blake2b(arch.encode(), digest_size=8)
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".cpp", ".h", ".inc")):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(repr((_CPUS, _FLAGS)).encode())
    out = cache() / "emulate" / f"run-{arch}-{digest.hexdigest()}"
    if out.exists():
        return out
    if importlib.util.find_spec("ziglang") is None:
        raise EdgecError("EC1002", "the ziglang package is not installed", hint="pip install 'edgec[build]'")
    progress(f"compiling the runtime for {arch}, once")
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", _TARGETS[arch]]
    with tempfile.TemporaryDirectory() as folder:

        def compiled(path: Path) -> str:
            obj = str(Path(folder) / f"{path.parent.name}-{path.stem}.o")
            cpu = f"-mcpu={_CPUS[arch].get(path.stem, _BASE[arch])}"
            _run([*zig, cpu, *_FLAGS, *_DEFINES[arch], f"-I{root}", "-c", str(path), "-o", obj])
            return obj

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, files))
        linked = Path(folder) / "run"
        _run([*zig, f"-mcpu={_BASE[arch]}", "-O2", "-static", "-Wl,-z,stack-size=1048576", *objects, "-o", str(linked)])
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_suffix(f".{os.getpid()}")
        shutil.copy2(linked, temporary)
        temporary.replace(out)
    return out


def _run(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise EdgecError(
            "EC1801",
            f"the runtime does not compile: {done.stderr.strip()[:2000]}",
            hint="edgec doctor says what emulation needs",
        )
