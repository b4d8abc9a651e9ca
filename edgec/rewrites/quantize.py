"""Weights become groups of small integers: a rewrite, with a policy whose every decision is reported.

A `linear` with a constant weight gets a grouped int4 or int8 weight and int8 activations; a gather along axis 0 of a
large table gets an int8 table. What is tiny stays float, what int4 would hurt gets int8; each with its reason.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgec.errors import EdgecError
from edgec.ir.node import Data, Graph, Node, constant
from edgec.ir.types import Quantized, TensorType
from edgec.rewrites.engine import Match, Phase, Rule, rule, run
from edgec.rewrites.examples import f32, i64, weights
from edgec.rewrites.movement import TABLE, reshaped
from edgec.rewrites.pattern import b, const, optional, p, var

MODES = ("fp32", "int8", "int4")
TINY = 4096  # weights of fewer elements gain nothing: the call costs more than reading them
SMALL, SHARE = 1 << 16, 0.15  # elements up to which, and share of all constants below which, 4 bits don't pay
SAMPLE_ROWS = 128  # enough to tell two schemes apart
NARROW = 16  # neither N nor K below this
LOW_SNR_DB = 17.0  # int4 below this signal-to-noise ratio becomes int8 (a normal distribution at group 32 has 20 dB)
LOW_SNR_8_DB = 25.0  # int8 below this stays float (a normal distribution at group 128 has 44 dB)
CONV_CHANNELS = 256  # a 1x1 convolution of fewer channels would lose more to the transposes than int4 gains
WINDOW_CHANNELS = 64  # the same for input channels of larger windows, whose pieces of rows are copied


@dataclass(frozen=True)
class Options:
    """What the command line says of weights.

    scheme: "symmetric", "asymmetric" or "best" (asymmetric where it lowers a weight's error by `worthwhile_db`).
    table_group: the group of 8-bit tables and 8-bit weights. importance: constant's key -> [K] weights of the columns
    in the squared error (calibration's mean square of the activations).
    """

    weights: str = "int4"
    group: int = 32
    activations: str = "int8"
    scheme: str = "best"
    worthwhile_db: float = 0.5
    table_group: int = 128
    conv: bool = True
    importance: Mapping = field(default_factory=dict)
    threads: int = 0

    def __post_init__(self):
        if self.weights not in MODES:
            raise EdgecError("EC1001", f"--weights {self.weights} is not one of {', '.join(MODES)}")
        if self.activations not in ("int8", "fp32"):
            raise EdgecError("EC1001", f"--activations {self.activations} is neither int8 nor fp32")
        if self.scheme not in ("symmetric", "asymmetric", "best"):
            raise EdgecError("EC1001", f"the scheme {self.scheme!r} is not symmetric, asymmetric or best")
        if self.group not in (32, 64, 128) or self.table_group not in (32, 64, 128):
            raise EdgecError("EC1001", f"--group {self.group} is not 32, 64 or 128")


@dataclass
class Choice:
    """What became of one weight. bits 32: left as it was; `reason` says why it is not of the bits asked for."""

    name: str
    role: str  # "linear" or "embedding"; a tied table is both, each read in a packed format of its own
    shape: tuple[int, ...]
    bits: int
    group: int
    zero: bool
    snr_db: float
    nbytes: int
    reason: str = ""

    def as_dict(self) -> dict:
        """For JSON: numbers that are not finite are None."""
        found = dataclasses.asdict(self)
        found["bytes"] = found.pop("nbytes")
        found["shape"] = list(self.shape)
        found["snr_db"] = round(self.snr_db, 2) if math.isfinite(self.snr_db) else None
        return found


# --- the numbers ---------------------------------------------------------------------------------------------------


def quantize_reference(w: np.ndarray, bits: int, group: int, symmetric: bool, importance: np.ndarray | None = None):
    """w [N, K] f32 -> q [N, K], scale f16 [N, groups], zero u8 [N, groups] or None; (q - zero) * scale.

    A grid search over shrunk ranges for the least squared error, weighted by importance [K]. The oracle, and the
    fallback where the extension is not built.
    """
    n, k = w.shape
    group = group or max(k, 1)
    groups = -(-k // group)
    pad = groups * group - k
    x = np.pad(w.astype(np.float32), [(0, 0), (0, pad)]).reshape(n, groups, group)
    weight = np.ones(k, np.float32) if importance is None else importance.astype(np.float32)
    weight = np.pad(weight, (0, pad)).reshape(1, groups, group)
    best = np.full((n, groups), np.inf)
    scale = np.zeros((n, groups), np.float16)
    zero = np.zeros((n, groups), np.uint8)
    low, high = x.min(-1), x.max(-1)
    extreme = np.where(np.abs(low) > np.abs(high), low, high)
    top = 2 ** (bits - 1) - 1
    if symmetric:  # 4 bits: the extreme lands on -8 by the scale's sign
        candidates = [(extreme / (-(top + 1) if bits == 4 else top) * f, None) for f in np.linspace(1, 0.7, 13)]
        if bits == 4:
            candidates.append((np.abs(extreme) / top, None))
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        candidates = []
        for f in np.linspace(1, 0.7, 7):
            s = (high - low) * f / (2**bits - 1)
            candidates += [(s, np.rint(-low * f / np.where(s > 0, s, 1)) + d) for d in (-1, 0, 1)]
    for s, z in candidates:
        s16 = s.astype(np.float16)
        z = None if z is None else np.clip(z, 0, 2**bits - 1)
        error = (weight * (_round(x, s16, z, bits)[1] - x) ** 2).sum(-1)
        better = error < best
        best = np.where(better, error, best)
        scale = np.where(better, s16, scale)
        if z is not None:
            zero = np.where(better, z, zero).astype(np.uint8)
    q, _ = _round(x, scale, None if symmetric else zero, bits)
    q = q.reshape(n, groups * group)[:, :k].astype(np.int8 if symmetric else np.uint8)
    return np.ascontiguousarray(q), scale, None if symmetric else zero


def _round(x, scale, zero, bits):
    s = scale.astype(np.float32)[..., None]
    z = 0 if zero is None else zero.astype(np.float32)[..., None]
    limits = (-8, 7) if bits == 4 else (-127, 127)
    if zero is not None:
        limits = (0, 2**bits - 1)
    with np.errstate(all="ignore"):
        q = np.clip(np.rint(np.where(s != 0, x / s, 0) + z), *limits)
    return q, (q - z) * s


def quantize_array(w: np.ndarray, encoding: Quantized, importance=None, threads: int = 0):
    """The same by the extension's search, where it is built."""
    try:
        from edgec import kernels
    except ImportError:
        return quantize_reference(w, encoding.bits, encoding.group, not encoding.zero, importance)
    threads = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    w = np.ascontiguousarray(w, dtype=np.float32)
    return kernels.quantize(w, encoding.bits, encoding.group, not encoding.zero, True, importance, threads)


def encoded(w: np.ndarray, encoding: Quantized, importance=None, threads: int = 0) -> tuple[Data, float]:
    """The weight [N, K] in that encoding, and its signal-to-noise ratio in dB."""
    q, scale, zero = quantize_array(w, encoding, importance, threads)
    new = Data.quantized(TensorType("f32", w.shape, encoding), q, scale, zero)
    noise = signal = 0.0
    rows = max(1, (1 << 22) // max(w.shape[1], 1))
    group = encoding.group or max(w.shape[1], 1)
    index = np.arange(w.shape[1]) // group
    for i in range(0, w.shape[0], rows):  # in blocks: a table of a vocabulary is large
        part = slice(i, i + rows)
        value = q[part].astype(np.float32)
        if zero is not None:
            value -= zero[part][:, index]
        with np.errstate(all="ignore"):
            value *= scale[part].astype(np.float32)[:, index]
        noise += float(np.square(value - w[part], dtype=np.float64).sum())
        signal += float(np.square(w[part], dtype=np.float64).sum())
    if not math.isfinite(noise) or noise == 0:
        return new, math.inf if noise == 0 else -math.inf  # a scale that left f16
    return new, 10 * math.log10(max(signal, 1e-300) / noise)


def nbytes(shape: tuple[int, ...], encoding: Quantized | None) -> int:
    """Bytes of a weight [N, K], scales and zero points included."""
    n, k = shape
    if encoding is None:
        return 4 * n * k
    groups = -(-k // (encoding.group or max(k, 1)))
    return n * (-(-k * encoding.bits // 8) + groups * 2 + (-(-groups // 2) if encoding.zero else 0))


def _after_norm(x: Node) -> np.ndarray | None:
    """The mean square of each column that a normalised operand has, without data: gain^2 + bias^2."""
    while x.op == "reshape" and x.shape[-1:] == x.inputs[0].shape[-1:]:
        x = x.inputs[0]
    if x.op not in ("layer_norm", "rms_norm") or x["axis"] != x.rank - 1:
        return None
    gain, bias = x.inputs[1], x.inputs[2] if x.op == "layer_norm" else None
    if gain is None or gain.op != "constant" or gain.shape != x.shape[-1:]:
        return None
    square = np.square(gain["data"].array(), dtype=np.float32)
    if bias is not None and bias.op == "constant" and bias.shape == gain.shape:
        square = square + np.square(bias["data"].array(), dtype=np.float32)
    return square if np.isfinite(square).all() and square.max() > 0 else None


def _finite(w: np.ndarray) -> bool:
    """Whether all numbers are finite; in blocks of rows, for large tables."""
    rows = max(1, (1 << 22) // max(w.shape[1], 1))
    return all(bool(np.isfinite(w[i : i + rows]).all()) for i in range(0, w.shape[0], rows))


# --- the policy ----------------------------------------------------------------------------------------------------


class Quantizer:
    """Decides for each constant and role once, whoever reads it; `choices` is the report."""

    def __init__(self, options: Options, graph: Graph | None = None):
        self.options = options
        self.choices: dict[object, Choice] = {}
        self._encoded: dict[object, Data | None] = {}
        self._names: dict[object, str] = {}
        self._importance = dict(options.importance)
        constants = {c["data"].key: c for c in (graph.nodes() if graph else ()) if c.op == "constant"}
        self._total = sum(math.prod(c.shape) for c in constants.values())
        for node in graph.nodes() if graph else ():
            for role, position in (("linear", 1), ("embedding", 0)):
                if node.op == {"linear": "linear", "embedding": "gather"}[role]:
                    w = node.inputs[position]
                    if w is not None and w.op == "constant":
                        self._names.setdefault((w["data"].key, role), graph.origin(node) if graph else node.op)
                        importance = _after_norm(node.inputs[0]) if role == "linear" else None
                        if importance is not None:
                            self._importance.setdefault(w["data"].key, importance)

    def encode(self, data: Data, role: str) -> Data | str:
        """The constant's encoded form, or the reason why it stays."""
        key = (data.key, role)
        if key not in self._encoded:
            self._encoded[key], self.choices[key] = self._decide(data, role)
        return self._encoded[key] or self.choices[key].reason

    def _decide(self, data: Data, role: str) -> tuple[Data | None, Choice]:
        options, shape = self.options, tuple(d for d in data.type.shape if isinstance(d, int))
        n, k = shape
        name = self._names.get((data.key, role), role)

        def keep(reason: str):
            return None, Choice(name, role, shape, 32, 0, False, math.inf, nbytes(shape, None), reason)

        def as_chosen(new: Data, snr: float, reason: str = ""):
            e = new.type.encoding
            assert e is not None
            return new, Choice(name, role, shape, e.bits, e.group, e.zero, snr, nbytes(shape, e), reason)

        if options.weights == "fp32":
            return keep("fp32 is asked for")
        if role == "embedding" and n * k < TABLE:
            return keep("the table is small")
        if role != "embedding" and (n * k < TINY or min(n, k) < NARROW):
            return keep("too small to gain")
        w = data.array().astype(np.float32, copy=False)
        if not _finite(w):
            return keep("it holds numbers that are not finite")
        importance = self._importance.get(data.key)
        why = "embeddings are read in 8 bits" if role != "linear" and options.weights == "int4" else ""
        if role == "linear" and options.weights == "int4" and n * k <= min(SMALL, SHARE * self._total):
            why = "so small a part of the model that 4 bits save little over 8"
        elif role == "linear" and options.weights == "int4":
            new, snr = self._four_bits(w, importance)
            if snr >= LOW_SNR_DB:
                return as_chosen(new, snr)
            why = f"int4 would leave {snr:.1f} dB"
        new, snr = encoded(w, Quantized(8, self._group(k)), importance, options.threads)
        if snr < LOW_SNR_8_DB:
            return keep(f"int8 would leave {snr:.1f} dB")
        return as_chosen(new, snr, why)

    def _group(self, k: int) -> int:
        """The largest group of 8-bit weights up to the table's that wastes no scale on a tail."""
        group = self.options.table_group
        while group > 32 and (k % group or group > k):
            group //= 2
        return group

    def _four_bits(self, w: np.ndarray, importance) -> tuple[Data, float]:
        """With zero points or without; "best" asks a sample of the rows."""
        options, zero = self.options, self.options.scheme == "asymmetric"
        if options.scheme == "best":
            sample = np.ascontiguousarray(w[:: max(1, w.shape[0] // SAMPLE_ROWS)])
            plain, shifted = (
                encoded(sample, Quantized(4, options.group, z), importance, options.threads)[1] for z in (False, True)
            )
            zero = shifted >= plain + options.worthwhile_db
        return encoded(w, Quantized(4, options.group, zero), importance, options.threads)

    # --- rules -----------------------------------------------------------------------------------------------------

    def rules(self) -> list[Rule]:
        """The phase's rules; they ask this quantizer."""
        made: list[Rule] = []

        def plain(node: Node) -> bool:
            return node.rank == 2 and node.dtype == "f32" and all(isinstance(d, int) for d in node.shape)

        @rule(
            p.linear(var("x"), const("w", plain), optional("bias"), optional("residual"), name="node"),
            promise="lossy",
            examples=[lambda: b.linear(f32("x", "s", 96), weights(64, 96), weights(64), act="relu")],
            misses=[
                lambda: b.linear(f32("x", 2, 5), weights(7, 5)),
                lambda: b.linear(f32("x", 2, 8), weights(1024, 8)),
            ],
            into=made,
        )
        def quantize_linear(m: Match):
            new = self.encode(m.w["data"], "linear")
            if isinstance(new, str):
                return new
            attrs = dict(m.node.attrs) | {"activations": self.options.activations}
            return b.linear(m.x, constant(new), m.bias, m.residual, **attrs)

        @rule(
            p.gather(const("w", plain), var("i"), axis=0),
            promise="lossy",
            examples=[lambda: b.gather(weights(4, 1 << 14), i64("i", 2, "s"), axis=0)],
            misses=[lambda: b.gather(weights(4, 64), i64("i", 2, "s"), axis=0)],
            into=made,
        )
        def quantize_embedding(m: Match):
            new = self.encode(m.w["data"], "embedding")
            return new if isinstance(new, str) else b.gather(constant(new), m.i, axis=0)

        @rule(
            p.conv(
                var("x"), const("w", lambda w: w.dtype == "f32"), optional("bias"), optional("residual"), name="node"
            ),
            promise="ulp:4",
            examples=[
                lambda: _conv(256, 256),
                lambda: _conv(256, 256, residual=True),
                lambda: _conv(64, 256, kernel=(3, 2), strides=(2, 1), pads=(1, 0, 1, 1), dilations=(1, 2)),
            ],
            misses=[lambda: _conv(16, 256), lambda: _conv(16, 256, kernel=(3, 3)), lambda: _conv(256, 16)],
            into=made,
        )
        def conv_to_linear(m: Match):
            """A convolution is a product over channels and window, once they are the last axis."""
            node, options = m.node, self.options
            if options.weights == "fp32" or not options.conv:
                return "it stays a convolution"
            (outs, channels), kernel, n = m.w.shape[:2], m.w.shape[2:], node.rank - 2
            if node["group"] != 1:
                return "it is in groups"
            if outs < CONV_CHANNELS or channels < (CONV_CHANNELS if math.prod(kernel) == 1 else WINDOW_CHANNELS):
                return "so few channels gain less than copying the windows costs"
            from edgec.rewrites.fold import const_node

            last = (0, *range(2, node.rank), 1)
            first = (0, node.rank - 1, *range(1, node.rank - 1))
            x, pads = b.transpose(m.x, perm=last), node["pads"]
            if any(pads):
                x = b.pad(x, None, before=(0, *pads[:n], 0), after=(0, *pads[n:], 0), mode="constant")
            sizes, steps = (node.shape[0], *node.shape[2:], channels), (1, *node["strides"], 1)
            if math.prod(kernel) > 1 or any(s != 1 for s in steps):
                corners = [[k * d for k, d in zip(at, node["dilations"])] for at in np.ndindex(*kernel)]
                parts = [b.slice(x, starts=(0, *at, 0), sizes=sizes, steps=steps) for at in corners]
                x = parts[0] if len(parts) == 1 else b.concat(*parts, axis=node.rank - 1)
            w = const_node("transpose", m.w, perm=last)
            w = const_node("reshape", w, shape=(outs, channels * math.prod(kernel)))
            residual = None if m.residual is None else b.transpose(m.residual, perm=last)
            y = b.linear(x, w, m.bias, residual, act=node["act"])
            return reshaped(b.transpose(y, perm=first), node.shape)

        return made

    def report(self) -> list[Choice]:
        """Every weight that was looked at, the largest first."""
        return sorted(self.choices.values(), key=lambda c: -math.prod(c.shape))


def _conv(
    c: int, n: int, kernel=(1, 1), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), residual: bool = False
) -> Node:
    x, w = f32("x", 1, c, 4, 5), weights(n, c, *kernel, scale=0.1)
    attrs = {"strides": strides, "pads": pads, "dilations": dilations}
    r = f32("r", *b.conv(x, w, **attrs).shape) if residual else None
    return b.conv(x, w, weights(n), r, **attrs)


def quantize_phase(options: Options, keep: list[Quantizer] | None = None) -> Phase:
    """The phase. The Quantizer that it used, with the report, is appended to `keep`."""

    def rules(graph: Graph) -> list[Rule]:
        from edgec.rewrites.phases import CANONICAL

        quantizer = Quantizer(options, graph)
        if keep is not None:
            keep.append(quantizer)
        return [*CANONICAL, *quantizer.rules()]

    return Phase("quantize", rules)


def quantize(graph: Graph, **options) -> tuple[Graph, list[dict]]:
    """The graph with its weights quantized (Options' fields as arguments), and what became of each weight, the largest
    first: name, role, shape, bits, group, zero, snr_db (None: as it was), bytes and reason.

    Raises EdgecError EC1001 where an option is not one of those it can be.
    """
    keep: list[Quantizer] = []
    graph = run(graph, [quantize_phase(Options(**options), keep)])
    return graph, [c.as_dict() for c in keep[0].report()]
