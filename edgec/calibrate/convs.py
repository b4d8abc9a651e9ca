"""Which convolutions compute in 8 bits, and the steps that their input is rounded to: measured on calibration data.

Steps are a channel's own, since the weights take them up: `fit` finds those of least squared error of the convolution's sums.
Where all of them together change the outputs by more than LIMIT, those that change them most for their work stay in floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgec.calibrate.capture import Stream, capture
from edgec.calibrate.data import Calibration, Feeds
from edgec.ir.dims import evaluate, product
from edgec.ir.evaluate import bind_symbols
from edgec.ir.node import Graph, Node, constant, make
from edgec.ir.types import FLOATS, TensorType
from edgec.rewrites.convs import Rounding, corrected, grid, in_floats
from edgec.rewrites.quantize import Options, Quantizer

SAMPLE = 1 << 15  # numbers of an input that its steps are fitted to, and at least so many of a channel:
LEAST = 256
RUNS = 64  # of the data, at most
COMPARED = 2  # runs that outputs are compared on
LIMIT = 0.05  # of an output's root mean square, the change that is worth the speed
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of the largest numbers, that are tried
EVENNESS = (0.0, 0.25, 0.5, 0.75, 1.0)  # exponents of a channel's range by the largest: 0 gives all one step
GATE = "~gate"  # inputs that no model has

Tick = Callable[[int, int], None]


def sites(graph: Graph) -> list[Node]:
    """The convolutions that may compute in 8 bits."""
    return [
        n
        for n in graph.nodes()
        if n.op == "conv"
        and n.dtype == "f32"
        and n.inputs[4] is None
        and n.inputs[1] is not None
        and n.inputs[1].op == "constant"
        and n.inputs[1]["data"].channels is None
        and in_floats(n) is None
    ]


def solve(graph: Graph, calibration: Calibration, options: Options, tick: Tick = lambda done, total: None) -> Options:
    """The options with `roundings` and `in_floats`. Raises EdgecError EC1302 where a run does not fit the graph."""
    found = sites(graph)
    if not found:
        return options
    options = replace(options, roundings=roundings(graph, found, calibration, tick))
    return replace(options, in_floats=_in_floats(graph, options, calibration.feeds))


@dataclass
class Seen:
    """What a convolution's input takes, by channel: of each run least and greatest numbers [C] and samples [n, C]."""

    low: list[np.ndarray] = field(default_factory=list)
    high: list[np.ndarray] = field(default_factory=list)
    samples: list[np.ndarray] = field(default_factory=list)

    def add(self, value: np.ndarray, places: np.ndarray) -> None:
        """value [N, C, positions]; places: of samples in [N * positions], as random numbers of any size."""
        self.low.append(value.min((0, 2)))
        self.high.append(value.max((0, 2)))
        n, at = np.divmod(places % (value.shape[0] * value.shape[2]), value.shape[2])
        self.samples.append(value[n, :, at])

    def range(self, runs: slice) -> tuple[np.ndarray, np.ndarray]:
        """Ends of what some of the runs take, 0 among it."""
        return np.minimum(np.min(self.low[runs], 0), 0), np.maximum(np.max(self.high[runs], 0), 0)


def roundings(graph: Graph, convs: Sequence[Node], calibration: Calibration, tick: Tick) -> dict[object, Rounding]:
    """Key of a weight -> how to round the inputs of its convolutions; those that are not finite have none."""
    feeds = calibration.feeds[:RUNS]
    rng = np.random.default_rng(0)
    readers: dict[Node, list[object]] = {}
    weights: dict[object, np.ndarray] = {}
    seen: dict[object, Seen] = {}
    for node in convs:
        x, w = node.inputs[:2]
        assert x is not None and w is not None
        key, channels = w["data"].key, w.shape[1] * node["group"]
        readers.setdefault(x, []).append(key)
        weights[key] = _by_channel(np.asarray(w["data"].array(), np.float32), channels)
        seen[key] = Seen()

    def visit(node: Node, value: np.ndarray, number: int) -> None:
        if not value.size:
            return
        value = value.reshape(*value.shape[:2], -1)
        count = -(-max(SAMPLE // value.shape[1], LEAST) // len(feeds))
        places = rng.integers(0, 1 << 40, count)
        for key in readers[node]:
            seen[key].add(value, places)

    with np.errstate(invalid="ignore"):
        capture(graph, readers, feeds, visit, tick=tick)
    fitted = {key: fit(weights[key], s) for key, s in seen.items() if s.samples}
    return {key: found for key, found in fitted.items() if found is not None}


def _by_channel(w: np.ndarray, channels: int) -> np.ndarray:
    """Weights [M, C / group, ...] as [rows, C, taps], rows of all groups beside each other."""
    group = channels // w.shape[1]
    return (
        w.reshape(group, -1, w.shape[1], math.prod(w.shape[2:]))
        .swapaxes(0, 1)
        .reshape(-1, channels, math.prod(w.shape[2:]))
    )


def fit(w: np.ndarray, seen: Seen) -> Rounding | None:
    """The rounding of least squared error of the sums, of those tried. w [rows, C, taps]. None: numbers are not finite.

    A channel's step grows with its range to the power of an evenness: rounding the input costs what the weights' squares are,
    rounding weights that have taken up the steps what the square of the largest in their row is. Ranges are those of half of
    the runs and the error that of the others, so that what fits the first alone is not chosen; then those of all.
    """
    x = np.concatenate(seen.samples).astype(np.float32)
    if not all(np.isfinite(v).all() for v in (x, *seen.low, *seen.high, w)):
        return None
    halves = (slice(0, None, 2), slice(1, None, 2)) if len(seen.samples) > 1 else (slice(None), slice(None))
    tried = [(share, evenness) for share in SHARES for evenness in EVENNESS]
    errors = np.zeros(len(tried))
    for first, second in (halves, halves[::-1]):
        low, high = seen.range(first)
        other = np.concatenate(seen.samples[second]).astype(np.float32)
        errors += [_error(w, other, _grid(low, high, *how)) for how in tried]
    return Rounding(_grid(*seen.range(slice(None)), *tried[int(errors.argmin())]), x.mean(0, dtype=np.float64))


def _grid(low: np.ndarray, high: np.ndarray, share: float, evenness: float) -> np.ndarray:
    span = np.maximum(high - low, 1e-30)
    return grid(low, high, share * span.max() * (span / span.max()) ** evenness)


def _error(w: np.ndarray, x: np.ndarray, grid: np.ndarray) -> float:
    """Mean square of what the sums are off, of rows together; x [n, C]."""
    step, zero = grid
    energy, square = np.square(w, dtype=np.float64).sum((0, 2)), np.square(x, dtype=np.float64).mean(0)
    off = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step - x
    scale = (np.abs(w).max(2) * step).max(1) / 127
    ours = float((np.square(off, dtype=np.float64).mean(0) * energy).sum())
    taps = w.shape[2] * float((square / np.square(step, dtype=np.float64)).sum())
    return ours + float(np.square(scale, dtype=np.float64).sum()) * taps / 12


def _in_floats(graph: Graph, options: Options, feeds: Sequence[Feeds]) -> dict[object, str]:
    """Key of a weight -> why its convolutions stay in floats: where all in 8 bits would change the outputs too much."""
    gated, gates = _gated(graph, options)
    kept = {present for _, present in graph.states}
    outputs = list(dict.fromkeys(n for name, n in gated.outputs if name not in kept and n.dtype in FLOATS))
    if not gates or not outputs:
        return {}
    shapes = {name: a.shape for name, a in feeds[0].items()}
    some = [f for f in feeds if {n: a.shape for n, a in f.items()} == shapes][:COMPARED]
    off = {name: np.zeros((), np.float32) for name in gates.values()}
    run = Stream(gated, [feeds[0] | off]).call(outputs)
    base = [run(f | off) for f in some]

    def change(keys: Sequence[object]) -> float:
        """Of the output that changes most, with these in 8 bits."""
        on = off | {gates[k]: np.ones((), np.float32) for k in keys}
        apart = np.zeros(len(outputs))
        size = np.zeros(len(outputs))
        for feed, plain in zip(some, base):
            for i, (a, b) in enumerate(zip(run(feed | on), plain)):
                keep = np.isfinite(a) & np.isfinite(b)
                apart[i] += np.square(a[keep] - b[keep], dtype=np.float64).sum()
                size[i] += np.square(b[keep], dtype=np.float64).sum()
        return float(np.sqrt(apart / np.maximum(size, 1e-30)).max())

    keys = list(gates)
    if change(keys) <= LIMIT:
        return {}
    alone, work = {k: change([k]) for k in keys}, _work(graph, feeds[0])
    ranked = sorted(keys, key=lambda k: -(alone[k] ** 2) / work[k])
    low, high = 1, len(ranked)  # so many, of the most noise for what they would save, stay in floats
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if change(ranked[middle:]) <= LIMIT else (middle + 1, high)
    return {k: f"activations of 8 bits here would change an output by {alone[k]:.1%}" for k in ranked[:low]}


def _work(graph: Graph, feed: Feeds) -> dict[object, int]:
    """Key of a weight -> multiply-accumulates of its convolutions, one at least."""
    env = bind_symbols(graph.inputs, feed)
    env |= {k: evaluate(d, env) for k, d in graph.parameters.items()}
    found: dict[object, int] = {}
    for node in sites(graph):
        w = node.inputs[1]
        assert w is not None
        count = evaluate(product(node.shape), env) * math.prod(w.shape[1:])
        found[w["data"].key] = found.get(w["data"].key, 1) + count
    return found


def _gated(graph: Graph, options: Options) -> tuple[Graph, dict[object, str]]:
    """The graph in which every convolution gives floats + gate * (8 bits - floats); and each weight's gate, an input."""
    quantizer, convs = Quantizer(options, graph), set(sites(graph))
    new: dict[Node, Node] = {}
    gates: dict[object, Node] = {}
    for node in graph.nodes():
        inputs = [None if i is None else new[i] for i in node.inputs]
        new[node] = node if node.op in ("input", "constant") else make(node.op, *inputs, **node.attrs)
        if node not in convs or not quantizer.rounds(node):
            continue
        x, w, bias, residual, _ = inputs
        assert w is not None
        key = w["data"].key
        found = options.roundings[key]
        data = quantizer.encode_conv(w["data"], found)
        if isinstance(data, str):
            continue
        bias = corrected(bias, w["data"], data, found)
        rounded = make("conv", x, constant(data), bias, residual, constant(found.grid), **node.attrs)
        gate = gates.setdefault(key, make("input", name=f"{GATE}{len(gates)}", type=TensorType("f32", ())))
        new[node] = make("add", new[node], make("mul", gate, make("sub", rounded, new[node])))
    outputs = tuple((name, new[n]) for name, n in graph.outputs)
    gated = replace(graph, inputs=(*graph.inputs, *gates.values()), outputs=outputs)
    return gated, {key: gate["name"] for key, gate in gates.items()}
