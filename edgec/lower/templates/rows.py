"""rows: reductions over some axes with elementwise work before, between and after: softmax, norms, sums, argmax.

One unit of work is one row (one set of kept indices), or a block of columns where the innermost axis is kept. A row is
gone over once for each reduction that needs the one before, and once more for outputs of the full shape.
Sums of f32: each lane of 8 to 32 adds its share in order, then lanes in pairs: error <= (n / lanes + 5) 2**-24 sum|x|.
"""

from __future__ import annotations

from tvm import tirx as T

from edgec.errors import EdgecError
from edgec.ir.dims import Dim, ceildiv, product
from edgec.ir.node import Node, constant, make
from edgec.ir.types import dtype_size
from edgec.lower.groups import Group
from edgec.lower.templates import scalar
from edgec.lower.templates.builder import Builder, i64, lanes_of, part, ramp, spread
from edgec.lower.templates.index import ARG, REDUCE, Compute, Ix, Reduced, Refused, linear
from edgec.lower.templates.map import Buffers, grain_of, size_hint, trace
from edgec.lower.templates.nest import Body, Row, Store, all_ixs, collapse, cost, everything, over_units, vector_lanes
from edgec.lower.templates.reduction import Reduction
from edgec.targets import Target

NORMS = ("softmax", "log_softmax", "layer_norm", "rms_norm")
WORTH_KEEPING = 10  # cost above which a value needed in two passes is written to scratch instead of computed again


def axes_of(node: Node) -> tuple[int, ...]:
    """The axes that a reduction or norm goes over."""
    if node.op in ("layer_norm", "rms_norm"):
        return tuple(range(node["axis"], node.rank))
    return tuple(node["axes"]) if node.op in REDUCE else (node["axis"],)


def decompose(group: Group) -> tuple[Group, frozenset[Node]]:
    """The group with softmax and the norms written as reductions and elementwise ops.

    And those nodes of a softmax that need not care for all operands: its maximum (a NaN shows up in the sum), its exp.
    """
    bounded: set[Node] = set()
    new: dict[Node, Node] = {n: n for n in group.inputs}
    order: list[Node] = []
    for n in group.nodes:
        inputs = [None if i is None else new.get(i, i) for i in n.inputs]
        new[n] = _expanded(n, inputs, bounded) if n.op in NORMS else make(n.op, *inputs, **n.attrs)
    seen = set(group.inputs)
    stack = [(new[o], False) for o in reversed(group.outputs)]
    while stack:
        n, done = stack.pop()
        if done:
            order.append(n)
        elif n not in seen and n.op != "constant":
            seen.add(n)
            stack.append((n, True))
            stack.extend((i, False) for i in reversed(n.operands()))
    written = {new[n] for n in group.nodes if n.op not in NORMS}
    small = Group(group.kind, tuple(order), group.inputs, tuple(new[o] for o in group.outputs))
    return small, frozenset(bounded - written)


def _expanded(n: Node, inputs: list, bounded: set) -> Node:
    x, axes = inputs[0], axes_of(n)
    if n.op in ("softmax", "log_softmax"):
        highest = make("reduce_max", x, axes=axes, keepdims=True)
        shifted = make("sub", x, highest)
        e = make("exp", shifted)
        bounded |= {highest, e}
        total = make("reduce_sum", e, axes=axes, keepdims=True)
        if n.op == "softmax":
            return make("mul", e, make("reciprocal", total))
        return make("sub", shifted, make("log", total))
    eps = constant(n["eps"], x.dtype)
    if n.op == "layer_norm":
        x = make("sub", x, make("reduce_mean", x, axes=axes, keepdims=True))
    square = make("reduce_mean", make("mul", x, x), axes=axes, keepdims=True)
    y = make("mul", x, make("rsqrt", make("add", square, eps)))
    for op, p in zip(("mul", "add"), inputs[1:], strict=False):
        y = y if p is None else make(op, y, p)
    return y


def space(group: Group) -> tuple[tuple[Dim, ...], tuple[int, ...]]:
    """The full shape and the reduced axes that all reductions of a (decomposed) group share."""
    found = {(n.inputs[0].shape, axes_of(n)) for n in group.nodes if n.op in REDUCE or n.op in ARG}
    if len(found) != 1:
        raise EdgecError("EC1401", "the reductions of a group must share their operand's shape and axes")
    return found.pop()


def build(group: Group, b: Builder, target: Target) -> tuple[Dim, int]:
    """Emits the function; returns its extent and grain. Raises EdgecError EC1401 where the group has no such form."""
    outputs = group.outputs
    group, bounded = decompose(group)
    shape, axes = space(group)
    try:
        order, extents, (stores, reduced) = traced(group, outputs, shape, axes, bounded)
    except Refused as e:
        raise EdgecError("EC1401", f"cannot be one rows function: {e}") from e
    if any(product(n.shape) == 0 for n in outputs):
        return 0, 1
    return _Rows(b, target, order, extents, stores, reduced, product(shape[a] for a in axes)).emit()


def traced(group: Group, outputs, shape, axes, bounded):
    """Loops, extents, and (stores, reduced loops) of a decomposed group. Raises Refused where it does not walk rows."""
    kept_shapes = _kept(shape, axes, 1)

    def root(tracer, ixs):
        tracer.rows, tracer.bounded = (shape, axes, ixs), bounded
        stores = []
        for n, named in zip(group.outputs, outputs, strict=True):
            at = ixs
            if n.shape != shape:
                kept = zip(kept_shapes, _kept(ixs, axes, Ix()), strict=True)
                at = next((a for s, a in kept if s == n.shape), None)
            if at is None:
                raise Refused(f"an output {n.type} beside rows of {shape} over the axes {axes}")
            stores.append(Store(named, tracer.value(n, at), linear(at, n.shape)))
        return stores, {k for a in axes for k in tracer.dims[a]}

    return trace(set(group.nodes), shape, root)


def _kept(of, axes, filler) -> tuple[tuple, tuple]:
    """Without the reduced axes, and with `filler` in their place."""
    return (tuple(d for i, d in enumerate(of) if i not in axes),
            tuple(filler if i in axes else d for i, d in enumerate(of)))  # fmt: skip


class _Rows:
    def __init__(self, b: Builder, target: Target, order, extents, stores, reduced, count):
        self.b, self.extents, self.stores, self.count = b, extents, stores, count
        self.buffers = Buffers(b)
        self.values = [s.value for s in stores]
        expressions = everything(self.values)
        self.reductions = [e for e in expressions if isinstance(e, Reduced)]
        ixs = all_ixs(stores)
        self.kept = [k for k in order if k not in reduced]
        self.reduced = [k for k in order if k in reduced]
        runs: list[list[int]] = []
        for k in order:
            if runs and (runs[-1][0] in reduced) == (k in reduced):
                runs[-1].append(k)
            else:
                runs.append([k])
        kept_order = [k for run in runs for k in collapse(run, extents, ixs)]
        self.kept = [k for k in kept_order if k not in reduced]
        self.reduced = [k for k in kept_order if k in reduced]
        # whether vectors lie along a reduced loop
        self.along = not self.kept or (bool(self.reduced) and kept_order[-1] in reduced)
        self.narrow = vector_lanes(self.values, target.vector_bits)
        self.work = cost(expressions)
        self.levels = {id(r): self._level(r.value) for r in self.reductions}
        self.full = [s for s in stores if self._depends(s.value)]
        self.rest = [s for s in stores if not self._depends(s.value)]
        self.cached: dict[int, tuple] = {}

    def _level(self, e) -> int:
        """The pass in which a value is known: 0 before any reduction."""
        inner = [r for r in everything([e]) if isinstance(r, Reduced)]
        return max((self._level(r.value) + 1 for r in inner), default=0)

    def _depends(self, e) -> bool:
        """Whether a value differs along a row."""
        if isinstance(e, Reduced):
            return False
        if isinstance(e, Compute):
            return any(map(self._depends, e.args))
        return any(ix.loops() & set(self.reduced) for ix in e.ixs())

    def emit(self) -> tuple[Dim, int]:
        row = product(self.extents[k] for k in self.reduced)
        ns = 0.05 * self.work * size_hint(row) + 10
        if self.along:
            total = over_units(self.b, self.kept, self.extents, self._row)
            return total, grain_of(ns)
        inner, size = self.kept[-1], self.extents[self.kept[-1]]
        wide = isinstance(size, int) and size >= 4 * self.narrow and self.work <= 20
        width = self.narrow * 4 if wide else self.narrow
        blocks = max(self.extents) + 1
        self.extents[blocks] = ceildiv(size, width)

        def unit(env):
            self._column_block(env, inner, self.b.let(env[blocks] * i64(width)), self.b.dim(size), width)

        total = over_units(self.b, [*self.kept[:-1], blocks], self.extents, unit)
        return total, grain_of(ns * width)

    # a row: vectors along the last reduced loop
    def _row(self, env: dict) -> None:
        known: dict = {}
        vector = self.reduced[-1] if self.reduced else None
        self._plan_scratch(1)
        last = max(self.levels.values(), default=-1)
        for level in range(last + 1):
            here = [r for r in self.reductions if self.levels[id(r)] == level]
            self._hoist(env, None, 1, known, [r.value for r in here])
            self._reduce(env, vector, here, known, level)
        if self.full:
            values = [s.value for s in self.full]
            self._hoist(env, None, 1, known, values)
            with self._outer(env, self.reduced[:-1]) as inner:

                def body(start, width, choices):
                    body_ = self._body(inner | {vector: start}, vector, width, known, last + 1)
                    for s in self.full:
                        body_.store(s)

                row = Row(self.b, self.buffers, inner, vector, self.narrow, values, body)
                row.run(i64(0), self.b.dim(self.extents[vector]), {}, size=self.extents[vector])
        ending = Body(self.b, self.buffers, env, None, 1, {}, known)
        for s in self.rest:
            ending.store(s)

    def _reduce(self, env, vector, here, known, level) -> None:
        b, narrow = self.b, self.narrow
        made = [Reduction(b, r, self.count) for r in here]
        if vector is None:  # nothing to reduce over: rows of one element
            body = Body(b, self.buffers, env, None, 1, {}, known)
            for r in made:
                term = r.term(body.value(r.e.value), i64(0))
                known[id(r.e)] = b.let(r.result(r.combine(r.neutral(1), term)))
            return
        size = self.extents[vector]
        work = cost(everything([r.value for r in here]))
        wide = narrow * (4 if work <= 8 else 2 if work <= 40 else 1)
        widths = [w for w in (wide, narrow, 1) if not isinstance(size, int) or size >= w or w == 1]
        if isinstance(size, int) and size >= narrow:
            widths.remove(1)
        widths = sorted(set(widths), reverse=True)
        cells = {w: [[b.cell(v) for v in r.neutral(w)] for r in made] for w in widths}
        with self._outer(env, self.reduced[:-1]) as inner:

            def body(start, width, valid=None):
                body_ = self._body(inner | {vector: start}, vector, width, known, level)
                index = ramp(start, width)
                for r, kept in zip(made, cells[width], strict=True):
                    term = r.term(spread(body_.value(r.e.value), width), index)
                    self._accumulate(r, kept, term, valid)

            self._walk(body, size, [w for w in widths if w > narrow], narrow)
        for i, r in enumerate(made):
            total: tuple | None = None
            for w in widths:
                parts = tuple(c.get() for c in cells[w][i])
                folded = self._fold(r, parts, w, 1)
                total = folded if total is None else tuple(map(b.let, r.combine(total, folded)))
            known[id(r.e)] = b.let(r.result(total))

    def _walk(self, body, size: Dim, wide: list[int], narrow: int) -> None:
        """body(start, width, valid lanes) over [0, size): wide vectors, then narrow ones, the last pulled back."""
        b = self.b
        high, done = self.b.dim(size), i64(0)
        if wide:
            whole = b.let(T.truncdiv(high, i64(wide[0])))
            with b.loop(whole, 0, wide[0], stem="x") as v:
                body(v, wide[0])
            done = b.let(whole * i64(wide[0]))
        if narrow == 1:
            with b.loop(high - done, done, stem="x") as v:
                body(v, 1)
            return

        def rest():
            last = b.let(high - i64(narrow))
            with b.loop(T.truncdiv(high - done + i64(narrow - 1), i64(narrow)), done, narrow, stem="x") as v:
                start = b.let(T.min(v, last))
                body(start, narrow, b.let(ramp(start, narrow) >= spread(v, narrow)))

        if isinstance(size, int):
            if size < narrow:
                with b.loop(high, 0, stem="x") as v:
                    body(v, 1)
            elif size % (wide[0] if wide else 1) or not wide:
                rest()
            return
        with b.block() as short, b.loop(high, 0, stem="x") as v:
            body(v, 1)
        with b.if_(high >= i64(narrow), otherwise=short):
            rest()

    def _accumulate(self, r: Reduction, cells, term, valid=None) -> None:
        b = self.b
        before = tuple(c.get() for c in cells)
        if valid is not None:
            term = tuple(T.Select(valid, t, n) for t, n in zip(term, r.neutral(lanes_of(term[0])), strict=True))
        after = [b.let(v) for v in r.combine(before, tuple(map(b.let, term)), ordered=valid is None)]
        if valid is not None and r.op in ARG:
            after = [T.Select(valid, v, old) for v, old in zip(after, before, strict=True)]
        for c, v in zip(cells, after, strict=True):
            b.emit(c.set(v))

    def _fold(self, r: Reduction, x: tuple, lanes: int, to: int) -> tuple:
        """The accumulator's upper half onto its lower one until `to` lanes are left."""
        while lanes > to:
            lanes //= 2
            halves = [tuple(self.b.let(part(v, at, lanes)) for v in x) for at in (0, lanes)]
            x = tuple(map(self.b.let, r.combine(*halves)))
        return x

    # a block of columns: vectors along the last kept loop
    def _column_block(self, env, vector, start, size, width) -> None:
        b, static = self.b, self.extents[vector]
        self._plan_scratch(width)
        with b.block() as short, b.loop(size - start, start, stem="x") as v:
            self._columns(env, vector, v, 1)
        if isinstance(static, int) and static < width:
            for s in short:
                b.emit(s)
            return
        fits = size >= i64(width)
        with b.if_(fits, otherwise=None if isinstance(static, int) else short):
            self._columns(env, vector, b.let(T.min(start, size - i64(width))), width)

    def _columns(self, env, vector, start, width) -> None:
        b, known = self.b, {}
        at = env | {vector: start}
        last = max(self.levels.values(), default=-1)
        for level in range(last + 1):
            made = [Reduction(b, r, self.count) for r in self.reductions if self.levels[id(r)] == level]
            self._hoist(at, vector, width, known, [r.e.value for r in made])
            cells = [[b.cell(v) for v in r.neutral(width)] for r in made]
            with self._outer(at, self.reduced) as inner:
                body = self._body(inner, vector, width, known, level)
                index = self._position(inner)
                for r, kept in zip(made, cells, strict=True):
                    term = r.term(spread(body.value(r.e.value), width), spread(index, width))
                    self._accumulate(r, kept, term)
            for r, kept in zip(made, cells, strict=True):
                known[id(r.e)] = b.let(r.result(tuple(c.get() for c in kept)))
        if self.full:
            self._hoist(at, vector, width, known, [s.value for s in self.full])
            with self._outer(at, self.reduced) as inner:
                body = self._body(inner, vector, width, known, last + 1)
                for s in self.full:
                    body.store(s)
        ending = Body(b, self.buffers, at, vector, width, {}, known)
        for s in self.rest:
            ending.store(s)

    # shared
    def _outer(self, env: dict, loops: list[int]):
        return _Loops(self.b, env, [(k, self.b.dim(self.extents[k])) for k in loops])

    def _position(self, env: dict):
        """The row-major number of an element of the row."""
        total = i64(0)
        for k in self.reduced:
            total = total * self.b.dim(self.extents[k]) + env.get(k, i64(0))
        return self.b.let(total)

    def _hoist(self, env, vector, width, known, roots) -> None:
        """Computes what is the same all along a row before the loops over it."""
        body = Body(self.b, self.buffers, env, vector, width, {}, known)

        def visit(e):
            if id(e) in known:
                return
            if isinstance(e, Compute) and not self._depends(e):
                known[id(e)] = body.value(e)
            elif isinstance(e, Compute):
                for a in e.args:
                    visit(a)

        for r in roots:
            visit(r)

    def _plan_scratch(self, width: int) -> None:
        """Chooses the costly values that two passes need: the first one keeps them."""
        if self.cached or len(self.levels) == 0:
            return
        last = max(self.levels.values())
        passes = [[r.value for r in self.reductions if self.levels[id(r)] == p] for p in range(last + 1)]
        passes.append([s.value for s in self.full])
        seen: dict[int, int] = {}
        bytes_ = product(self.extents[k] for k in self.reduced) * width

        def visit(e, p):
            if not isinstance(e, Compute) or id(e) in self.cached:
                return
            first = seen.setdefault(id(e), p)
            dtype = scalar.register_dtype(e.node.dtype)
            if first < p and dtype in ("float32", "float64") and self._depends(e) and cost([e]) >= WORTH_KEEPING:
                name = "f32" if dtype == "float32" else "f64"
                self.cached[id(e)] = (self.b.pointer(("scratch", bytes_ * dtype_size(name)), name), first, width, e)
                return
            for a in e.args:
                visit(a, p)

        for p, roots in enumerate(passes):
            for r in roots:
                visit(r, p)

    def _body(self, env, vector, width, known, level) -> Body:
        """A body at one place of a row; kept values are written in the pass that computes them, read in later ones."""
        body = Body(self.b, self.buffers, env, vector, width, {}, known)
        for key, (buffer, first, columns, e) in self.cached.items():
            at = self.b.let(self._position(env) * i64(columns))
            if first < level:
                body.known[key] = self.b.let(T.BufferLoad(buffer, [ramp(at, width)]))
            elif first == level:
                self.b.emit(T.BufferStore(buffer, spread(body.value(e), width), [ramp(at, width)]))
        return body


class _Loops:
    """Nested loops as one context; yields the environment with their variables."""

    def __init__(self, b: Builder, env: dict, loops: list):
        self.b, self.env, self.loops, self.open = b, env, loops, []

    def __enter__(self) -> dict:
        env = dict(self.env)
        for k, extent in self.loops:
            context = self.b.loop(extent, stem="r")
            env[k] = context.__enter__()
            self.open.append(context)
        return env

    def __exit__(self, *error):
        for context in reversed(self.open):
            context.__exit__(*error)
        return False
