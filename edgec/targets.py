"""Targets: what a model is compiled for. Read from targets/*.toml, with inheritance; `host` from this machine's CPU."""

from __future__ import annotations

import os
import platform
import sys
import tomllib
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path

from edgec.errors import EdgecError


@dataclass(frozen=True)
class Target:
    """triple, cpu: LLVM's names. features: LLVM's, beyond those of the cpu. requires: features that the CPU must
    have when an artifact is loaded, by the names of edgec._core.cpu_features. vector_bits: of one register.
    matrix_unit: "none", "amx", "sme2" or, by with_unit, "accelerate". link: the recipe, "elf" (glibc), "bionic"
    (Android) or "macho". Caches in bytes, per core except l3.

    What estimates of latency and energy go by, of the performance cores together or each: bandwidth_gbs that they read
    from memory together, int8_macs and fp32_macs per cycle and core without the matrix unit, clock_ghz, and watts that
    the device draws while they all work. 0: not known.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    vector_bits: int = 128
    matrix_unit: str = "none"
    link: str = "elf"
    cores: int = 0  # that run models: all, or the performance cores; 0: as many as the machine has
    efficiency_cores: int = 0
    l1d: int = 32 << 10
    l2: int = 512 << 10
    l3: int = 0
    packed: tuple[str, ...] = ()  # layouts of packed weights that the matrix unit takes, the preferred ones first
    clock_ghz: float = 0.0
    bandwidth_gbs: float = 0.0
    int8_macs: int = 0
    fp32_macs: int = 0
    watts: float = 0.0
    description: str = ""

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts of packed weights to prefer; (): the kernel table's own order."""
        return self.packed if self.matrix_unit != "none" else ()

    @property
    def int8_convs(self) -> bool:
        """Whether compiled convolutions multiply bytes faster than floats."""
        return self.arch == "x86_64" or "dotprod" in self.requires

    @property
    def tables_cost_nothing(self) -> bool:
        """Whether products take 4.25-bit weights, from a table, as fast as those of 4.5 bits (bench/README.md). On Arm a single
        row takes a third more instructions (bench/arm.md), and matrix units take none."""
        return "avx2" in self.requires

    @property
    def kernel_features(self) -> frozenset[str]:
        """What hand-written kernels may ask for, by the names in `edgec kernels`. That AMX works is seen at load only."""
        amx = ("amx", "amx2") if "i8mm" in self.requires else ("amx",)
        return frozenset((*self.requires, *(amx if self.matrix_unit == "amx" else ()),
                          *(("accelerate",) if ACCELERATE in self.layouts else ())))  # fmt: skip

    @property
    def arch(self) -> str:
        name = self.triple.split("-")[0]
        return {"arm64": "aarch64"}.get(name, name)


ACCELERATE = "nk"  # the layout of float weights that Accelerate reads, and NEON
# what a loader finds out of a CPU (csrc/runtime/cpu.cpp), by LLVM's names
DETECTED = frozenset({"dotprod", "fullfp16", "i8mm", "bf16", "sme", "sme2", "neon", "ssse3", "sse4.2", "popcnt", "avx2", "fma",
                      "f16c", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"})  # fmt: skip
ARCHITECTURES = ("x86_64", "aarch64")
_CHOICES = {
    "matrix_unit": ("none", "amx", "sme2"),
    "link": ("elf", "bionic", "macho"),
    "vector_bits": (128, 256, 512, 1024, 2048),
}


def folder() -> Path:
    """Where the files are: inside the installed package, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "targets"
    return inside if inside.is_dir() else here.parent / "targets"


def names() -> list[str]:
    """All targets that can be asked for."""
    return ["host", *sorted(p.stem for p in folder().glob("*.toml"))]


def load(name: str) -> Target:
    """The target of this name. Raises EdgecError EC1402 where there is none or its file is wrong."""
    if name == "host":
        return host()
    values = _read(name, ())
    return Target(name=name, **values)


UNITS = ("auto", "amx", "sme", "accelerate", "none")


def with_unit(target: Target, unit: str) -> Target:
    """The target, with products on that matrix unit: auto (its own, and macOS's library for fp32 weights), amx, sme,
    accelerate (the library alone) or none. Raises EdgecError EC1001 where it has no such unit."""
    if unit not in UNITS:
        raise EdgecError("EC1001", f"{unit!r} is none of {', '.join(UNITS)}", "--matrix-unit")
    wanted = {"sme": "sme2"}.get(unit, unit)
    if wanted in ("auto", target.matrix_unit):
        return target
    if wanted == "accelerate":
        if ACCELERATE not in target.packed:
            raise EdgecError(
                "EC1001", f"{target.name} has no accelerate: it is macOS's", "--matrix-unit", "Leave it out"
            )
        return replace(target, matrix_unit=wanted, packed=(ACCELERATE,))
    if wanted != "none":
        has = {"sme2": "sme"}.get(target.matrix_unit, target.matrix_unit)
        reason = f"{target.name} has no {unit}: its matrix unit is {has}"
        raise EdgecError("EC1001", reason, "--matrix-unit", "Leave it out")
    return replace(target, matrix_unit=wanted)


def _read(name: str, above: tuple[str, ...]) -> dict:
    path = folder() / f"{name}.toml"
    if "/" in name or not path.is_file():
        raise unknown(name, above[-1] + ".toml" if above else None)
    if name in above:
        raise EdgecError(
            "EC1402", f"target {name!r} inherits from itself", where=path.name, hint="Remove its line inherits"
        )
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise EdgecError("EC1402", f"target {name!r}: {e}", where=path.name) from e
    parent = values.pop("inherits", None)
    if parent is not None and not isinstance(parent, str):
        raise EdgecError("EC1402", f"target {name!r}: inherits must be of type str", where=path.name)
    merged = _read(parent, (*above, name)) if parent else {}
    known = {f.name: f.type for f in fields(Target) if f.name != "name"}
    for key, value in values.items():
        if key not in known:
            raise EdgecError("EC1402", f"target {name!r} has an unknown key {key!r}", where=path.name,
                             hint=f"keys: inherits, {', '.join(known)}")  # fmt: skip
        expected = {"str": str, "int": int, "float": float}.get(str(known[key]), list)
        if not isinstance(value, expected) or isinstance(value, bool):
            raise EdgecError("EC1402", f"target {name!r}: {key} must be of type {expected.__name__}", where=path.name)
        if isinstance(value, list) and not all(isinstance(v, str) for v in value):
            raise EdgecError("EC1402", f"target {name!r}: {key} is a list of names", where=path.name)
        if isinstance(value, (int, float)) and not 0 <= value < 2**40:
            raise EdgecError("EC1402", f"target {name!r}: {key} = {value} is no such figure", where=path.name)
        if value not in _CHOICES.get(key, (value,)):
            raise EdgecError(
                "EC1402", f"target {name!r}: {key} is one of {', '.join(map(str, _CHOICES[key]))}", where=path.name
            )
        merged[key] = tuple(value) if isinstance(value, list) else value
    if not above:
        for key in ("triple", "cpu"):
            if key not in merged:
                raise EdgecError("EC1402", f"target {name!r} needs {key!r}", where=path.name)
        if strange := set(merged.get("requires", ())) - DETECTED:
            reason = f"target {name!r} requires what no loader can detect: {', '.join(sorted(strange))}"
            raise EdgecError("EC1402", reason, path.name, f"Of {', '.join(sorted(DETECTED))}")
        if (arch := Target(name, merged["triple"], merged["cpu"]).arch) not in ARCHITECTURES:
            reason = f"target {name!r} is of {arch}, the runtime of {' and '.join(ARCHITECTURES)}"
            raise EdgecError("EC1402", reason, path.name)
    return merged


def unknown(name: str, where: str | None = None) -> EdgecError:
    """EC1402 for a target that does not exist, with the nearest names."""
    near = get_close_matches(name, names(), 3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"One of: {', '.join(names())}"
    return EdgecError("EC1402", f"there is no target {name!r}", where, hint)


def host() -> Target:
    """The best target that this CPU satisfies, by its flags. Raises EdgecError EC1402 for an unknown architecture."""
    machine = platform.machine().lower()
    from edgec import _core

    flags = set(_core.cpu_features())
    if machine in ("x86_64", "amd64"):
        fitting = [t for t in map(load, ("x86-64-v2", "x86-64-v3", "x86-64-vnni")) if flags.issuperset(t.requires)]
    elif machine in ("aarch64", "arm64"):
        fitting = _arm(flags)
    else:
        fitting = []
    if not fitting:
        raise EdgecError(
            "EC1402", f"no target fits this machine ({machine})", hint="pass --target; `edgec targets` lists them"
        )
    l1d, l2, l3 = (_cache(k) or default for k, default in ((1, fitting[-1].l1d), (2, fitting[-1].l2), (3, 0)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return replace(fitting[-1], name="host", cores=cores, l1d=l1d, l2=l2, l3=l3,
                   description=f"this machine, as {fitting[-1].name}")  # fmt: skip


def _arm(flags: set[str]) -> list[Target]:
    """What an ARM CPU with these features satisfies, the best last."""
    if sys.platform == "darwin":
        return [t for t in map(load, ("apple-m1", "apple-m2", "apple-m4")) if flags.issuperset(t.requires)]
    base = load("aarch64-generic")
    more = tuple(f for f in ("dotprod", "fullfp16", "i8mm", "bf16") if f in flags)
    return [replace(base, features=(*base.features, *(f"+{f}" for f in more)), requires=(*base.requires, *more))]


def _cache(level: int) -> int:
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if int((index / "level").read_text()) == level and (index / "type").read_text().strip() != "Instruction":
                size = (index / "size").read_text().strip()
                return int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
        except (OSError, ValueError, KeyError):
            continue
    return 0
