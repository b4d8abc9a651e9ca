"""What an artifact's code for Apple's systems must be: a signed arm64 dylib that asks the system library for math alone."""

from __future__ import annotations

import hashlib
import struct
from operator import attrgetter

SYSTEM = "/usr/lib/libSystem.B.dylib"
# of the C library: what LLVM makes of loops and of functions that it has no instruction for
IMPORTS = {
    "memcpy",
    "memset",
    "bzero",
    "memset_pattern16",
    "dyld_stub_binder",
    "expf",
    "erff",
    "powf",
    "sinf",
    "cosf",
    "tanhf",
}


def check_dylib(code: bytes, target) -> None:
    import lief

    dylib = lief.MachO.parse(list(code)).at(0)
    assert dylib.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64
    system, version = ("MACOS", target.triple.partition("macosx")) if "macosx" in target.triple else (
        "IOS", target.triple.partition("ios"))  # fmt: skip
    assert str(dylib.build_version.platform).endswith(system)
    assert ".".join(map(str, dylib.build_version.minos[:2])) == version[2]
    assert {library.name for library in dylib.libraries} == {"@rpath/edgec-code.dylib", SYSTEM}
    sources = map(attrgetter("library"), dylib.bindings)
    assert {s and s.name for s in sources} <= {SYSTEM}, "nothing is looked up anywhere else"
    assert {b.symbol.name.lstrip("_") for b in dylib.bindings} <= IMPORTS
    # zig knows what libSystem exports: any other undefined symbol would be looked up in all libraries, ordinal 254
    order = [library.name for library in dylib.libraries if library.command == lief.MachO.LoadCommand.TYPE.LOAD_DYLIB]
    undefined = {s.name: s.description >> 8 & 255 for s in dylib.symbols if s.raw_type & 0x0E == 0}
    assert {order[at - 1] if at <= len(order) else at for at in undefined.values()} <= {SYSTEM}, undefined
    assert dylib.has_code_signature
    check_signature(code, dylib.code_signature.data_offset)


def check_signature(code: bytes, start: int) -> None:
    """The ad-hoc signature's page hashes are those of the file."""
    magic, _, count = struct.unpack_from(">3I", code, start)
    assert magic == 0xFADE0CC0
    for kind, offset in struct.iter_unpack(">2I", code[start + 12 : start + 12 + 8 * count]):
        if kind == 0:
            at = start + offset
            magic, _, _, flags, hashes, _, _, slots, limit = struct.unpack_from(">9I", code, at)
            assert magic == 0xFADE0C02 and flags & 2 and limit == start and code[at + 36] == 32
            page = 1 << code[at + 39]
            assert slots == -(-limit // page)
            for k in range(slots):
                found = code[at + hashes + 32 * k : at + hashes + 32 * (k + 1)]
                assert hashlib.sha256(code[k * page : min((k + 1) * page, limit)]).digest() == found, f"page {k}"
