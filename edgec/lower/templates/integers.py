"""Convolution in 8 bits: what differs from the one in floats (conv.py) is what a lane holds, and how it is multiplied.

A lane of 32 bits holds `depth` channels of one position, as integers of 0..255; weights are -127..127. The sums are exact,
so every instruction set leaves the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx as T

from edgec.ir.node import Data
from edgec.ir.types import TensorType
from edgec.lower.templates.builder import Builder, const, i64, lanes_of, spread
from edgec.lower.templates.spatial import UNROLLED, Copy
from edgec.targets import Target

WHOLE = 2.0**23  # floats from here to twice that are the integers: an addition rounds, the low bits are the number
WHOLE_BITS = 0x4B000000


@dataclass(frozen=True)
class Integers:
    """How a target multiplies; pace, spare and unrolled as of conv.Floats. depth: channels in a lane, of 32 / depth bits
    each. shift: what is taken from 0..255 where both sides are signed. dot(sums, x, w): i32 vectors; w's lanes hold `depth`
    weights each."""

    depth: int
    lanes: int
    dot: Callable
    pace: float
    spare: int = 0
    unrolled: int = UNROLLED
    shift: int = 0

    register = "i32"


def _cast(x, dtype: str):
    return T.reinterpret(dtype, x)


def as_float(x):
    lanes = lanes_of(x)
    return T.Cast(f"float32x{lanes}" if lanes > 1 else "float32", x)


def _intrinsic(name: str, like, *args):
    return T.call_llvm_pure_intrin(str(like.ty.dtype), name, *args)


def _vnni(sums, x, w):
    lanes = lanes_of(sums)
    return _intrinsic(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", sums, sums, _cast(x, f"uint8x{4 * lanes}"),
                      _cast(w, f"int8x{4 * lanes}"))  # fmt: skip


def _maddubs(sums, x, w):
    """Two steps through int16, which pairs of weights never leave (rewrites.encode.in_channels)."""
    lanes = lanes_of(sums)
    bytes_to_pairs, pairs_to_sums = {
        4: ("ssse3.pmadd.ub.sw.128", "sse2.pmadd.wd"),
        8: ("avx2.pmadd.ub.sw", "avx2.pmadd.wd"),
    }[lanes]
    x, w = (_cast(v, f"int8x{4 * lanes}") for v in (x, w))
    pairs = T.call_llvm_pure_intrin(f"int16x{2 * lanes}", f"llvm.x86.{bytes_to_pairs}", x, w)
    return sums + _intrinsic(f"llvm.x86.{pairs_to_sums}", sums, pairs, const(1, "int16", 2 * lanes))


def _sdot(sums, x, w):
    return _intrinsic("llvm.aarch64.neon.sdot", sums, sums, _cast(x, "int8x16"), _cast(w, "int8x16"))


def _plain(sums, x, w):
    lanes = lanes_of(sums)
    half = const(16, "int32", lanes)

    def parts(v):
        return T.shift_right(T.shift_left(v, half), half), T.shift_right(v, half)

    (x0, x1), (w0, w1) = parts(x), parts(w)
    return sums + x0 * w0 + x1 * w1


def integers(target: Target) -> Integers:
    """The best of the target."""
    lanes = target.vector_bits // 32
    if target.arch == "x86_64":
        if "avx512vnni" in target.requires:
            return Integers(4, 16, _vnni, 1.0)
        # one tap at a time: LLVM reorders the additions of more, and spills
        return Integers(4, lanes, _maddubs, 1.0, spare=2, unrolled=1)
    if "dotprod" in target.requires:
        return Integers(4, lanes, _sdot, 2.0, shift=128)
    return Integers(2, lanes, _plain, 0.5, spare=4)


# --- weights ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IntPacking:
    """Weights [M, C / group, kernel...] as [group, blocks of rows, units, taps, rows] of int32, each `depth` channels of a
    unit; zero padded."""

    group: int
    rows: int
    depth: int

    def shape(self, w: tuple[int, ...]) -> tuple[int, ...]:
        return (self.group, -(-(w[0] // self.group) // self.rows), -(-w[1] // self.depth), math.prod(w[2:]), self.rows)

    def packed(self, data: Data) -> Data:
        find, shape = data.channels, self.shape(data.shape)
        assert find is not None

        def load() -> dict[str, np.ndarray]:
            return {"value": self.pack(find()[0], shape)}

        return Data(TensorType("i32", shape), (data.key, self), load)

    def pack(self, q: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        group, blocks, units, taps, rows = shape
        item = np.int8 if self.depth == 4 else np.int16
        out = np.zeros((group, blocks * rows, units * self.depth, taps), item)
        out[:, : q.shape[0] // group, : q.shape[1]] = q.reshape(group, -1, q.shape[1], taps)
        out = out.reshape(group, blocks, rows, units, self.depth, taps).transpose(0, 1, 3, 5, 2, 4)
        return np.ascontiguousarray(out).view("<i4").reshape(shape)


@dataclass(frozen=True)
class Scales:
    """Of each output channel its weights' scale, f32, padded as IntPacking pads them."""

    group: int
    rows: int

    def packed(self, data: Data) -> Data:
        find = data.channels
        assert find is not None
        shape = _padded(data, self)
        return Data(
            TensorType("f32", shape), (data.key, self), lambda: {"value": _in_rows(find()[1], shape, self.group)}
        )


@dataclass(frozen=True)
class Starts:
    """Of each output channel what its sum begins with, i32: what zero points (less `shift`) would add to it, taken away."""

    group: int
    rows: int
    shift: int

    def packed(self, data: Data, grid: Data) -> Data:
        find = data.channels
        assert find is not None
        shape = _padded(data, self)

        def load() -> dict[str, np.ndarray]:
            q = find()[0].reshape(*data.shape[:2], -1).sum(2, dtype=np.int64)
            zero = grid.array()[1].reshape(self.group, 1, -1).astype(np.int64) - self.shift
            sums = (q.reshape(self.group, -1, data.shape[1]) * zero).sum(2)
            return {"value": _in_rows(-sums.reshape(-1).astype(np.int32), shape, self.group)}

        return Data(TensorType("i32", shape), (data.key, grid.key, self), load)


def _padded(data: Data, packing: Scales | Starts) -> tuple[int, int]:
    return packing.group, -(-data.shape[0] // packing.group // packing.rows) * packing.rows


def _in_rows(values: np.ndarray, shape: tuple[int, int], group: int) -> np.ndarray:
    out = np.zeros(shape, values.dtype)
    out[:, : len(values) // group] = values.reshape(group, -1)
    return out


# --- operands --------------------------------------------------------------------------------------------------------


class Interleave(Copy):
    """The copy of floats as integers, `depth` channels in a lane: x / step + zero within 0..255, to the nearest."""

    def __init__(self, b: Builder, product, grid):
        field, x = product.field, product.node.inputs[0]
        lanes, width = product.unit.lanes, field.axes[2].size
        while isinstance(width, int) and lanes > 4 and lanes > width // field.axes[2].stride:
            lanes //= 2
        super().__init__(b, field, product.x, x.dtype, product.panel, lanes, b.dim(product.span))
        self.unit, self.channels, self.count = product.unit, product.channels, product.channels * product.group
        self.inverse = b.pointer(("scratch", 4 * self.count), "f32")
        self.zero = b.pointer(("scratch", 4 * self.count), "f32")
        with b.loop(self.count) as c:
            step, zero = (T.BufferLoad(grid, [c + i64(k * self.count)]) for k in range(2))
            b.emit(T.BufferStore(self.inverse, T.FloatImm("float32", 1.0) / step, [c]))
            b.emit(T.BufferStore(self.zero, zero + T.FloatImm("float32", WHOLE), [c]))

    def begin(self, g, channel) -> None:
        self.first = self.b.let(g * i64(self.channels) + channel)  # of the operand's channels
        self.last = self.b.let(i64(self.channels - 1) - channel)  # from there on

    def _sources(self, origin, c, volume) -> list:
        b, depth, sources = self.b, self.unit.depth, []
        self.steps = []
        for k in range(depth):
            channel = c * i64(depth) + i64(k)
            if self.channels % depth:  # beyond the last, any number does: its weights are 0
                channel = T.min(channel, self.last)
            channel = b.let(channel)
            at = b.let(self.first + channel)
            self.steps.append(tuple(b.let(T.BufferLoad(v, [at])) for v in (self.inverse, self.zero)))
            sources.append(b.let(origin + channel * volume))
        self.filled = b.let(self._together([_as_int(zero) for _, zero in self.steps]))
        return sources

    def _value(self, loaded: list, lanes: int):
        b, found = self.b, []
        low, high = (const(WHOLE + v, "float32", lanes) for v in (0, 255))
        for x, (inverse, zero) in zip(loaded, self.steps):
            whole = b.let(x * spread(inverse, lanes) + spread(zero, lanes))
            whole = b.let(T.Select(whole > low, whole, low))  # of NaN: low
            found.append(b.let(_as_int(b.let(T.Select(whole < high, whole, high)))))
        return b.let(self._together(found))

    def _together(self, parts: list):
        """Floats' bits as one lane; shifted by 8 and more, the exponent is gone."""
        lanes, width = lanes_of(parts[0]), 32 // self.unit.depth
        whole = T.bitwise_xor(parts[0], const(WHOLE_BITS, "int32", lanes))
        for k, part in enumerate(parts[1:], 1):
            if width == 16:
                part = T.bitwise_xor(part, const(WHOLE_BITS, "int32", lanes))
            whole = T.bitwise_or(whole, T.shift_left(part, const(k * width, "int32", lanes)))
        if self.unit.shift:  # of each byte
            whole = T.bitwise_xor(whole, const(-0x7F7F7F80, "int32", lanes))
        return whole

    def _filling(self, lanes: int):
        return spread(self.filled, lanes)


def _as_int(x):
    lanes = lanes_of(x)
    return _cast(x, f"int32x{lanes}" if lanes > 1 else "int32")


class Rounded:
    """What a product of integers needs beside its weights: the rounded copy of x, where sums start, what they are worth."""

    def __init__(self, b: Builder, product, w, grid):
        p = self.product = product
        self.b, self.each = b, p.blocks * p.tile.rows
        self.starts = b.pointer(("packed", (w, grid), Starts(p.group, p.tile.rows, p.unit.shift)), "i32")
        self.scales = b.pointer(("packed", (w,), Scales(p.group, p.tile.rows)), "f32")
        self.copy = Interleave(b, p, b.pointer(("value", grid), "f32"))

    def start(self, row):
        """Of a packed row, whatever its group."""
        return T.BufferLoad(self.starts, [row])

    def scale(self, g, m):
        """Of row m of group g."""
        return self.b.let(T.BufferLoad(self.scales, [g * i64(self.each) + m]))
