"""Elementwise ONNX ops."""

from __future__ import annotations

import math

import numpy as np

from edgec.frontend.emit import cast, emit, full, op, reshape
from edgec.frontend.registry import Call, Unsupported, onnx_op
from edgec.ir.node import Node, constant
from edgec.ir.types import FLOATS, INTS, numpy_dtype

SAME = {
    "Neg": "neg", "Abs": "abs", "Sign": "sign", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sqrt": "sqrt",
    "Reciprocal": "reciprocal", "Exp": "exp", "Log": "log", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin",
    "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh",
    "Acosh": "acosh", "Atanh": "atanh", "Erf": "erf", "Sigmoid": "sigmoid", "Relu": "relu", "Softplus": "softplus",
    "Not": "not", "BitwiseNot": "bitwise_not", "IsNaN": "isnan",
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "And": "and", "Or": "or", "Xor": "xor",
    "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor",
    "Equal": "eq", "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge", "Where": "where",
}  # fmt: skip


@onnx_op(*SAME)
def same(c: Call):
    count = 3 if c.op == "Where" else 1 if len(c.inputs) == 1 else 2
    return emit(SAME[c.op], *(c[i] for i in range(count)))


@onnx_op("Identity")
def identity(c: Call):
    return (c.inputs[0],)


@onnx_op("Pow")
def power(c: Call):
    x, e = c[0], c[1]
    if x.dtype in INTS and e.dtype in FLOATS:
        wide = "f64" if "f64" in (e.dtype,) or x.dtype in ("i64", "i32", "u32", "u64") else "f32"
        return cast(op.pow(cast(x, wide), cast(e, wide)), x.dtype)
    return op.pow(x, cast(e, x.dtype))


@onnx_op("Mod")
def modulo(c: Call):
    if c.attr("fmod", 0):
        return op.fmod(c[0], c[1])
    return op.mod(c[0], c[1])


@onnx_op("BitShift")
def bit_shift(c: Call):
    direction = c.need_attr("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise ValueError(f"no direction {direction!r}")
    name = "shift_left" if direction == "LEFT" else "shift_right"
    x, by = c[0], c[1]
    if x.dtype.startswith("u"):
        return emit(name, x, by)
    wide = "u" + x.dtype[1:]
    if name == "shift_left":
        return cast(emit(name, cast(x, wide), cast(by, wide)), x.dtype)
    # the sign comes in from the left: the bits of a negative number are shifted inverted
    negative = op.lt(x, 0)
    bits = op.where(negative, op.bitwise_not(x), x)
    y = cast(emit(name, cast(bits, wide), cast(by, wide)), x.dtype)
    return op.where(negative, op.bitwise_not(y), y)


@onnx_op("Max", "Min", "Sum", "Mean")
def variadic(c: Call):
    name = {"Max": "max", "Min": "min"}.get(c.op, "add")
    out = c[0]
    for i in range(1, len(c.inputs)):
        out = emit(name, out, c[i])
    return op.mul(out, 1.0 / len(c.inputs)) if c.op == "Mean" and len(c.inputs) > 1 else out


@onnx_op("Clip")
def clip(c: Call):
    x = c.x
    if c.version < 11:
        lo = constant(c.attr("min"), x.dtype) if c.attr("min") is not None else None
        hi = constant(c.attr("max"), x.dtype) if c.attr("max") is not None else None
    else:
        lo, hi = c.get(1), c.get(2)
    for name, bound in (("max", lo), ("min", hi)):
        if bound is not None:
            x = emit(name, x, reshape(bound, ()))
    return x


@onnx_op("Cast")
def cast_(c: Call):
    dtype = c.dtype("to")
    if dtype is None:
        raise ValueError("the attribute 'to' is missing")
    return cast(c.x, dtype)


@onnx_op("CastLike")
def cast_like(c: Call):
    return cast(c.x, c[1].dtype)


@onnx_op("IsInf")
def is_inf(c: Call):
    x, low, high = c.x, c.attr("detect_negative", 1), c.attr("detect_positive", 1)
    if low and high:
        return op.isinf(x)
    if not low and not high:
        return full(x.shape, False, "bool")
    return op.eq(x, math.inf if high else -math.inf)


@onnx_op("LeakyRelu")
def leaky_relu(c: Call):
    return op.where(op.lt(c.x, 0), op.mul(c.x, c.attr("alpha", 0.01)), c.x)


@onnx_op("PRelu")
def prelu(c: Call):
    x, slope = c[0], c[1]
    if 1 < slope.rank + 1 < x.rank and slope.rank == 1 and slope.shape[0] == x.shape[1] != x.shape[-1]:
        slope = reshape(slope, [slope.shape[0]] + [1] * (x.rank - 2))
    return op.where(op.lt(x, 0), op.mul(x, slope), x)


@onnx_op("Elu")
def elu(c: Call):
    return elu_of(c.x, c.attr("alpha", 1.0))


def elu_of(x: Node, alpha: float) -> Node:
    return op.where(op.lt(x, 0), op.mul(op.sub(op.exp(op.min(x, 0)), 1), alpha), x)


@onnx_op("Selu")
def selu(c: Call):
    return op.mul(elu_of(c.x, c.attr("alpha", 1.67326319217681884765625)), c.attr("gamma", 1.05070102214813232421875))


@onnx_op("Celu")
def celu(c: Call):
    x, alpha = c.x, c.attr("alpha", 1.0)
    return op.add(op.max(x, 0), op.min(op.mul(op.sub(op.exp(op.mul(op.min(x, 0), 1 / alpha)), 1), alpha), 0))


@onnx_op("HardSigmoid")
def hard_sigmoid(c: Call):
    return hard_sigmoid_of(c.x, c.attr("alpha", 0.2), c.attr("beta", 0.5))


def hard_sigmoid_of(x: Node, alpha: float, beta: float) -> Node:
    return op.min(op.max(op.add(op.mul(x, alpha), beta), 0), 1)


@onnx_op("HardSwish")
def hard_swish(c: Call):
    return op.mul(c.x, hard_sigmoid_of(c.x, 1 / 6, 0.5))


@onnx_op("ThresholdedRelu")
def thresholded_relu(c: Call):
    return op.where(op.gt(c.x, c.attr("alpha", 1.0)), c.x, constant(0, c.x.dtype))


@onnx_op("Softsign")
def softsign(c: Call):
    return op.div(c.x, op.add(op.abs(c.x), 1))


@onnx_op("Mish")
def mish(c: Call):
    return op.mul(c.x, op.tanh(op.softplus(c.x)))


@onnx_op("Swish")
def swish(c: Call):
    alpha = c.attr("alpha", 1.0)
    return op.mul(c.x, op.sigmoid(c.x if alpha == 1 else op.mul(c.x, alpha)))


@onnx_op("Shrink")
def shrink(c: Call):
    x, bias, edge = c.x, c.attr("bias", 0.0), c.attr("lambd", 0.5)
    zero = constant(0, x.dtype)
    if x.dtype in INTS:
        edge_high, edge_low = math.floor(edge), math.ceil(-edge)
        up, down = op.add(x, int(bias)), op.sub(x, int(bias))
    else:
        edge_high, edge_low = edge, -edge
        up, down = op.add(x, bias), op.sub(x, bias)
    if x.dtype.startswith("u"):
        return op.where(op.gt(x, edge_high), down, zero)
    return op.where(op.lt(x, edge_low), up, op.where(op.gt(x, edge_high), down, zero))


@onnx_op("Gelu")
def gelu(c: Call):
    how = c.attr("approximate", "none")
    if how not in ("none", "tanh"):
        raise ValueError(f"no approximation {how!r}")
    return op.gelu(c.x, approximate=how)


@onnx_op("Dropout")
def dropout(c: Call):
    if c.has(2):
        training = c.array(2, "training_mode")
        ratio = float(c.array(1, "ratio")) if c.has(1) else 0.5
        if training.any() and ratio != 0:
            raise Unsupported("it drops at random (training mode)", "Export the model for inference")
    # before opset 12 the mask of inference is False, as onnxruntime has it
    return c.x, full(c.x.shape, c.version >= 12, "bool" if c.version >= 10 else c.x.dtype) if c.wants(1) else None


def lowest(dtype: str):
    """The smallest value of a dtype."""
    return -math.inf if dtype in FLOATS else False if dtype == "bool" else int(np.iinfo(numpy_dtype(dtype)).min)
