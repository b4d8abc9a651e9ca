"""conv_transpose: a convolution of stride 1 with stride-many times the channels, whose results interleave when stored.

Output element q * stride + a takes the taps k with (a + pad - k * dilation) divisible by the stride, from operand
element q + (a + pad - k * dilation) / stride: each phase a is a convolution at the operand's own positions q.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx as T

from edgec.ir.dims import Dim, ceildiv, product
from edgec.ir.node import Data
from edgec.ir.types import TensorType, dtype_size, numpy_dtype
from edgec.lower.groups import Group
from edgec.lower.templates import conv, scalar
from edgec.lower.templates.builder import Builder, i64, ramp, spread
from edgec.lower.templates.spatial import Axis, Field, plane_and_row, row_count, vector_run
from edgec.targets import Target


def supports(node) -> str | None:
    """Why this template can't compute a conv_transpose node; None where it can."""
    if not all(isinstance(p, int) for p in node["pads"]):
        return "conv_transpose with padding known at run time only"
    if not all(isinstance(d, int) for d in node.inputs[1].shape):
        return "conv_transpose with weights of a shape known at run time only"
    return conv.supports(node)


@dataclass(frozen=True)
class Phases:
    """Which phase and which operand offset each kernel element of one axis belongs to."""

    kernel: int
    stride: int
    pad: int
    dilation: int

    def of(self, k: int) -> tuple[int, int]:
        phase = (k * self.dilation - self.pad) % self.stride
        return phase, (phase + self.pad - k * self.dilation) // self.stride

    @property
    def first(self) -> int:
        """The least offset."""
        return min(self.of(k)[1] for k in range(self.kernel))

    @property
    def taps(self) -> tuple[int, ...]:
        """The offsets from the least one."""
        return tuple(sorted({self.of(k)[1] - self.first for k in range(self.kernel)}))


def placed(axes: tuple[Phases, ...]) -> list[tuple[tuple[int, ...], int, int]]:
    """Each kernel element, its phase and its tap, both as flat numbers over the axes."""
    out = []
    for at in itertools.product(*(range(a.kernel) for a in axes)):
        phase = tap = 0
        for k, a in zip(at, axes):
            p, offset = a.of(k)
            phase, tap = phase * a.stride + p, tap * len(a.taps) + a.taps.index(offset - a.first)
        out.append((at, phase, tap))
    return out


@dataclass(frozen=True)
class Packing:
    """Weights [C, M / group, kernel...] as conv's packing has them, with a row for each output channel and phase."""

    group: int
    rows: int
    dtype: str
    axes: tuple[Phases, ...]

    def shape(self, w: tuple[Any, ...]) -> tuple[int, ...]:
        rows = w[1] * math.prod(a.stride for a in self.axes)
        taps = math.prod(len(a.taps) for a in self.axes)
        return (self.group, -(-rows // self.rows), w[0] // self.group, taps, self.rows)

    def packed(self, data: Data) -> Data:
        """A handle; the weights are read when it is."""
        type = TensorType(self.dtype, self.shape(data.type.shape))
        return Data(type, (data.key, self), lambda: {"value": self.pack(data.array())})

    def pack(self, w: np.ndarray) -> np.ndarray:
        group, blocks, channels, taps, rows = self.shape(w.shape)
        m, phases = w.shape[1], math.prod(a.stride for a in self.axes)
        out = np.zeros((group, blocks * rows, channels, taps), numpy_dtype(self.dtype))
        w = w.reshape(group, channels, *w.shape[1:])
        for at, phase, tap in placed(self.axes):
            out[:, phase : m * phases : phases, :, tap] = np.swapaxes(w[(slice(None),) * 3 + at], 1, 2)
        return np.ascontiguousarray(out.reshape(group, blocks, rows, channels, taps).transpose(0, 1, 3, 4, 2))


def packed_weights(b: Builder, p: conv.Product, w, axes: tuple[Phases, ...]):
    """The packed weights: a constant of the artifact, or scratch filled here where they are known at run time only."""
    packing = Packing(p.group, p.tile.rows, p.register, axes)
    if w.op == "constant":
        return b.pointer(("packed", (w,), packing), p.register)
    shape = packing.shape(w.shape)
    source = b.pointer(("value", w), w.dtype)
    packed = b.pointer(("scratch", math.prod(shape) * dtype_size(p.register)), p.register)
    with b.loop(math.prod(shape), stem="z") as z:
        b.emit(T.BufferStore(packed, T.FloatImm(packed.dtype, 0.0), [z]))
    _, blocks, channels, taps, rows = shape
    kernel, phases = w.shape[2:], math.prod(a.stride for a in axes)
    with b.loop(p.group) as g, b.loop(channels) as c, b.loop(w.shape[1]) as m:
        at = b.let(((g * i64(channels) + c) * i64(w.shape[1]) + m) * i64(math.prod(kernel)))
        for where, phase, tap in placed(axes):
            row = b.let(m * i64(phases) + i64(phase))
            block = b.let(T.truncdiv(row, i64(rows)))
            to = ((g * i64(blocks) + block) * i64(channels) + c) * i64(taps) + i64(tap)
            flat = int(np.ravel_multi_index(where, kernel))
            value = scalar.from_memory(b.let(T.BufferLoad(source, [at + i64(flat)])), w.dtype)
            b.emit(T.BufferStore(packed, value, [to * i64(rows) + row - block * i64(rows)]))
    return packed


def build(group: Group, b: Builder, target: Target) -> tuple[Dim, int]:
    """Emits the function; returns its extent and grain."""
    node = group.outputs[0]
    x, w, bias = node.inputs
    assert x is not None and w is not None
    n, groups = node.rank - 2, node["group"]
    phases = tuple(Phases(*a) for a in zip(w.shape[2:], node["strides"], node["pads"][:n], node["dilations"]))
    field = Field([Axis(x.shape[2 + i], ceildiv(node.shape[2 + i], a.stride), 1, -a.first, a.taps)
                   for i, a in enumerate(phases)], merge=False)  # fmt: skip
    channels, rows = w.shape[0] // groups, w.shape[1]
    strides = (1,) * (3 - n) + tuple(node["strides"])
    sizes = (1,) * (3 - n) + tuple(node.shape[2:])
    parts = math.prod(strides)
    p = conv.Product(b, target, node, field, groups, channels, rows * parts, field.taps(),
                     lambda p: packed_weights(b, p, w, phases), conv.floats(target, node.dtype))  # fmt: skip
    bias_at = b.pointer(("value", bias), bias.dtype) if bias is not None else None
    out = b.pointer(("value", node), node.dtype)

    def epilogue(n, g, first, count):
        pitch, volume, width = b.dim(field.pitch), b.dim(product(sizes)), b.dim(sizes[2])
        r0, many = row_count(b, field, first, count)
        with b.loop(many, r0, stem="r") as r:
            start = b.let(r * pitch - first)
            low = b.let(T.max(i64(0), i64(0) - start))
            high = b.let(T.min(b.dim(field.axes[2].out), count - start))
            d, h = plane_and_row(b, field, r)
            high = b.let(T.Select(h < b.dim(field.axes[1].out), high, low))
            with b.loop(rows, stem="m") as m, b.loop(strides[0]) as pd, b.loop(strides[1]) as ph:
                y = b.let(h * i64(strides[1]) + ph)
                z = pd if d is None else b.let(d * i64(strides[0]) + pd)
                there = b.let(T.And(y < b.dim(sizes[1]), z < b.dim(sizes[0])))
                to = b.let((((n * i64(groups) + g) * i64(rows) + m) * volume) + (z * b.dim(sizes[1]) + y) * width)
                part = b.let((m * i64(strides[0]) + pd) * i64(strides[1]) + ph)
                from_ = b.let(part * i64(strides[2] * p.block) + start)
                add = None
                if bias is not None:
                    add = b.let(scalar.from_memory(T.BufferLoad(bias_at, [g * i64(rows) + m]), node.dtype))
                with b.if_(there):
                    store(low, high, from_, to, add)

    def store(low, high, from_, to, add):
        def value(v, lanes, phase):
            loaded = b.let(T.BufferLoad(p.sums, [ramp(from_ + i64(phase * p.block) + v, lanes)]))
            return conv.finish(b, node, loaded, None if add is None else spread(add, lanes), node["act"])

        stride, width = strides[2], b.dim(sizes[2])

        def both(v, lanes):
            values = [value(v, lanes, 0), value(v, lanes, 1)]
            if lanes == 1:
                for k in range(2):
                    b.emit(T.BufferStore(out, values[k], [to + v * i64(2) + i64(k)]))
                return
            for k in range(2):
                order = [i // 2 + k * lanes // 2 + i % 2 * lanes for i in range(lanes)]
                mixed = b.let(T.Shuffle(values, [T.IntImm("int32", i) for i in order]))
                b.emit(T.BufferStore(out, mixed, [ramp(to + v * i64(2) + i64(k * lanes), lanes)]))

        if stride == 2:
            whole = b.let(T.min(high, T.truncdiv(width, i64(2))))
            vector_run(b, low, whole, p.lanes, both)
            low = b.let(T.max(whole, low))  # of an odd width, the last element
        for phase in range(1 if stride == 2 else stride):
            end = b.let(T.min(high, T.truncdiv(width + i64(stride - 1 - phase), i64(stride))))

            def strided(v, lanes, phase=phase):
                at = ramp(to + v * i64(stride) + i64(phase), lanes, stride)
                b.emit(T.BufferStore(out, value(v, lanes, phase), [at]))

            vector_run(b, low, end, p.lanes if stride == 1 else 1, strided)

    p.run(epilogue)
    return p.extent(), p.grain()
