"""A quantized or pruned graph healed against its source: norms, biases and the scales of its weights learn, the integers
stay unless the weights that they came from are given. Of a pruned graph that is not quantized yet all weights may learn.

Training norm gains alone was published to close 29% of the gap in KL that 4 bits open; the scales are 20 times as many
numbers, and as cheap to store: they are there already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from edgec import kernels
from edgec.calibrate.data import Calibration, caches, empty_caches
from edgec.calibrate.prune.zeros import TABLE
from edgec.distill import losses
from edgec.distill.fit import Plan, Tick, fit
from edgec.distill.lesson import Lesson, halves
from edgec.distill.torch_graph import TorchGraph
from edgec.errors import EdgecError
from edgec.ir.data import Data
from edgec.ir.node import Graph, Node, constant
from edgec.loss import pairs
from edgec.rewrites.states import rebuilt

Tensor = torch.Tensor
# op -> operands that are vectors to learn
VECTORS = {"layer_norm": (1, 2), "rms_norm": (1,), "linear": (2, 4, 5), "conv": (2,), "conv_transpose": (2,)}
SCALES = ("linear", "gather")
WEIGHTS = ("linear", "conv", "conv_transpose")


@dataclass(frozen=True)
class Options:
    """epochs over the data; minutes: stop by then. lr: relative to a number's own size. batch: samples a step, by default 1024
    tokens of text (512 where weights learn), else 32 samples. weights: those in f32 of products learn too, but no tables.
    vectors: the learning rate of norms and biases, by that of the scales. following: of a language model, the share of the
    loss that is the cross entropy with the text's own next tokens."""

    epochs: float = 4.0
    minutes: float = 20.0
    lr: float = 4e-3
    batch: int | None = None
    seed: int = 0
    weights: bool = False
    vectors: float = 1.0
    following: float = 0.0


RELEARN = Options(epochs=2.0, lr=3e-3, weights=True)  # what a pruned graph is given
RELEARN_TEXT = replace(RELEARN, lr=1e-3)  # a language model; at 3e-3 SmolLM2's loss rose for a quarter of the steps
AFTER = 8.0  # minutes that its rounded weights get then
WINDOWS = 512  # of text, of a language model
HELD = 4  # batches to measure on, at most


def of_text(found: Calibration) -> Options:
    """For a quantized language model: once over much text rather than often over little, within ten minutes, in small steps.

    One step along the signs of a window's gradient took SmolLM2-135M's KL on another window from 0.084 to 0.080 by scales at
    0.001, to 0.090 by all at 0.004; norms gained most on the window itself and nothing on the other one."""
    epochs = min(4.0, max(1.0, WINDOWS / 2 / found.samples))
    return Options(epochs=epochs, minutes=10.0, lr=1e-3, vectors=0.25)


@dataclass
class Report:
    """before, after: the loss of each output against the source's (kl, cosine ...) on data kept out of training; closed:
    the share of the gap that is gone. vectors, scales and weights: how many numbers learned."""

    steps: int = 0
    seconds: float = 0.0
    vectors: int = 0
    scales: int = 0
    weights: int = 0
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    closed: float = 0.0

    def to_dict(self) -> dict:
        return asdict(self)


class _Dequantized(torch.autograd.Function):
    """(q - zero) * scale of each group of the last axis."""

    @staticmethod
    def forward(ctx, scale: Tensor, q: Tensor, zero: Tensor | None, group: int) -> Tensor:
        ctx.save_for_backward(q, zero)
        ctx.group = group
        n, k = q.shape
        return _centred(q, zero, group).mul_(scale[..., None]).view(n, -1)[:, :k]

    @staticmethod
    def backward(ctx, *grads: Tensor):
        q, zero = ctx.saved_tensors
        (grad,) = grads
        n, k = grad.shape
        padded = torch.nn.functional.pad(grad, (0, -k % ctx.group)).view(n, -1, ctx.group)
        return (padded * _centred(q, zero, ctx.group)).sum(-1), None, None, None


def _centred(q: Tensor, zero: Tensor | None, group: int) -> Tensor:
    n, k = q.shape
    x = torch.nn.functional.pad(q, (0, -k % group)).view(n, -1, group).float()
    return x if zero is None else x.sub_(zero[..., None].float())


class Scales(torch.nn.Module):
    """A quantized weight whose scales learn: delta is the change relative to each. Those of a table of uneven values stay
    multiples of their row's unit."""

    def __init__(self, data: Data):
        super().__init__()
        parts, e = data.parts(), data.type.encoding
        assert e is not None
        self.data, self.group = data, e.group or data.shape[1]
        self.q = torch.from_numpy(np.array(parts["q"]))
        self.zero = torch.from_numpy(np.array(parts["zero"])) if e.zero else None
        self.scale = torch.from_numpy(parts["scale"].astype(np.float32))
        self.unit = torch.from_numpy(kernels.units(parts["scale"]))[:, None] if e.table else None
        self.delta = torch.nn.Parameter(torch.zeros_like(self.scale))

    def stored(self) -> Tensor:
        """The scales as the artifact stores them; gradients pass."""
        scale = self.scale * (1 + self.delta)
        return scale + (self._rounded(scale.detach()) - scale.detach())

    def _rounded(self, scale: Tensor) -> Tensor:
        if self.unit is None:
            return scale.clamp(-65504, 65504).half().float()
        steps = (scale / self.unit).round_().clamp_(-127, 127)
        return torch.where((steps == 0) & (self.scale != 0), self.scale.sign(), steps) * self.unit

    def forward(self) -> Tensor:
        return _Dequantized.apply(self.stored(), self.q, self.zero, self.group)

    def constant(self) -> Node:
        zero = None if self.zero is None else self.zero.numpy()
        scale = self.stored().detach().numpy().astype(np.float16)
        return constant(Data.quantized(self.data.type, self.q.numpy(), scale, zero))


class _Rounded(torch.autograd.Function):
    """The nearest integers of a grid times their scales, and what was rounded: the gradient of the weight passes straight
    through (Bengio et al., https://arxiv.org/abs/1308.3432)."""

    @staticmethod
    def forward(ctx, latent: Tensor, scale: Tensor, grid: Integers) -> Tensor:
        half = torch.is_autocast_enabled("cpu")
        q = grid.nearest(latent, scale)
        ctx.save_for_backward(q)
        ctx.group, (n, k) = grid.group, latent.shape
        made = q * scale[..., None]
        return (made.to(torch.get_autocast_dtype("cpu")) if half else made).view(n, -1)[:, :k]

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (grad,) = grads
        (q,) = ctx.saved_tensors
        n, k = grad.shape
        grad = grad.float()
        padded = torch.nn.functional.pad(grad, (0, -k % ctx.group)).view(n, -1, ctx.group)
        return grad, (padded * q).sum(-1), None


class Integers(Scales):
    """A quantized weight whose integers learn too: `latent` is what they are rounded from, so that small steps add up. It
    begins at the weight where that rounds to the integer that is there, elsewhere at the integer's own value."""

    def __init__(self, data: Data, weight: np.ndarray):
        super().__init__(data)
        e = data.type.encoding
        assert e is not None
        self.low, self.high = (0, 2**e.bits - 1) if e.zero else (-(1 << e.bits - 1), (1 << e.bits - 1) - 1)
        self.table = torch.tensor(sorted(kernels.TABLE), dtype=torch.float32) if e.table else None
        w, own = torch.from_numpy(np.array(weight, np.float32)), _centred(self.q, self.zero, self.group)
        n, k = w.shape
        same = self.nearest(w, self.scale) == own
        value = (own * self.scale[..., None]).view(n, -1)[:, :k]
        self.latent = torch.nn.Parameter(torch.where(same.view(n, -1)[:, :k], w, value))
        self.unit_size = float(self.latent.detach().abs().mean()) or 1e-3

    def nearest(self, w: Tensor, scale: Tensor) -> Tensor:
        """The integers of a weight less their zero points, [rows, groups, group]; 0 where a group's scale is 0."""
        n, k = w.shape
        x = torch.nn.functional.pad(w, (0, -k % self.group)).view(n, -1, self.group)
        x = x * torch.where(scale != 0, 1 / scale, 0)[..., None]
        if self.table is not None:
            return self.table[torch.bucketize(x, (self.table[1:] + self.table[:-1]) / 2)]
        if self.zero is None:
            return x.round_().clamp_(self.low, self.high)
        zero = self.zero[..., None].float()
        return x.round_().clamp_(self.low - zero, self.high - zero)

    def forward(self) -> Tensor:
        return _Rounded.apply(self.latent, self.stored(), self)

    def constant(self) -> Node:
        n, k = self.latent.shape
        with torch.no_grad():
            q = self.nearest(self.latent, self.stored())
            q = q if self.zero is None else q + self.zero[..., None].float()
            self.q = q.view(n, -1)[:, :k].to(self.q.dtype).contiguous()
        return super().constant()


class Vector(torch.nn.Module):
    """A gain or bias; delta is the change relative to the mean size of its numbers."""

    def __init__(self, data: Data):
        super().__init__()
        self.value = torch.from_numpy(np.array(data.array(), np.float32))
        self.unit = float(self.value.abs().mean()) or 1e-3
        self.delta = torch.nn.Parameter(torch.zeros_like(self.value))

    def forward(self) -> Tensor:
        return self.value + self.unit * self.delta

    def constant(self) -> Node:
        return constant(self().detach().numpy())


class Weight(torch.nn.Module):
    """A weight in f32. unit: the mean size of its numbers, which the learning rate is relative to."""

    def __init__(self, data: Data):
        super().__init__()
        self.delta = torch.nn.Parameter(torch.from_numpy(np.array(data.array(), np.float32)))
        self.unit = float(self.delta.detach().abs().mean()) or 1e-3

    def forward(self) -> Tensor:
        return self.delta

    def constant(self) -> Node:
        return constant(self.delta.detach().numpy())


Learned = Scales | Vector | Weight


def learnable(graph: Graph, weights: bool = False, floats: Graph | None = None) -> dict[Node, Learned]:
    """What of the graph's constants learns. Weights of 8 bits, which have lost next to nothing, keep their scales. floats: see
    `heal`."""
    found: dict[Node, Learned] = {}
    before = {} if floats is None else {key: nodes[0]["data"] for key, (_, nodes) in pairs(floats, graph).items()}
    tables = {n.inputs[0] for n in graph.nodes() if n.op == "gather"} | {
        n.inputs[1] for n in graph.nodes() if n.op == "linear" and n.inputs[1].shape[0] > TABLE * n.inputs[1].shape[1]
    }
    for node in graph.nodes():
        w = node.inputs[1] if weights and node.op in WEIGHTS else None
        if w is not None and w.op == "constant" and w.type.encoding is None and w.dtype == "f32" and w not in tables:
            found[w] = found.get(w) or Weight(w["data"])
        for place in VECTORS.get(node.op, ()):
            c = node.inputs[place] if place < len(node.inputs) else None
            if c is not None and c.op == "constant" and c.type.encoding is None and c.dtype == "f32" and c not in found:
                found[c] = Vector(c["data"])
        if node.op in SCALES:
            c = node.inputs[1 if node.op == "linear" else 0]
            e = c.type.encoding if c is not None and c.op == "constant" else None
            if e is not None and e.bits < 8 and c not in found:
                whole = before.get(c["data"].key) if c not in tables else None
                found[c] = Scales(c["data"]) if whole is None else Integers(c["data"], whole.array())
    return found


def heal(
    source: Graph,
    graph: Graph,
    found: Calibration,
    options: Options | None = None,
    tick: Callable[[Tick], None] = lambda tick: None,
    floats: Graph | None = None,
) -> tuple[Graph, Report]:
    """The graph with better norms, biases and scales: its outputs are nearer to those of `source`, in f32, on the data.

    Shapes and zero points stay, integers too, and weights in f32 unless the options say otherwise. floats: a graph of the same
    structure with the weights as they were before they were quantized; then the integers of products learn as well, from
    these. A graph that would get no better comes back as it was. Raises EdgecError EC1303 (nothing to learn, outputs that do
    not match, numbers that are not finite, a node without gradient), EC1302 (too little data).
    """
    o = options or Options()
    torch.set_num_threads(kernels.threads())
    learned = learnable(graph, o.weights, floats)
    if not learned:
        raise EdgecError("EC1303", "it has no norms, biases or quantized weights that could learn", graph.name,
                         "Leave out --distill")  # fmt: skip
    lesson = _lesson(source, graph, found, o, learned)
    report = Report()
    report.vectors, report.scales, report.weights = (
        sum(m.delta.numel() for m in learned.values() if isinstance(m, kind)) for kind in (Vector, Scales, Weight)
    )
    report.weights += sum(m.latent.numel() for m in learned.values() if isinstance(m, Integers))
    report.before = lesson.measure()[0]
    steps = max(1, math.ceil(o.epochs * len(lesson.trained) / lesson.accumulate))
    plan = Plan(steps, o.lr, lesson.accumulate, decay=0.0, seed=o.seed, minutes=o.minutes)

    def seen(t: Tick) -> None:
        report.seconds = t.seconds
        tick(t)

    groups: list[dict] = [{"params": [m.delta for m in learned.values() if isinstance(m, Scales)]}]
    groups += [{"params": [m.delta], "scale": o.vectors} for m in learned.values() if isinstance(m, Vector)]
    groups += [{"params": [m.delta], "scale": m.unit} for m in learned.values() if isinstance(m, Weight)]
    groups += [{"params": [m.latent], "scale": m.unit_size} for m in learned.values() if isinstance(m, Integers)]
    report.steps = len(fit(groups, lesson.loss, len(lesson.trained), plan, seen))
    report.after = lesson.measure()[0]
    before, after = (sum(r.values()) for r in (report.before, report.after))
    if after >= before:
        return graph, replace(report, after=report.before)
    report.closed = 1 - after / before
    return rebuilt(graph, {node: module.constant() for node, module in learned.items()}), report


def gap(source: Graph, graph: Graph, found: Calibration, options: Options | None = None) -> dict[str, float]:
    """The loss of each output on the data that `heal` would keep out of training."""
    lesson = _lesson(source, graph, found, options or Options(), {})
    return lesson.measure()[0]


def _lesson(source: Graph, graph: Graph, found: Calibration, o: Options, learned: dict[Node, Learned]) -> Lesson:
    skip = _caches(source) | _caches(graph)
    outputs = losses.outputs_of(source, graph, {}, tuple(skip))
    pair, batch = (TorchGraph(source), _Narrower(graph, learned)), o.batch or _batch(found, 512 if o.weights else 1024)
    lesson = Lesson(
        *pair, outputs, batch=batch, half=halves(), most_held=HELD, following=_following(source, o.following)
    )
    lesson.take(found.feeds, found.valid, found.samples)
    return lesson


def _following(source: Graph, share: float) -> tuple[str, float] | None:
    from edgec.rewrites import decoder

    if not share:
        return None
    roles = decoder.roles(source)
    if isinstance(roles, str):
        raise EdgecError("EC1303", f"it has no next tokens: {roles}", source.name, "Leave out `following`")
    return roles.ids, share


class _Narrower(TorchGraph):
    """A graph whose caches may have fewer heads than those of the feeds, if these are empty."""

    def forward(self, feeds, keep=(), parameters=None, outputs=None):
        if self.past is None:
            self.past = caches(self.graph).keys()
        given = {k: v for k, v in feeds.items() if k not in self.past or 0 not in v.shape}
        return super().forward(empty_caches(self.graph, given) | given, keep, parameters, outputs)

    past: Iterable[str] | None = None


def _batch(found: Calibration, tokens: int) -> int:
    shapes = [v.shape for v in found.feeds[0].values() if v.ndim == 2 and v.dtype.kind in "iub"]
    return max(1, tokens // max(s[1] for s in shapes)) if shapes and all(s[1] for s in shapes) else 32


def _caches(graph: Graph) -> set[str]:
    """Outputs that are caches of tokens."""
    from edgec.rewrites import decoder

    roles = decoder.roles(graph)
    kept = {present for _, present in graph.states}
    return kept | (set() if isinstance(roles, str) else set(roles.present)) if caches(graph) or kept else set()
