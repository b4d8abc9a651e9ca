"""How fast a target computes and reads: from its file's figures, or measured once where it is this machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgec.targets import Target

EVERY = 2.0**62  # bytes: any size
VERSION = 1  # of the measurement: others are not read back


@dataclass(frozen=True)
class Family:
    """What a kind of step gets out of a core. All shares are of the core's peak in the unit that they name.

    unit: whose products: "int4", "int8" or "fp32". macs: share of its rate. operations: elements a second of other
    arithmetic, as a multiple of the fp32 peak. moved: bytes a second of activations, as a share of `load_gbs`.
    """

    unit: str = "fp32"
    macs: float = 1.0
    operations: float = 0.6
    moved: float = 0.5

    def macs_ns(self, rates: Rates) -> float:
        return 1 / (rates.gmacs[self.unit] * self.macs)

    def unpack_ns(self, rates: Rates) -> float:
        unpack = rates.unpack.get(self.unit)
        return 1 / unpack if unpack else 0.0

    def operation_ns(self, rates: Rates) -> float:
        return 1 / (rates.gmacs["fp32"] * self.operations)

    def byte_ns(self, rates: Rates) -> float:
        return 1 / (rates.load_gbs * self.moved)


# Fitted to bench/estimates.py over all its models at once, on one machine.
FAMILIES: Mapping[str, Family] = {
    "int4 product": Family("int4", operations=0.26, moved=4.0),
    "int8 product": Family("int8", operations=0.26, moved=4.0),
    "fp32 product": Family("fp32", macs=0.95, operations=0.26, moved=4.0),
    "matmul": Family(macs=0.85, moved=0.6),
    "attention": Family(macs=0.95, operations=0.19, moved=0.5),
    "recurrent": Family(macs=0.6, operations=0.3),
    "conv": Family(macs=0.88, moved=0.3),
    "int8 conv": Family("int8", macs=1.2, moved=0.3),
    "depthwise": Family(macs=0.75, moved=0.17),
    "conv_transpose": Family(macs=0.75, moved=0.25),
    "map": Family(operations=1.0, moved=0.6),
    "rows": Family(operations=0.55, moved=2.0),
    "pool": Family(operations=0.19, moved=0.5),
    "resize": Family(operations=0.18, moved=1.5),
    "move": Family(moved=0.2),
}
# of a target's file: share of int8_macs and fp32_macs that products reach, and weights of one row unpacked at that peak
SHARES = {"int4": 1.0, "int8": 0.55, "fp32": 0.95}
UNPACK = {"int4": 0.8, "int8": 0.8, "fp32": 0.25}
SCALING = 0.8 / 32  # vector instructions of 128 bits for each multiply-accumulate of int4: scales of groups of 32
READ = 0.95  # of a target's memory bandwidth that a product reads its weights with
CROSS = 0.45  # of a core's rate to its own cache, what it gets from another core's
SHARED = 0.95  # what each further thread adds, where there is enough to share
LOAD = 1.0  # vectors a cycle that steps read and write, at most
CACHES = ((0.8, 4.0), (0.8, 2.0))  # of L2 and L3: share that stays, speed against memory
STEP_CYCLES, JOIN_CYCLES, RUN_CYCLES = 1100, 8000, 20000


@dataclass(frozen=True)
class Rates:
    """Of a target with so many threads.

    gmacs: 1e9 multiply-accumulates a second and core, by unit. unpack: 1e9 weights a second and core, for products of
    one row. load_gbs: of a core, to and from its caches. stream: (bytes of weights up to which, GB/s of all threads),
    ascending; the last holds for any size. near: bytes of a core's own cache. step_us, join_us, run_us: what a step,
    sharing it, and a run cost by themselves.
    """

    target: str
    source: str
    threads: int
    gmacs: Mapping[str, float]
    unpack: Mapping[str, float]
    load_gbs: float
    stream: tuple[tuple[float, float], ...]
    near: int
    step_us: float
    join_us: float
    run_us: float
    watts: float

    def stream_gbs(self, resident: int) -> float:
        """How fast weights are read when a run reads `resident` bytes of them."""
        return next((speed for size, speed in self.stream if resident <= size), self.stream[-1][1])

    def lines(self) -> list[tuple[str, str]]:
        """(what, how much) for people."""
        sizes = []
        for size, speed in self.stream:
            sizes.append(f"{speed:.3g}" + ("" if size >= EVERY else f" up to {size / 1e6:.3g} MB,"))
        return [
            ("threads", str(self.threads)),
            ("products", ", ".join(f"{u} {self.gmacs[u]:.3g}" for u in self.gmacs) + " GMAC/s a core"),
            ("of one row", ", ".join(f"{u} {self.unpack[u]:.3g}" for u in self.unpack) + " G weights/s a core"),
            ("weights read", " ".join(sizes) + " GB/s"),
            ("activations", f"{self.load_gbs:.3g} GB/s a core at most"),
            ("overhead", f"{self.step_us:.2g} us a step, {self.join_us:.2g} us where threads share it"),
            ("power", f"{self.watts:g} W" if self.watts else "not known"),
        ]

    def inputs(self, resident: int) -> dict[str, Any]:
        """What an estimate shows of itself; "text": for one line."""
        text = [
            f"{self.threads} thread{'s' if self.threads > 1 else ''}",
            f"weights read at {self.stream_gbs(resident):.3g} GB/s",
            f"int4 {self.threads * self.gmacs['int4']:.3g}, fp32 {self.threads * self.gmacs['fp32']:.3g} GMAC/s",
        ]
        text += [f"{self.watts:g} W"] if self.watts else []
        return {**asdict(self), "weights_bytes": resident, "stream_gbs": self.stream_gbs(resident), "text": text}


def of_target(target: Target, threads: int | None = None) -> Rates | None:
    """From the figures of the target's file; None where it lacks one that an estimate needs."""
    if not (target.clock_ghz and target.bandwidth_gbs and target.int8_macs and target.fp32_macs):
        return None
    cores = target.cores or 1
    threads = min(threads or cores, cores)
    ghz = target.clock_ghz
    peak: dict[str, float] = {"int8": target.int8_macs, "fp32": target.fp32_macs}
    pipes = target.fp32_macs / (target.vector_bits / 32)
    peak["int4"] = 1 / (1 / target.int8_macs + SCALING * 128 / target.vector_bits / pipes)
    memory = target.bandwidth_gbs * READ
    caches = ((target.l2 * cores, CACHES[0]), (target.l3, CACHES[1]))
    stream: list[tuple[float, float]] = [(size * stays, memory * faster) for size, (stays, faster) in caches if size]
    # a cache that is no larger than a faster one is not what decides
    stream = [a for a in stream if not any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in stream)]
    return Rates(
        target=target.name,
        source=f"targets/{target.name}.toml",
        threads=threads,
        gmacs={unit: peak[unit] * ghz * SHARES[unit] for unit in peak},
        unpack={u: (target.fp32_macs if u == "fp32" else target.int8_macs) * ghz * UNPACK[u] for u in UNPACK},
        load_gbs=target.vector_bits / 8 * ghz * LOAD,
        stream=(*sorted(stream), (EVERY, memory)),
        near=target.l2,
        step_us=STEP_CYCLES / ghz / 1e3,
        join_us=JOIN_CYCLES / ghz / 1e3,
        run_us=RUN_CYCLES / ghz / 1e3,
        watts=target.watts,
    )


def of(target: Target, threads: int | None = None, measure_now: bool = False) -> Rates | None:
    """Of this machine what was measured, if it was (or measure_now); of all else what the target's file says."""
    if target.name == "host":
        found = measured(threads or target.cores or 1, measure_now)
        if found is not None:
            return _of_host(target, found)
    return of_target(target, threads)


def _of_host(target: Target, found: Mapping[str, Any]) -> Rates:
    ghz = found["gmacs"]["fp32"] / SHARES["fp32"] / (target.fp32_macs or 16)
    return Rates(
        target="host",
        source="measured on this machine",
        threads=found["threads"],
        gmacs=found["gmacs"],
        unpack=found["unpack"],
        load_gbs=target.vector_bits / 8 * ghz * LOAD,
        stream=tuple((float(size), float(speed)) for size, speed in found["stream"]),
        near=target.l2,
        step_us=STEP_CYCLES / ghz / 1e3,
        join_us=JOIN_CYCLES / ghz / 1e3,
        run_us=RUN_CYCLES / ghz / 1e3,
        watts=target.watts,
    )


def measured(threads: int, measure_now: bool = False) -> dict[str, Any] | None:
    """What `measure` found with so many threads, from the cache of this CPU; None where it was never measured."""
    path = _file()
    found = _read(path)
    if str(threads) not in found and measure_now:
        found[str(threads)] = measure(threads)
        _write(path, found)
    return found.get(str(threads))


def forget() -> None:
    """The next estimate measures this machine anew."""
    _file().unlink(missing_ok=True)


def fingerprint() -> str:
    """Of the CPU model and the kernel table, for names of files that hold measurements."""
    import hashlib

    from edgec import _core, kernels

    facts = [VERSION, _cpu_model(), sorted(_core.cpu_features()), [k.name for k in kernels.list() if k.available]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def file(name: str) -> Path:
    """Where measurements of this machine are kept: $EDGEC_CACHE_DIR, or the platform's folder for caches."""
    folder = os.environ.get("EDGEC_CACHE_DIR")
    if not folder:
        try:
            from platformdirs import user_cache_dir

            folder = user_cache_dir("edgec")
        except ImportError:
            folder = os.path.expanduser("~/.cache/edgec")
    return Path(folder) / f"{name}-{fingerprint()}.json"


def _file() -> Path:
    """One for each CPU model and kernel table: another CPU, or other kernels, have other rates."""
    return file("rates")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import platform

        return platform.processor()
    wanted = ("model name", "cpu family", "model", "stepping", "cpu part", "cpu implementer")
    return "; ".join(dict.fromkeys(v for k, _, v in (x.partition(":") for x in lines) if k.strip() in wanted))


def _read(path: Path) -> dict[str, Any]:
    """What the file holds of this form; nothing where it is damaged."""
    try:
        found = json.loads(path.read_text())
        for one in found.values():
            numbers = [*one["gmacs"].values(), *one["unpack"].values(), *(x for pair in one["stream"] for x in pair)]
            if not all(isinstance(x, (int, float)) and x > 0 for x in numbers) or not isinstance(one["threads"], int):
                return {}
            assert set(SHARES) == set(one["gmacs"]) and set(UNPACK) == set(one["unpack"]) and one["stream"]
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):
        return {}


def _write(path: Path, found: Mapping[str, Any]) -> None:
    """Kept if it can be: an estimate does not fail for want of a cache."""
    import contextlib
    import tempfile

    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as f:
            json.dump(found, f, indent=1)
        os.replace(f.name, path)


def measure(threads: int) -> dict[str, Any]:
    """Rates of products of this machine, by some 0.5 s of the kernels themselves; the best of several times."""
    import numpy as np

    from edgec import kernels

    columns, rows = 512, 96
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((2048, columns)).astype(np.float32)
    gmacs, unpack = {}, {}
    for unit, bits, group in (("int4", 4, 32), ("int8", 8, 128), ("fp32", 32, 0)):
        format = kernels.format_name(bits, group)
        if bits == 32:
            data = kernels.pack(format, w)
        else:
            data, _, _ = kernels.encode(w, format, search=False)

        def product(m: int, n: int, format=format, data=data) -> Callable[[], Any]:
            out = np.empty((m, n), np.float32)
            part = data[: kernels.packed_nbytes(format, n, columns)]
            return lambda: kernels.gemm(x[:m], part, format, n, columns, out=out)

        gmacs[unit] = rows * 512 * columns / _best(product(rows, 512)) / 1e9
        # of one row, the weights of 256 more columns: what a call costs by itself drops out
        more = max(_best(product(1, 384)) - _best(product(1, 128)), 1e-9)
        unpack[unit] = 1 / max(more / (256 * columns) * 1e9 - 1 / gmacs[unit], 1e-4)
    return {"threads": threads, "gmacs": gmacs, "unpack": unpack, "stream": _streams(threads)}


def _streams(threads: int) -> list[tuple[float, float]]:
    """(bytes up to which, GB/s): products of one row with fp32 weights, which do nothing but read them."""
    import numpy as np

    from edgec import kernels

    columns = 2048
    format = kernels.format_name(32)
    data = kernels.pack(format, np.ones((8192, columns), np.float32), threads=threads)
    x = np.ones((1, columns), np.float32)
    found: list[tuple[float, float]] = []
    for mb, holds in ((0.5, 0.75), (2, 4), (8, 12), (24, 32), (64, 0)):
        n = int(mb * 2**20) // (4 * columns)
        out = np.empty((1, n), np.float32)
        part = data[: kernels.packed_nbytes(format, n, columns)]
        seconds = _best(lambda: kernels.gemm(x, part, format, n, columns, threads=threads, out=out))  # noqa: B023
        found.append((holds * 2**20 or EVERY, 4 * n * columns / seconds / 1e9))
    return found


def _best(call: Callable[[], Any], budget: float = 0.04) -> float:
    """Seconds of one call: the fastest of some runs, what the machine does where nobody disturbs it."""
    best, end = float("inf"), time.perf_counter() + budget
    call()
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
