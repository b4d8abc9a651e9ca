"""Quantization ops as arithmetic on their values."""

from __future__ import annotations

import numpy as np

from edgec.frontend.emit import array_of, cast, emit, op, reduce, reshape, unsqueeze
from edgec.frontend.nn import matmul
from edgec.frontend.registry import Call, Unsupported, onnx_op
from edgec.ir.dims import Dim
from edgec.ir.node import Node, constant
from edgec.ir.types import numpy_dtype


def limits(dtype: str) -> tuple[int, int]:
    info = np.iinfo(numpy_dtype(dtype))
    return int(info.min), int(info.max)


def along(v: Node, x: Node, axis: int, block: int = 0) -> Node:
    """A scale or zero point (scalar, [d] along `axis`, or one a block) so that it broadcasts to x."""
    if v.rank == 0 or v.shape == (1,):
        return reshape(v, ())
    axis = axis % x.rank
    if block:
        if v.rank != x.rank:
            raise ValueError(f"blocks of {block}: scales {v.type} for {x.type}")
        wide: list[Dim] = [*v.shape[: axis + 1], block, *v.shape[axis + 1 :]]
        flat = [*v.shape[:axis], v.shape[axis] * block, *v.shape[axis + 1 :]]
        y = reshape(op.expand(unsqueeze(v, axis + 1), shape=tuple(wide)), flat)
        sizes = tuple(x.shape)
        return op.slice(y, starts=(0,) * x.rank, sizes=sizes, steps=(1,) * x.rank)
    if v.rank == 1:
        return reshape(v, [v.shape[0] if i == axis else 1 for i in range(x.rank)])
    return v


def dequantize(x: Node, scale: Node, zero: Node | None, dtype: str) -> Node:
    """(x - zero) * scale; the operands broadcast already."""
    work = "f32" if dtype in ("f16", "bf16") else dtype
    if zero is not None and (known := array_of(zero)) is not None and not known.any():
        zero = None
    if x.dtype in ("i32", "u32"):
        y = cast(x if zero is None else op.sub(x, zero), work)
    else:
        y = cast(x, work)
        y = y if zero is None else op.sub(y, cast(zero, work))
    return cast(op.mul(y, cast(scale, work)), dtype)


def quantize(x: Node, scale: Node, zero: Node | None, low: int, high: int, dtype: str) -> Node:
    """Rounded half to even, saturated."""
    work = "f64" if x.dtype in ("i32", "f64") else "f32"
    y = op.round(op.div(cast(x, work), cast(scale, work)))
    if zero is not None:
        y = op.add(y, cast(zero, work))
    return cast(op.min(op.max(y, low), high), dtype)


@onnx_op("DequantizeLinear")
def dequantize_linear(c: Call):
    x, axis, block = c.x, c.attr("axis", 1), c.attr("block_size", 0)
    scale, zero = c[1], c.get(2)
    dtype = c.dtype("output_dtype") or scale.dtype
    scale, zero = along(scale, x, axis, block), zero if zero is None else along(zero, x, axis, block)
    return dequantize(x, scale, zero, dtype)


@onnx_op("QuantizeLinear")
def quantize_linear(c: Call):
    x, axis, block = c.x, c.attr("axis", 1), c.attr("block_size", 0)
    scale, zero = c[1], c.get(2)
    dtype = c.dtype("output_dtype") or ("u8" if zero is None else zero.dtype)
    if dtype not in ("i8", "u8", "i16", "u16"):
        raise Unsupported(f"quantization to {dtype}")
    scale, zero = along(scale, x, axis, block), zero if zero is None else along(zero, x, axis, block)
    return quantize(x, scale, zero, *limits(dtype), dtype)


@onnx_op("DynamicQuantizeLinear")
def dynamic_quantize_linear(c: Call):
    return dynamic_u8(c.x)


def dynamic_u8(x: Node) -> tuple[Node, Node, Node]:
    """x in u8 over its whole range, its scale and zero point, as DynamicQuantizeLinear defines them."""
    axes = range(x.rank)
    low, high = op.min(reduce("min", x, axes), 0.0), op.max(reduce("max", x, axes), 0.0)
    scale = op.div(op.sub(high, low), 255.0)
    scale = op.where(op.eq(scale, 0.0), constant(1.0, x.dtype), scale)
    zero = op.round(op.min(op.max(op.div(op.neg(low), scale), 0.0), 255.0))
    q = op.min(op.max(op.add(op.round(op.div(x, scale)), zero), 0.0), 255.0)
    return cast(q, "u8"), scale, cast(zero, "u8")


@onnx_op("MatMulInteger")
def matmul_integer(c: Call):
    return integer_product(c[0], c[1], c.get(2), c.get(3))


def integer_product(a: Node, b: Node, a_zero: Node | None, b_zero: Node | None) -> Node:
    """(a - a_zero) @ (b - b_zero) in i32; zero points are scalars, or one a row of a and a column of b."""
    a_zero = reshape(a_zero, ()) if a_zero is not None and a_zero.shape in ((), (1,)) else a_zero
    b_zero = reshape(b_zero, ()) if b_zero is not None and b_zero.shape in ((), (1,)) else b_zero
    if all(z is None or z.rank == 0 for z in (a_zero, b_zero)) and a.rank >= 2 and b.rank >= 2:
        return op.matmul_int(a, b, a_zero, b_zero)
    a, b = cast(a, "i32"), cast(b, "i32")
    if a_zero is not None:
        a_zero = cast(a_zero, "i32")
        a = op.sub(a, unsqueeze(a_zero, 1) if a_zero.rank == 1 and a.rank >= 2 else a_zero)
    if b_zero is not None:
        b = op.sub(b, cast(b_zero, "i32"))
    return matmul(a, b)


@onnx_op("QLinearMatMul")
def qlinear_matmul(c: Call):
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (c[i] for i in range(8))
    total = integer_product(a, b, a_zero, b_zero)
    # one scale a row of a, one a column of b
    a_scale = unsqueeze(a_scale, 1) if a_scale.rank == 1 and a_scale.shape != (1,) else a_scale
    scale = op.div(op.mul(cast(a_scale, "f32"), cast(b_scale, "f32")), cast(y_scale, "f32"))
    scale = reshape(scale, ()) if scale.shape == (1,) else scale
    y = op.round(op.mul(cast(total, "f32"), scale))
    low, high = limits(y_zero.dtype)
    return cast(op.min(op.max(op.add(y, cast(y_zero, "f32")), low), high), y_zero.dtype)


def _centred(x: Node, zero: Node | None, axis: int) -> Node:
    """x - zero as f32: exact, and so are the sums of a convolution over up to 2^24 / 2^16 terms."""
    y = cast(x, "f32")
    return y if zero is None else op.sub(y, cast(along(zero, x, axis), "f32"))


@onnx_op("ConvInteger")
def conv_integer(c: Call):
    return cast(_conv(c, _centred(c[0], c.get(2), 1), _centred(c[1], c.get(3), 0), None), "i32")


@onnx_op("QLinearConv")
def qlinear_conv(c: Call):
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (c[i] for i in range(8))
    bias = cast(c[8], "f32") if c.has(8) else None
    c.inputs = [x, w]
    total = _conv(c, _centred(x, x_zero, 1), _centred(w, w_zero, 0), bias)
    scale = op.div(op.mul(cast(x_scale, "f32"), cast(w_scale, "f32")), cast(y_scale, "f32"))
    y = op.round(op.mul(total, along(scale, total, 1)))
    low, high = limits(y_zero.dtype)
    return cast(op.min(op.max(op.add(y, cast(reshape(y_zero, ()), "f32")), low), high), y_zero.dtype)


def _conv(c: Call, x: Node, w: Node, bias: Node | None) -> Node:
    from edgec.frontend.nn import kernel_of, spatial_attrs

    strides, pads, dilations = spatial_attrs(c, kernel_of(c, w))
    return emit("conv", x, w, bias, strides=strides, pads=pads, dilations=dilations, group=c.attr("group", 1))
