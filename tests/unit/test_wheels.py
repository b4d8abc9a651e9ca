"""The wheels that `make wheels` left in dist/: what their extension asks of the system that it is for."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

lief = pytest.importorskip("lief")
DIST = Path(__file__).resolve().parents[2] / "dist"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_28_x86_64", "macosx_13_0_arm64")
SYSTEM = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-aarch64.so.1",
          "ld-linux-x86-64.so.2"}  # fmt: skip


@pytest.fixture(params=PLATFORMS)
def extension(request) -> tuple[str, bytes]:
    """The platform's name, and the bytes of edgec._core."""
    found = sorted(DIST.glob(f"edgec-*-{request.param}.whl"), key=lambda p: p.stat().st_mtime)
    if not found:
        pytest.skip("there is no wheel in dist/: make wheels")
    with zipfile.ZipFile(found[-1]) as wheel:
        names = wheel.namelist()
        assert not [n for n in names if n.endswith(".a") or n.startswith("tests/")]
        assert any(n.startswith("edgec/targets/") for n in names) and any(n.startswith("edgec/csrc/") for n in names)
        (tag,) = [line for n in names if n.endswith("/WHEEL") for line in wheel.read(n).decode().splitlines()
                  if line.startswith("Tag:")]  # fmt: skip
        assert tag.endswith(request.param)
        (module,) = [n for n in names if re.match(r"edgec/_core\..*\.so$", n)]
        return request.param, wheel.read(module)


def test_what_it_needs(extension):
    platform, data = extension
    if platform.startswith("macosx"):
        return _macos(lief.MachO.parse(list(data)).at(0), platform)
    elf = lief.ELF.parse(list(data))
    arch = lief.ELF.ARCH.AARCH64 if platform.endswith("aarch64") else lief.ELF.ARCH.X86_64
    assert elf.header.machine_type == arch
    assert set(elf.libraries) <= SYSTEM, "C++'s library is inside"
    versions = [a.name for r in elf.symbols_version_requirement for a in r.get_auxiliary_symbols()]
    glibc = [tuple(map(int, v.removeprefix("GLIBC_").split("."))) for v in versions if v.startswith("GLIBC_")]
    assert glibc and max(glibc) <= (2, 28)
    # what no library gives is Python's
    unbound = {s.name for s in elf.imported_symbols if not s.has_version and s.binding != lief.ELF.Symbol.BINDING.WEAK}
    assert all(name.startswith(("Py", "_Py")) for name in unbound), sorted(unbound)


def _macos(dylib, platform: str) -> None:
    assert dylib.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    assert str(dylib.build_version.platform).endswith("MACOS") and dylib.has_code_signature
    assert list(dylib.build_version.minos[:2]) == [int(n) for n in platform.split("_")[1:3]]
    loads = [x.name for x in dylib.libraries if x.command == lief.MachO.LoadCommand.TYPE.LOAD_DYLIB]
    assert loads == ["/usr/lib/libSystem.B.dylib"], "neither a C++ library nor Accelerate is linked to"
    undefined = {s.name: s.description >> 8 & 255 for s in dylib.symbols if s.raw_type & 0x0E == 0}
    elsewhere = {name for name, ordinal in undefined.items() if ordinal != 1}
    assert all(name.startswith(("_Py", "__Py")) for name in elsewhere), sorted(elsewhere)
    assert "_dlopen" in undefined, "Accelerate is found at run"
    # EDGEC_AMX and SME2 are compiled in: their words are in the code
    text = next(bytes(s.content) for s in dylib.sections if s.name == "__text")
    assert (0x00201000 + (17 << 5)).to_bytes(4, "little") in text, "AMX's set"
