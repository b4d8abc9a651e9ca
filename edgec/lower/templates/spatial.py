"""Sliding windows over [N, C, D, H, W]: an operand copied, padded, into scratch where each tap is a constant offset.

Positions are flat: (d * rows + h) * pitch + w. With a stride s along an axis the copy keeps s phases apart (elements
i, i + s, ...), so that neighbouring positions read neighbouring elements at any stride. Columns past the output's width
are computed and dropped; zeros at a row's end and at the next row's start are shared, so there are few of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx as T

from edgec.ir.dims import Dim, ceildiv, max_dim, min_dim, product
from edgec.lower.templates import scalar
from edgec.lower.templates.builder import Builder, const, i64, ramp


@dataclass(frozen=True)
class Axis:
    """Position p reads the operand's elements p * stride + tap - before, for each tap (all >= 0)."""

    size: Dim
    out: Dim
    stride: int
    before: Dim
    taps: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Position p reads element p and no other."""
        return self.stride == 1 and self.taps == (0,) and self.before == 0 and self.out == self.size

    @property
    def phases(self) -> int:
        """Phases 0, 1, ... that are kept."""
        return max(t % self.stride for t in self.taps) + 1

    @property
    def reach(self) -> int:
        return max(t // self.stride for t in self.taps)


def window_axes(shape, out, kernel, strides, pads, dilations) -> list[Axis]:
    """The axes of a convolution or pooling of these attributes; shape and out without batch and channels."""
    return [Axis(n, o, s, p, tuple(i * d for i in range(k)))
            for n, o, k, s, p, d in zip(shape, out, kernel, strides, pads, dilations)]  # fmt: skip


class Field:
    """The flat positions of three axes (d, h, w), and where the taps of position 0 are in the copy."""

    def __init__(self, axes: list[Axis], merge: bool = True):
        one = Axis(1, 1, 1, 0, (0,))
        axes = [one] * (3 - len(axes)) + list(axes)
        for k in (1, 0) if merge else ():  # neighbours that no window crosses are one axis
            if axes[k].plain and axes[k + 1].plain:
                merged = Axis(axes[k].size * axes[k + 1].size, axes[k].out * axes[k + 1].out, 1, 0, (0,))
                axes = [one, *axes[:k], merged, *axes[k + 2 :]]
        self.axes = axes
        d, h, w = axes
        full = w.out + w.reach
        self.pitch = full
        if isinstance(w.before, int):
            shared = max_dim(full - w.before // w.stride, min_dim(full, ceildiv(w.size + w.before, w.stride)))
            self.pitch = max_dim(shared, w.out)
        self.flat = d.out == 1 and d.taps == (0,) and d.before == 0  # no plane index
        self.rows = h.out + h.reach
        self.positions = ((d.out - 1) * self.rows + h.out - 1) * self.pitch + w.out
        self.reach = (d.reach * self.rows + h.reach) * self.pitch + w.reach
        self.phases = d.phases * h.phases * w.phases

    def tap(self, t: tuple[int, int, int]) -> tuple[int, Dim]:
        """The phase that a tap is in, and its flat offset there."""
        d, h, w = (x // a.stride for x, a in zip(t, self.axes))
        pd, ph, pw = (x % a.stride for x, a in zip(t, self.axes))
        phase = (pd * self.axes[1].phases + ph) * self.axes[2].phases + pw
        return phase, (d * self.rows + h) * self.pitch + w

    def taps(self) -> list[tuple[int, int, int]]:
        return list(itertools.product(self.axes[0].taps, self.axes[1].taps, self.axes[2].taps))


def clamp(b: Builder, x, low, high):
    """x within [low, high]."""
    return b.let(T.min(b.let(T.max(x, low)), high))


def vector_run(b: Builder, low, high, lanes: int, body: Callable[[object, int], None]) -> None:
    """body(start, lanes) over [low, high): the last vector overlaps the one before; few elements go one by one."""
    count = b.let(high - low)
    with b.block() as short, b.loop(count, low, stem="x") as v:
        body(v, 1)
    if lanes == 1:
        for s in short:
            b.emit(s)
        return
    with b.if_(count >= i64(lanes), otherwise=short):
        last = b.let(high - i64(lanes))
        with b.loop(T.truncdiv(count + i64(lanes - 1), i64(lanes)), low, lanes, stem="x") as v:
            body(b.let(T.min(v, last)), lanes)


def row_count(b: Builder, field: Field, first, count):
    """The rows that flat positions [first, first + count) touch: (first row, how many)."""
    pitch = b.dim(field.pitch)
    r0 = b.let(T.truncdiv(first, pitch))
    return r0, b.let(T.truncdiv(first + count - i64(1), pitch) + i64(1) - r0)


def plane_and_row(b: Builder, field: Field, r):
    """Row r as (d, h); d is None where there is but one plane."""
    if field.flat:
        return None, r
    rows = b.dim(field.rows)
    d = b.let(T.truncdiv(r, rows))
    return d, b.let(r - d * rows)


UNROLLED = 12  # taps, at most, in code


def tap_table(b: Builder, field: Field, span, unrolled: int = UNROLLED):
    """Where each tap is in a panel of phases of `span` elements: values where taps are few, else a table in scratch."""
    taps = field.taps()
    if len(taps) <= unrolled:
        return [b.let(span * i64(p) + b.dim(d)) for p, d in map(field.tap, taps)]
    table = b.pointer(("scratch", len(taps) * 8), "i64")
    counts = [len(a.taps) for a in field.axes]
    steps = [a.taps[1] - a.taps[0] if len(a.taps) > 1 else 0 for a in field.axes]
    if any(a.taps != tuple(a.taps[0] + i * s for i in range(n)) for a, n, s in zip(field.axes, counts, steps)):
        for k, (p, d) in enumerate(map(field.tap, taps)):
            b.emit(T.BufferStore(table, span * i64(p) + b.dim(d), [i64(k)]))
        return table, len(taps)
    with b.loop(counts[0]) as i, b.loop(counts[1]) as j, b.loop(counts[2]) as k:
        phase, offset = i64(0), i64(0)
        scales = (b.dim(1), b.dim(field.rows), b.dim(field.pitch))
        for a, at, step, scale in zip(field.axes, (i, j, k), steps, scales):
            tap = b.let(at * i64(step) + i64(a.taps[0]))
            whole = b.let(T.truncdiv(tap, i64(a.stride)))
            phase = phase * i64(a.phases) + (tap - whole * i64(a.stride))
            offset = offset * scale + whole
        number = (i * i64(counts[1]) + j) * i64(counts[2]) + k
        b.emit(T.BufferStore(table, span * phase + offset, [number]))
    return table, len(taps)


def load_taps(b: Builder, table, body: Callable[[object, object], None], unrolled: int = UNROLLED) -> None:
    """body(number, offset) for each tap of a tap_table."""
    if isinstance(table, list):
        for k, offset in enumerate(table):
            body(i64(k), offset)
        return
    offsets, count = table
    unroll = next(u for u in (7, 5, 4, 3, 2, 1) if count % u == 0 and u <= unrolled)
    with b.loop(count // unroll, 0, unroll, stem="j") as j:
        for k in range(unroll):
            at = b.let(j + i64(k))
            body(at, b.let(T.BufferLoad(offsets, [at])))


class Copy:
    """Copies flat positions of some channels of x into scratch, phase by phase, padded."""

    def __init__(self, b: Builder, field: Field, source, dtype: str, scratch, lanes: int, span, fill: float = 0.0):
        self.b, self.field, self.source, self.dtype, self.scratch = b, field, source, dtype, scratch
        self.lanes, self.span, self.fill = lanes, span, fill
        self.register = scratch.dtype

    def begin(self, g, channel) -> None:
        """What run() copies next are the channels of group g from there on."""

    def run(self, plane, channels, first, count) -> None:
        """Positions [first, first + count) of `channels` channels from the operand's plane number `plane` on."""
        b, field = self.b, self.field
        pitch = b.dim(field.pitch)
        r0, rows = row_count(b, field, first, count)
        volume = b.dim(product(a.size for a in field.axes))
        width = b.dim(field.axes[2].size)
        with b.loop(rows, r0, stem="r") as r:
            start = b.let(r * pitch - first)  # the row's place in scratch
            q0 = b.let(T.max(i64(0), i64(0) - start))
            q1 = b.let(T.min(pitch, count - start))
            d, h = plane_and_row(b, field, r)
            kept = [a.phases for a in field.axes]
            with b.loop(kept[0]) as pd, b.loop(kept[1]) as ph, b.loop(kept[2]) as pw:
                row, there = self._row(d, h, pd, ph)
                from_, to = self._columns(pw, q0, q1)
                if there is not None:
                    from_ = b.let(T.Select(there, from_, q1))
                    to = b.let(T.Select(there, to, q1))
                phase = b.let((pd * i64(kept[1]) + ph) * i64(kept[2]) + pw)
                origin = b.let(plane * volume + row * width + pw - b.dim(field.axes[2].before))
                with b.loop(channels, stem="c") as c:
                    at = b.let((c * i64(field.phases) + phase) * self.span + start)
                    self._row_of(self._sources(origin, c, volume), at, q0, from_, to, q1)

    def _row(self, d, h, pd, ph):
        """The operand's row (d, h) in its plane, and whether it is there (None: always)."""
        b, (ad, ah, _) = self.b, self.field.axes
        row, there = None, None
        for axis, at, phase in ((ad, d, pd), (ah, h, ph)):
            index = i64(0) if at is None else b.let(at * i64(axis.stride) + phase - b.dim(axis.before))
            if at is not None:
                inside = T.And(index >= i64(0), index < b.dim(axis.size))
                there = inside if there is None else T.And(there, inside)
            row = index if row is None else row * b.dim(axis.size) + index
        return b.let(row), None if there is None else b.let(there)

    def _columns(self, pw, q0, q1):
        b, w = self.b, self.field.axes[2]
        if w.plain:
            return q0, q1
        low = self._ceil(b.dim(w.before) - pw)
        high = self._ceil(b.dim(w.size) + b.dim(w.before) - pw)
        from_ = clamp(b, low, q0, q1)
        return from_, clamp(b, high, from_, q1)

    def _ceil(self, x):
        """x / stride rounded up; 0 for x < 0, where it does not matter."""
        stride = self.field.axes[2].stride
        return T.truncdiv(T.max(x + i64(stride - 1), i64(0)), i64(stride)) if stride > 1 else x

    def _sources(self, origin, c, volume) -> list:
        """Where the elements lie that channel c of the copy is made of."""
        return [self.b.let(origin + c * volume)]

    def _row_of(self, sources, at, q0, from_, to, q1) -> None:
        """Vectors of fill may run over: what follows is written later."""
        b, w = self.b, self.field.axes[2]
        self._fill(at, q0, from_)

        def body(v, lanes):
            value = self._value([self.load(s + v * i64(w.stride), lanes) for s in sources], lanes)
            b.emit(T.BufferStore(self.scratch, value, [ramp(at + v, lanes)]))

        vector_run(b, from_, to, self.lanes, body)
        self._fill(at, to, q1)

    def _value(self, loaded: list, lanes: int):
        return loaded[0]

    def _filling(self, lanes: int):
        return const(self.fill, self.register, lanes)

    def _fill(self, at, low, high) -> None:
        b, lanes = self.b, self.lanes
        with b.loop(T.truncdiv(high - low + i64(lanes - 1), i64(lanes)), low, lanes, stem="z") as v:
            b.emit(T.BufferStore(self.scratch, self._filling(lanes), [ramp(at + v, lanes)]))

    def load(self, index, lanes: int):
        """Elements index, index + stride, ... of the operand, in the register's dtype."""
        b, stride = self.b, self.field.axes[2].stride
        index = b.let(index)

        def at(i):
            return scalar.from_memory(b.let(T.BufferLoad(self.source, [i])), self.dtype)

        if stride == 2 and lanes > 1:
            # the second vector begins one early: the last element past the last wanted one may not be there
            low = b.let(T.BufferLoad(self.source, [ramp(index, lanes)]))
            high = b.let(T.BufferLoad(self.source, [ramp(index + i64(lanes - 1), lanes)]))
            order = [*range(0, lanes, 2), *range(lanes + 1, 2 * lanes, 2)]
            return scalar.from_memory(b.let(T.Shuffle([low, high], [T.IntImm("int32", k) for k in order])), self.dtype)
        return at(ramp(index, lanes, stride))
