"""Objects to the shared library that an artifact carries: zig's linkers, with no C library or SDK at hand."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgec.errors import EdgecError
from edgec.targets import Target

_EMULATIONS = {"x86_64": "elf_x86_64", "aarch64": "aarch64linux", "riscv64": "elf64lriscv"}
_COMMON = ("-shared", "--strip-all", "--build-id=none", "-z", "noexecstack", "-z", "relro", "-z", "now")
# the libraries that memcpy, memset and the functions of math.h come from, by link recipe
_NEEDED = {"elf": ("libm.so.6",), "bionic": ("libm.so", "libc.so")}
_PAGES = ("-z", "max-page-size=16384")  # Android's pages are 4 or 16 KiB
MACOS = "13.0"


def link(objects: Sequence[bytes], target: Target) -> bytes:
    """The shared library of relocatable objects, by the target's link recipe. Same input, same bytes.

    "elf": needs libm.so.6 and nothing else. "bionic": needs libm.so and libc.so, for Android. "macho": a dylib that
    needs libSystem only, with an ad-hoc signature. Raises EdgecError EC1002 without the ziglang package, EC1401 for
    a system that it can't link for, EC1403 if the linker fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        names = [f"code{i}.o" for i in range(len(objects))]
        for name, obj in zip(names, objects, strict=True):
            (at / name).write_bytes(obj)
        if target.link == "macho":
            _macho(at, names, target)
        elif target.link in _NEEDED and target.arch in _EMULATIONS:
            _elf(at, names, target)
        else:
            raise EdgecError("EC1401", f"cannot link for {target.triple} by the recipe {target.link!r}",
                             hint=f"recipes: {', '.join(_NEEDED)}, macho")  # fmt: skip
        return (at / "code.so").read_bytes()


def _elf(at: Path, names: Sequence[str], target: Target) -> None:
    lld = ("ld.lld", "-m", _EMULATIONS[target.arch])
    (at / "nothing.ld").write_bytes(b"")
    needed = _NEEDED[target.link]
    for library in needed:  # an empty library of that name: enough for lld to record that the real one is needed
        _run(at, *lld, "-shared", "-soname", library, "-o", library, "nothing.ld")
    pages = _PAGES if target.link == "bionic" else ()
    _run(at, *lld, *_COMMON, *pages, "--no-as-needed", "-o", "code.so", *names, *needed)


def _macho(at: Path, names: Sequence[str], target: Target) -> None:
    """zig links for macOS only: a dylib for iOS is one for macOS whose platform is changed and signature made anew."""
    system = re.search(r"-(macosx|ios)([0-9]+)\.([0-9]+)", target.triple)
    if system is None or target.arch != "aarch64":
        raise EdgecError(
            "EC1401", f"cannot link for {target.triple}", hint="arm64-apple-macosx13.0 and -ios17.0 can be"
        )
    wanted = f"{system[2]}.{system[3]}" if system[1] == "macosx" else MACOS
    _run(at, "cc", "-target", f"aarch64-macos.{wanted}", "-shared", "-nostdlib", "-s", "-Wl,-undefined,dynamic_lookup",
         "-Wl,-install_name,@rpath/edgec-code.dylib", "-o", "code.so", *names)  # fmt: skip
    if system[1] == "ios":
        path = at / "code.so"
        path.write_bytes(set_platform(path.read_bytes(), IOS, (int(system[2]), int(system[3]))))


IOS = 2
_BUILD_VERSION, _CODE_SIGNATURE = 0x32, 0x1D


def set_platform(dylib: bytes, platform: int, version: tuple[int, int]) -> bytes:
    """A 64-bit Mach-O for another platform and minimum version, its ad-hoc signature's page hashes made anew.

    LC_BUILD_VERSION and the CodeDirectory as in Apple's mach-o/loader.h and cs_blobs.h. Raises EdgecError EC1403.
    """
    data = bytearray(dylib)
    found = dict(_commands(data))
    if _BUILD_VERSION not in found or _CODE_SIGNATURE not in found:
        raise EdgecError("EC1403", "the linked library has no build version or no signature")
    least = version[0] << 16 | version[1] << 8
    struct.pack_into("<3I", data, found[_BUILD_VERSION] + 8, platform, least, least)
    start, _ = struct.unpack_from("<2I", data, found[_CODE_SIGNATURE] + 8)
    _, _, blobs = struct.unpack_from(">3I", data, start)
    for k in range(blobs):
        kind, offset = struct.unpack_from(">2I", data, start + 12 + 8 * k)
        if kind == 0:  # the CodeDirectory: a SHA-256 for each page of the file before it
            at = start + offset
            hashes, _, _, slots, limit = struct.unpack_from(">5I", data, at + 16)
            size, page = data[at + 36], 1 << data[at + 39]
            for slot in range(slots):
                piece = data[slot * page : min((slot + 1) * page, limit)]
                where = at + hashes + slot * size
                data[where : where + size] = hashlib.sha256(piece).digest()[:size]
    return bytes(data)


def _commands(data: bytearray):
    """(kind, offset) of each load command."""
    count, offset = struct.unpack_from("<I", data, 16)[0], 32
    for _ in range(count):
        kind, size = struct.unpack_from("<2I", data, offset)
        yield kind & 0x7FFFFFFF, offset
        offset += size


def _zig() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise EdgecError("EC1002", "the ziglang package is not installed", hint="pip install 'edgec[build]'")
    folder = Path(spec.origin).parent
    return next((p for p in (folder / "zig", folder / "zig.exe") if p.is_file()), folder / "zig")


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run([str(_zig()), *command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise EdgecError(
            "EC1403",
            f"linking failed: {done.stderr.strip()[:2000]}",
            hint="Install ziglang again, or report this: pip install --force-reinstall ziglang",
        )
