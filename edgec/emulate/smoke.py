"""A second opinion on an artifact for macOS: each function of its Mach-O, called under Unicorn as it was under qemu."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from edgec.artifact.plan import DTYPES
from edgec.emulate.macho import Area, Dylib, Fault
from edgec.errors import EdgecError

# functions of math.h are not the same ones in both
TOLERANCE = {"f32": 1e-5, "f64": 1e-12, "f16": 2e-3}
_NUMPY = {"f32": np.float32, "f64": np.float64, "f16": np.float16}


@dataclass(frozen=True)
class Record:
    """The first call of a function (csrc/emulate/run.cpp, Recorder). areas: None where they were too large to keep.
    after: what they held then; dtypes: by plan's names, "" of scratch, which is nobody's result."""

    name: str
    extent: int
    slots: tuple[int, ...]
    areas: tuple[Area, ...] | None
    after: tuple[bytes, ...] = ()
    dtypes: tuple[str, ...] = ()


def read(data: bytes) -> Iterator[Record]:
    """The records of a file. Raises EdgecError EC1802 where it is cut off."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        if not 0 <= count <= len(data) - at:
            raise EdgecError("EC1802", "the record of calls is cut off")
        found = data[at : at + count]
        at += -(-count // 8) * 8
        return found

    def word() -> int:
        return int.from_bytes(take(8), "little", signed=True)

    while at < len(data):
        name = take(word()).decode()
        extent, slots, count = word(), word(), word()
        values = tuple(word() for _ in range(slots))
        if count < 0:
            yield Record(name, extent, values, None)
            continue
        areas, after, dtypes = [], [], []
        for _ in range(count):
            address, size, dtype = word(), word(), word()
            areas.append(Area(address, take(size)))
            after.append(take(size))
            dtypes.append(DTYPES[dtype] if dtype >= 0 else "")
        yield Record(name, extent, values, tuple(areas), tuple(after), tuple(dtypes))


@dataclass
class Smoke:
    """What ran. functions: of the library that the run under qemu called. exact: with the same values. near: within
    TOLERANCE, the largest error beside them. lacking: stopped at an instruction that Unicorn does not know. large: not
    kept. wrong: what is wrong, by function."""

    functions: int = 0
    exact: int = 0
    near: int = 0
    largest_error: float = 0.0
    lacking: dict[str, str] = field(default_factory=dict)
    large: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def ok(self) -> bool:
        return not self.wrong

    def text(self) -> str:
        if self.skipped:
            return f"Mach-O under Unicorn: not run, {self.skipped}"
        out = f"Mach-O under Unicorn: {self.exact + self.near} of {self.functions} functions, {self.exact} with the same values"
        if self.near:
            out += f", {self.near} within {self.largest_error:.1g}"
        for what, names in (("at instructions it lacks", self.lacking), ("too large to keep", self.large)):
            out += f"; {len(names)} not run, {what}" if names else ""
        return out + "".join(f"\n{name}: {reason}" for name, reason in self.wrong.items())


def smoke(code: bytes, records: Iterator[Record], progress: Callable[[str], None] = lambda text: None) -> Smoke:
    """Calls each recorded function of the library and compares what it leaves in memory."""
    library, out = Dylib(code), Smoke()
    for record in records:
        out.functions += 1
        if record.areas is None:
            out.large.append(record.name)
            continue
        progress(f"{record.name} under Unicorn")
        try:
            got = library.call(record.name, record.slots, record.areas, record.extent)
        except Fault as fault:
            (out.lacking if fault.lacking else out.wrong)[record.name] = str(fault)
            continue
        errors = [difference(*argument) for argument in zip(got, record.after, record.dtypes, strict=True)]
        beyond = [i for i, (error, d) in enumerate(zip(errors, record.dtypes)) if error > TOLERANCE.get(d, 0)]
        if beyond:
            out.wrong[record.name] = f"argument {beyond[0]} is not what it was under qemu"
        elif worst := max(errors, default=0.0):
            out.near += 1
            out.largest_error = max(out.largest_error, worst)
        else:
            out.exact += 1
    return out


def difference(got: bytes, want: bytes, dtype: str) -> float:
    """0: the same values, else the largest error relative to the largest value; infinity where that says nothing."""
    if got == want or not dtype:
        return 0.0
    if dtype not in _NUMPY:
        return np.inf
    a, b = (np.frombuffer(v, _NUMPY[dtype]).astype(np.float64) for v in (got, want))
    with np.errstate(invalid="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if same.all():
            return 0.0
        if not (np.isfinite(a) & np.isfinite(b))[~same].all():
            return np.inf
        return float(np.abs(a - b)[~same].max() / max(np.abs(b[np.isfinite(b)]).max(), 1e-30))
