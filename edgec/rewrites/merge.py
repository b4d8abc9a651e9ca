"""Products of one operand as one product: gate and up with their activation, queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgec.ir.data import Data, Parts
from edgec.ir.dims import Dim
from edgec.ir.node import Graph, Node, constant
from edgec.ir.ops.nn import GATED, PANEL
from edgec.ir.types import TensorType
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, weights
from edgec.rewrites.fold import const_node
from edgec.rewrites.linear import interleave
from edgec.rewrites.pattern import Pattern, b, optional, p, var
from edgec.rewrites.states import rebuilt

RULES: list[Rule] = []
_GATED_BY = {plain: gated for gated, plain in GATED.items()}
HALF = PANEL // 2


def _weight(name: str) -> Pattern:
    return Pattern(ops=("constant",), name=name, where=lambda n: n.type.layout == "row")


def _bias_or_zeros(bias: Node | None, rows: int) -> Node:
    return constant(np.zeros(rows, np.float32)) if bias is None else bias


def stacked(parts: Sequence[Node], interleaved: bool = False) -> Node | None:
    """Constants [n, ...] above each other, or two of them with 8 rows of each in turn; the integers of quantized ones
    stay as they are. None where the encodings differ."""
    types = [n.type for n in parts]
    if len({t.encoding for t in types}) > 1:
        return None
    if types[0].encoding is None:
        return interleave(*parts) if interleaved else const_node("concat", *parts, axis=0)
    datas: list[Data] = [n["data"] for n in parts]
    read = _interleaved(datas) if interleaved else _above(datas)
    total = sum(d.shape[0] for d in datas)
    type = TensorType(types[0].dtype, (total, *types[0].shape[1:]), types[0].encoding)
    key = ("interleaved" if interleaved else "stacked", *(d.key for d in datas))
    return constant(Data(type, key, lambda: read(0, total), rows=read))


def _above(datas: Sequence[Data]) -> Callable[[int, int], Parts]:
    def rows(begin: int, end: int) -> Parts:
        found, at = [], 0
        for d in datas:
            low, high = max(begin, at) - at, min(end, at + d.shape[0]) - at
            if low < high:
                found.append(d.rows(low, high))
            at += d.shape[0]
        return {name: np.concatenate([f[name] for f in found]) for name in found[0]}

    return rows


def _interleaved(datas: Sequence[Data]) -> Callable[[int, int], Parts]:
    def rows(begin: int, end: int) -> Parts:
        first, last = begin // PANEL, -(-end // PANEL)
        both = [d.rows(first * HALF, last * HALF) for d in datas]
        out = {}
        for name in both[0]:
            panels = [f[name].reshape(last - first, 1, HALF, *f[name].shape[1:]) for f in both]
            joined = np.concatenate(panels, axis=1).reshape(-1, *both[0][name].shape[1:])
            out[name] = joined[begin - first * PANEL : end - first * PANEL]
        return out

    return rows


def _gated(act="silu", rows: int = 16, other: bool = False, bias: bool = False):
    def build():
        x = f32("x", 1, "s", 5)
        gate = b.linear(x, weights(rows, 5), weights(rows, seed=5) if bias else None, act=act)
        return b.mul(gate, b.linear(f32("z", 1, "s", 5) if other else x, weights(rows, 5, seed=1)))

    return build


@rule(
    p.mul(
        p.linear(
            var("x"), _weight("gate"), optional("gate_bias"), act=lambda a: a in _GATED_BY, norm="none", name="a"
        ).single(),
        p.linear(var("x"), _weight("up"), optional("up_bias"), act="none", norm="none", name="c").single(),
    ),
    promise="ulp:8",
    examples=[_gated(), _gated("gelu", 8), _gated("gelu_tanh", bias=True)],
    misses=[_gated("relu"), _gated(rows=12), _gated(other=True)],
    into=RULES,
)
def gated_linear(m: Match):
    rows = m.gate.shape[0]
    if m.gate.shape != m.up.shape or rows % HALF or m.root.shape != m.a.shape:
        return "gate and up are not of one size, in eights of rows"
    if m.a["activations"] != m.c["activations"]:
        return "gate and up are quantized in different ways"
    w = stacked((m.gate, m.up), interleaved=True)
    if w is None:
        return "gate and up are stored in different ways"
    bias = None
    if m.gate_bias is not None or m.up_bias is not None:
        if any(c is not None and c.op != "constant" for c in (m.gate_bias, m.up_bias)):
            return "a bias is no constant"
        bias = interleave(_bias_or_zeros(m.gate_bias, rows), _bias_or_zeros(m.up_bias, rows))
    return b.linear(m.x, w, bias, act=_GATED_BY[m.a["act"]], activations=m.a["activations"])


def merge_siblings(graph: Graph) -> Graph:
    """Linears without activation that read one operand become one, and slices of its columns: queries, keys, values."""
    families: dict[tuple, list[Node]] = {}
    for n in graph.nodes():
        if n.op != "linear" or n["act"] != "none" or n["norm"] != "none" or any(n.inputs[i] for i in (3, 4, 5)):
            continue
        w, bias = n.inputs[1:3]
        if w.op == "constant" and w.type.layout == "row" and (bias is None or bias.op == "constant") and n.rank == 3:
            families.setdefault((n.inputs[0], n["activations"], w.dtype, w.type.encoding, w.shape[1]), []).append(n)
    new: dict[Node, Node] = {}
    for (x, *_), family in families.items():
        if len(family) < 2:
            continue
        w = stacked([n.inputs[1] for n in family])
        assert w is not None
        bias = None
        if any(n.inputs[2] is not None for n in family):
            bias = const_node("concat", *(_bias_or_zeros(n.inputs[2], n.shape[-1]) for n in family), axis=0)
        whole = b.linear(x, w, bias, activations=family[0]["activations"])
        graph.origins[whole] = tuple(o for n in family for o in graph.origins.get(n, ()))
        start: Dim = 0
        for n in family:
            starts = (*(0,) * (n.rank - 1), start)
            new[n] = b.slice(whole, starts=starts, sizes=n.shape, steps=(1,) * n.rank)
            start = start + n.shape[-1]
    return rebuilt(graph, new) if new else graph
