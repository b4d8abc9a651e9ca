"""Loops around traced expressions: merging them, vectors along the innermost one with tails, the code of one body."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tvm import tirx as T

from edgec.ir.dims import Dim, product
from edgec.ir.types import dtype_size
from edgec.lower.templates import scalar
from edgec.lower.templates.builder import Builder, floordiv, floormod, i64, lanes_of, ramp, spread
from edgec.lower.templates.index import (
    Compute,
    Gathered,
    Index,
    Ix,
    Literal,
    Load,
    Pick,
    Reduced,
    Reflect,
    Split,
    is_zero_or_one,
)


@dataclass(frozen=True)
class Store:
    node: object
    value: object
    offset: Ix


def all_ixs(roots: Iterable) -> list[Ix]:
    """Every index that the expressions use, those inside of run-time indices too."""
    found: dict[Ix, None] = {}
    stack = [ix for r in roots for ix in ([r.offset, *r.value.ixs()] if isinstance(r, Store) else r.ixs())]
    while stack:
        ix = stack.pop()
        if ix not in found:
            found[ix] = None
            stack.extend(i for _, d in ix.dynamic for i in d.ixs())
    return list(found)


def collapse(order: list[int], extents: dict[int, Dim], ixs: list[Ix]) -> list[int]:
    """Merges neighbouring loops that every index walks as one; changes extents. A loop left out stays at 0."""
    kept: list[int] = []
    for loop in order:
        if extents[loop] == 1:
            continue
        if kept and all(ix.coef(kept[-1]) == ix.coef(loop) * extents[loop] for ix in ixs):
            extents[loop] = extents[kept[-1]] * extents[loop]
            kept[-1] = loop
        else:
            kept.append(loop)
    return kept


def walk(e, seen: dict):
    """All expressions under one, once each."""
    if id(e) in seen:
        return
    seen[id(e)] = e
    if isinstance(e, Compute):
        children = e.args
    elif isinstance(e, Pick):
        children = e.parts
    elif isinstance(e, Reduced):
        children = (e.value,)
    else:
        children = ()
    for c in children:
        walk(c, seen)
    for ix in e.ixs() if isinstance(e, (Load, Index, Pick)) else ():
        for _, d in ix.dynamic:
            if isinstance(d, Gathered):
                walk(d.value, seen)


def everything(roots: Iterable) -> list:
    seen: dict = {}
    for r in roots:
        walk(r, seen)
    return list(seen.values())


def cost(expressions: Iterable) -> float:
    """Of one element, in units of an add (about 0.05 ns where it is vectorised)."""
    total = 0.0
    for e in expressions:
        if isinstance(e, Compute):
            total += scalar.COST.get(e.node.op, 1) * (2 if e.node.dtype in ("f64", "i64", "u64") else 1)
        elif isinstance(e, Load):
            total += 1 if not e.offset.dynamic else 4
    return total


def vector_lanes(roots: Iterable, vector_bits: int) -> int:
    """Lanes so that the widest value in a register fills one vector."""
    widest = 1
    for e in everything(roots):
        dtype = e.node.dtype if isinstance(e, (Compute, Load, Reduced)) else getattr(e, "dtype", "u8")
        widest = max(widest, 4 if dtype in ("f16", "bf16") else dtype_size(dtype))
        if isinstance(e, Index):
            widest = max(widest, 4)
    return max(1, vector_bits // 8 // widest)


class Body:
    """Emits expressions at one place of the loops: env gives the loops' values, the loop `vector` that of lane 0."""

    def __init__(
        self, b: Builder, buffers: Callable, env: dict, vector: int | None, lanes: int, choices: dict, known=None
    ):
        self.b, self.buffers, self.env = b, buffers, env
        self.vector, self.lanes, self.choices = vector, lanes, choices
        self.known = dict(known or {})  # id(expression) -> its value here

    def value(self, e):
        if id(e) not in self.known:
            self.known[id(e)] = self.b.let(self._value(e))
        return self.known[id(e)]

    def _value(self, e):
        if isinstance(e, Load):
            return self.load(e)
        if isinstance(e, Compute):
            return scalar.emit(self.b, e.node, [self.value(a) for a in e.args], e.bounded)
        if isinstance(e, Pick):
            return self.value(e.parts[self.choices[id(e)]])
        if isinstance(e, Literal):
            return scalar.literal(e.value, e.dtype)
        if isinstance(e, Index):
            number = self.number(e.ix)
            return scalar.convert(self.b, number, scalar.register_dtype(e.dtype))
        raise AssertionError(f"no value for {e}")

    def parts(self, ix: Ix):
        """The offset in lane 0 as a scalar, the stride between lanes, and what varies otherwise (or None)."""
        total, varying = None, None
        for loop, c in ix.coefs:
            if loop in self.env:
                term = self.env[loop] if c == 1 else self.env[loop] * self.b.dim(c)
                total = term if total is None else total + term
        if ix.base != 0 or total is None:
            total = self.b.dim(ix.base) if total is None else total + self.b.dim(ix.base)
        for c, d in ix.dynamic:
            index = self.run_time_index(d)
            if c != 1:
                index = index * spread(self.b.dim(c), lanes_of(index))
            if lanes_of(index) > 1:
                varying = index if varying is None else varying + index
            else:
                total = total + index
        return total, ix.coef(self.vector) if self.lanes > 1 and self.vector is not None else 0, varying

    def number(self, ix: Ix):
        """An index as int64, a vector where it varies along the lanes."""
        base, stride, varying = self.parts(ix)
        if stride == 0 and varying is None:
            return base
        out = spread(base, self.lanes) if stride == 0 else ramp(base, self.lanes, self._stride(stride))
        return out if varying is None else out + varying

    def _stride(self, d: Dim):
        return d if isinstance(d, int) else self.b.dim(d)

    def run_time_index(self, d):
        b = self.b
        if id(d) in self.known:
            return self.known[id(d)]
        if isinstance(d, Gathered):
            index = b.let(scalar.convert(b, self.value(d.value), "int64"))
            lanes = lanes_of(index)
            zero, size = spread(i64(0), lanes), spread(b.dim(d.size), lanes)
            index = b.let(T.Select(index < zero, index + size, index))
            index = T.Select(index < size, index, size - spread(i64(1), lanes))
            out = T.Select(index > zero, index, zero)
        else:
            index = b.let(self.number(d.ix))
            lanes = lanes_of(index)
            if isinstance(d, Split):
                out = floordiv(index, spread(b.dim(d.stride), lanes)) if d.stride != 1 else index
                out = floormod(b.let(out), spread(b.dim(d.size), lanes)) if d.size is not None else out
            else:
                assert isinstance(d, Reflect)
                last = spread(b.dim(d.size) - i64(1), lanes)
                period = b.let(T.Select(last > spread(i64(0), lanes), last + last, spread(i64(1), lanes)))
                out = b.let(floormod(index, period))
                out = T.Select(last < out, period - out, out)
                out = T.Select(last > spread(i64(0), lanes), out, spread(i64(0), lanes))
        self.known[id(d)] = b.let(out)
        return self.known[id(d)]

    def load(self, e: Load):
        buffer, dtype = self.buffers(e.node), e.node.dtype
        base, stride, varying = self.parts(e.offset)
        lanes = self.lanes

        def at(index):
            return scalar.from_memory(self.b.let(T.BufferLoad(buffer, [index])), dtype)

        if varying is not None:
            return at(self.b.let(self.number(e.offset)))
        if stride == 0:
            return at(base)
        if stride == 1:
            return at(ramp(base, lanes))
        if stride == -1:
            forward = self.b.let(T.BufferLoad(buffer, [ramp(base - i64(lanes - 1), lanes)]))
            backward = T.Shuffle([forward], [T.IntImm("int32", k) for k in reversed(range(lanes))])
            return scalar.from_memory(self.b.let(backward), dtype)
        if is_zero_or_one(stride):
            base = self.b.let(base)
            one, many = T.BufferLoad(buffer, [base]), T.BufferLoad(buffer, [ramp(base, lanes)])
            both = T.if_then_else(T.EQ(self.b.dim(stride), i64(1)), many, spread(one, lanes))
            return scalar.from_memory(self.b.let(both), dtype)
        return at(ramp(base, lanes, self._stride(stride)))

    def store(self, s: Store):
        value = scalar.to_memory(self.b, self.value(s.value), s.node.dtype)
        base, stride, varying = self.parts(s.offset)
        assert varying is None
        if self.lanes == 1 or stride == 0:
            self.b.emit(T.BufferStore(self.buffers(s.node), value, [base]))
            return
        value = spread(value, self.lanes)
        self.b.emit(T.BufferStore(self.buffers(s.node), value, [ramp(base, self.lanes, self._stride(stride))]))


def open_pick(roots: Iterable, choices: dict) -> Pick | None:
    """The first concat or pad that is needed here and not decided yet."""
    stack, seen = list(roots), set()
    while stack:
        e = stack.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        if isinstance(e, Pick):
            if id(e) not in choices:
                return e
            stack.append(e.parts[choices[id(e)]])
        elif isinstance(e, Compute):
            stack.extend(e.args)
        elif isinstance(e, Reduced):
            stack.append(e.value)
        for ix in e.ixs() if isinstance(e, (Load, Index, Pick)) else ():
            stack.extend(d.value for _, d in ix.dynamic if isinstance(d, Gathered))
    return None


class Row:
    """Runs a body over a range of the vector loop, deciding picks on the way.

    body(start, lanes, choices) emits the code of `lanes` elements from `start` on; elements may be computed twice: the
    last vector of a range overlaps the one before.
    """

    def __init__(self, b: Builder, buffers: Callable, env: dict, vector: int, lanes: int, roots: list, body: Callable):
        self.b, self.buffers, self.env, self.vector, self.lanes = b, buffers, env, vector, lanes
        self.roots, self.body = roots, body
        self.heavy = cost(everything(roots)) > 20

    def run(self, low, high, choices: dict, size: Dim | None = None) -> None:
        """size: high - low where it is a known int, which spares the code for other sizes."""
        b, pick = self.b, open_pick(self.roots, choices)
        if pick is None:
            self._vectors(b.let(low), b.let(high), choices, size if isinstance(size, int) else None)
            return
        here = Body(b, self.buffers, self.env, None, 1, choices)
        c = pick.ix.coef(self.vector)
        along = self.vector in pick.ix.loops()
        if along and (c not in (1, -1) or pick.ix.dynamic):
            self._by_element(pick, low, high, choices)
            return
        rest = b.let(
            here.parts(Ix(tuple(p for p in pick.ix.coefs if p[0] != self.vector), pick.ix.base, pick.ix.dynamic))[0]
        )
        bounds = [None, *(b.let(b.dim(cut)) for cut in pick.cuts[:-1]), None]
        for k in range(len(pick.parts)):
            chosen = choices | {id(pick): k}
            if not along:
                with b.if_(_between(rest, bounds[k], bounds[k + 1])):
                    self.run(low, high, chosen)
                continue
            from_, to = bounds[k], bounds[k + 1]
            if c == 1:
                start = low if from_ is None else T.max(low, from_ - rest)
                stop = high if to is None else T.min(high, to - rest)
            else:  # rest - v in [from, to)
                start = low if to is None else T.max(low, rest - to + i64(1))
                stop = high if from_ is None else T.min(high, rest - from_ + i64(1))
            self.run(b.let(start), b.let(stop), chosen)

    def _by_element(self, pick: Pick, low, high, choices) -> None:
        """A concat or pad under a stride or a run-time index: decided for each element."""
        b = self.b
        with b.loop(high - low, low, stem="x") as v:
            inner = Row(
                b,
                self.buffers,
                self.env | {self.vector: v},
                -1,
                1,
                self.roots,
                lambda start, lanes, how: self.body(v, 1, how),
            )
            inner.run(i64(0), i64(1), choices)

    def _vectors(self, low, high, choices, size: int | None) -> None:
        b, lanes = self.b, self.lanes
        if self.vector == -1:
            self.body(low, 1, choices)
            return
        count = b.let(high - low) if size is None else i64(size)
        if lanes == 1 or (size is not None and size < lanes):
            with b.loop(count, low, stem="x") as v:
                self.body(v, 1, choices)
            return
        if size is not None:
            self._long(low, high, count, choices, size)
            return
        with b.block() as short, b.loop(count, low, stem="x") as v:
            self.body(v, 1, choices)
        with b.if_(count >= i64(lanes), otherwise=short):
            self._long(low, high, count, choices, None)

    def _long(self, low, high, count, choices, size: int | None) -> None:
        b, lanes = self.b, self.lanes
        exact = size is not None and size % lanes == 0
        if self.heavy and not exact:  # one copy of the body: the last start is pulled back
            last = b.let(high - i64(lanes))
            with b.loop(T.truncdiv(count + i64(lanes - 1), i64(lanes)), low, lanes, stem="x") as v:
                self.body(b.let(T.min(v, last)), lanes, choices)
            return
        whole = b.let(T.truncdiv(count, i64(lanes)))
        with b.loop(whole, low, lanes, stem="x") as v:
            self.body(v, lanes, choices)
        if not exact:
            with b.if_(whole * i64(lanes) < count):
                self.body(b.let(high - i64(lanes)), lanes, choices)


def _between(x, low, high):
    if low is None and high is None:
        return T.IntImm("bool", 1)
    if low is None or high is None:
        return x < high if low is None else x >= low
    return T.And(x >= low, x < high)


def over_units(b: Builder, order: list[int], extents: dict[int, Dim], unit: Callable[[dict], None]) -> Dim:
    """for each unit in [begin, end), the loops' values in row-major order: unit(env). Returns the number of units.

    Division happens once for each run of the last loop, not for each unit.
    """
    total = product(extents[k] for k in order)
    if not order:
        with b.if_(b.begin < b.end):
            unit({})
        return 1
    if len(order) == 1:
        with b.loop(b.end - b.begin, b.begin, stem="u") as u:
            unit({order[0]: u})
        return total
    at = b.cell(b.begin)
    with b.while_(at.get() < b.end):
        u = b.let(at.get(), "u")
        inner = b.dim(extents[order[-1]])
        outer = b.let(T.truncdiv(u, inner))
        first = b.let(u - outer * inner)
        count = b.let(T.min(inner - first, b.end - u))
        env, rest = {}, outer
        for k in reversed(order[1:-1]):
            size = b.dim(extents[k])
            above = b.let(T.truncdiv(rest, size))
            env[k] = b.let(rest - above * size)
            rest = above
        env[order[0]] = rest
        with b.loop(count, first, stem="u") as i:
            unit(env | {order[-1]: i})
        b.emit(at.set(u + count))
    return total
