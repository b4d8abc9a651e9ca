"""Weights become groups of small integers: a rewrite, with a policy whose every decision is reported.

A `linear` with a constant weight gets a grouped int4 or int8 weight and int8 activations; a gather along axis 0 of a
large table gets an int8 table; a convolution gets what convs.py says. What is tiny stays float, what int4 would hurt
gets int8; each with its reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgec.cache import Store
from edgec.errors import EdgecError
from edgec.ir.data import BLOCK
from edgec.ir.node import Data, Graph, Node, constant
from edgec.ir.ops.hadamard import spans
from edgec.ir.types import Quantized
from edgec.rewrites import convs
from edgec.rewrites.encode import encoded, in_channels, nbytes, sample
from edgec.rewrites.engine import Match, Phase, Rule, rule, run
from edgec.rewrites.examples import f32, i64, weights
from edgec.rewrites.gathers import TABLE
from edgec.rewrites.pattern import b, const, optional, p, var

MODES = ("fp32", "int8", "int4")
TINY = 4096  # weights of fewer elements gain nothing: the call costs more than reading them
SMALL, SHARE = 1 << 16, 0.15  # elements up to which, and share of all constants below which, 4 bits don't pay
SAMPLE_ROWS = 128  # enough to tell two schemes apart
NARROW = 16  # neither N nor K below this
LOW_SNR_DB = 17.0  # int4 below this signal-to-noise ratio becomes int8 (a normal distribution at group 32 has 20 dB)
LOW_SNR_8_DB = 25.0  # int8 below this stays float (a normal distribution at group 128 has 44 dB)
NOT_FINITE = "it holds numbers that are not finite"


@dataclass(frozen=True)
class Solved:
    """A weight that calibration has encoded. Both in dB: of its numbers, and of what it gives on the calibration inputs."""

    data: Data
    snr_db: float
    output_snr_db: float


@dataclass(frozen=True)
class Options:
    """What the command line says of weights.

    scheme: "symmetric", "asymmetric", "best" (asymmetric where it lowers a weight's error by `worthwhile_db`) or "table"
    (16 uneven steps, 4.25 bits a weight).
    group8, table_group: the groups of 8-bit weights of products, and of tables.
    importance: constant's key -> [K] weights of the columns in the squared error (calibration's mean square of the
    activations). embedding: bits of tables. store: where the encoded weights go, packed in the layouts that the target
    prefers. plan: key of a weight -> the encoding it is to have. solved: key of a linear's weight -> what calibration made
    of it. tick: called with (weights done, of how many). roundings: key of a convolution's weight -> how its input may be
    rounded to 8 bits; in_floats: those that must not be, and why.
    """

    weights: str = "int4"
    group: int = 32
    activations: str = "int8"
    scheme: str = "best"
    worthwhile_db: float = 0.5
    group8: int = 128
    table_group: int = 128
    conv: bool = True
    importance: Mapping = field(default_factory=dict)
    threads: int = 0
    embedding: int = 8
    store: Store = field(default_factory=Store)
    layouts: tuple[str, ...] = ()
    plan: Mapping[object, Quantized] = field(default_factory=dict)
    solved: Mapping[object, Solved] = field(default_factory=dict)
    roundings: Mapping[object, convs.Rounding] = field(default_factory=dict)
    in_floats: Mapping[object, str] = field(default_factory=dict)
    tick: Callable[[int, int], None] = lambda done, total: None

    def __post_init__(self):
        if self.weights not in MODES:
            raise EdgecError("EC1001", f"--weights {self.weights} is not one of {', '.join(MODES)}")
        if self.activations not in ("int8", "fp32"):
            raise EdgecError("EC1001", f"--activations {self.activations} is neither int8 nor fp32")
        if self.scheme not in ("symmetric", "asymmetric", "best", "table"):
            raise EdgecError("EC1001", f"the scheme {self.scheme!r} is not symmetric, asymmetric, best or table")
        if unknown := {self.group, self.group8, self.table_group} - {32, 64, 128}:
            raise EdgecError("EC1001", f"--group {min(unknown)} is not 32, 64 or 128")
        if self.embedding not in (4, 6, 8):
            raise EdgecError("EC1001", f"--embedding {self.embedding} is not 4, 6 or 8")


@dataclass
class Choice:
    """What became of one weight. bits 32: left as it was; `reason` says why it is not of the bits asked for.

    output_snr_db: of what the weight gives on the calibration inputs, None without any. activations: bits of what it is
    multiplied by.
    """

    name: str
    role: (
        str  # "linear", "embedding", "tied": both, stored once, or "conv": 8 bits with a scale for each output channel
    )
    shape: tuple[int, ...]
    bits: int
    group: int
    zero: bool
    snr_db: float
    nbytes: int
    reason: str = ""
    output_snr_db: float | None = None
    activations: int = 32

    def as_dict(self) -> dict:
        """For JSON: numbers that are not finite are None."""
        found = dataclasses.asdict(self)
        found["bytes"] = found.pop("nbytes")
        found["shape"] = list(self.shape)
        for key in ("snr_db", "output_snr_db"):
            value = found[key]
            found[key] = round(value, 2) if value is not None and math.isfinite(value) else None
        return found


def _after_norm(x: Node) -> np.ndarray | None:
    """The mean square of each column that a normalised operand has, without data: gain^2 + bias^2."""
    turned = None
    while x.op == "hadamard" or (x.op == "reshape" and x.shape[-1:] == x.inputs[0].shape[-1:]):
        turned = x if x.op == "hadamard" else turned
        x = x.inputs[0]
    if x.op not in ("layer_norm", "rms_norm") or x["axis"] != x.rank - 1:
        return None
    gain, bias = x.inputs[1], x.inputs[2] if x.op == "layer_norm" else None
    if gain is None or gain.op != "constant" or gain.shape != x.shape[-1:]:
        return None
    square = np.square(gain["data"].array(), dtype=np.float32)
    if bias is not None and bias.op == "constant" and bias.shape == gain.shape:
        square = square + np.square(bias["data"].array(), dtype=np.float32)
    if turned is not None:  # each of a block is a sum of all, with signs
        for begin, end in spans(len(square), turned["block"]):
            square[begin:end] = square[begin:end].mean()
    return square if np.isfinite(square).all() and square.max() > 0 else None


def plain(w: Node) -> bool:
    """A constant matrix of f32."""
    static = w.op == "constant" and w.rank == 2 and w.type.encoding is None and w.type.layout == "row"
    return static and w.dtype == "f32" and all(isinstance(d, int) for d in w.shape)


def _equal(a: Data, b: Data) -> bool:
    """Whether two large weights hold the same numbers."""
    if a.type != b.type:
        return False

    def rows(begin: int, end: int) -> bool:
        return np.array_equal(a.rows(begin, end)["value"], b.rows(begin, end)["value"])

    n, step = a.shape[0], max(1, BLOCK // (4 * a.shape[1]))
    return rows(n // 2, n // 2 + 1) and all(rows(i, min(n, i + step)) for i in range(0, n, step))


# --- the policy ----------------------------------------------------------------------------------------------------


class Quantizer:
    """Decides for each constant and role once, whoever reads it; `choices` is the report."""

    def __init__(self, options: Options, graph: Graph | None = None):
        self.options = options
        self.choices: dict[object, Choice] = {}
        self._done = 0
        self._sizes: dict[object, int] = {}
        self._tied: dict[object, Data] = {}  # key of a weight that is also a table -> the one that is kept
        self._encoded: dict[object, Data | None] = {}
        self._names: dict[object, str] = {}
        self._importance = dict(options.importance)
        constants = {c["data"].key: c for c in (graph.nodes() if graph else ()) if c.op == "constant"}
        self._total = sum(math.prod(c.shape) for c in constants.values())
        read: dict[str, dict[object, Data]] = {"linear": {}, "embedding": {}}
        for node in graph.nodes() if graph else ():
            for role, position in (("linear", 1), ("embedding", 0)):
                if node.op == {"linear": "linear", "embedding": "gather"}[role]:
                    w = node.inputs[position]
                    if w is not None and plain(w) and (role == "linear" or node["axis"] == 0):
                        read[role].setdefault(w["data"].key, w["data"])
                        self._names.setdefault((w["data"].key, role), graph.origin(node) if graph else node.op)
                        importance = _after_norm(node.inputs[0]) if role == "linear" else None
                        if importance is not None:
                            self._importance.setdefault(w["data"].key, importance)
        self._tie(read["embedding"].values(), read["linear"].values())
        for role, datas in read.items():
            for data in datas.values():
                if self._decides(data, role) is None:
                    self._sizes[self._tied.get(data.key, data).key, role] = math.prod(data.shape)

    def _tie(self, tables: Iterable[Data], weights: Iterable[Data]) -> None:
        """Finds tables that a linear reads too: by what they are, or (exporters copy them) by content."""
        for table in tables:
            for w in weights if math.prod(table.shape) >= TABLE else ():
                if w.key == table.key or _equal(w, table):
                    self._tied[w.key] = self._tied[table.key] = table
                    if w.key in self._importance:
                        self._importance.setdefault(table.key, self._importance[w.key])

    def encode(self, data: Data, role: str) -> Data | str:
        """The constant's encoded form, or the reason why it stays."""
        if data.key in self._tied:
            data, role = self._tied[data.key], "tied"
        key = (data.key, role)
        if key not in self._encoded:
            self._encoded[key], self.choices[key] = self._decide(data, role)
        return self._encoded[key] or self.choices[key].reason

    def _decide(self, data: Data, role: str) -> tuple[Data | None, Choice]:
        shape, k = data.shape, data.shape[1]
        name = self._names.get((data.key, "embedding" if role == "tied" else role), role)
        by = 8 if role != "embedding" and self.options.activations == "int8" else 32

        def keep(reason: str):
            return None, Choice(name, role, shape, 32, 0, False, math.inf, nbytes(shape, None), reason)

        def as_chosen(new: Data, snr: float, reason: str = ""):
            e = new.type.encoding
            assert e is not None
            return new, Choice(name, role, shape, e.bits, e.group, e.zero, snr, nbytes(shape, e), reason, None, by)

        if reason := self._decides(data, role):
            return keep(reason)
        if (done := self.options.solved.get(data.key)) is not None:
            e = done.data.type.encoding
            assert e is not None
            why = self.wanted(data, role)[1]
            return done.data, Choice(name, role, shape, e.bits, e.group, e.zero, done.snr_db, nbytes(shape, e), why,
                                     done.output_snr_db, by)  # fmt: skip
        encoding, why = self.wanted(data, role)
        if encoding.bits < 8:
            new, snr = self._make(data, encoding, role)
            if math.isnan(snr):
                return keep(NOT_FINITE)
            if snr >= (LOW_SNR_DB if encoding.bits == 4 else LOW_SNR_8_DB):
                return as_chosen(new, snr, why)
            why = f"int{encoding.bits} would leave {snr:.1f} dB"
        new, snr = self._make(data, Quantized(8, self.group8(k, role)), role)
        if math.isnan(snr):
            return keep(NOT_FINITE)
        if snr < LOW_SNR_8_DB:
            return keep(f"int8 would leave {snr:.1f} dB")
        return as_chosen(new, snr, why)

    def wanted(self, data: Data, role: str) -> tuple[Quantized, str]:
        """The encoding for a weight that is to have one, unless its numbers forbid it; and why it is not of the bits
        asked for."""
        options, (n, k) = self.options, data.shape
        if (planned := options.plan.get(data.key)) is not None:
            more = planned.bits > 4 and options.weights == "int4"
            return planned, f"there was room for {planned.bits} bits here" if more else ""
        bits = 4 if options.weights == "int4" and (role == "linear" or options.embedding == 4) else 8
        if role != "linear" and options.weights == "int4" and options.embedding == 6:
            return Quantized(6, min(64, self.group8(k, role))), "embeddings are read in 6 bits"
        if bits == 8:
            why = "embeddings are read in 8 bits" if role != "linear" and options.weights == "int4" else ""
            return Quantized(8, self.group8(k, role)), why
        if role == "linear" and n * k <= min(SMALL, SHARE * self._total):
            return Quantized(8, self.group8(k)), "so small a part of the model that 4 bits save little over 8"
        if options.scheme == "table":
            return Quantized(4, 32, table=True), ""
        return Quantized(4, options.group, self._zero_points(data)), ""

    def role_of(self, data: Data) -> tuple[Data, str]:
        """The linear's weight that is stored, and its role."""
        return (self._tied[data.key], "tied") if data.key in self._tied else (data, "linear")

    def keeps(self, data: Data, role: str) -> bool:
        """Whether the weight stays as it is, whatever its numbers are."""
        return self._decides(data, role) is not None

    def _decides(self, data: Data, role: str) -> str | None:
        """Why a weight of this shape stays as it is, whatever its numbers are."""
        n, k = data.shape
        if self.options.weights == "fp32":
            return "fp32 is asked for"
        if role == "embedding" and n * k < TABLE:
            return "the table is small"
        if role != "embedding" and (n * k < TINY or min(n, k) < NARROW):
            return "too small to gain"
        return None

    def _make(self, data: Data, encoding: Quantized, role: str) -> tuple[Data, float]:
        before = self._done

        def tick(count: int) -> None:
            self._done += count
            self.options.tick(min(self._done, before + math.prod(data.shape)), sum(self._sizes.values()))

        o, op = self.options, "gather" if role == "embedding" else "linear"
        found = encoded(data, encoding, self._importance.get(data.key), o.threads, o.store, op, tick, o.layouts)
        self._done = before + (0 if math.isnan(found[1]) else math.prod(data.shape))
        return found

    def group8(self, k: int, role: str = "linear") -> int:
        """The largest group of 8 bits, up to the options', that wastes no scale on a tail."""
        group = self.options.group8 if role == "linear" else self.options.table_group
        while group > 32 and (k % group or group > k):
            group //= 2
        return group

    def _zero_points(self, data: Data) -> bool:
        """Whether 4 bits have them; "best" asks a sample of the rows."""
        o = self.options
        if o.scheme != "best":
            return o.scheme == "asymmetric"
        rows, importance = sample(data, SAMPLE_ROWS), self._importance.get(data.key)
        plain, shifted = (encoded(rows, Quantized(4, o.group, z), importance, o.threads)[1] for z in (False, True))
        return shifted >= plain + o.worthwhile_db

    # --- rules -----------------------------------------------------------------------------------------------------

    def rules(self) -> list[Rule]:
        """The phase's rules; they ask this quantizer."""
        made: list[Rule] = []

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

        return [*made, *convs.rules(self)]

    # --- convolutions ----------------------------------------------------------------------------------------------

    def rounds(self, node: Node) -> bool:
        """Whether a convolution of constant weights computes in 8 bits."""
        w, o = node.inputs[1], self.options
        assert w is not None
        key = w["data"].key
        return key in o.roundings and key not in o.in_floats and convs.in_floats(node) is None

    def encode_conv(self, data: Data, rounding: convs.Rounding | None = None) -> Data | str:
        """A convolution's weights [M, ...] in 8 bits with a scale for each output channel, for a rounded input also where
        they are few; or why they stay."""
        if data.channels is not None:
            return "it is in 8 bits"
        key = (data.key, "conv")
        if key not in self._encoded:
            self._encoded[key], self.choices[key] = self._decide_conv(data, rounding)
        return self._encoded[key] or self.choices[key].reason

    def _decide_conv(self, data: Data, rounding: convs.Rounding | None) -> tuple[Data | None, Choice]:
        o, shape = self.options, data.shape
        count, k = math.prod(shape), math.prod(shape[1:])
        reason = "fp32 is asked for" if o.weights == "fp32" else o.in_floats.get(data.key, "too small to gain")
        found, snr = None, math.inf
        if o.weights != "fp32" and (rounding is not None or (count >= TINY and k >= NARROW)):
            found, snr = (
                in_channels(data) if rounding is None else in_channels(convs.stepped(data, rounding.grid[0]), True)
            )
            if math.isnan(snr):
                found, snr, reason = None, math.inf, NOT_FINITE
            elif snr < LOW_SNR_8_DB:
                found, snr, reason = None, math.inf, f"int8 would leave {snr:.1f} dB"
        if found is None:
            return None, Choice("conv", "conv", shape, 32, 0, False, snr, 4 * count, reason)
        why = "convolutions of so few channels are kept in 8 bits" if o.weights == "int4" else ""
        why = o.in_floats.get(data.key, why)
        choice = Choice("conv", "conv", shape, 8, k, False, snr, count + 4 * shape[0], why)
        return found, dataclasses.replace(choice, activations=32 if rounding is None else 8)

    def rename(self, names: Mapping[object, str]) -> None:
        """Names by key of what the weights became: those of the graph that came out."""
        for key, data in self._encoded.items():
            if data is not None and data.key in names:
                self.choices[key].name = names[data.key]

    def report(self) -> list[Choice]:
        """Every weight that was looked at, the largest first."""
        return sorted(self.choices.values(), key=lambda c: -math.prod(c.shape))


def quantize_phase(options: Options, keep: list[Quantizer] | None = None) -> Phase:
    """The phase. The Quantizer that it used, with the report, is appended to `keep`."""

    def rules(graph: Graph) -> list[Rule]:
        from edgec.rewrites.phases import CANONICAL

        quantizer = Quantizer(options, graph)
        if keep is not None:
            keep.append(quantizer)
        return [*CANONICAL, *quantizer.rules()]

    return Phase("quantize", rules)


def products(graph: Graph, options: Options) -> Graph:
    """The graph with the products that convolutions become, as the phase makes them before it quantizes: calibration
    looks at their operands."""
    from edgec.rewrites.phases import CANONICAL

    rules = [r for r in Quantizer(options, graph).rules() if r.name == "conv_to_linear"]
    return run(graph, [Phase("products", [*CANONICAL, *rules])])


def readers(graph: Graph) -> dict[object, str]:
    """Key of a weight -> the source nodes that read it: products before tables."""
    found: dict[object, str] = {}
    for op, position in (("linear", 1), ("gather", 0), ("conv", 1)):
        for node in graph.nodes():
            w = node.inputs[position] if node.op == op else None
            if w is not None and w.op == "constant":
                found.setdefault(w["data"].key, graph.origin(node))
    return found


def quantize(graph: Graph, options: Options | None = None, **fields) -> tuple[Graph, list[dict]]:
    """The graph with its weights quantized (by Options, or its fields as arguments), and what became of each weight, the
    largest first: name, role, shape, bits, group, zero, snr_db (None: as it was), output_snr_db (None without
    calibration), bytes and reason.

    Raises EdgecError EC1001 where an option is not one of those it can be.
    """
    keep: list[Quantizer] = []
    graph = run(graph, [quantize_phase(options or Options(**fields), keep)])
    keep[0].rename(readers(graph))
    return graph, [c.as_dict() for c in keep[0].report()]
