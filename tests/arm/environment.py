"""An arm64 Linux to test in, without an Arm CPU: qemu, arm64 libraries and Python, and a cross-compiler.

qemu and the libraries are Debian packages, unpacked under $EDGEC_ARM_ROOT or ~/.cache/edgec-arm by an apt of their own
(the system's stays as it is); numpy and what the tests import are wheels; the compiler is ziglang's clang. Whatever
cannot be had raises Unavailable with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edgec.emulate.runner import arm_root

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / "build" / "arm"
# qemu 11 of the backports: earlier ones compute SMOPA wrong and lack SME2.
QEMU = ("trixie-backports", "qemu-user")
SUITE = "bookworm"
PACKAGES = [
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
    "libpython3.11-dev",
    "libexpat1",
    "zlib1g",
    "libffi8",
    "libssl3",
    "libbz2-1.0",
    "liblzma5",
    "libcrypt1",
    "libuuid1",
]
BINARY_WHEELS = ("numpy==2.2.6",)
PURE_WHEELS = (
    "pytest==8.4.2",
    "hypothesis==6.140.3",
    "attrs",
    "sortedcontainers",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
)
# One target to link for, since each new one makes zig build its C library once; sources have CPUs of their own.
TARGET = ("-target", "aarch64-linux-gnu.2.28")
CPU = {"neon_dotprod": "generic+dotprod", "neon_i8mm": "generic+dotprod+i8mm", "sme2": "generic+sme2"}
FLAGS = (
    "-DEDGEC_SME2",
    "-DEDGEC_AMX",
    "-std=c++20",
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",
    "-fwrapv",
    "-Wno-psabi",
    "-Icsrc",
)


class Unavailable(Exception):
    """This machine or its network lacks something; the message names it."""


def _run(command: list[str], error: type[Exception] = Unavailable, **options) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except FileNotFoundError as missing:
        raise Unavailable(f"{command[0]} is not installed") from missing
    if done.returncode:
        raise error(f"{' '.join(command[:6])} ...: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout


def emulator(streaming_bits: int = 512) -> list[str]:
    """The command that runs an arm64 program, with SME2 vectors of that many bits; call setup() first."""
    cpu = f"max,sme-default-vector-length={streaming_bits // 8}"
    return [str(arm_root() / "qemu-aarch64"), "-L", str(arm_root() / "root"), "-cpu", cpu]


def _apt(name: str, architecture: str, suite: str, packages: list[str]) -> list[Path]:
    """Downloads packages of another suite or architecture from the mirror that this system's apt uses."""
    mirrors = _run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]).split()
    mirror = next((m for m in sorted(set(mirrors)) if "security" not in m), None)
    if mirror is None:
        raise Unavailable("apt has no package list: run apt-get update, on a Debian system")
    base, into = arm_root() / f"apt-{name}", arm_root() / "deb" / name
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    into.mkdir(parents=True, exist_ok=True)
    (base / "state/status").touch()
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (base / "etc/sources.list").write_text(f"deb [signed-by={key}] {mirror} {suite} main\n")
    (base / "apt.conf").write_text(
        f'Dir::State "{base}/state"; Dir::State::status "{base}/state/status"; Dir::Cache "{base}/cache";\n'
        f'Dir::Etc "{base}/etc"; Dir::Etc::SourceParts "/dev/null"; Dir::Etc::Parts "/dev/null";\n'
        f'APT::Architecture "{architecture}"; APT::Architectures {{"{architecture}";}};\n'
        'Acquire::Languages "none"; APT::Sandbox::User "root";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(base / "apt.conf")}
    _run(["apt-get", "-qq", "update"], env=environment)
    _run(["apt-get", "-qq", "download", *packages], env=environment, cwd=into)
    return sorted(into.glob("*.deb"))


def _wheels(into: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    _run([*command, "--only-binary=:all:", "--target", str(into), "--python-version", "3.11", *arguments])


def setup() -> None:
    """Downloads what is missing, about 250 MB the first time. Raises Unavailable."""
    root = arm_root() / "root"
    if not (arm_root() / "ready").exists():
        root.mkdir(parents=True, exist_ok=True)
        native = _run(["dpkg", "--print-architecture"]).strip()
        for package in _apt("host", native, QEMU[0], [QEMU[1]]):
            _run(["dpkg", "-x", str(package), str(arm_root() / "host")])
        shutil.copy2(arm_root() / "host/usr/bin/qemu-aarch64", arm_root() / "qemu-aarch64")
        for package in _apt("arm64", "arm64", SUITE, PACKAGES):
            _run(["dpkg", "-x", str(package), str(root)])
        platforms = [f"--platform=manylinux{v}_aarch64" for v in ("_2_28", "_2_17", "2014")]
        _wheels(root / "usr/lib/python3/dist-packages", *platforms, *BINARY_WHEELS)
        _run([*emulator(), str(root / "usr/bin/python3.11"), "-c", "import numpy"])
        (arm_root() / "ready").touch()
    if not (arm_root() / "wheels/hypothesis").exists():
        _wheels(arm_root() / "wheels", *PURE_WHEELS)


def _compile(source: Path, extra: tuple[str, ...]) -> Path:
    out = BUILD / source.relative_to(PROJECT).with_suffix(".o")
    newest = max(
        p.stat().st_mtime for p in [source, *(PROJECT / "csrc").rglob("*.h"), *(PROJECT / "csrc").rglob("*.inc")]
    )
    if not out.exists() or out.stat().st_mtime < newest:
        out.parent.mkdir(parents=True, exist_ok=True)
        level = "-O3" if source.parent.name in {"kernels", "emulate"} else "-O1"
        flags = [level, *TARGET, f"-mcpu={CPU.get(source.stem, 'generic')}", *FLAGS, *extra]
        _run(
            [sys.executable, "-m", "ziglang", "c++", *flags, "-c", str(source), "-o", str(out)],
            RuntimeError,
            cwd=PROJECT,
        )
    return out


def build(
    name: str, sources: list[Path], compile_flags: tuple[str, ...] = (), link_flags: tuple[str, ...] = ()
) -> Path:
    """Compiles the sources that changed and links BUILD/name."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(source, compile_flags), sources))
    out = BUILD / name
    if not out.exists() or out.stat().st_mtime < max(o.stat().st_mtime for o in objects):
        link = ["-O3", *TARGET, "-mcpu=generic", *link_flags, *map(str, objects)]
        _run([sys.executable, "-m", "ziglang", "c++", *link, "-o", str(out)], RuntimeError, cwd=PROJECT)
    return out


def kernel_sources() -> list[Path]:
    """With AMX by trap and emulate."""
    return [*sorted((PROJECT / "csrc/kernels").glob("*.cpp")), *sorted((PROJECT / "csrc/emulate").glob("amx_*.cpp"))]


def build_extension() -> Path:
    """The whole of edgec._core for arm64, with the Python sources beside it: a folder to import edgec from."""
    import pybind11

    root = arm_root() / "root/usr/include"
    includes = ("-DEDGEC_WITH_KERNELS", "-isystem", pybind11.get_include(), "-isystem", str(root / "python3.11"))
    includes += ("-idirafter", str(root))
    folders = ("runtime", "python")
    sources = kernel_sources() + [p for f in folders for p in sorted((PROJECT / "csrc" / f).glob("*.cpp"))]
    name = "_core.cpython-311-aarch64-linux-gnu.so"
    module = build(name, sources, includes, ("-shared", "-fvisibility=hidden"))
    package = BUILD / "python"
    shutil.rmtree(package, ignore_errors=True)
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PROJECT / "edgec", package / "edgec", ignore=ignore)
    shutil.copy2(module, package / "edgec" / name)
    return package


def build_app() -> Path:
    """examples/c/run.c and libedgec.a, by the recipe of examples/c/README.md."""
    folder = BUILD / "c"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DEDGEC_PYTHON=OFF", "-DCMAKE_TOOLCHAIN_FILE=tools/zig.cmake"]
    options += [f"-DEDGEC_ZIG_TARGET={TARGET[1]}", f"-DPython_EXECUTABLE={sys.executable}"]
    if not (folder / "CMakeCache.txt").exists():
        _run(["cmake", "-S", ".", "-B", str(folder), *options], RuntimeError, cwd=PROJECT)
    jobs = str(os.cpu_count())
    _run(["cmake", "--build", str(folder), "-j", jobs, "--target", "edgec_run"], RuntimeError, cwd=PROJECT)
    return folder / "csrc/capi/edgec_run"


def python(
    arguments: list[str], package: Path, streaming_bits: int = 512, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the arm64 Python with edgec, numpy, pytest and Hypothesis."""
    path = os.pathsep.join(
        [str(package), str(arm_root() / "wheels"), str(arm_root() / "root/usr/lib/python3/dist-packages")]
    )
    # CI: Hypothesis tries the same examples each time
    variables = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(BUILD),
        "PYTHONPATH": path,
        "CI": "true",
        **environment,
    }
    command = [*emulator(streaming_bits), str(arm_root() / "root/usr/bin/python3.11"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=package, env=variables)
