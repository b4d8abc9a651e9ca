"""Structured pruning of a model: layers by what their removal changes, channels by what makes up for them least.

Three passes over the calibration data, each layer by layer (`capture.Stream`): outputs without each layer (where
layers go), activations that products with removable columns read (their second moments decide which columns go and how
many), and the pruned model beside the source: each product is fitted again, by ridge regression, so that the stream of
the pruned model comes nearest to the source's, errors of the layers before included. A quarter of the runs is held out to
choose how strongly weights are held to what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgec.calibrate.capture import Stream
from edgec.calibrate.data import Calibration
from edgec.calibrate.gptq import product
from edgec.calibrate.prune.allocate import Allocator, Cost
from edgec.calibrate.prune.depth import choose_layers
from edgec.calibrate.prune.request import Request
from edgec.calibrate.prune.scores import Order, by_inverse, by_size, fit
from edgec.calibrate.prune.sites import Moments, Site, site
from edgec.errors import EdgecError
from edgec.ir.data import Data
from edgec.ir.node import Graph, Node, constant
from edgec.rewrites.prune import Branch, Channels, Group, analyse, branches, drop, layers, prune, with_weights

Tick = Callable[[int, int], None]


@dataclass
class Pruned:
    """The smaller graph and what was done to it.

    method: "least squares" (with data) or "magnitude". removed: for each group with removed units its name, kind,
    before, after, and error (share of the stream's energy that is lost before the others make up for it; None without
    data). dropped: names of layers. work: share of the products' multiply-accumulates that is left. cost: share of the
    cost that decisions went by (time, under --speedup).
    """

    graph: Graph
    method: str
    removed: list[dict] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    work: float = 1.0
    cost: float = 1.0

    def as_dict(self) -> dict:
        return {"method": self.method, "removed": self.removed, "dropped": self.dropped,
                "work": round(self.work, 4), "cost": round(self.cost, 4)}  # fmt: skip


def prune_model(
    graph: Graph,
    request: Request,
    load: Callable[[], Calibration] | None = None,
    caches: Mapping[str, str] = {},
    cost: Cost | None = None,
    macs: Cost | None = None,
    rest: float = 0.0,
    refit: bool = True,
    tick: Tick = lambda done, total: None,
) -> Pruned:
    """A smaller graph.

    load: gives the calibration data, once the request is known to be possible; None: sizes of weights decide. caches:
    past -> present, whose shapes may change. cost: of products, default multiply-accumulates; rest: cost of all else (a
    speed-up has to make up for it). refit: False leaves the other weights as they are.

    Raises EC1305 before any work where the request cannot be met.
    """
    macs = macs or macs_of
    cost = cost or macs
    total = sum(cost(n, 1.0, 1.0) for n in graph.nodes() if site(n))
    work = _work(graph, macs)
    runs = layers(branches(graph))
    if request.layers >= max(1, len(runs)):
        reason = f"layers={request.layers} is too many: the model has {len(runs)}"
        raise EdgecError("EC1305", reason, "--prune", "Ask for fewer")
    attending = [[b] for run in runs for b in run if b.attends]
    if request.attention and request.attention + request.layers >= max(1, len(attending)):
        reason = f"attention={request.attention} and layers={request.layers} are too many: {len(attending)} layers have attention"
        raise EdgecError("EC1305", reason, "--prune", "Ask for fewer")
    free = (*caches, *caches.values())
    wide = Allocator(c := analyse(graph, free), _groups(c, request), cost)
    whole = request.layers + request.attention
    if not whole:
        wide.check(request, _budget(request, wide.base, rest), rest)
    gone: list[Branch] = []
    smaller, calibration = graph, None
    if whole:
        calibration = load() if load else None
        gone = choose_layers(graph, runs, request.layers, calibration, caches) if request.layers else []
        left = [run for run in attending if run[0] not in gone]
        gone += choose_layers(graph, left, request.attention, calibration, caches, gone) if request.attention else []
        smaller = drop(graph, gone, caches)
    channels = analyse(smaller, free)
    groups = _groups(channels, request)
    allocator = Allocator(channels, groups, cost)
    budget = _budget(request, allocator.base, rest)
    allocator.check(request, budget, rest)
    calibration = calibration or (load() if load else None)
    orders, energy = _orders(channels, groups, allocator, request, calibration)
    counts = allocator.choose(request, budget, orders, energy)
    units = {g: orders[i].units[: counts[i]] for i, g in enumerate(groups)}
    removed = [
        {"name": g.name, "kind": g.kind, "before": len(g.units), "after": len(g.units) - counts[i],
         "error": None if calibration is None else float(f"{orders[i].error[counts[i]] / energy[i]:.3g}")}
        for i, g in enumerate(groups) if counts[i]
    ]  # fmt: skip
    ids = {g.units[int(u)] for g, chosen in units.items() for u in chosen}
    weights: dict[Node, tuple[np.ndarray, np.ndarray | None]] = {}
    if calibration is not None and refit:
        weights = _Refit(graph, channels, ids, gone, calibration, tick).run()
    out, into = prune(channels, ids)
    if weights:
        out = _with_fitted(out, into, channels, ids, weights)
    left = sum(cost(n, 1.0, 1.0) for n in out.nodes() if site(n))
    method = "magnitude" if calibration is None else "least squares"
    return Pruned(out, method, removed, [b.name.split(", ")[0] for b in gone], _work(out, macs) / max(work, 1),
                  (left + rest) / max(total + rest, 1e-30))  # fmt: skip


def macs_of(node: Node, rows: float, columns: float) -> float:
    """Multiply-accumulates of a product for each token, or each place of a convolution."""
    w = node.inputs[1] if node.inputs[1].op == "constant" else node.inputs[0]
    sizes = [d for d in w.shape if isinstance(d, int)]
    return float(np.prod(sizes)) * rows * columns if w.op == "constant" else 0.0


def _work(graph: Graph, macs: Cost) -> float:
    return sum(macs(n, 1.0, 1.0) for n in graph.nodes() if site(n))


def _budget(request: Request, base: float, rest: float) -> float:
    if request.share is not None:
        return request.share * base
    if request.speedup is not None:
        return (base + rest) * (1 - 1 / request.speedup)
    return 0.0


def _groups(channels: Channels, request: Request) -> list[Group]:
    """Groups that the request may narrow: all whose readers' columns can be told apart."""
    kinds = set(request.kinds) or (
        {"ffn", "heads", "conv"} if not (request.layers or request.attention) or request.share else set()
    )
    found = []
    for g in channels.groups:
        sites = [site(n) for n, _ in g.readers]
        if g.kind in kinds and all(s is not None and s.columns(channels, g) is not None for s in sites):
            found.append(g)
    return found


# --- which and how many ------------------------------------------------------------------------------------------------


def _orders(
    channels: Channels,
    groups: Sequence[Group],
    allocator: Allocator,
    request: Request,
    calibration: Calibration | None,
) -> tuple[list[Order], list[float]]:
    """The order in which each group's units go, and the energy that their errors are relative to."""
    sites = {n: Site(n) for g in groups for n, _ in g.readers}
    moments: dict[Node, Moments] = {}
    orders: dict[int, Order] = {}

    def order(i: int) -> None:
        g = groups[i]
        readers = [sites[n] for n, _ in g.readers]
        matrices, columns = [s.matrix() for s in readers], [s.columns(channels, g) for s in readers]
        if calibration is None:
            orders[i] = by_size(matrices, columns, [None] * len(readers))
            return
        hessians = [moments[s.node].h for s in readers]
        orders[i] = by_inverse(matrices, hessians, columns, allocator.enough(i, request), allocator.steps[i])

    if calibration is None:
        for i in range(len(groups)):
            order(i)
        energy = [float(orders[i].error[-1]) or 1.0 for i in range(len(groups))]
        return [orders[i] for i in range(len(groups))], energy
    numbers = {n: k for k, n in enumerate(channels.graph.nodes())}
    stream = Stream(channels.graph, calibration.feeds)
    asked = [n for s in sites for n in (s.inputs[0], s)]
    stream.expect(asked)
    for node in sorted(sites, key=numbers.__getitem__):
        s, found = sites[node], Moments(sites[node].matrix().shape[1])
        for number, values in stream.run([node.inputs[0], node]):
            x, y, valid = values[node.inputs[0]], values[node], calibration.valid[number]
            found.add(s.rows_in(x, valid, number))
            found.energy += float(np.square(s.rows_out(y, x.shape, valid, number), dtype=np.float64).sum())
        moments[node] = found
        for i in range(len(groups)):  # as soon as it can be told, so that few moments are in memory
            if i not in orders and all(n in moments for n, _ in groups[i].readers):
                order(i)
        needed = {n for i, g in enumerate(groups) if i not in orders for n, _ in g.readers}
        for n in moments.keys() - needed:
            moments[n].h = np.zeros((0, 0))
    energy = [sum(moments[n].energy for n, _ in g.readers) for g in groups]
    return [orders[i] for i in range(len(groups))], energy


# --- what makes up for them --------------------------------------------------------------------------------------------


class _Refit:
    """Fits products of the pruned model, one after the other, to what the source's stream is behind them."""

    def __init__(self, source: Graph, channels: Channels, ids: set[int], gone: Sequence[Branch],
                 calibration: Calibration, tick: Tick):  # fmt: skip
        self.source, self.channels, self.calibration, self.tick = source, channels, calibration, tick
        self.ids = np.array(sorted(ids), int)
        follows = {b.source: b.target for b in gone}
        by_weight: dict[Node, list[Node]] = {}
        for n in source.nodes():
            if site(n):
                by_weight.setdefault(n.inputs[1], []).append(n)
        self.sites: list[tuple[Site, Node]] = []  # of the pruned model, and whose value it is to have
        users = channels.graph.users()
        hidden = {n for g in channels.groups for n, _ in g.readers}
        for n in channels.graph.nodes():
            twins = by_weight.get(n.inputs[1], []) if site(n) else []
            if n not in hidden or len(twins) != 1 or len(users[n.inputs[1]]) != 1:
                continue
            aim = twins[0]
            while aim in follows:
                aim = follows[aim]
            if Site(n).additive or aim is twins[0]:
                self.sites.append((Site(n), aim))

    def run(self) -> dict[Node, tuple[np.ndarray, np.ndarray | None]]:
        """Node -> (weight, bias), of the unsliced shape."""
        feeds, graph = self.calibration.feeds, self.channels.graph
        theirs, ours = Stream(self.source, feeds), Stream(graph, feeds, self._zeroed())
        users = graph.users()
        twin_of = {s.node: self._twin(s) for s, _ in self.sites}
        # the products too: until the last one that reads a value is fitted, the value is kept
        theirs.expect([n for s, aim in self.sites for n in (aim, twin_of[s.node])])
        ours.expect([n for s, _ in self.sites for n in (s.node, s.residual) if n is not None])
        fitted: dict[Node, tuple[np.ndarray, np.ndarray | None]] = {}
        changed = len(graph.nodes()) != len(self.source.nodes())
        for number, (s, aim) in enumerate(self.sites):
            units = self.channels.units(s.weight, 1)
            mask = ~np.isin(units, self.ids)
            kept = np.repeat(mask, int(np.prod(s.weight.shape[2:], dtype=int)))
            w = s.matrix() * kept
            touched = not mask.all() or aim is not twin_of[s.node]
            changed = changed or touched
            if changed:
                alone = s.bias is not None and len(users[s.bias]) == 1
                new, bias = fitted[s.node] = self._fit(theirs, ours, s, aim, twin_of[s.node], w, kept, alone)
                ours.weights[s.weight["data"].key] = Data.of(new.reshape(s.weight.shape))
                if bias is not None and s.bias is not None:
                    ours.weights[s.bias["data"].key] = Data.of(bias)
            self.tick(number + 1, len(self.sites))
        return fitted

    def _zeroed(self) -> dict:
        """Products read nothing of what is removed: the same numbers as without it, in the same shapes."""
        found = {}
        for node, operand, axis in self.channels.contracts:
            w = node.inputs[operand]
            gone = np.isin(self.channels.units(w, axis), self.ids)
            if gone.any():
                kept = np.expand_dims(~gone, tuple(i for i in range(w.rank) if i != axis))

                def load(data=w["data"], kept=kept) -> dict[str, np.ndarray]:
                    return {"value": data.array() * kept}

                found[w["data"].key] = Data(w.type, ("zeroed", w["data"].key, gone.tobytes()), load)
        return found

    def _twin(self, s: Site) -> Node:
        return next(n for n in self.source.nodes() if site(n) and n.inputs[1] is s.weight)

    def _fit(self, theirs: Stream, ours: Stream, s: Site, aim: Node, twin: Node, w, kept, with_bias: bool):
        fitted, held = (Moments(w.shape[1], w.shape[0], with_bias) for _ in range(2))
        old_bias = None if s.bias is None or s.bias.op != "constant" else s.bias["data"].array()
        source_w, x, r = s.matrix(), s.node.inputs[0], s.residual
        want = [aim] if s.additive else [twin.inputs[0]]
        have = [x] if r is None or not s.additive else [x, r]
        for (number, a), (_, b) in zip(theirs.run(want), ours.run(have), strict=True):
            valid = self.calibration.valid[number]
            rows, shape = s.rows_in(b[x], valid, number), b[x].shape
            residue = -product(rows, w.T)
            if s.additive:
                residue += s.rows_out(a[aim], shape, valid, number)
                if r is not None:
                    residue -= s.rows_out(b[r], shape, valid, number)
                residue -= 0 if old_bias is None else old_bias
            else:
                residue += product(s.rows_in(a[twin.inputs[0]], valid, number), source_w.T)
            (held if number % 4 == 3 else fitted).add(rows, residue)
        columns = np.flatnonzero(np.r_[kept, True] if with_bias else kept)
        d = fit(fitted, held, columns)
        new = (w + d[:, : w.shape[1]]).astype(np.float32)
        bias = None
        if with_bias and old_bias is not None:
            bias = (old_bias + d[:, -1]).astype(np.float32)
        if not np.isfinite(new).all() or (bias is not None and not np.isfinite(bias).all()):
            raise EdgecError("EC1302", "activations are not finite", "calibration data", "Check the model in fp32")
        return new, bias


def _with_fitted(out: Graph, into: Mapping[Node, Node], channels: Channels, ids: set[int], weights) -> Graph:
    """The sliced weights of the pruned graph replaced by slices of the fitted ones."""
    gone = np.array(sorted(ids), int)

    def keep(node: Node, axis: int) -> np.ndarray:
        units = channels.units(node, axis)
        assert units is not None
        return np.flatnonzero(~np.isin(units, gone))

    new = {}
    for node, (w, bias) in weights.items():
        full = w.reshape(node.inputs[1].shape)
        rows = keep(node.inputs[1], 0)
        sliced = np.ascontiguousarray(full[rows][:, keep(node.inputs[1], 1)])
        target = into[node]
        fresh = target.inputs[2] if bias is None else constant(bias[rows])
        new[target] = (constant(sliced), fresh)
    return with_weights(out, new)[0]


__all__ = ["Pruned", "macs_of", "prune_model"]
