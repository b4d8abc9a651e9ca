"""resize: along each axis a table of taps and weights, made at run time; rows are blended first, then columns.

Methods: ONNX Resize-19, https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx as T

from edgec.ir.dims import Dim, ceildiv, max_dim, product
from edgec.ir.ops.movement import resize_matrix
from edgec.ir.types import dtype_size, numpy_dtype
from edgec.lower.groups import Group
from edgec.lower.templates import scalar
from edgec.lower.templates.builder import Builder, const, i64, llvm, ramp, scalar_of, spread, tvm_dtype
from edgec.lower.templates.map import grain_of, size_hint
from edgec.lower.templates.spatial import vector_run
from edgec.targets import Target

HOW = ("mode", "coordinates", "nearest", "cubic_a", "exclude_outside", "antialias")
# coordinates that depend on the scale alone, so that a whole factor repeats one pattern
PERIODIC = ("asymmetric", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn")


def supports(node) -> str | None:
    """Why this template can't compute a resize node; None where it can."""
    if node.rank == 0:
        return "resize of a scalar"
    return "resize of bool" if node.dtype == "bool" and node["mode"] != "nearest" else None


@dataclass(frozen=True)
class Axis:
    """size -> out; start and end: of the region of interest. An axis that is not resized has out == size."""

    size: Dim
    out: Dim
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    resized: bool = False


def axes_of(node) -> list[Axis]:
    """The node's axes, outermost first; neighbours that stay as they are count as one."""
    x, roi = node.inputs[0], node["roi"]
    crop = node["coordinates"] == "tf_crop_and_resize"
    axes: list[Axis] = []
    for k, (size, out, scale) in enumerate(zip(x.shape, node["sizes"], node["scales"])):
        start, end = (roi[k], roi[k + x.rank]) if roi else (0.0, 1.0)
        resized = out != size or scale not in (0.0, 1.0) or (crop and (start, end) != (0.0, 1.0))
        if not resized and axes and not axes[-1].resized:
            axes[-1] = Axis(axes[-1].size * size, axes[-1].out * out)
        else:
            axes.append(Axis(size, out, scale, start, end, resized))
    return axes


def repeats(node, axis: Axis) -> int | None:
    """The factor where a nearest axis just repeats each element that many times."""
    if node["mode"] != "nearest" or node["coordinates"] not in PERIODIC:
        return None
    for f in range(2, 9):
        if axis.out == axis.size * f and axis.scale in (0.0, float(f)):
            matrix, _ = resize_matrix(16, 16 * f, float(f), 0.0, 1.0, **{k: node[k] for k in HOW})
            return f if (matrix.argmax(1) == np.arange(16 * f) // f).all() else None
    return None


def _f64(value: float):
    return T.FloatImm("float64", float(value))


class Table:
    """Of one resized axis: taps [tap, out] of the operand, their weights (not for nearest), and what lies outside."""

    def __init__(self, b: Builder, node, axis: Axis, register: str):
        self.b, self.node, self.axis = b, node, axis
        self.nearest, self.cubic = node["mode"] == "nearest", node["mode"] == "cubic"
        self.taps = self._tap_count()
        out = max_dim(axis.out, 0)
        self.count, self.out = b.let(b.dim(self.taps)), b.let(b.dim(axis.out))
        self.at = b.pointer(("scratch", out * self.taps * 8), "i64")
        self.weight: Any = (
            None if self.nearest else b.pointer(("scratch", out * self.taps * dtype_size(register)), register)
        )
        self.outside = None
        if node["coordinates"] == "tf_crop_and_resize":
            self.outside = b.pointer(("scratch", out * 4), "f32")
        self.size = b.let(b.dim(axis.size))
        self.size_f = b.let(T.Cast("float64", self.size))
        self.out_f = b.let(T.Cast("float64", self.out))
        self.scale = _f64(axis.scale) if axis.scale else b.let(self.out_f / self.size_f)
        if node["antialias"]:
            stretch = b.let(_f64(1) / self.scale)
            self.stretch = b.let(T.Select(stretch > _f64(1), stretch, _f64(1)))
        with b.loop(self.out, stem="o") as o:
            x = b.let(self._coordinate(b.let(T.Cast("float64", o))))
            if self.outside is not None:
                beyond = T.Or(x < _f64(0), x > self.size_f - _f64(1))
                flag = T.Select(beyond, T.FloatImm("float32", 1.0), T.FloatImm("float32", 0.0))
                b.emit(T.BufferStore(self.outside, flag, [o]))
            if self.nearest:
                b.emit(T.BufferStore(self.at, self._clip(self._round(x)), [o]))
            else:
                self._weights(o, x)

    def _tap_count(self) -> Dim:
        if self.nearest:
            return 1
        plain = 4 if self.cubic else 2
        if not self.node["antialias"]:
            return plain
        radius = 2 if self.cubic else 1
        if self.axis.scale:
            return 2 * math.ceil(radius * max(1.0, 1 / self.axis.scale)) + 3
        return max_dim(ceildiv(self.axis.size * (2 * radius), max_dim(self.axis.out, 1)), 2 * radius) + 4

    def _coordinate(self, i):
        """The operand's coordinate of output i, as resize_matrix has it."""
        how, half, one = self.node["coordinates"], _f64(0.5), _f64(1)
        if how == "asymmetric":
            return i / self.scale
        last, many = self.size_f - one, self.out > i64(1)
        steps = self.b.let(T.Select(many, self.out_f - one, one))
        if how == "align_corners":
            return T.Select(many, i * last / steps, _f64(0))
        if how == "tf_crop_and_resize":
            start = self.b.let(_f64(self.axis.start) * last)
            length = self.b.let(_f64(self.axis.end) * last - start)
            return start + T.Select(many, i * length / steps, length * half)
        pixel = self.b.let((i + half) / self.scale)
        if how == "tf_half_pixel_for_nn":
            return pixel
        if how == "half_pixel_symmetric":
            adjustment = self.b.let(self.out_f / self.b.let(self.scale * self.size_f))
            return self.size_f * half * (one - adjustment) + pixel - half
        if how == "pytorch_half_pixel":
            return T.Select(many, pixel - half, _f64(0))
        return pixel - half

    def _round(self, x):
        half = _f64(0.5)
        return {
            "round_prefer_floor": lambda: llvm("ceil", x - half), "round_prefer_ceil": lambda: llvm("floor", x + half),
            "floor": lambda: llvm("floor", x), "ceil": lambda: llvm("ceil", x), "simple": lambda: llvm("trunc", x),
        }[self.node["nearest"]]()  # fmt: skip

    def _clip(self, x):
        """A coordinate as an index within the operand."""
        low = self.b.let(T.Select(x > _f64(0), x, _f64(0)))
        last = self.b.let(self.size_f - _f64(1))
        return T.Cast("int64", self.b.let(T.Select(low < last, low, last)))

    def _weights(self, o, x) -> None:
        b = self.b
        radius = _f64(2 if self.cubic else 1)
        below = b.let(llvm("floor", x))
        first, last = b.let(below - _f64(1 if self.cubic else 0)), b.let(below + radius)
        if self.node["antialias"]:
            reach = b.let(radius * self.stretch)
            wide = self.stretch > _f64(1)
            first = b.let(T.Select(wide, llvm("floor", x - reach), first))
            last = b.let(T.Select(wide, llvm("ceil", x + reach), last))
        total = b.cell(_f64(0))
        with b.loop(self.count, stem="j") as j:
            tap = b.let(first + T.Cast("float64", j))
            t = b.let(llvm("fabs", x - tap))
            if self.node["antialias"]:
                t = b.let(t / self.stretch)
            w = b.let(self._kernel(t))
            kept = tap <= last
            if self.node["exclude_outside"]:
                kept = T.And(kept, T.And(tap >= _f64(0), tap < self.size_f))
            w = b.let(T.Select(kept, w, _f64(0)))
            b.emit(total.set(total.get() + w))
            place = b.let(j * self.out + o)
            b.emit(T.BufferStore(self.at, self._clip(tap), [place]))
            b.emit(T.BufferStore(self.weight, T.Cast(self.weight.dtype, w), [place]))
        sum_ = b.let(total.get())
        factor = b.let(T.Select(T.EQ(sum_, _f64(0)), _f64(1), _f64(1) / sum_))
        with b.loop(self.count, stem="j") as j:
            place = b.let(j * self.out + o)
            old = T.Cast("float64", b.let(T.BufferLoad(self.weight, [place])))
            b.emit(T.BufferStore(self.weight, T.Cast(self.weight.dtype, old * factor), [place]))

    def _kernel(self, t):
        if not self.cubic:
            return T.Select(t < _f64(1), _f64(1) - t, _f64(0))
        a = self.node["cubic_a"]
        near = ((_f64(a + 2) * t - _f64(a + 3)) * t) * t + _f64(1)
        far = ((_f64(a) * t - _f64(5 * a)) * t + _f64(8 * a)) * t - _f64(4 * a)
        return T.Select(t <= _f64(1), near, T.Select(t < _f64(2), far, _f64(0)))


class Resize:
    """The function's body: for each row of the output, the blended row of the operand, then its columns."""

    def __init__(self, b: Builder, target: Target, node):
        self.b, self.node = b, node
        self.dtype = node.dtype
        self.axes = axes_of(node)
        self.nearest = node["mode"] == "nearest"
        small = self.dtype in ("f16", "bf16", "f32", "i8", "u8", "i16", "u16")
        self.register = "f32" if small else "f64"
        width = dtype_size(self.dtype) if self.nearest else dtype_size(self.register)
        self.lanes = target.vector_bits // 8 // width
        self.x = b.pointer(("value", node.inputs[0]), self.dtype)
        self.y = b.pointer(("value", node), self.dtype)
        self.factor = repeats(node, self.axes[-1]) or 0
        self.tables: dict[int, Table] = {}
        for k, axis in enumerate(self.axes):
            if axis.resized and not (self.factor and k == len(self.axes) - 1):
                self.tables[k] = Table(b, node, axis, self.register)
        self.last = len(self.axes) - 1
        self.blended = not self.nearest and any(k != self.last for k in self.tables)
        self.row: Any = None
        if self.blended:
            self.row = b.pointer(("scratch", self.axes[-1].size * dtype_size(self.register)), self.register)
        filler = T.FloatImm("float64" if self.register == "f64" else "float32", float(node["extrapolation"]))
        self.filler = b.let(scalar.to_memory(b, self._narrow(filler), self.dtype))

    def run(self) -> Dim:
        b, outer = self.b, self.axes[:-1]
        width, out = b.let(b.dim(self.axes[-1].size)), b.let(b.dim(self.axes[-1].out))
        strides: list[Dim] = [product(a.size for a in self.axes[k + 1 :]) for k in range(len(outer))]
        strides_at = [b.let(b.dim(s)) for s in strides]
        sizes = [b.let(b.dim(a.out)) for a in outer]
        with b.loop(b.end - b.begin, b.begin, stem="u") as u:
            at: list = []
            rest = u
            for size in reversed(sizes[1:]):
                above = b.let(T.truncdiv(rest, size))
                at.insert(0, b.let(rest - above * size))
                rest = above
            at = [rest, *at] if outer else []
            base, outside = i64(0), None
            for k, i in enumerate(at):
                table = self.tables.get(k)
                if table is None:
                    base = base + i * strides_at[k]
                elif self.nearest:
                    base = base + b.let(T.BufferLoad(table.at, [i])) * strides_at[k]
                if table is not None and table.outside is not None:
                    beyond = b.let(T.BufferLoad(table.outside, [i])) > T.FloatImm("float32", 0.0)
                    outside = beyond if outside is None else T.Or(outside, beyond)
            base = b.let(base)
            to = b.let(u * out)
            if outside is None:
                self._row(base, at, strides_at, width, out, to)
            else:
                with b.block() as fill:
                    vector_run(b, i64(0), out, self.lanes, lambda v, n: self._store(to + v, spread(self.filler, n), n))
                with b.if_(T.Not(outside), otherwise=fill):
                    self._row(base, at, strides_at, width, out, to)
        return product(a.out for a in outer)

    def _store(self, index, value, lanes: int) -> None:
        self.b.emit(T.BufferStore(self.y, value, [ramp(index, lanes)]))

    def _row(self, base, at, strides, width, out, to) -> None:
        b = self.b
        if self.blended:
            self._blend(base, at, strides, width)
        if self.factor:
            vector_run(b, i64(0), width, self.lanes, lambda v, n: self._repeat(base, v, to, n))
        elif self.last not in self.tables:
            vector_run(b, i64(0), out, self.lanes, lambda v, n: self._copy(base, v, to, n))
        else:
            vector_run(b, i64(0), out, self.lanes, lambda v, n: self._columns(base, v, to, n))

    def _blend(self, base, at, strides, width) -> None:
        """The weighted sum of the operand's rows that the outer axes' taps name."""
        b, row = self.b, self.row
        zero = const(0.0, row.dtype)
        vector_run(b, i64(0), width, self.lanes,
                   lambda v, n: b.emit(T.BufferStore(row, spread(zero, n), [ramp(v, n)])))  # fmt: skip
        tables = [(k, t) for k, t in self.tables.items() if k != self.last]

        def taps(todo, offset, weight):
            if todo:
                (k, table), *others = todo
                with b.loop(table.count, stem="j") as j:
                    place = b.let(j * table.out + at[k])
                    w = b.let(T.BufferLoad(table.weight, [place]))
                    below = b.let(offset + b.let(T.BufferLoad(table.at, [place])) * strides[k])
                    taps(others, below, w if weight is None else b.let(weight * w))
                return

            def add(v, n):
                x = b.let(self._load(offset + v, n))
                old = b.let(T.BufferLoad(row, [ramp(v, n)]))
                b.emit(T.BufferStore(row, old + x * spread(weight, n), [ramp(v, n)]))

            with b.if_(T.Not(T.EQ(weight, zero))):
                self._exact_run(width, add)

        taps(tables, base, None)

    def _exact_run(self, width, body) -> None:
        """body(start, lanes) over [0, width), no element twice."""
        b, whole = self.b, self.b.let(T.truncdiv(width, i64(self.lanes)))
        with b.loop(whole, 0, self.lanes, stem="x") as v:
            body(v, self.lanes)
        done = b.let(whole * i64(self.lanes))
        with b.loop(width - done, done, stem="x") as v:
            body(v, 1)

    def _load(self, index, lanes: int):
        """Elements of the operand in the register's dtype; index an offset, or a vector of them."""
        b = self.b
        at = index if lanes > 1 and index.ty.dtype.lanes > 1 else ramp(index, lanes)
        value = b.let(scalar.from_memory(b.let(T.BufferLoad(self.x, [at])), self.dtype))
        return scalar.convert(b, value, "float64" if self.register == "f64" else "float32")

    def _narrow(self, value):
        """A result in registers as the output's register dtype: integers are rounded and saturate."""
        b = self.b
        if self.dtype in ("f16", "bf16", "f32", "f64"):
            return value
        if self.dtype == "bool":
            return scalar.convert(b, value, "bool")
        info = np.iinfo(numpy_dtype(self.dtype))
        lanes, kind = value.ty.dtype.lanes, scalar_of(value)
        low, high = (const(float(v), kind, lanes) for v in (info.min, info.max))
        value = b.let(T.Select(value < low, low, b.let(T.Select(value > high, high, value))))
        return scalar.convert(b, b.let(llvm("rint", value)), tvm_dtype(self.dtype))

    def _finish(self, value, index, lanes: int) -> None:
        self._store(index, scalar.to_memory(self.b, self.b.let(self._narrow(value)), self.dtype), lanes)

    def _repeat(self, base, v, to, lanes: int) -> None:
        b, f = self.b, self.factor
        value = b.let(T.BufferLoad(self.x, [ramp(base + v, lanes)]))
        start = b.let(to + v * i64(f))
        for k in range(f):
            if lanes == 1:
                self._store(start + i64(k), value, 1)
                continue
            order = [T.IntImm("int32", (k * lanes + i) // f) for i in range(lanes)]
            self._store(start + i64(k * lanes), b.let(T.Shuffle([value], order)), lanes)

    def _copy(self, base, v, to, lanes: int) -> None:
        b = self.b
        if self.blended:
            self._finish(b.let(T.BufferLoad(self.row, [ramp(v, lanes)])), to + v, lanes)
        else:
            self._store(to + v, b.let(T.BufferLoad(self.x, [ramp(base + v, lanes)])), lanes)

    def _columns(self, base, v, to, lanes: int) -> None:
        b, table = self.b, self.tables[self.last]

        def at(j):
            return b.let(T.BufferLoad(table.at, [ramp(j * table.out + v, lanes)]))

        if self.nearest:
            value = b.let(T.BufferLoad(self.x, [b.let(at(i64(0)) + spread(base, lanes))]))
            if table.outside is not None:
                flag = b.let(T.BufferLoad(table.outside, [ramp(v, lanes)]))
                value = b.let(T.Select(flag > const(0.0, "float32", lanes), spread(self.filler, lanes), value))
            self._store(to + v, value, lanes)
            return
        total = b.cell(const(0.0, table.weight.dtype, lanes))
        with b.loop(table.count, stem="j") as j:
            index = at(j)
            weight = b.let(T.BufferLoad(table.weight, [ramp(j * table.out + v, lanes)]))
            if self.blended:
                value = b.let(T.BufferLoad(self.row, [index]))
            else:
                value = b.let(self._load(b.let(index + spread(base, lanes)), lanes))
            b.emit(total.set(total.get() + value * weight))
        value = b.let(total.get())
        if table.outside is not None:
            flag = b.let(T.BufferLoad(table.outside, [ramp(v, lanes)]))
            outside = const(float(self.node["extrapolation"]), table.weight.dtype, lanes)
            value = b.let(T.Select(T.Cast(f"bool{f'x{lanes}' if lanes > 1 else ''}", flag), outside, value))
        self._finish(value, to + v, lanes)


def build(group: Group, b: Builder, target: Target) -> tuple[Dim, int]:
    """Emits the function; returns its extent and grain."""
    node = group.outputs[0]
    body = Resize(b, target, node)
    extent = body.run()
    width = size_hint(body.axes[-1].out)
    taps = 0.1 if body.factor or body.last not in body.tables else 1.0 if body.nearest else 4.0
    return extent, grain_of(taps * width)
