"""map: elementwise ops, broadcasting and movement, one pass over the outputs (all of one shape)."""

from __future__ import annotations

from edgec.ir.dims import Dim, product
from edgec.ir.types import dtype_size
from edgec.lower.groups import Group
from edgec.lower.templates import tiles
from edgec.lower.templates.builder import Builder
from edgec.lower.templates.index import Ix, RefineLoop, Tracer, linear
from edgec.lower.templates.nest import Body, Row, Store, all_ixs, collapse, cost, everything, over_units, vector_lanes
from edgec.targets import Target

TYPICAL = 256  # elements of a symbolic dim, for grains only
CHUNK_NS = 10_000


def trace(inside: set, shape, root) -> tuple[list[int], dict[int, Dim], list]:
    """Traces root(tracer, indices of the shape's dims), splitting loops where a reshape asks for it.

    Returns the loops outermost first, their extents, and what root returned.
    """
    extents: dict[int, Dim] = dict(enumerate(shape))
    dims = [[i] for i in range(len(shape))]
    while True:
        ixs = []
        for loops in dims:
            ix, stride = Ix(), 1
            for k in reversed(loops):
                ix, stride = ix + (Ix(((k, stride),)) if extents[k] != 1 else Ix()), extents[k] * stride
            ixs.append(ix)
        tracer = Tracer(inside, extents)
        tracer.dims = dims
        tracer.may_refine = len(extents) < 24
        try:
            found = root(tracer, tuple(ixs))
        except RefineLoop as split:
            new = max(extents) + 1
            extents[new], extents[split.loop] = split.inner, extents[split.loop] // split.inner
            home = next(loops for loops in dims if split.loop in loops)
            home.insert(home.index(split.loop) + 1, new)
            continue
        return [k for loops in dims for k in loops], extents, found


def size_hint(d: Dim) -> int:
    from edgec.ir.dims import substitute, symbols_of

    try:
        value = substitute(d, {s: TYPICAL for s in symbols_of(d)})
        return max(1, value) if isinstance(value, int) else TYPICAL
    except ZeroDivisionError:
        return TYPICAL


def grain_of(unit_ns: float) -> int:
    return max(1, round(CHUNK_NS / max(unit_ns, 1e-3)))


class Buffers:
    """The pointers of a function, asked for by node."""

    def __init__(self, b: Builder):
        self.b, self.of = b, {}

    def __call__(self, node):
        if node not in self.of:
            self.of[node] = self.b.pointer(("value", node), node.dtype)
        return self.of[node]


def build(group: Group, b: Builder, target: Target) -> tuple[Dim, int]:
    """Emits the function; returns its extent and grain."""
    shape = group.outputs[0].shape
    if product(shape) == 0:
        return 0, 1

    def root(tracer, ixs):
        return [Store(n, tracer.value(n, ixs), linear(ixs, n.shape)) for n in group.outputs]

    order, extents, stores = trace(set(group.nodes), shape, root)
    order = collapse(order, extents, all_ixs(stores))
    values = [s.value for s in stores]
    lanes = vector_lanes(values, target.vector_bits)
    buffers = Buffers(b)
    element_ns = 0.05 * cost(everything(values)) + sum(0.06 * dtype_size(s.node.dtype) for s in stores)

    if not order:
        order = [max(extents, default=-1) + 1]
        extents[order[0]] = 1
    vector = order[-1]
    crossed = tiles.transposed(values, order, extents, min(lanes, 8)) if len(order) > 1 else None
    if crossed is not None:
        strip = tiles.TILES * min(lanes, 8) * element_ns * size_hint(extents[vector])
        return tiles.build(b, buffers, order, extents, *crossed, stores, min(lanes, 8)), grain_of(strip)

    def row(env, low, high, size=None):
        def body(start, width, choices):
            here = Body(b, buffers, env | {vector: start}, vector, width, choices)
            for s in stores:
                here.store(s)

        Row(b, buffers, env, vector, lanes, values, body).run(low, high, {}, size)

    if len(order) == 1:
        row({}, b.begin, b.end)
        return extents[vector], grain_of(element_ns)
    inner = extents[vector]
    total = over_units(b, order[:-1], extents, lambda env: row(env, b.dim(0), b.dim(inner), inner))
    return total, grain_of(element_ns * size_hint(product([inner])) + 2)
