"""Latency and energy of a plan on a machine that is not at hand: a roofline of each step (docs/targets.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import Any

from edgec.rates import CROSS, FAMILIES, SHARED, Rates

HIDDEN = 0.4  # of the shorter of reading weights and computing, what the longer hides in products of a FEW rows
FEW = 4
LIMIT = 2**60  # figures of a manifest beyond this are no figures


@dataclass(frozen=True)
class Work:
    """What one step has to do, at one size of everything; `count` equal steps.

    family: a key of rates.FAMILIES. macs: multiply-accumulates. unpacked: weights that a quantized product unpacks.
    operations: other arithmetic, in vector operations of one element. weights: bytes of constants that are read whole.
    moved: bytes of activations and caches read and written. chunks: parts that workers can share, None: enough.
    """

    family: str
    macs: int = 0
    unpacked: int = 0
    operations: int = 0
    weights: int = 0
    moved: int = 0
    chunks: int | None = None
    count: int = 1
    kernel: str = ""
    origin: str = ""


@dataclass(frozen=True)
class StepEstimate:
    """latency_us: of one of the `count` equal steps. bound: "arithmetic", "memory" (weights) or "overhead"."""

    work: Work
    latency_us: float
    bound: str


@dataclass(frozen=True)
class Estimate:
    """An estimate, not a measurement, with what it went by.

    case: "run", or of a language model "decode" (one token) and "prefill". tokens: of the case, 1 where it has none.
    energy_j: None where the target's watts are not known. bounds: share of the latency that each bound takes.
    """

    case: str
    dims: Mapping[str, int]
    latency_us: float
    energy_j: float | None
    tokens: int
    bounds: Mapping[str, float]
    steps: Sequence[StepEstimate]
    inputs: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For --json: steps as plain rows."""
        rows = [{**asdict(s.work), "latency_us": round(s.latency_us, 3), "bound": s.bound} for s in self.steps]
        return {
            "estimate": True, "text": self.text(), "case": self.case, "dims": dict(self.dims), "tokens": self.tokens,
            "latency_us": self.latency_us, "energy_j": self.energy_j, "bounds": dict(self.bounds),
            "inputs": dict(self.inputs), "steps": rows,
        }  # fmt: skip

    def text(self) -> str:
        """One line: "41 ms, 0.33 J on raspberry-pi-5 (estimate: 4 threads, ...)"."""
        per = {"decode": "/token", "prefill": f" for {self.tokens} tokens"}.get(self.case, "")
        energy = (
            "" if self.energy_j is None else f", {_figure(self.energy_j, 'J')}{per if self.case == 'decode' else ''}"
        )
        most = max(self.bounds, key=lambda b: self.bounds[b])
        inputs = ", ".join(self.inputs["text"])
        return (
            f"{_figure(self.latency_us / 1e6, 's')}{per}{energy} on {self.inputs['target']}"
            f" (estimate: {inputs}; {self.bounds[most]:.0%} bound by {most})"
        )


def _figure(value: float, unit: str) -> str:
    """Two or three significant digits with a prefix: "41 ms"."""
    for prefix, scale in (("", 1.0), ("m", 1e-3), ("µ", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value / 1e-9:.3g} n{unit}"


def merged(work: Iterable[Work]) -> list[Work]:
    """Equal steps as one with a count, in the order of the first of each; origins are left out."""
    found: dict[Work, int] = {}
    for w in work:
        plain = replace(w, origin="", count=1)
        found[plain] = found.get(plain, 0) + w.count
    return [replace(w, count=n) for w, n in found.items()]


def packed(work: Iterable[Work]) -> list[list]:
    """Rows for a manifest: the fields of `Work` in order, without the origin."""
    return [list(astuple(w))[:-1] for w in merged(work)]


def unpacked(rows: Any) -> list[Work]:
    """The inverse of `packed`; what is malformed gives no work at all."""
    names = [f.name for f in fields(Work)][:-1]
    found = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, list) or len(row) != len(names):
            return []
        family, *numbers, kernel = row
        if not isinstance(family, str) or family not in FAMILIES or not isinstance(kernel, str):
            return []
        optional = dict(zip(names[1:-1], numbers))
        for name, n in optional.items():
            if not (name == "chunks" and n is None) and not (type(n) is int and 0 <= n < LIMIT):
                return []
        found.append(Work(family, **optional, kernel=kernel))
    return found


def step(work: Work, rates: Rates, resident: int) -> StepEstimate:
    """One step: overhead, then computing and reading weights, part of the shorter of which the longer one hides.

    resident: bytes of all weights that a run reads: what decides which cache they come from.
    """
    f, t = FAMILIES[work.family], rates.threads
    alone = work.macs * f.macs_ns(rates) + work.unpacked * f.unpack_ns(rates)
    alone += work.operations * f.operation_ns(rates) + work.moved * f.byte_ns(rates)
    arithmetic, memory = alone / 1e3, work.weights / rates.stream_gbs(resident) / 1e3
    overhead = rates.step_us
    if t > 1:
        # another core has computed a part of what the step reads: what fits into its own cache does not lie there
        arithmetic += min(work.moved, rates.near) / (rates.load_gbs * CROSS) / 1e3
        if work.chunks is None:
            parts = 1 + (t - 1) * SHARED if alone > rates.join_us * 1e3 else 1
        else:
            parts = work.chunks / math.ceil(work.chunks / t) if work.chunks else 1
        arithmetic += alone / parts / 1e3 - alone / 1e3
        overhead += rates.join_us if parts > 1 else 0.0
    rows = work.macs / work.unpacked if work.unpacked else 0
    hidden = HIDDEN if 0 < rows <= FEW else 0.0
    latency = overhead + max(arithmetic, memory) + (1 - hidden) * min(arithmetic, memory)
    longest = max((arithmetic, "arithmetic"), (memory, "memory"), (overhead, "overhead"))
    return StepEstimate(work, latency, longest[1])


def estimate(work: Iterable[Work], rates: Rates, case: str = "run", dims: Mapping[str, int] | None = None,
             tokens: int = 1) -> Estimate:  # fmt: skip
    """The time of all steps one after the other, and what the device draws meanwhile."""
    work = list(work)
    resident = sum(w.weights * w.count for w in work)
    steps = [step(w, rates, resident) for w in work]
    latency = rates.run_us + sum(s.latency_us * s.work.count for s in steps)
    bounds = dict.fromkeys(("arithmetic", "memory", "overhead"), 0.0)
    bounds["overhead"] = rates.run_us / latency
    for s in steps:
        bounds[s.bound] += s.latency_us * s.work.count / latency
    energy = rates.watts * latency / 1e6 if rates.watts else None
    return Estimate(case, dict(dims or {}), latency, energy, tokens, bounds, steps, rates.inputs(resident))


__all__ = ["Estimate", "StepEstimate", "Work", "estimate", "merged", "packed", "step", "unpacked"]
