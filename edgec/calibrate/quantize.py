"""Weights encoded with calibration, layer by layer: each one makes up for what those before it have done to its input.

A layer's weight W is given X~ by the fp32 model and X by the quantized one. What stands for it is the W' whose output on X
is nearest to the fp32 model's on X~, drift of the residual that is added included, by least squares as far as they hold on
data that they were not fitted to; then GPTQ (gptq.py) rounds W' for X. That is the problem of GPTQv2 (asymmetric
calibration, arXiv 2504.02692), solved in two steps.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgec import kernels
from edgec.cache import Stored
from edgec.calibrate import gptq
from edgec.calibrate.capture import Stream, capture, stages_of
from edgec.calibrate.data import Calibration
from edgec.errors import EdgecError
from edgec.ir.data import Packed, key_text
from edgec.ir.node import Data, Graph, Node, topological
from edgec.ir.types import Quantized, TensorType
from edgec.rewrites.encode import floats, packed_data, version
from edgec.rewrites.quantize import NOT_FINITE, Options, Quantizer, Solved, plain

CORRECTION = 1.0  # how much of the earlier layers' error a layer makes up for
DAMP = 0.05  # of each column's H
EMBEDDING = 0.3  # of a tied table: how much its rows count beside the head's outputs
KEPT = 1 << 12  # bytes from which a weight is kept in the store: it takes longer to solve than to find
DAMPS = (0.05, 0.2, 1.0, 4.0)  # of each column's H, that corrections are tried with
TRIED = 1024  # rows of a weight that this is decided on, at most
FEW = 4  # rows of inputs for each column of a weight, below which the corrections would fit noise
ROWS = 1024  # of inputs that are multiplied with each other at once: sums of [K, K] are read and written so rarely


Shift = Callable[[np.ndarray, int, int], np.ndarray]  # rows [begin, end) of W -> what is added to them


@dataclass
class Site:
    """A value that linears with constant weights read, and these."""

    x: Node
    readers: list[Node]


def sites(graph: Graph) -> list[Site]:
    """In an order in which each comes behind all that its value is computed from."""
    found: dict[Node, list[Node]] = {}
    for node in graph.nodes():
        if node.op == "linear" and node.inputs[1] is not None and plain(node.inputs[1]):
            found.setdefault(node.inputs[0], []).append(node)
    return [Site(n, found[n]) for n in graph.nodes() if n in found]


@dataclass
class Moments:
    """Of a site, over all rows of calibration: X the quantized model's values, X~ the fp32 one's.

    h: X^T X. cross: (X~ - X)^T X. drift: node -> (R~ - R)^T X of the residual that it adds. Without corrections: no cross.
    """

    h: np.ndarray
    cross: np.ndarray | None
    drift: dict[Node, np.ndarray]

    @staticmethod
    def empty(k: int, corrects: bool, residuals: Mapping[Node, Node]) -> Moments:
        drift = {r: np.zeros((r.inputs[1].shape[0], k), np.float32) for r in residuals}
        return Moments(np.zeros((k, k), np.float32), np.zeros((k, k), np.float32) if corrects else None, drift)

    def target(self, w: np.ndarray, reader: Node, rows: slice) -> np.ndarray:
        """(Y~ - Y)^T X of these outputs, whose weights are w: a change S of the weights makes S H of it."""
        assert self.cross is not None
        found = gptq.product(w, self.cross)
        return found + self.drift[reader][rows] if reader in self.drift else found

    def add(self, other: Moments) -> None:
        self.h += other.h
        if self.cross is not None and other.cross is not None:
            self.cross += other.cross
        for r, value in other.drift.items():
            self.drift[r] += value


def solve(
    graph: Graph,
    calibration: Calibration,
    options: Options,
    *,
    correction: float = CORRECTION,
    damp: float = DAMP,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Options:
    """The options with the weights of linears encoded (`solved`).

    The graph is what the phase `quantize` will get. Encoded weights go to `options.store`, and are found there again if
    nothing they depend on has changed. Raises EdgecError EC1302 where the values inside are not finite.
    """
    return _Solver(graph, calibration, options, correction, damp, tick).run()


class _Solver:
    def __init__(self, graph: Graph, calibration: Calibration, options: Options, correction: float, damp: float, tick):
        self.graph, self.calibration, self.options = graph, calibration, options
        self.correction, self.damp, self.tick = correction, damp, tick
        self.quantizer = Quantizer(options, graph)
        self.threads = options.threads or kernels.threads()
        self.sites = sites(graph)
        self.solved: dict[object, Solved] = {}
        self.weights: dict[object, Data] = {}  # of the quantized stream
        code = version(__file__, str(gptq.__file__))
        self.chain = (
            f"{code}|{calibration.key}|{correction}|{damp}|{EMBEDDING}|{gptq.ROUNDS}|{key_text(tuple(_facts(graph)))}"
        )
        self.streams: list[Stream] = []  # in fp32, and quantized so far
        self.passed = [0, 0]  # sites that each is behind

    def run(self) -> Options:
        self._tables()
        total = sum(math.prod(r.inputs[1].shape) for s in self.sites for r in s.readers)
        done = 0
        for site in self.sites:
            size = sum(math.prod(r.inputs[1].shape) for r in site.readers)
            wanted = [r for r in site.readers if self._open(r.inputs[1]["data"])]
            if wanted and not self._found(wanted):
                self._solve(site, wanted)
                done += size
            else:  # no part of the work, so that the time left is told by what takes time
                total -= size
            self.tick(done, max(total, 1))
        return replace(self.options, solved=self.solved)

    def _open(self, data: Data) -> bool:
        """Whether the weight is still to be encoded."""
        stored, role = self.quantizer.role_of(data)
        return data.key not in self.weights and not self.quantizer.keeps(stored, role)

    def _tables(self) -> None:
        """Embeddings are encoded first, those that are heads too: what follows sees them."""
        for node in self.graph.nodes():
            if node.op == "gather" and node["axis"] == 0 and plain(node.inputs[0]):
                data = node.inputs[0]["data"]
                stored, role = self.quantizer.role_of(data)
                if role == "tied" and not self.quantizer.keeps(stored, role):
                    self._tied(stored)
                if data.key not in self.weights and isinstance(new := self.quantizer.encode(data, "embedding"), Data):
                    self.weights[data.key] = new
        for site in self.sites:
            for data in (r.inputs[1]["data"] for r in site.readers):
                stored, role = self.quantizer.role_of(data)
                if role == "tied" and stored.key in self.weights:
                    self.weights[data.key] = self.weights[stored.key]

    def _tied(self, table: Data) -> None:
        """A table that is a head as well: fitted to what the head is given in fp32, and to its rows as they are."""
        heads = [s for s in self.sites for r in s.readers if self.quantizer.role_of(r.inputs[1]["data"])[0] is table]
        if self.quantizer.wanted(table, "tied")[0].bits == 8 or len(heads) != 1:
            return
        encoding, format, key, size = self._place(table, "tied")
        stored = self.options.store.find(key, size, KEPT)
        if stored is None:
            x = heads[0].x
            h = np.zeros((x.shape[-1],) * 2, np.float32)

            def visit(node: Node, value: np.ndarray, number: int) -> None:
                gptq.add_moments(h, _rows(value, self.calibration.valid[number]))

            capture(self.graph, [x], self.calibration.feeds, visit, threads=self.threads)
            gptq.mirror(h)
            h[np.diag_indices_from(h)] += EMBEDDING * float(np.diagonal(h).mean())
            stored = self._encode(table, encoding, format, key, size, gptq.Hessian.of(h, self.damp), None)
        if stored is not None:
            self._keep(table, encoding, format, key, stored)

    # --- what an earlier build has made ----------------------------------------------------------------------------

    def _key(self, data: Data, encoding: Quantized) -> str:
        text = f"{self.chain}|{key_text(data.key) or hash(data.key)}|{encoding}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _place(self, data: Data, role: str = "linear") -> tuple[Quantized, str, str, int]:
        """(encoding, packed format, key in the store, bytes)."""
        encoding = self.quantizer.wanted(data, role)[0]
        format = kernels.format_name(encoding.bits, encoding.group, not encoding.zero, "linear", encoding.table,
                                     self.options.layouts)  # fmt: skip
        return encoding, format, self._key(data, encoding), kernels.packed_nbytes(format, *data.shape)

    def _found(self, readers: Sequence[Node]) -> bool:
        """Whether the store has the weights of all of them, which then count as solved."""
        places = {r: self._place(r.inputs[1]["data"]) for r in readers}
        found = {r: self.options.store.find(key, size, KEPT) for r, (_, _, key, size) in places.items()}
        if any(stored is None for stored in found.values()):
            return False
        for r, stored in found.items():
            assert stored is not None
            self._keep(r.inputs[1]["data"], *places[r][:3], stored)
        return True

    def _keep(self, data: Data, encoding: Quantized, format: str, key: str, stored: Stored) -> None:
        packed = Packed(format, stored.nbytes, stored.read)
        new = packed_data(TensorType("f32", data.shape, encoding), ("solved", key), packed)
        meta = stored.meta
        self.weights[data.key] = new
        snr, output = (_db(meta["signal"], meta["noise"]), _db(meta["output"], meta["loss"]))
        self.solved[data.key] = Solved(new, snr, output)
        self.chain = hashlib.sha256(f"{self.chain}|{key}".encode()).hexdigest()

    # --- solving ---------------------------------------------------------------------------------------------------

    def _solve(self, site: Site, readers: Sequence[Node]) -> None:
        if not self.streams:
            feeds = self.calibration.feeds
            self.streams = [Stream(self.graph, feeds, weights, self.threads) for weights in ({}, self.weights)]
            for stream in self.streams:
                stream.expect([r for s in self.sites for r in s.readers])
        halves = self._moments(site, readers)
        if not all(np.isfinite(m.h).all() for m in halves):
            reason = "what it is given on the calibration data is too large or no number"
            raise EdgecError("EC1302", reason, self.graph.origin(readers[0]), "Check the data, and the model in fp32")
        shifts = self._shifts(readers, *halves) if len(halves) > 1 else {}
        hessian = gptq.Hessian.of(halves[0].h, self.damp)
        for r in readers:
            data = r.inputs[1]["data"]
            if data.key in self.weights:
                continue
            encoding, format, key, size = self._place(data)
            try:
                stored = self._encode(data, encoding, format, key, size, hessian, shifts.get(r))
            except FloatingPointError:
                raise EdgecError("EC1302", NOT_FINITE, self.graph.origin(r), "Check the model's weights") from None
            if stored is not None:
                self._keep(data, encoding, format, key, stored)
            elif isinstance(new := self.quantizer.encode(data, "linear"), Data):
                self.weights[data.key] = new

    def _residuals(self, site: Site, readers: Sequence[Node]) -> dict[Node, Node]:
        """reader -> the residual that it adds, where that is known before the site's value is."""
        above = set(topological([site.x]))
        return {r: r.inputs[3] for r in readers if r.inputs[3] is not None and r.inputs[3] in above}

    def _moments(self, site: Site, readers: Sequence[Node]) -> list[Moments]:
        k = site.x.shape[-1]
        # too few rows to correct anything: the fp32 stream may stay where it is
        rows = sum(map(self._count(site), range(len(self.calibration.feeds))))
        corrects = bool(self.correction) and rows >= FEW * k
        residuals = self._residuals(site, readers) if corrects else {}
        halves = [Moments.empty(k, corrects, residuals) for _ in range(2 if corrects else 1)]
        with np.errstate(all="ignore"):  # what is not finite is found in the sums
            nodes = list(dict.fromkeys([site.x, *residuals.values()]))
            for number, some in enumerate(self._gathered(site, nodes, not corrects, min(ROWS, rows // 4))):
                x, exact, found = some[-1][site.x], some[0], halves[number % len(halves)]
                gptq.add_moments(found.h, x)
                if found.cross is not None:
                    gptq.add(found.cross, (exact[site.x] - x).T, x)
                for r, node in residuals.items():
                    gptq.add(found.drift[r], (exact[node] - some[1][node]).T, x)
        for found in halves:
            gptq.mirror(found.h)
        return halves

    def _count(self, site: Site) -> Callable[[int], int]:
        """The rows of the site's value in a feed."""

        def count(number: int) -> int:
            shape, valid = self.streams[1].shape(site.x, number), self.calibration.valid[number]
            if valid is not None and shape[:2] == valid.shape:
                return int(valid.sum()) * math.prod(shape[2:-1])
            return math.prod(shape[:-1])

        return count

    def _gathered(
        self, site: Site, nodes: list[Node], alone: bool, least: int
    ) -> Iterator[list[dict[Node, np.ndarray]]]:
        """Rows of the nodes in fp32 (unless the other is taken alone) and in the quantized stream, of as many feeds at a
        time as have that many."""
        which = [1] if alone else [0, 1]
        for i in which:
            self._advance(i, site)
        waiting: list[list[dict[Node, np.ndarray]]] = []
        size = 0
        for values in zip(*(self.streams[i].run(nodes) for i in which), strict=True):
            valid = self.calibration.valid[values[0][0]]
            waiting.append([{node: _rows(v, valid) for node, v in found.items()} for _, found in values])
            size += len(waiting[-1][0][site.x])
            if size >= least:
                yield _joined(waiting)
                waiting, size = [], 0
        if waiting:
            yield _joined(waiting)

    def _advance(self, which: int, site: Site) -> None:
        """Takes a stream past what lies before the site, a few layers at a time, where it has not followed."""
        at = self.sites.index(site)
        behind = [s.x for s in self.sites[self.passed[which] : at]]
        for stage in stages_of(self.graph, dict.fromkeys(behind)):
            for _ in self.streams[which].run(stage):
                pass
        self.passed[which] = at + 1

    def _shifts(self, readers: Sequence[Node], first: Moments, second: Moments) -> dict[Node, Shift]:
        """For readers that gain by it what W' - W is. The first half gets the sums of both.

        Least squares follow chance as well, layer after layer. So they are damped and scaled as is best, of those fitted to
        the first half, for the second one."""
        best: dict[Node, tuple[float, float, float]] = {}
        for damp in DAMPS:
            hessian = gptq.Hessian.of(first.h.copy(), damp)
            for r in readers:
                some = slice(0, None, -(-r.inputs[1].shape[0] // TRIED))
                w = _some(r.inputs[1]["data"], some, self.threads)
                change = hessian.inverse(first.target(w, r, some))
                gain = float(np.vdot(second.target(w, r, some), change))
                cost = float(np.vdot(gptq.product(change, second.h), change))
                if gain > 0 and cost > 0 and gain * gain / cost > best.get(r, (0.0,))[0]:
                    best[r] = (gain * gain / cost, damp, min(1.0, gain / cost))
        first.add(second)
        hessians = {damp: gptq.Hessian.of(first.h.copy(), damp) for damp in {damp for _, damp, _ in best.values()}}

        def shift(r: Node, damp: float, share: float) -> Shift:
            return lambda w, begin, end: hessians[damp].inverse(share * first.target(w, r, slice(begin, end)))

        return {r: shift(r, damp, self.correction * share) for r, (_, damp, share) in best.items()}

    def _encode(self, data: Data, encoding, format: str, key: str, size: int, hessian: gptq.Hessian, shift):
        """What is stored of the weight; None where numbers beyond f16 leave that to the policy. Raises FloatingPointError
        for a weight that holds numbers that are not finite."""
        sums = dict.fromkeys(("noise", "signal", "loss", "output"), 0.0)
        writer = self.options.store.put(key, size, KEPT)
        try:
            for begin, block in data.blocks(kernels.formats()[format].panel):
                w = floats(block["value"], self.threads)
                if not np.isfinite(w).all():
                    raise FloatingPointError
                aim = w if shift is None else w + shift(w, begin, begin + len(w))
                if not np.isfinite(aim).all():
                    return None
                made = gptq.solve(aim, hessian, encoding, threads=self.threads)
                if not np.isfinite(made.loss).all():
                    return None
                rest = kernels.dequantize(made.q, made.scale, made.zero, encoding.group) - w
                sums["noise"] += float(np.square(rest, dtype=np.float64).sum())
                sums["signal"] += float(np.square(w, dtype=np.float64).sum())
                sums["loss"] += float(made.loss.sum())
                sums["output"] += float(made.signal.sum())
                writer.write(kernels.pack(format, made.q, made.scale, made.zero, self.threads))
            return writer.done(sums)
        finally:
            writer.discard()


def _some(data: Data, rows: slice, threads: int) -> np.ndarray:
    """These rows of a weight, f32, with no whole copy of it."""
    found = []
    for begin, block in data.blocks(1):
        skip = -begin % rows.step
        found.append(floats(block["value"][skip :: rows.step], threads))
    return np.concatenate(found)


def _joined(parts: list[list[dict[Node, np.ndarray]]]) -> list[dict[Node, np.ndarray]]:
    """The rows of several feeds below each other."""
    return [{n: np.concatenate([p[i][n] for p in parts]) for n in parts[0][i]} for i in range(len(parts[0]))]


def _rows(x: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """[rows, K] of the values that are no padding."""
    if valid is not None and x.shape[:2] == valid.shape:
        return x[valid].reshape(-1, x.shape[-1])
    return x.reshape(-1, x.shape[-1])


def _db(signal: float, noise: float) -> float:
    return 10 * math.log10(max(signal, 1e-300) / noise) if noise > 0 else math.inf


def _facts(graph: Graph) -> list[str]:
    """What the values inside of a graph depend on beside its feeds: its ops and constants."""
    text = []
    for n in graph.nodes():
        attrs = (key_text(v) if n.op == "constant" else str(v) for v in n.attrs.values())
        text.append(f"{n.op} {n.type} {' '.join(a or '?' for a in attrs)}")
    return [hashlib.sha256("\n".join(text).encode()).hexdigest()]


__all__ = ["Moments", "Site", "sites", "solve"]
