"""Which element of which operand each output element needs: groups of nodes traced to affine indices over loops.

Movement ops vanish here: they only change indices. What can't be said affinely is a `Pick` (concat, pad: which part an
index falls into), a `Gathered` index (read at run time), or a `Split` (a reshape that no loop split resolves: div and
mod).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

from edgec.ir.dims import Atom, Dim, Expr, is_ge, product


@dataclass(frozen=True)
class Ix:
    """sum(coefficient * loop) + base + sum(coefficient * index known at run time)."""

    coefs: tuple[tuple[int, Dim], ...] = ()
    base: Dim = 0
    dynamic: tuple[tuple[Dim, Any], ...] = ()

    def coef(self, loop: int) -> Dim:
        return next((c for k, c in self.coefs if k == loop), 0)

    def __add__(self, other: Ix | Dim) -> Ix:
        if not isinstance(other, Ix):
            return Ix(self.coefs, self.base + other, self.dynamic)
        coefs = dict(self.coefs)
        for k, c in other.coefs:
            coefs[k] = coefs.get(k, 0) + c
        kept = tuple(sorted((k, c) for k, c in coefs.items() if c != 0))
        return Ix(kept, self.base + other.base, self.dynamic + other.dynamic)

    def scale(self, f: Dim) -> Ix:
        if f == 0:
            return Ix()
        return Ix(tuple((k, c * f) for k, c in self.coefs), self.base * f, tuple((c * f, d) for c, d in self.dynamic))

    def loops(self) -> set[int]:
        """The loops it depends on, through run-time indices too."""
        return {k for k, _ in self.coefs}.union(*(i.loops() for _, d in self.dynamic for i in d.ixs()))


def linear(ixs, shape) -> Ix:
    """The offset of an element in a row-major array."""
    total, stride = Ix(), 1
    for ix, d in zip(reversed(ixs), reversed(shape)):
        total, stride = total + ix.scale(stride), d * stride
    return total


@dataclass(frozen=True)
class Gathered:
    """The integer that `value` holds, counted from the end if negative, kept within [0, size)."""

    value: Any  # an indexed expression
    size: Dim

    def ixs(self):
        return tuple(self.value.ixs())


@dataclass(frozen=True)
class Split:
    """(ix // stride) % size, or without the modulus where size is None."""

    ix: Ix
    stride: Dim
    size: Dim | None

    def ixs(self):
        return (self.ix,)


@dataclass(frozen=True)
class Reflect:
    """The index within [0, size) after mirroring at both ends any number of times (the edges not repeated)."""

    ix: Ix
    size: Dim

    def ixs(self):
        return (self.ix,)


# indexed expressions
@dataclass(frozen=True)
class Load:
    node: Any
    offset: Ix

    def ixs(self):
        yield self.offset


@dataclass(frozen=True)
class Index:
    """An index as a number: iota."""

    ix: Ix
    dtype: str

    def ixs(self):
        yield self.ix


@dataclass(frozen=True)
class Literal:
    value: Any
    dtype: str

    def ixs(self):
        return iter(())


@dataclass(frozen=True, eq=False)
class Compute:
    node: Any
    args: tuple
    bounded: bool = False  # scalar.BOUNDED's cheaper form will do

    def ixs(self):
        return iter({id(i): i for a in self.args for i in a.ixs()}.values())


@dataclass(frozen=True, eq=False)
class Pick:
    """parts[k] where cuts[k-1] <= ix < cuts[k]."""

    ix: Ix
    cuts: tuple[Dim, ...]
    parts: tuple

    def ixs(self):
        yield self.ix
        for p in self.parts:
            yield from p.ixs()


@dataclass(frozen=True, eq=False)
class Reduced:
    """The reduction of `value` over loops; `node` says which."""

    node: Any
    value: Any
    loops: tuple[int, ...]
    bounded: bool = False

    def ixs(self):
        return self.value.ixs()


class Refused(Exception):
    """The group does not have the form that its template needs."""


class RefineLoop(Exception):
    """A loop has to be split so that its innermost part has this extent."""

    def __init__(self, loop: int, inner: Dim):
        self.loop, self.inner = loop, inner


def nonunit(d: Dim) -> Dim:
    """0 where a dim is 1, else 1: what an index of a broadcast operand is multiplied by."""
    if isinstance(d, int):
        return int(d != 1)
    return Expr((((Atom("nonunit", (d,)),), 1),))


def is_zero_or_one(d: Dim) -> bool:
    return isinstance(d, Expr) and len(d.terms) == 1 and d.terms[0][1] == 1 and all(
        a.op == "nonunit" for a in d.terms[0][0])  # fmt: skip


def known_ge(a: Dim, b: Dim) -> bool:
    return is_ge(a, b) is True


def match_groups(a, b) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Positions of two shapes of equal products, in the smallest runs whose products are equal too, without ones."""
    ia = [i for i, d in enumerate(a) if d != 1]
    ib = [i for i, d in enumerate(b) if d != 1]
    groups = []
    while ia or ib:
        for total in range(2, len(ia) + len(ib) + 1):
            cuts = [(n, total - n) for n in range(1, total) if n <= len(ia) and total - n <= len(ib)]
            found = next(
                (c for c in cuts if product(a[i] for i in ia[: c[0]]) == product(b[i] for i in ib[: c[1]])), None
            )
            if found:
                break
        else:
            found = (len(ia), len(ib))
        groups.append((tuple(ia[: found[0]]), tuple(ib[: found[1]])))
        ia, ib = ia[found[0] :], ib[found[1] :]
    return groups


class Tracer:
    """Turns nodes of a group into indexed expressions. extents: loop -> Dim."""

    def __init__(self, inside: set, extents: dict[int, Dim]):
        self.inside, self.extents = inside, extents
        self.memo: dict = {}
        self.splits = 0  # reshapes left to div and mod
        self.may_refine = True
        self.dims: list[list[int]] = []  # the loops of each dim of the traced shape
        self.bounded: frozenset = frozenset()
        self.rows: tuple | None = None  # (full shape, reduced axes, indices of the full shape)

    def value(self, node, ixs: tuple[Ix, ...]):
        key = (node, ixs)
        if key not in self.memo:
            self.memo[key] = self._value(node, ixs)
        return self.memo[key]

    def _value(self, node, ixs):
        scalar = inline_scalar(node)
        if scalar is not None:
            return Literal(scalar, node.dtype)
        if node not in self.inside:
            return Load(node, linear(ixs, node.shape))
        if node.op in MOVEMENT:
            return getattr(self, "_" + node.op)(node, ixs)
        if node.op in REDUCE or node.op in ARG:
            return self._reduction(node, ixs)
        args = tuple(self.value(x, self.broadcast(x, node, ixs)) for x in node.inputs)
        return Compute(node, args, node in self.bounded)

    def _reduction(self, node, ixs):
        if self.rows is None:
            raise Refused(f"a {node.op} inside a group of another kind")
        shape, axes, full = self.rows
        keep = node.rank == len(shape)
        own = tuple(Ix() if i in axes else ix for i, ix in enumerate(full) if keep or i not in axes)
        x = node.inputs[0]
        if x.shape != shape or ixs != own:
            raise Refused(f"{node.op} of {x.type} is read in another order than its rows are")
        loops = tuple(k for a in axes for k in self.dims[a])
        return Reduced(node, self.value(x, full), loops, node in self.bounded)

    def broadcast(self, x, node, ixs):
        shift = node.rank - x.rank
        return self.fit(x.shape, node.shape[shift:], ixs[shift:])

    def fit(self, shape, to, ixs):
        """The indices of an operand of this shape that broadcasts to `to`."""
        return tuple(ix if d == t or (isinstance(d, int) and d != 1) else ix.scale(nonunit(d))
                     for d, t, ix in zip(shape, to, ixs))  # fmt: skip

    # movement
    def _expand(self, node, ixs):
        return self.value(node.inputs[0], self.broadcast(node.inputs[0], node, ixs))

    def _transpose(self, node, ixs):
        back: list = [None] * len(ixs)
        for ix, p in zip(ixs, node["perm"]):
            back[p] = ix
        return self.value(node.inputs[0], tuple(back))

    def _slice(self, node, ixs):
        moved = (ix.scale(step) + start for ix, start, step in zip(ixs, node["starts"], node["steps"]))
        return self.value(node.inputs[0], tuple(moved))

    def _iota(self, node, ixs):
        return Index(ixs[0], node.dtype)

    def _dim_value(self, node, ixs):
        return Index(Ix(base=node["value"]), node.dtype)

    def _reshape(self, node, ixs):
        x = node.inputs[0]
        out: list = [Ix()] * x.rank
        for ins, outs in match_groups(x.shape, node.shape):
            flat = linear([ixs[o] for o in outs], [node.shape[o] for o in outs])
            for i, part in zip(ins, self.split(flat, [x.shape[i] for i in ins])):
                out[i] = part
        return self.value(x, tuple(out))

    def split(self, flat: Ix, sizes) -> list[Ix]:
        """A flat index over several dims as one index each."""
        if len(sizes) <= 1:
            return [flat] * len(sizes)
        if 0 in sizes:  # nothing is there to be read
            return [Ix()] * len(sizes)
        strides = [product(sizes[k + 1 :]) for k in range(len(sizes))]
        parts = self._assign(flat, sizes, strides)
        if parts is not None:
            return parts
        self.splits += 1
        return [Ix(dynamic=((1, Split(flat, s, sizes[k] if k else None)),)) for k, s in enumerate(strides)]

    def _assign(self, flat: Ix, sizes, strides):
        if flat.dynamic:
            return None
        parts = [Ix() for _ in sizes]
        for loop, c in flat.coefs:
            home = next((k for k, s in enumerate(strides) if _quotient(c, s) is not None), None)
            if home is None:
                return None
            q = _quotient(c, strides[home])
            parts[home] = parts[home] + Ix(((loop, q),))
            # A loop that runs past its dim is split at the dim's end.
            if home and not known_ge(sizes[home], q * self.extents[loop]):
                inner = _quotient(sizes[home], q)
                if self.may_refine and inner is not None and _quotient(self.extents[loop], inner) is not None:
                    raise RefineLoop(loop, inner)
                return None
        if isinstance(flat.base, int) and all(isinstance(s, int) for s in strides):
            rest = flat.base
            for k, s in enumerate(strides):
                parts[k] = parts[k] + rest // s
                rest = rest % s
        elif flat.base != 0:
            return None
        for k, part in enumerate(parts):
            last = part.base + reduce(lambda t, kc: t + kc[1] * (self.extents[kc[0]] - 1), part.coefs, 0)
            negative = any(not known_ge(c, 0) for _, c in part.coefs) or not known_ge(part.base, 0)
            if k and (negative or not (known_ge(sizes[k] - 1, last) or self._one_full_loop(part, sizes[k]))):
                return None
        return parts

    def _one_full_loop(self, part: Ix, size: Dim) -> bool:
        return (
            part.base == 0 and len(part.coefs) == 1 and part.coefs[0][1] == 1 and self.extents[part.coefs[0][0]] == size
        )

    def _concat(self, node, ixs):
        axis, start = node["axis"], 0
        cuts, parts = [], []
        for x in node.inputs:
            moved = list(ixs)
            moved[axis] = ixs[axis] + -start
            parts.append(self.value(x, tuple(moved)))
            start = start + x.shape[axis]
            cuts.append(start)
        return Pick(ixs[axis], tuple(cuts), tuple(parts)) if len(parts) > 1 else parts[0]

    def _pad(self, node, ixs):
        x, value = node.inputs
        return self._pad_axis(node, x, value, ixs, list(ixs), 0)

    def _pad_axis(self, node, x, value, ixs, at, axis):
        while axis < x.rank and node["before"][axis] == 0 == node["after"][axis]:
            axis += 1
        if axis == x.rank:
            return self.value(x, tuple(at))
        before, after, size = node["before"][axis], node["after"][axis], x.shape[axis]
        inside = ixs[axis] + -before

        def rest(ix):
            return self._pad_axis(node, x, value, ixs, at[:axis] + [ix] + at[axis + 1 :], axis + 1)

        mode = node["mode"]
        if mode == "constant":
            filler = self.value(value, ()) if value is not None else Literal(0, node.dtype)
            low = high = lambda: filler
        elif mode == "edge":
            low, high = (lambda: rest(Ix())), (lambda: rest(Ix(base=size - 1)))
        elif mode == "reflect":
            low = high = lambda: rest(Ix(dynamic=((1, Reflect(inside, size)),)))
            if known_ge(size - 1, before) and known_ge(size - 1, after):
                low, high = (lambda: rest(inside.scale(-1))), (lambda: rest(inside.scale(-1) + 2 * (size - 1)))
        else:
            low = high = lambda: rest(Ix(dynamic=((1, Split(inside, 1, size)),)))
            if known_ge(size, before) and known_ge(size, after):
                low, high = (lambda: rest(inside + size)), (lambda: rest(inside + -size))
        parts, cuts = [rest(inside)], [before + size]
        if not known_ge(0, before):
            parts, cuts = [low(), *parts], [before, *cuts]
        if not known_ge(0, after):
            parts, cuts = [*parts, high()], [*cuts, before + size + after]
        return Pick(ixs[axis], tuple(cuts), tuple(parts)) if len(parts) > 1 else parts[0]

    def _gather(self, node, ixs):
        x, indices = node.inputs
        axis = node["axis"]
        at = self.value(indices, ixs[axis : axis + indices.rank])
        picked = self._gathered(at, x.shape[axis])
        return self.value(x, (*ixs[:axis], picked, *ixs[axis + indices.rank :]))

    def _gather_elements(self, node, ixs):
        x, indices = node.inputs
        at = list(ixs)
        at[node["axis"]] = self._gathered(self.value(indices, ixs), x.shape[node["axis"]])
        return self.value(x, tuple(at))

    def _gather_nd(self, node, ixs):
        x, indices = node.inputs
        batch, lead, depth = node["batch_dims"], indices.rank - 1, indices.shape[-1]
        picks = [
            self._gathered(self.value(indices, (*ixs[:lead], Ix(base=k))), x.shape[batch + k]) for k in range(depth)
        ]
        return self.value(x, (*ixs[:batch], *picks, *ixs[lead:]))

    def _gathered(self, value, size) -> Ix:
        if isinstance(value, Literal) and isinstance(size, int):
            index = int(value.value)
            return Ix(base=max(0, min(index + size if index < 0 else index, size - 1)))
        return Ix(dynamic=((1, Gathered(value, size)),))


REDUCE = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")
ARG = ("argmax", "argmin")
MOVEMENT = ("expand", "transpose", "slice", "iota", "dim_value", "reshape", "concat", "pad", "gather",
            "gather_elements", "gather_nd")  # fmt: skip


def _quotient(a: Dim, b: Dim) -> Dim | None:
    """a / b where that is exact."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    q = a // b
    return q if q * b == a and not _has_division(q) else None


def _has_division(d: Dim) -> bool:
    return isinstance(d, Expr) and any(a.op == "floordiv" for m, _ in d.terms for a in m)


def inline_scalar(node):
    """The value of a constant of one number, which stands in the code; None for anything else."""
    if node is None or node.op != "constant" or product(node.shape) != 1 or node.type.encoding is not None:
        return None
    return node["data"].array().reshape(())[()].item()
