"""Whole layers: which of them change the outputs least when they are left out, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgec.calibrate.capture import Stream
from edgec.calibrate.data import Calibration
from edgec.errors import EdgecError
from edgec.ir.node import Graph, Node, make
from edgec.ir.types import TensorType, numpy_dtype
from edgec.rewrites import decoder
from edgec.rewrites.prune import Branch, drop

GATE = "~gate"  # inputs that no model has
EXTRA = 4  # candidates beyond those asked for, by how little the stream turns in them
FEEDS, TOKENS = 8, 1024  # runs that outputs are compared on, and tokens in them


def choose_layers(
    graph: Graph,
    runs: Sequence[list[Branch]],
    count: int,
    calibration: Calibration | None,
    caches: Mapping[str, str],
    gone: Sequence[Branch] = (),
) -> list[Branch]:
    """Branches of the `count` layers to drop: one after the other the one without which the outputs change least, measured
    again beside those that are gone already (`gone` and those chosen) where it is the next to go.

    Candidates are those that turn the stream least (1 - cosine of it before and behind: Men et al., ShortGPT,
    https://arxiv.org/abs/2403.03853). Raises EC1305 without data, or where layers cannot be left out.
    """
    if calibration is None:
        reason = "which layers can go is measured on data"
        raise EdgecError("EC1305", reason, "--prune", "Give it texts or arrays with --calib")
    turned = _turned(graph, runs, calibration)
    near = sorted(range(len(runs)), key=turned.__getitem__)[: count + EXTRA]
    feeds, valid = _some(calibration)
    names = [name for name, _ in graph.outputs if name not in caches.values()]
    outputs = Outputs(graph, [*gone, *(b for i in near for b in runs[i])], names, feeds)
    want = outputs.without([])
    text = not isinstance(decoder.roles(graph), str)

    def without(chosen: Sequence[int]) -> float | None:
        """How far the outputs are off; None where these layers cannot go."""
        branches = [*gone, *(b for j in sorted(chosen) for b in runs[j])]
        try:
            drop(graph, branches, caches)
        except EdgecError as error:
            if error.code != "EC1305":
                raise
            return None
        return change(want, outputs.without(branches), valid, text)

    alone = {i: without([i]) for i in near}
    more = {i: c for i, c in alone.items() if c is not None}  # how much more is lost without it, when last measured
    chosen: list[int] = []
    lost, fresh = (without([]) or 0.0) if gone else 0.0, set(more)
    more = {i: c - lost for i, c in more.items()}
    while len(chosen) < count and more:
        best = min(more, key=more.__getitem__)
        if best not in fresh:  # measured beside fewer dropped layers
            found = without([*chosen, best])
            fresh.add(best)
            more.pop(best)
            if found is not None:
                more[best] = found - lost
            continue
        lost += more.pop(best)
        chosen.append(best)
        fresh = set()
    if len(chosen) < count:
        raise EdgecError(
            "EC1305", f"only {len(chosen)} of {len(runs)} layers can be left out", "--prune", "Ask for fewer"
        )
    return [b for j in sorted(chosen) for b in runs[j]]


def _some(calibration: Calibration) -> tuple[list[Mapping[str, np.ndarray]], list[np.ndarray | None]]:
    """Runs of some TOKENS in all (elements of the largest integer input; of arrays FEEDS runs)."""
    feeds: list[Mapping[str, np.ndarray]] = []
    total = 0
    for feed in calibration.feeds[:FEEDS]:
        if total and total >= TOKENS:
            break
        feeds.append(feed)
        total += max((a.size for a in feed.values() if a.dtype.kind in "iu"), default=0)
    return feeds, calibration.valid[: len(feeds)]


def _turned(graph: Graph, runs: Sequence[list[Branch]], calibration: Calibration) -> list[float]:
    """1 - cosine of the stream before and behind each layer, mean over tokens."""
    stream, found = Stream(graph, calibration.feeds[:FEEDS]), []
    stream.expect([n for run in runs for n in (run[0].source, run[-1].target)])
    for run in runs:
        total = rows = 0.0
        for number, values in stream.run([run[0].source, run[-1].target]):
            valid = calibration.valid[number]
            a, b = (_rows(values[n], valid) for n in (run[0].source, run[-1].target))
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            total += float(((a * b).sum(1) / np.maximum(norms, 1e-30)).sum())
            rows += len(a)
        found.append(1 - total / max(rows, 1))
    return found


class Outputs:
    """The named outputs for each feed without some of the branches, compiled once for each shape of feeds: a branch's target
    becomes source + gate * (target - source), and gates are inputs."""

    def __init__(
        self, graph: Graph, branches: Sequence[Branch], names: Sequence[str], feeds: Sequence[Mapping[str, np.ndarray]]
    ):
        self.feeds, self.calls = feeds, {}
        kinds = {b: TensorType(b.target.dtype, ()) for b in branches}
        self.gates = {b: make("input", name=f"{GATE}{i}", type=kind) for i, (b, kind) in enumerate(kinds.items())}
        ends = {b.target: b for b in branches}
        new: dict[Node, Node] = {}
        for node in graph.nodes():
            if node.op in ("input", "constant"):
                new[node] = node
                continue
            new[node] = make(node.op, *(None if i is None else new[i] for i in node.inputs), **node.attrs)
            if node in ends:
                source = new[ends[node].source]
                added = make("mul", self.gates[ends[node]], make("sub", new[node], source))
                new[node] = make("add", source, added)
        ends_of = dict(graph.outputs)
        self.nodes = [new[ends_of[name]] for name in names]
        outputs = tuple((name, new[n]) for name, n in graph.outputs)
        self.graph = replace(graph, inputs=(*graph.inputs, *self.gates.values()), outputs=outputs)

    def without(self, gone: Sequence[Branch]) -> list[list[np.ndarray]]:
        dropped = set(gone)
        open_ = {g["name"]: np.asarray(b not in dropped, numpy_dtype(g.dtype)) for b, g in self.gates.items()}
        return [self._call(feed | open_)(feed | open_) for feed in map(dict, self.feeds)]

    def _call(self, feed: dict[str, np.ndarray]):
        shapes = tuple((name, a.shape) for name, a in feed.items())
        if shapes not in self.calls:
            stream = Stream(self.graph, [feed])
            stream.expect(self.nodes)
            self.calls[shapes] = stream.call(self.nodes)
        return self.calls[shapes]


def change(
    want: Sequence[Sequence[np.ndarray]],
    got: Sequence[Sequence[np.ndarray]],
    valid: Sequence[np.ndarray | None],
    text: bool,
) -> float:
    """Mean over rows: of logits (`text`) the KL divergence to what is wanted, of other outputs 1 - cosine."""
    total = rows = 0.0
    for a, b, real in zip(want, got, valid):
        for x, y in zip(a, b):
            if x.dtype.kind != "f" or not x.ndim:
                continue
            p, q = _rows(x, real), _rows(y, real)
            if text:
                p, q = _log_softmax(p), _log_softmax(q)
                total += float((np.exp(p) * (p - q)).sum())
            else:
                norms = np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
                total += float((1 - (p * q).sum(1) / np.maximum(norms, 1e-30)).sum())
            rows += len(p)
    return total / max(rows, 1)


def _rows(x: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    if valid is not None and x.ndim == 3 and x.shape[:2] == valid.shape:
        return x[valid]
    return x.reshape(-1, x.shape[-1])


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))
