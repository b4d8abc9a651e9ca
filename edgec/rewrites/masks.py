"""Attention masks taken apart: causal, a window, and padding of the keys.

The mask's element at [b, h, s, t] is traced back to a formula over the indices, sizes and small inputs (scalar.py):
`t <= s + past` is the attribute causal, `t > s + past - W` the attribute window, and what is left must not depend on
s, and becomes a mask [B, 1, 1, T]. A row that sees nothing at all (of padding) has another arbitrary value afterwards.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgec.ir.dims import Dim, Expr, substitute, symbol, symbols_of
from edgec.ir.node import Node, constant
from edgec.ir.types import FLOATS, INTS, numpy_dtype
from edgec.rewrites import formulas as fm
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, i64, num
from edgec.rewrites.pattern import b, p, var
from edgec.rewrites.scalar import Cases, Opaque, Tracer

RULES: list[Rule] = []
HIDDEN = -1e4  # a mask value from here on leaves nothing of a score: onnxruntime's default
B_, S_, T_ = "~b", "~s", "~t"  # the indices


@dataclass(frozen=True)
class Parts:
    """causal, window: as attention's. mask: added to the scores of the keys, [B or 1, 1, 1, T]."""

    causal: bool
    window: int
    mask: Node | None


# --- from a formula back to nodes -----------------------------------------------------------------------------------


class _Rebuilder:
    """Nodes [B or 1, 1, 1, T or 1] of formulas that depend on b and t only."""

    def __init__(self, tracer: Tracer, batch: Dim, keys: Dim):
        self.tracer, self.sizes = tracer, {B_: batch, T_: keys}

    def formula(self, f: fm.Formula) -> Node:
        def join(kind: str, sides: list[Node]) -> Node:
            out = sides[0]
            for side in sides[1:]:
                out = getattr(b, kind)(out, side)
            return out

        return fm.fold(f, self._atom, join)

    def _atom(self, f: fm.Formula) -> Node:
        if isinstance(f, bool):
            return constant(np.full((1, 1, 1, 1), f))
        kind, e = f
        if kind in ("leaf", "unleaf"):
            leaf = self._leaf(e, "bool")
            return leaf if kind == "leaf" else getattr(b, "not")(leaf)
        dtype = "i64"
        for name in symbols_of(e):
            if name in self.tracer.leaves and self.tracer.leaves[name][0].dtype in FLOATS:
                dtype = self.tracer.leaves[name][0].dtype
        # alone on its side where it can be: mask != 0
        value, zero = self._sum(e - self._whole(e), dtype), constant(np.asarray(-self._whole(e), numpy_dtype(dtype)))
        return getattr(b, kind)(value, zero)

    @staticmethod
    def _whole(e: Expr) -> int:
        return dict(e.terms).get((), 0)

    def _sum(self, e: Dim, dtype: str) -> Node:
        assert isinstance(e, Expr)
        total: Node | None = None
        for monomial, c in e.terms:
            if len(monomial) != 1 or monomial[0].op != "sym" or (monomial[0].args[0] not in self._known()):
                term = self._cast(b.dim_value(value=Expr(((monomial, c),))), dtype)
                if any(n in self._known() for n in symbols_of(Expr(((monomial, c),)))):
                    raise Opaque("a product of indices")
            else:
                term = self._value(monomial[0].args[0], dtype)
                term = term if c == 1 else b.mul(term, constant(np.asarray(c, numpy_dtype(dtype))))
            total = term if total is None else b.add(total, term)
        assert total is not None
        return total

    def _known(self) -> set[str]:
        return {B_, S_, T_} | set(self.tracer.leaves)

    def _value(self, name: str, dtype: str) -> Node:
        if name == S_:
            raise Opaque("it depends on the query's position")
        if name in self.sizes:
            shape: list[Dim] = [1, 1, 1, 1]
            shape[0 if name == B_ else 3] = self.sizes[name]
            return self._cast(b.reshape(b.iota(size=self.sizes[name]), shape=tuple(shape)), dtype)
        return self._leaf(name, dtype)

    @staticmethod
    def _cast(x: Node, dtype: str) -> Node:
        return x if x.dtype == dtype else b.cast(x, dtype=dtype)

    def _leaf(self, name: str, dtype: str) -> Node:
        """The leaf's node cut and turned so that it is indexed by [b, 0, 0, t]."""
        node, index = self.tracer.leaves[name]
        starts: list[Dim] = []
        sizes: list[Dim] = []
        axes: dict[str, int] = {}
        for axis, i in enumerate(index):
            used = symbols_of(i) & {B_, S_, T_}
            if S_ in used or len(used) > 1 or any(n.startswith(fm.LEAF) for n in symbols_of(i)):
                raise Opaque("it depends on the query's position" if S_ in used else "an index that is computed")
            if not used:
                starts.append(i)
                sizes.append(1)
                continue
            (which,) = used
            start = substitute(i, {which: 0})
            if which in axes or i - start != symbol(which):
                raise Opaque("an index that is computed")
            axes[which] = axis
            starts.append(start)
            sizes.append(self.sizes[which])
        if tuple(sizes) != node.shape:
            node = b.slice(node, starts=tuple(starts), sizes=tuple(sizes), steps=(1,) * node.rank)
        if len(axes) == 2 and axes[B_] > axes[T_]:
            perm = list(range(node.rank))
            perm[axes[B_]], perm[axes[T_]] = axes[T_], axes[B_]
            node = b.transpose(node, perm=tuple(perm))
        shape = (self.sizes[B_] if B_ in axes else 1, 1, 1, self.sizes[T_] if T_ in axes else 1)
        return self._cast(b.reshape(node, shape=shape) if node.shape != shape else node, dtype)


# --- the parts of a mask ---------------------------------------------------------------------------------------------

_memo: weakref.WeakKeyDictionary[Node, dict] = weakref.WeakKeyDictionary()


def parts_of(mask: Node, shape: tuple[Dim, Dim, Dim, Dim], lengths: Node | None = None) -> Parts | str:
    """A mask for scores [B, H, S, T] as attributes and a mask [B or 1, 1, 1, T], or the reason why it stays.

    lengths [B]: taken to be T - S in each row: where a cache keeps them itself.
    """
    known = _memo.setdefault(mask, {})
    key = (shape, lengths)
    if key not in known:
        try:
            known[key] = _parts(mask, shape, lengths)
        except Opaque as reason:
            known[key] = str(reason)
    return known[key]


def _parts(mask: Node, shape: tuple[Dim, Dim, Dim, Dim], lengths: Node | None) -> Parts:
    batch, _, queries, keys = shape
    sizes = {B_: batch, S_: queries, T_: keys}
    tracer = Tracer({n: d for n, d in sizes.items() if d != 1}, {} if lengths is None else {lengths: keys - queries})
    here = tuple(0 if d == 1 else symbol(n) for n, d in sizes.items())
    index = (here[0], 0, here[1], here[2])[4 - mask.rank :]
    if mask.rank >= 3 and mask.shape[-3] != 1:
        raise Opaque("the mask differs between heads")
    cases = _without_units(tracer, tracer.cases(mask, index))
    shown = fm.any_of(f for f, v in cases if v == 0)
    hidden: list[Any] = [v for _, v in cases if v != 0]
    if any(isinstance(v, Expr) or not v <= HIDDEN for v in hidden):
        raise Opaque("it is more than a choice of what is seen")
    offset: Dim = keys - queries
    causal, window, rest = False, 0, []
    for f in fm.factors(shown):
        f = _within(f, tracer)
        if f is True:
            continue
        if not isinstance(f, bool) and f[0] == "ge" and S_ in fm.symbols(f):
            e = f[1] - (symbol(S_) + offset - here[2])
            if e == 0 and not causal:
                causal = True
                continue
            width = f[1] - (here[2] - symbol(S_) - offset) + 1
            if isinstance(width, int) and width > 0 and not window:
                window = width
                continue
        if S_ in fm.symbols(f) or any(S_ in symbols_of(i) for n in fm.symbols(f) if n in tracer.leaves
                                      for i in tracer.leaves[n][1]):  # fmt: skip
            raise Opaque("it depends on the query's position in another way")
        rest.append(f)
    if not rest:
        return Parts(causal, window, None)
    finite = [v for v in hidden if not isinstance(v, float)]
    lowest = float(np.finfo(numpy_dtype("f32")).min)
    fill = max(float(max(finite)), lowest) if finite else -math.inf
    keep = _Rebuilder(tracer, batch, keys).formula(fm.all_of(rest))
    mask = b.where(keep, constant(0, mask.dtype), constant(fill, mask.dtype))
    return Parts(causal, window, mask)


def _without_units(tracer: Tracer, cases: Cases) -> Cases:
    """(1 - mask) * low and the like, where the only unknown is an integer input: that is taken to be 0 or 1."""
    out: Cases = []
    for f, v in cases:
        names = sorted(symbols_of(v)) if isinstance(v, Expr) else []
        if len(names) != 1 or names[0] not in tracer.leaves or tracer.leaves[names[0]][0].dtype not in (*INTS, "bool"):
            out.append((f, v))
            continue
        leaf = symbol(names[0])
        off, on = (substitute(v, {names[0]: i}) for i in (0, 1))
        if any(w != 0 and (isinstance(w, Expr) or w > HIDDEN) for w in (off, on)):
            raise Opaque("it is more than a choice of what is seen")
        is_off = tracer.eq(leaf)
        out += [(fm.all_of([f, is_off]), off), (fm.all_of([f, fm.negated(is_off)]), on)]
    return tracer.merged(out)


def _within(f: fm.Formula, tracer: Tracer) -> fm.Formula:
    """Without the conditions that a key is inside of a leaf: reading it checks that."""
    for node, index in tracer.leaves.values():
        for i, d in zip(index, node.shape):
            if isinstance(i, Expr):
                f = fm.given(f, fm.at_least_zero(d - 1 - i)) if not isinstance(fm.at_least_zero(d - 1 - i), bool) else f
    return f


def _causal_example(window: int = 0, padding: bool = False, fill: float = -3.4e38, offset: int = 0):
    def build():
        q, k, v = f32("q", 2, 4, "s", 8), f32("k", 2, 2, "past", 8), f32("v", 2, 2, "past", 8)
        new = f32("new", 2, 2, "s", 8)
        k, v = b.concat(k, new, axis=2), b.concat(v, new, axis=2)
        s, t = q.shape[2], k.shape[2]
        here = b.reshape(b.add(b.iota(size=s), b.dim_value(value=t - s + offset)), shape=(s, 1))
        seen = b.le(b.iota(size=t), here)
        if window:
            seen = getattr(b, "and")(seen, b.gt(b.iota(size=t), b.sub(here, constant(window))))
        if padding:
            first = b.eq(b.iota(size=t), constant(0))  # so that each query sees something
            keep = getattr(b, "or")(b.ne(i64("mask", 2, t), constant(0)), first)
            seen = getattr(b, "and")(seen, b.reshape(keep, shape=(2, 1, 1, t)))
        return b.attention(q, k, v, b.where(seen, num(0), num(fill)), scale=0.5)

    return build


@rule(
    p.attention(var("q"), var("k"), var("v"), var("mask"), name="attention"),
    promise="ulp:64",
    examples=[
        _causal_example(),
        _causal_example(window=2),
        _causal_example(padding=True),
        _causal_example(window=3, padding=True, fill=-math.inf),
    ],
    misses=[_causal_example(fill=-10.0), _causal_example(offset=1)],
    into=RULES,
)
def mask_as_attributes(m: Match):
    node = m.attention
    batch, heads, queries = _sizes(m.q, node["q_layout"])
    keys = _sizes(m.k, node["k_layout"])[2]
    parts = parts_of(m.mask, (batch, heads, queries, keys))
    if isinstance(parts, str):
        return parts
    if parts.mask is not None and not (parts.causal or parts.window):
        return "it is of the keys alone"
    if (parts.causal and node["causal"]) or (parts.window and node["window"]):
        return "attention has the attribute already"
    changes = {"causal": node["causal"] or parts.causal, "window": node["window"] or parts.window}
    return b.attention(m.q, m.k, m.v, parts.mask, **(dict(node.attrs) | changes))


def _sizes(x: Node, layout: str) -> tuple[Dim, Dim, Dim]:
    """Batch, heads, steps."""
    return (x.shape[0], x.shape[2], x.shape[1]) if layout == "bshd" else x.shape[:3]
