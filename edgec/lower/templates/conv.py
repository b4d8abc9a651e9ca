"""conv: a matrix product over windows that are never gathered. Depthwise and grouped ones are no special case.

Blocks of positions are copied, padded, into scratch; a register tile of channels by positions runs over input channels
and taps; an epilogue adds bias, activation and residual and stores rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx as T

from edgec.ir.dims import Dim, ceildiv, max_dim, product
from edgec.ir.node import Data
from edgec.ir.types import TensorType, dtype_size, numpy_dtype
from edgec.lower.groups import Group
from edgec.lower.templates import activation, scalar
from edgec.lower.templates.builder import Builder, const, i64, ramp, spread
from edgec.lower.templates.integers import Integers, IntPacking, Rounded, as_float, integers
from edgec.lower.templates.map import grain_of
from edgec.lower.templates.spatial import (
    UNROLLED,
    Copy,
    Field,
    load_taps,
    plane_and_row,
    row_count,
    tap_table,
    vector_run,
    window_axes,
)
from edgec.rewrites.convs import LONGEST
from edgec.targets import Target

FLOATS = ("f16", "bf16", "f32", "f64")
POSITIONS = 512  # of one block, at most


def supports(node) -> str | None:
    """Why this template can't compute a conv node; None where it can."""
    if node.dtype not in FLOATS:
        return f"conv of {node.dtype}"
    if node.rank > 5:
        return f"conv over {node.rank - 2} axes"
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        w = node.inputs[1]
        if w.op != "constant" or w["data"].channels is None or node.inputs[4].op != "constant":
            return "conv of integers by weights that are none"
        if math.prod(w.shape[1:]) > LONGEST:
            return "conv of integers whose sums leave 32 bits"
    return None


@dataclass(frozen=True)
class Packing:
    """Weights [M, C / group, kernel...] as [group, blocks of rows, C / group, taps, rows], zero padded, in dtype."""

    group: int
    rows: int
    dtype: str

    def shape(self, w: tuple[Any, ...]) -> tuple[int, ...]:
        return (self.group, -(-(w[0] // self.group) // self.rows), w[1], math.prod(w[2:]), self.rows)

    def packed(self, data: Data) -> Data:
        """A handle; the weights are read when it is. Those in 8 bits stay so until the artifact is loaded."""
        type, key = TensorType(self.dtype, self.shape(data.type.shape)), (data.key, self)
        if data.channels is None or self.dtype != "f32":
            return Data(type, key, lambda: {"value": self.pack(data.array(), numpy_dtype(self.dtype))})
        group, blocks, *inner, rows = type.shape
        head = np.array([group * blocks, math.prod(inner), rows], np.int64)
        find = data.channels

        def pieces() -> Iterator[np.ndarray]:
            q, scale = find()
            ones = scale.reshape(-1, *[1] * (len(data.shape) - 1))
            for part in (head, self.pack(ones, np.float32), self.pack(q, np.int8)):
                yield part.reshape(-1).view(np.uint8)

        stored = head.nbytes + 4 * group * blocks * rows + math.prod(type.shape)
        return Data(type, key, lambda: {"value": self.pack(data.array(), np.float32)}, pieces=pieces, expands=stored)

    def pack(self, w: np.ndarray, dtype) -> np.ndarray:
        group, blocks, channels, taps, rows = self.shape(w.shape)
        out = np.zeros((group, blocks * rows, channels, taps), dtype)
        out[:, : w.shape[0] // group] = w.reshape(group, -1, channels, taps)
        return np.ascontiguousarray(out.reshape(group, blocks, rows, channels, taps).transpose(0, 1, 3, 4, 2))


@dataclass(frozen=True)
class Tile:
    """rows (output channels) by vectors of positions, all accumulators in registers."""

    rows: int
    vectors: int


@dataclass(frozen=True)
class Floats:
    """How a product multiplies: one channel in a lane. pace: vectors of products in a cycle. spare: registers beside
    sums, a column of x and a weight. unrolled: taps, at most, in code."""

    register: str
    lanes: int
    depth: int = 1
    pace: float = 2.0
    spare: int = 0
    unrolled: int = UNROLLED

    def dot(self, sums, x, w):
        return sums + x * w


def floats(target: Target, dtype: str) -> Floats:
    register = "f64" if dtype == "f64" else "f32"
    return Floats(register, target.vector_bits // 8 // dtype_size(register))


def choose_tile(rows: int, positions: Dim, unit: Floats | Integers, registers: int) -> Tile:
    """The register tile of least cycles for a product of `rows` channels."""
    lanes = unit.lanes

    def cycles(t: Tile) -> float:
        step = max(t.rows * t.vectors / unit.pace, (t.rows + t.vectors) / 2, 4)
        if isinstance(positions, int):
            tiles = float(-(-max(positions, 1) // (t.vectors * lanes)))
        else:
            tiles = 1.0 / (t.vectors * lanes)
        return -(-rows // t.rows) * tiles * (step + 0.2)

    fitting = [Tile(r, v) for r in range(1, 9) for v in range(1, 9) if r * v + v + 1 + unit.spare <= registers]
    return min(fitting, key=lambda t: (cycles(t), -t.rows * t.vectors))


def registers(target: Target) -> int:
    wide = target.vector_bits >= 512 or "avx512vl" in target.requires
    return 16 if target.arch == "x86_64" and not wide else 32


class Product:
    """Blocks of positions by all channels of a group: copies, multiplies, and leaves [rows, positions] in scratch.

    node: what is computed, its x first. channels: of x, per group. rows: output channels per group (for a transposed
    convolution, times the phases). taps: of the field, in the packed weights' order. unit: how it multiplies.
    """

    def __init__(
        self,
        b: Builder,
        target: Target,
        node,
        field: Field,
        group: int,
        channels: int,
        rows: int,
        taps,
        weights: Callable,
        unit: Floats | Integers,
    ):
        self.b, self.node, self.field, self.group = b, node, field, group
        self.channels, self.rows, self.taps = channels, rows, taps
        self.unit, self.register, self.lanes = unit, unit.register, unit.lanes
        size = dtype_size(self.register)
        self.units = -(-channels // unit.depth)  # of channels, in a lane
        self.tile = choose_tile(rows, field.positions, unit, registers(target))
        self.width = self.tile.vectors * self.lanes
        self.blocks = -(-rows // self.tile.rows)
        self.tiles = max_dim(ceildiv(field.positions, self.width), 0)

        # a tile's part of the panel stays in L1 while all channels of the output pass over it
        rows_read = {(d, h, w % field.axes[2].stride) for d, h, w in taps}
        per_tile = len(rows_read) * (self.width + field.axes[2].reach) * size
        chunks = -(-self.units * per_tile // (target.l1d // 2)) or 1
        self.chunk = max(1, -(-self.units // chunks))
        self.chunks = max(1, -(-self.units // self.chunk))
        per_row = max(1, self.blocks * self.tile.rows * self.width * size)
        per_channel = max(1, self.chunk * field.phases * self.width * size)
        self.steps = max(1, min(target.l2 // 4 // per_row, target.l2 // 5 // per_channel, POSITIONS // self.width))
        if isinstance(self.tiles, int):
            self.steps = max(1, min(self.steps, self.tiles))
        block = self.steps * self.width
        # an odd number of cache lines, so that channels do not fall on the same sets
        lines = (block + field.reach + self.lanes + 15) // 32 * 32 + 16
        self.span = lines
        self.block = block
        self.x = b.pointer(("value", node.inputs[0]), node.inputs[0].dtype)
        self.weights = weights(self)
        phases = field.phases
        self.panel = b.pointer(("scratch", lines * (min(self.chunk, self.units) * phases * size)), self.register)
        self.sums = b.pointer(("scratch", self.blocks * self.tile.rows * block * size), self.register)

    def extent(self) -> Dim:
        return self.node.shape[0] * self.group * self.tiles

    def grain(self) -> int:
        """Units of some 10 us, at 40 products a nanosecond."""
        return grain_of(self.width * self.blocks * self.tile.rows * self.units * len(self.taps) / (20 * self.unit.pace))

    def run(self, epilogue: Callable, copy: Copy | None = None, start: Callable | None = None) -> None:
        """epilogue(n, g, first position, how many) after each block. copy: into the panel, if not as it is. start(g, row):
        what the sums of a packed row begin with, if not with 0."""
        b = self.b
        if copy is None:
            copy = Copy(b, self.field, self.x, self.node.inputs[0].dtype, self.panel, self.lanes, b.dim(self.span))
        self.start = start
        self.offsets = tap_table(b, self.field, b.let(b.dim(self.span)), self.unit.unrolled)
        tiles = b.let(b.dim(self.tiles))
        positions = b.let(b.dim(self.field.positions))
        reach = b.let(b.dim(self.field.reach))
        at = b.cell(b.begin)
        with b.while_(at.get() < b.end):
            u = b.let(at.get(), "u")
            image = b.let(T.truncdiv(u, tiles))
            t0 = b.let(u - image * tiles)
            steps = b.let(T.min(T.min(tiles - t0, b.end - u), i64(self.steps)))
            first = b.let(t0 * i64(self.width))
            n = b.let(T.truncdiv(image, i64(self.group))) if self.group > 1 else image
            g = b.let(image - n * i64(self.group)) if self.group > 1 else i64(0)
            count = b.let(steps * i64(self.width))
            plane = b.let(image * i64(self.channels))

            def chunk(c, units):
                channel = c if self.unit.depth == 1 else b.let(c * i64(self.unit.depth))
                copy.begin(g, channel)
                copy.run(b.let(plane + channel), units, first, b.let(T.min(count, positions - first) + reach))
                with b.loop(steps, stem="t") as t, b.loop(self.blocks, stem="m") as m:
                    self._tile(g, m, t, c, units)

            if self.chunks == 1:
                chunk(i64(0), i64(self.units))
            else:
                with b.loop(self.chunks, stem="k") as k:
                    c = b.let(k * i64(self.chunk))
                    chunk(c, b.let(T.min(i64(self.chunk), i64(self.units) - c)))
            epilogue(n, g, first, b.let(T.min(count, positions - first)))
            b.emit(at.set(u + steps))

    def _tile(self, g, m, t, c, units) -> None:
        b, tile, lanes, taps = self.b, self.tile, self.lanes, len(self.taps)
        place = b.let(t * i64(self.width))
        out = b.let(m * i64(tile.rows * self.block) + place)
        step = taps * tile.rows
        row = b.let(g * i64(self.blocks) + m)
        weight = b.let((row * i64(self.units) + c) * i64(step))
        span = b.let(b.dim(self.span * self.field.phases))

        def sum_at(i, v):
            return [ramp(out + i64(i * self.block + v * lanes), lanes)]

        def begin(i):
            if self.start is None:
                return const(0, self.sums.dtype, lanes)
            return b.let(spread(self.start(b.let(row * i64(tile.rows) + i64(i))), lanes))

        def first(value, i, v):
            if self.chunks == 1:
                return value
            return b.let(T.if_then_else(c > i64(0), T.BufferLoad(self.sums, sum_at(i, v)), value))

        begins = [begin(i) for i in range(tile.rows)]
        sums = [[b.cell(first(z, i, v)) for v in range(tile.vectors)] for i, z in enumerate(begins)]

        def multiply(x_at, w_at):
            xs = [b.let(T.BufferLoad(self.panel, [ramp(x_at + i64(v * lanes), lanes)])) for v in range(tile.vectors)]
            for i in range(tile.rows):
                w = b.let(spread(T.BufferLoad(self.weights, [w_at + i64(i)]), lanes))
                for v in range(tile.vectors):
                    b.emit(sums[i][v].set(self.unit.dot(sums[i][v].get(), xs[v], w)))

        with b.loop(units, stem="c") as k:
            there = b.let(k * span + place)
            weights = b.let(weight + k * i64(step))

            def tap(j, at):
                multiply(b.let(there + at), b.let(weights + j * i64(tile.rows)))

            load_taps(b, self.offsets, tap, self.unit.unrolled)
        for i in range(tile.rows):
            for v in range(tile.vectors):
                b.emit(T.BufferStore(self.sums, sums[i][v].get(), sum_at(i, v)))


def finish(b: Builder, node, value, bias, act: str, residual=None):
    """act(value + bias) + residual in registers, then as it lies in memory."""
    if bias is not None:
        value = b.let(value + bias)
    value = activation.activate(b, act, value)
    if residual is not None:
        value = b.let(value + residual)
    return b.let(scalar.to_memory(b, value, node.dtype))


def packed_weights(b: Builder, p: Product, w):
    """The packed weights: a constant of the artifact, or scratch filled here where they are known at run time only."""
    if isinstance(p.unit, Integers):
        return b.pointer(("packed", (w,), IntPacking(p.group, p.tile.rows, p.unit.depth)), "i32")
    packing = Packing(p.group, p.tile.rows, p.register)
    if w.op == "constant":
        return b.pointer(("packed", (w,), packing), p.register)
    rows, taps, channels = p.tile.rows, len(p.taps), p.channels
    count = p.group * p.blocks * rows * taps * channels
    source = b.pointer(("value", w), w.dtype)
    packed = b.pointer(("scratch", count * dtype_size(p.register)), p.register)
    with b.loop(p.group) as g, b.loop(p.blocks) as m, b.loop(channels) as c, b.loop(taps) as t, b.loop(rows) as r:
        row = b.let(m * i64(rows) + r)
        there = b.let(T.min(row, i64(p.rows - 1)))
        at = (((g * i64(p.rows) + there) * i64(channels) + c) * i64(taps)) + t
        value = b.let(scalar.from_memory(b.let(T.BufferLoad(source, [at])), w.dtype))
        to = (((g * i64(p.blocks) + m) * i64(channels) + c) * i64(taps) + t) * i64(rows) + r
        b.emit(T.BufferStore(packed, T.Select(row < i64(p.rows), value, T.FloatImm(packed.dtype, 0.0)), [to]))
    return packed


def build(group: Group, b: Builder, target: Target) -> tuple[Dim, int]:
    """Emits the function; returns its extent and grain."""
    node = group.outputs[0]
    x, w, bias, residual, grid = node.inputs
    assert x is not None and w is not None
    groups = node["group"]
    axes = window_axes(x.shape[2:], node.shape[2:], w.shape[2:], node["strides"], node["pads"], node["dilations"])
    field = Field(axes)
    taps = field.taps()
    channels, rows = w.shape[1], w.shape[0] // groups
    unit = floats(target, node.dtype) if grid is None else integers(target)
    p = Product(b, target, node, field, groups, channels, rows, taps, lambda p: packed_weights(b, p, w), unit)
    bias_at = b.pointer(("value", bias), bias.dtype) if bias is not None else None
    residual_at = b.pointer(("value", residual), residual.dtype) if residual is not None else None
    out = b.pointer(("value", node), node.dtype)
    rounded = None if grid is None else Rounded(b, p, w, grid)

    def epilogue(n, g, first, count):
        pitch = b.dim(field.pitch)
        r0, many = row_count(b, field, first, count)
        _, ah, aw = field.axes
        volume = b.dim(product(a.out for a in field.axes))
        with b.loop(many, r0, stem="r") as r:
            start = b.let(r * pitch - first)
            low = b.let(T.max(i64(0), i64(0) - start))
            high = b.let(T.min(b.dim(aw.out), count - start))
            d, h = plane_and_row(b, field, r)
            row = h
            if d is not None:
                high = b.let(T.Select(h < b.dim(ah.out), high, low))
                row = b.let(d * b.dim(ah.out) + h)
            place = b.let((n * i64(groups) + g) * i64(rows) * volume + row * b.dim(aw.out))
            with b.loop(rows, stem="m") as m:
                to = b.let(place + m * volume)
                from_ = b.let(m * i64(p.block) + start)
                add = scale = None
                if rounded is not None:
                    scale = rounded.scale(g, m)
                if bias is not None:
                    add = b.let(scalar.from_memory(T.BufferLoad(bias_at, [g * i64(rows) + m]), node.dtype))

                def body(v, lanes):
                    value = b.let(T.BufferLoad(p.sums, [ramp(from_ + v, lanes)]))
                    if scale is not None:
                        value = b.let(as_float(value) * spread(scale, lanes))
                    rest = None
                    if residual is not None:
                        rest = b.let(scalar.from_memory(T.BufferLoad(residual_at, [ramp(to + v, lanes)]), node.dtype))
                    done = finish(b, node, value, None if add is None else spread(add, lanes), node["act"], rest)
                    b.emit(T.BufferStore(out, done, [ramp(to + v, lanes)]))

                vector_run(b, low, high, p.lanes, body)

    if rounded is None:
        p.run(epilogue)
    else:
        p.run(epilogue, rounded.copy, rounded.start)
    return p.extent(), p.grain()
