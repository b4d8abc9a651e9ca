"""What a product of some shape costs on the target, in microseconds: measured on this machine, else a roofline."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from edgec import kernels, rates
from edgec.errors import EdgecError
from edgec.ir.dims import evaluate, product, symbol_name
from edgec.ir.node import Graph, Node
from edgec.lower.legalize import macs
from edgec.rewrites import decoder
from edgec.targets import Target

GRID = (0.25, 0.5, 0.75, 1.0)  # widths that are measured; between them latency is taken to be linear
BUDGET, RUNS = 0.02, 5  # seconds for each shape, and calls at least
UNITS = {"int4": (4, 32), "int8": (8, 128), "fp32": (32, 0)}
VERSION = 1
PAST = 128  # tokens behind the one whose latency counts


class Table:
    """Latencies of products [m, k] x [k, n] in packed weights, measured once for each shape and kept in a file."""

    def __init__(self, unit: str, threads: int, path: Path | None = None):
        """unit: "int4", "int8" or "fp32". path: of the file; None keeps nothing."""
        self.unit, self.threads, self.path = unit, threads, path
        self.known: dict[str, float] = {}
        if path is not None:
            with suppress(OSError, ValueError, TypeError, AttributeError):
                found = json.loads(path.read_text())
                self.known = {k: float(v) for k, v in found.items() if isinstance(v, (int, float)) and v > 0}

    def __call__(self, m: int, n: int, k: int) -> float:
        """Microseconds: the best of some runs."""
        key = f"{VERSION} {self.unit} {self.threads} {m} {n} {k}"
        if key not in self.known:
            self.known[key] = _measured(self.unit, m, n, k, self.threads)
        return self.known[key]

    def save(self) -> None:
        """Kept if it can be."""
        if self.path is None:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".json", delete=False) as f:
                json.dump(self.known, f)
            os.replace(f.name, self.path)


def _measured(unit: str, m: int, n: int, k: int, threads: int) -> float:
    bits, group = UNITS[unit]
    format = kernels.format_name(bits, group)
    x = np.random.default_rng(0).standard_normal((m, k)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((n, k)).astype(np.float32)
    data = kernels.pack(format, w) if bits == 32 else kernels.encode(w, format, search=False)[0]
    out = np.empty((m, n), np.float32)
    best, runs, end = np.inf, 0, time.perf_counter() + BUDGET
    while runs < RUNS or time.perf_counter() < end:
        runs, start = runs + 1, time.perf_counter()
        kernels.gemm(x, data, format, n, k, threads=threads, out=out)
        best = min(best, time.perf_counter() - start)
    return best * 1e6


class Latency:
    """A cost of products (allocate.Cost): their share of rows and columns -> microseconds on the target.

    sample: sizes of the symbols. Raises EC1305 where the target's file lacks the figures.
    """

    def __init__(self, graph: Graph, target: Target, unit: str, sample: dict[str, int], table: Table | None = None):
        self.unit, self.sample = unit, sample | {k: int(evaluate(v, sample)) for k, v in graph.parameters.items()}
        self.table = table
        found = rates.of(target)
        if found is None:
            reason = f"nothing is known of the speed of {target.name}"
            raise EdgecError("EC1305", reason, "--speedup", "Say how much to remove instead: --prune 20%")
        self.rates: rates.Rates = found

    def __call__(self, node: Node, rows: float, columns: float) -> float:
        if node.op != "linear" or node.inputs[1].op != "constant":
            gmacs = self.rates.gmacs["fp32"] * self.rates.threads * rates.FAMILIES["conv"].macs
            return float(evaluate(macs(node), self.sample)) / gmacs / 1e3 * rows * columns
        m = int(evaluate(product(node.inputs[0].shape[:-1]), self.sample))
        n, k = node.inputs[1].shape
        if self.table is None:
            return self._roofline(m, n * rows, k * columns)
        return self._between(self.table, m, n, k, rows, columns)

    def _roofline(self, m: int, n: float, k: float) -> float:
        r, bits = self.rates, UNITS[self.unit][0]
        memory = n * k * (bits + (0.5 if bits < 32 else 0)) / 8 / r.stream_gbs(2**62)
        compute = n * k * (m / r.gmacs[self.unit] + 1 / r.unpack[self.unit]) / r.threads
        return max(memory, compute) / 1e3

    @staticmethod
    def _between(table: Callable[[int, int, int], float], m: int, n: int, k: int, rows: float, columns: float) -> float:
        def at(size: int, share: float) -> list[tuple[int, float]]:
            """Sizes of the grid around a share of it, with their weights."""
            high = next((i for i, g in enumerate(GRID) if g >= share - 1e-9), len(GRID) - 1)
            low = max(0, high - 1) if share < GRID[high] - 1e-9 else high
            if low == high:
                return [(_whole(size * GRID[high]), min(1.0, share / GRID[high]))]
            t = (share - GRID[low]) / (GRID[high] - GRID[low])
            return [(_whole(size * GRID[low]), 1 - t), (_whole(size * GRID[high]), t)]

        return sum(a * c * table(m, i, j) for i, a in at(n, rows) for j, c in at(k, columns))


def _whole(size: float) -> int:
    return max(32, round(size / 32) * 32)


def speeds(
    graph: Graph, target: Target, unit: str, sample: Mapping[str, int], keep: bool
) -> tuple[Latency, float, Callable[[], None]]:
    """(cost of products, microseconds of all else, what keeps the table) of a run at `sample`, or of a language model's
    next token behind 128. keep: the table of this machine in a file, for later builds."""
    dims = dict(sample)
    roles = decoder.roles(graph)
    if not isinstance(roles, str):
        ports = {n["name"]: n for n in graph.inputs}
        tokens = {s: PAST for name in roles.past for d in ports[name].shape[1:] if (s := symbol_name(d))}
        dims |= tokens | {s: 1 for s in (symbol_name(ports[roles.ids].shape[1]),) if s is not None}
    table = None
    if target.name == "host":
        path = rates.file("latency") if keep else None
        table = Table(unit, target.cores or kernels.threads(), path)
    latency = Latency(graph, target, unit, dims, table)
    return latency, elsewhere_us(graph, target, dims), table.save if table else lambda: None


def elsewhere_us(graph: Graph, target: Target, sample: dict[str, int]) -> float:
    """Microseconds of what is no product with constant weights (attention, norms, tables), by the roofline of each step."""
    from edgec.estimate import estimate
    from edgec.lower import cost
    from edgec.lower.lowering import lower

    found = rates.of(target)
    assert found is not None
    lowered = lower(graph, target)
    work = [c.at(sample) for c in cost.steps(lowered.assembled, lowered.graph)]
    steps = estimate(work, found).steps
    products = (*(f"{u} product" for u in UNITS), "conv", "conv_transpose", "depthwise")
    return sum(s.latency_us * s.work.count for s in steps if s.work.family not in products)
