"""max_pool and avg_pool: planes copied, padded, into scratch block by block, then vectors along each output row."""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx as T

from edgec.ir.dims import Dim, ceildiv, max_dim, product
from edgec.ir.types import dtype_size, numpy_dtype
from edgec.lower.groups import Group
from edgec.lower.templates import scalar
from edgec.lower.templates.builder import Builder, const, i64, ramp, spread
from edgec.lower.templates.map import grain_of, size_hint
from edgec.lower.templates.spatial import (
    Axis,
    Copy,
    Field,
    load_taps,
    plane_and_row,
    row_count,
    tap_table,
    vector_run,
    window_axes,
)
from edgec.targets import Target

POSITIONS = 2048  # of one block: a panel of it stays in L1
REGISTER = {"f16": "f32", "bf16": "f32"}


def supports(node) -> str | None:
    """Why this template can't compute a pooling node; None where it can."""
    if node.rank > 5:
        return f"{node.op} over {node.rank - 2} axes"
    if node.dtype == "bool" or (node.op == "avg_pool" and node.dtype not in ("f16", "bf16", "f32", "f64")):
        return f"{node.op} of {node.dtype}"
    return None


def _least(dtype: str) -> float | int:
    return -math.inf if dtype in ("f32", "f64") else int(np.iinfo(numpy_dtype(dtype)).min)


class Counts:
    """How many taps of a window are counted along one axis: those that fall within [low, high) of the operand."""

    def __init__(self, axis: Axis, low: Dim, high: Dim):
        self.axis, self.low, self.high = axis, low, high

    def constant(self) -> int | None:
        """The count where it is the same everywhere."""
        a = self.axis
        first, last = min(a.taps) - a.before, (a.out - 1) * a.stride + max(a.taps) - a.before
        inside = isinstance(first - self.low, int) and first - self.low >= 0
        spare = self.high - 1 - last
        return len(a.taps) if inside and isinstance(spare, int) and spare >= 0 else None

    def at(self, b: Builder, position):
        """The count at a position (int64), as int64."""
        start = b.let(position * i64(self.axis.stride) - b.dim(self.axis.before))
        low, high, total = b.dim(self.low), b.dim(self.high), i64(0)
        for t in self.axis.taps:
            at = b.let(start + i64(t))
            total = total + T.Select(T.And(at >= low, at < high), i64(1), i64(0))
        return b.let(total)


class Divisor:
    """The number of elements that an average is over: exact, the product of the axes' counts."""

    def __init__(self, b: Builder, node, field: Field, register: str):
        self.b, self.register = b, register
        n = node.rank - 2
        pads = [(0, 0)] * (3 - n) + [(node["pads"][i], node["pads"][n + i]) for i in range(n)]
        self.counts = [Counts(a, -p if node["count_pads"] else 0, a.size + (q if node["count_pads"] else 0))
                       for a, (p, q) in zip(field.axes, pads)]  # fmt: skip
        self.columns = None
        if self.counts[2].constant() is None:  # a table along the row
            width = field.axes[2].out
            self.columns = b.pointer(("scratch", max_dim(width, 0) * dtype_size(register)), register)
            with b.loop(b.dim(width)) as q:
                count = T.Cast(self.columns.dtype, self.counts[2].at(b, q))
                b.emit(T.BufferStore(self.columns, count, [q]))

    def row(self, d, h):
        """The part of the divisor that a row's windows share."""
        b, total = self.b, i64(1)
        for c, at in zip(self.counts, (d, h, None)):
            constant = c.constant()
            if constant is not None:
                total = total * i64(constant)
            elif at is not None or c is not self.counts[2]:
                total = total * c.at(b, at if at is not None else i64(0))
        return b.let(T.Cast("float64" if self.register == "f64" else "float32", b.let(total)))

    def at(self, row, v, lanes: int):
        if self.columns is None:
            return spread(row, lanes)
        return spread(row, lanes) * self.b.let(T.BufferLoad(self.columns, [ramp(v, lanes)]))


def build(group: Group, b: Builder, target: Target) -> tuple[Dim, int]:
    """Emits the function; returns its extent and grain."""
    node = group.outputs[0]
    x = node.inputs[0]
    assert x is not None
    register = REGISTER.get(node.dtype, node.dtype)
    lanes = target.vector_bits // 8 // dtype_size(register)
    axes = window_axes(x.shape[2:], node.shape[2:], node["kernel"], node["strides"], node["pads"], node["dilations"])
    field = Field(axes, merge=False)
    positions = field.positions
    block = min(POSITIONS, max(1, positions)) if isinstance(positions, int) else POSITIONS
    blocks = max_dim(ceildiv(positions, block), 0)
    span = block + field.reach + lanes
    average = node.op == "avg_pool"

    source = b.pointer(("value", x), x.dtype)
    out = b.pointer(("value", node), node.dtype)
    panel = b.pointer(("scratch", span * (field.phases * dtype_size(register))), register)
    fill = 0.0 if average else _least(register)
    copy = Copy(b, field, source, x.dtype, panel, lanes, b.let(b.dim(span)), fill)
    taps = tap_table(b, field, b.let(b.dim(span)))
    divisor = Divisor(b, node, field, register) if average else None
    total = b.let(b.dim(positions))
    many = b.let(b.dim(blocks))
    pitch, reach = b.let(b.dim(field.pitch)), b.let(b.dim(field.reach))
    _, ah, aw = field.axes
    width, height = b.let(b.dim(aw.out)), b.let(b.dim(ah.out))
    volume = b.let(b.dim(product(a.out for a in field.axes)))
    combine = scalar.add if average else (lambda old, new: T.Select(new > old, new, old))

    with b.loop(b.end - b.begin, b.begin, stem="u") as u:
        plane = b.let(T.truncdiv(u, many))
        first = b.let((u - plane * many) * i64(block))
        count = b.let(T.min(total - first, i64(block)))
        copy.run(plane, i64(1), first, b.let(count + reach))
        r0, rows = row_count(b, field, first, count)
        with b.loop(rows, r0, stem="r") as r:
            start = b.let(r * pitch - first)
            low = b.let(T.max(i64(0), i64(0) - start))
            high = b.let(T.min(width, count - start))
            d, h = plane_and_row(b, field, r)
            row = h
            if d is not None:
                high = b.let(T.Select(h < height, high, low))
                row = b.let(d * height + h)
            to = b.let(plane * volume + row * width)
            shared = divisor.row(d, h) if divisor else None

            def body(v, lanes, start=start, to=to, shared=shared):
                value = b.cell(const(fill, panel.dtype, lanes))

                def one(offset):
                    loaded = b.let(T.BufferLoad(panel, [ramp(start + v + offset, lanes)]))
                    b.emit(value.set(combine(b.let(value.get()), loaded)))

                load_taps(b, taps, lambda _, offset: one(offset))
                done = b.let(value.get())
                if divisor:
                    done = b.let(done / divisor.at(shared, v, lanes))
                done = scalar.to_memory(b, done, node.dtype)
                b.emit(T.BufferStore(out, done, [ramp(to + v, lanes)]))

            vector_run(b, low, high, lanes, body)
    element_ns = 0.05 * (len(field.taps()) + 4) * dtype_size(register) / 4
    return product(x.shape[:2]) * blocks, grain_of(element_ns * min(size_hint(positions), block))
