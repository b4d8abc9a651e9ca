"""An artifact's Mach-O library as macOS loads it, its functions called under Unicorn; LIEF reads the file.

Segments stand at their offsets from a base that is not the file's, with their protections; pointers are rebased, and
what it binds of libSystem is computed here. Every stack argument has 8 bytes, so Apple's ABI and Arm's are the same.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgec.errors import EdgecError

INSTALL = "pip install 'edgec[emulate]'"
PAGE = 1 << 14  # macOS's on arm64
STACK = 512 << 10  # what a second thread gets there
TIMEOUT_S = 120
_RET = 0xD65F03C0.to_bytes(4, "little")
_SPARE = 0xA5  # what memory beside the arguments holds


class Fault(Exception):
    """The call ended in another way than a return; the message says which. `lacking`: by an instruction that Unicorn
    does not know, of which the code need not be guilty."""

    def __init__(self, reason: str, lacking: bool = False):
        super().__init__(reason)
        self.lacking = lacking


@dataclass(frozen=True)
class Area:
    """Memory that a call is given: bytes at an address."""

    address: int
    data: bytes

    @property
    def end(self) -> int:
        return self.address + len(self.data)


def missing() -> str | None:
    """The reason why there is no Unicorn here, or None."""
    lacking = [name for name in ("unicorn", "lief") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacking)} not installed: {INSTALL}" if lacking else None


class Dylib:
    """The library's functions by name. Raises EdgecError EC1801 without Unicorn or LIEF, EC1802 for a file that macOS
    would not load."""

    def __init__(self, code: bytes):
        if reason := missing():
            raise EdgecError("EC1801", "the Mach-O cannot be run: " + reason, hint=INSTALL)
        import lief

        lief.logging.disable()
        found = lief.MachO.parse(list(code))
        if found is None or found.at(0).header.cpu_type != lief.MachO.Header.CPU_TYPE.ARM64:
            raise EdgecError("EC1802", "it is no Mach-O for arm64", "code.so", "Build the artifact again")
        binary = found.at(0)
        if binary.has_dyld_chained_fixups:  # zig's linker makes none
            raise EdgecError("EC1802", "it has chained fixups", "code.so", "Build the artifact again")
        self._segments = [
            (s.virtual_address, s.virtual_size, int(s.init_protection), bytes(s.content))
            for s in binary.segments
            if s.virtual_size
        ]
        if any(s[0] % PAGE for s in self._segments):
            raise EdgecError("EC1802", "a segment does not begin at a page", "code.so", "Build the artifact again")
        self._rebases = [r.address for r in binary.relocations]
        self._binds = {b.address: b.symbol.name.removeprefix("_") for b in binary.bindings}
        self.functions = {s.name.removeprefix("_"): s.value for s in binary.exported_symbols}
        unknown = sorted(set(self._binds.values()) - IMPORTS.keys())
        if unknown:
            raise EdgecError("EC1802", f"it needs {', '.join(unknown)}, which is not libSystem's", "code.so")

    def call(self, name: str, slots: Sequence[int], areas: Sequence[Area], extent: int) -> list[bytes]:
        """name(slots..., 0, extent) with that memory; what the areas hold behind it.

        Raises Fault where it returns anything but 0, reads or writes elsewhere, or leaves changed what a callee keeps.
        """
        import unicorn
        from unicorn import arm64_const as arm

        uc = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        uc.ctl_set_cpu_model(arm.UC_CPU_ARM64_MAX)
        regions = _regions(areas)
        base, stubs, stack = _free(regions, 3)
        for begin, end in regions:
            uc.mem_map(begin, end - begin, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
            uc.mem_write(begin, bytes([_SPARE]) * (end - begin))
        for area in areas:
            uc.mem_write(area.address, area.data)
        was = [bytes(uc.mem_read(begin, end - begin)) for begin, end in regions]
        self._load(uc, base, stubs)
        uc.mem_map(stack, STACK + PAGE, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)

        values = [*slots, 0, extent]
        top = stack + STACK
        for i, value in enumerate(values):
            word = (value % 2**64).to_bytes(8, "little")
            if i < 8:
                uc.reg_write(arm.UC_ARM64_REG_X0 + i, int.from_bytes(word, "little"))
            else:
                uc.mem_write(top + 8 * (i - 8), word)
        back = stubs  # the first stub is nobody's
        uc.reg_write(arm.UC_ARM64_REG_SP, top)
        uc.reg_write(arm.UC_ARM64_REG_LR, back)
        # x18 is the system's on macOS; the others are the caller's
        kept = [arm.UC_ARM64_REG_X18 + i for i in range(11)] + [arm.UC_ARM64_REG_D8 + i for i in range(8)]
        for i, register in enumerate(kept):
            uc.reg_write(register, 0x5AFE0000 + i)
        trouble: list[str] = []
        names = list(dict.fromkeys(self._binds.values()))
        uc.hook_add(unicorn.UC_HOOK_CODE, lambda uc, at, size, _: IMPORTS[names[(at - stubs) // 4 - 1]](uc),
                    begin=stubs + 4, end=stubs + 4 * len(names) + 3)  # fmt: skip
        uc.hook_add(unicorn.UC_HOOK_MEM_INVALID, lambda uc, kind, at, size, *_: trouble.append(
            f"{_ACCESS.get(kind, 'touches')} {size} bytes at {at:#x}, which is not its to touch"))  # fmt: skip
        uc.hook_add(unicorn.UC_HOOK_INTR, lambda uc, number, _: (trouble.append("lacking"), uc.emu_stop()))
        try:
            uc.emu_start(base + self.functions[name], back, timeout=TIMEOUT_S * 1_000_000)
        except unicorn.UcError as error:
            trouble = trouble or [str(error)]
            if error.errno == unicorn.UC_ERR_INSN_INVALID:
                trouble = ["lacking"]
        at = uc.reg_read(arm.UC_ARM64_REG_PC)
        if trouble[:1] == ["lacking"]:
            # an exception leaves pc at the instruction or behind it
            word = next((w for p in (at, at - 4) if (w := self._word(p - base)) is not None), 0)
            raise Fault(f"Unicorn stops near {at - base:#x}, at the word {word:08x}", lacking=True)
        if trouble:
            raise Fault(trouble[0])
        if at != back:
            raise Fault(f"it runs for more than {TIMEOUT_S} s")
        if status := uc.reg_read(arm.UC_ARM64_REG_W0):
            raise Fault(f"it returns {status}")
        if uc.reg_read(arm.UC_ARM64_REG_SP) != top or any(
            uc.reg_read(register) != 0x5AFE0000 + i for i, register in enumerate(kept)
        ):
            raise Fault("it leaves changed a register that is not its own")
        now = [bytes(uc.mem_read(begin, end - begin)) for begin, end in regions]
        _untouched(regions, areas, was, now)
        return [bytes(uc.mem_read(a.address, len(a.data))) for a in areas]

    def _word(self, offset: int) -> int | None:
        for address, _, _, content in self._segments:
            if 0 <= offset - address <= len(content) - 4:
                return int.from_bytes(content[offset - address : offset - address + 4], "little")
        return None

    def _load(self, uc, base: int, stubs: int) -> None:
        import unicorn

        for address, size, _, content in self._segments:
            uc.mem_map(base + address, -(-size // PAGE) * PAGE, unicorn.UC_PROT_WRITE)
            uc.mem_write(base + address, content[:size])
        for at in self._rebases:
            pointer = int.from_bytes(uc.mem_read(base + at, 8), "little")
            uc.mem_write(base + at, (pointer + base).to_bytes(8, "little"))
        names = list(dict.fromkeys(self._binds.values()))
        for at, name in self._binds.items():
            uc.mem_write(base + at, (stubs + 4 * names.index(name) + 4).to_bytes(8, "little"))
        for address, size, protection, _ in self._segments:
            uc.mem_protect(base + address, -(-size // PAGE) * PAGE, protection)
        room = -(-4 * (len(names) + 1) // PAGE) * PAGE
        uc.mem_map(stubs, room, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        uc.mem_write(stubs, _RET * (len(names) + 1))


# UC_MEM_READ_UNMAPPED ... UC_MEM_FETCH_PROT
_ACCESS = {19: "reads", 20: "writes", 21: "runs", 22: "writes", 23: "reads", 24: "runs"}


def _regions(areas: Iterable[Area]) -> list[tuple[int, int]]:
    """The pages of Unicorn's (4 KiB) that the areas lie in, joined."""
    out: list[tuple[int, int]] = []
    for a in sorted(areas, key=lambda a: a.address):
        begin, end = a.address & -4096, -(-max(a.end, a.address + 1) // 4096) * 4096
        if out and begin <= out[-1][1]:
            out[-1] = out[-1][0], max(end, out[-1][1])
        else:
            out.append((begin, end))
    return out


def _free(regions: Sequence[tuple[int, int]], count: int) -> list[int]:
    """Addresses with 4 GiB behind each that no region has."""
    taken = {block for begin, end in regions for block in range(begin >> 32, (end >> 32) + 1)}
    found = [block << 32 for block in range(1, 4 + len(taken) + count) if block not in taken]
    return found[:count]


def _untouched(regions, areas: Sequence[Area], was: Sequence[bytes], now: Sequence[bytes]) -> None:
    """Raises Fault where bytes beside the areas changed."""
    for (begin, end), before, after in zip(regions, was, now, strict=True):
        changed = np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)
        for a in areas:
            if begin <= a.address < end:
                changed[a.address - begin : a.end - begin] = False
        if changed.any():
            raise Fault(f"it writes at {begin + int(changed.argmax()):#x}, beside its arguments")


def _math(function: Callable[..., float], count: int, double: bool) -> Callable:
    """A function of math.h: arguments and result in s0.. or d0.., computed in double."""

    def call(uc) -> None:
        from unicorn import arm64_const as arm

        first, kind = (arm.UC_ARM64_REG_D0, np.float64) if double else (arm.UC_ARM64_REG_S0, np.float32)
        bits = np.uint64 if double else np.uint32
        values = [float(bits(uc.reg_read(first + i)).view(kind)) for i in range(count)]
        with np.errstate(all="ignore"):
            result = kind(function(*values))
        uc.reg_write(first, int(result.view(bits)))

    return call


def _of_math(function: Callable[[float], float], beyond: float) -> Callable[[float], float]:
    """math's function, with what C gives where Python raises: `beyond` on overflow, NaN outside of the domain."""

    def call(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return beyond
        except ValueError:
            return math.inf if x == 0 or x == math.inf else math.nan

    return call


def _memory(uc, copy: bool, pattern: int = 0, zero: bool = False) -> None:
    from unicorn import arm64_const as arm

    to, what, size = (uc.reg_read(arm.UC_ARM64_REG_X0 + i) for i in range(3))
    if zero:
        uc.mem_write(to, bytes(what))
    elif copy:
        uc.mem_write(to, bytes(uc.mem_read(what, size)))
    elif pattern:
        uc.mem_write(to, (bytes(uc.mem_read(what, pattern)) * (size // pattern + 1))[:size])
    else:
        uc.mem_write(to, bytes([what & 255]) * size)


def _binder(uc) -> None:
    raise Fault("it binds lazily")


_ONE: Mapping[str, Callable[..., float]] = {
    **{n: getattr(np, n) for n in ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "sinh",
                                   "cosh", "tanh", "cbrt", "sqrt", "floor", "ceil", "trunc", "rint", "fabs")},
    **{f"a{n}": getattr(np, f"arc{n}") for n in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "nearbyint": np.rint,
    "round": lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x),
    "erf": math.erf,
    "erfc": math.erfc,
    "tgamma": _of_math(math.gamma, math.inf),
    "lgamma": _of_math(math.lgamma, math.inf),
}  # fmt: skip
_TWO: Mapping[str, Callable[..., float]] = {
    "pow": np.power, "fmod": np.fmod, "atan2": np.arctan2, "fmax": np.fmax, "fmin": np.fmin, "hypot": np.hypot,
    "copysign": np.copysign,
}  # fmt: skip
# what compiled functions bind of libSystem: what LLVM makes of loops, and math.h
IMPORTS: Mapping[str, Callable] = {
    **{n + end: _math(f, count, not end) for count, table in ((1, _ONE), (2, _TWO)) for n, f in table.items()
       for end in ("", "f")},
    "memcpy": lambda uc: _memory(uc, True),
    "memmove": lambda uc: _memory(uc, True),
    "memset": lambda uc: _memory(uc, False),
    "bzero": lambda uc: _memory(uc, False, zero=True),
    "memset_pattern16": lambda uc: _memory(uc, False, pattern=16),
    "dyld_stub_binder": _binder,
}  # fmt: skip
