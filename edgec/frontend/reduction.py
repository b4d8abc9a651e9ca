"""Reductions, scans, sorting, softmax and norms."""

from __future__ import annotations

import numpy as np

from edgec.frontend.emit import broadcast, cast, emit, iota_along, op, reduce, reshape, take, unsqueeze
from edgec.frontend.registry import Call, Unsupported, onnx_op
from edgec.ir.dims import product
from edgec.ir.node import Node, constant
from edgec.ir.types import INTS

REDUCE = ("Sum", "Mean", "Prod", "Max", "Min", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


@onnx_op(*("Reduce" + r for r in REDUCE))
def reduction(c: Call):
    x, keep = c.x, bool(c.attr("keepdims", 1))
    axes = c.ints_at("axes", 1)
    if not axes:
        if c.attr("noop_with_empty_axes", 0):
            axes = ()
        else:
            axes = tuple(range(x.rank))
    axes = tuple(sorted({c.in_rank(a, x.rank) for a in axes})) if x.rank else ()
    return reduce_of(c.op[6:], x, axes, keep)


def reduce_of(kind: str, x: Node, axes: tuple[int, ...], keep: bool) -> Node:
    if x.dtype == "bool" and kind in ("Max", "Min"):
        return emit("reduce_" + kind.lower(), x, axes=axes, keepdims=keep)
    if kind == "L1":
        return reduce("sum", op.abs(x), axes, keep)
    if kind == "SumSquare":
        return reduce("sum", op.mul(x, x), axes, keep)
    if kind == "L2":
        total = reduce("sum", op.mul(x, x), axes, keep)
        return cast(op.sqrt(cast(total, "f64")), x.dtype) if x.dtype in INTS else op.sqrt(total)
    if kind in ("LogSum", "LogSumExp"):
        y = cast(x, "f64") if x.dtype in INTS else x
        if kind == "LogSum":
            return cast(op.log(reduce("sum", y, axes, keep)), x.dtype)
        top = reduce("max", y, axes, True)
        # a row of -inf has no finite maximum to take out
        top = op.where(op.isinf(top), constant(0, y.dtype), top)
        total = reduce("sum", op.exp(op.sub(y, top)), axes, keep)
        return cast(op.add(op.log(total), reshape(top, total.shape)), x.dtype)
    return reduce(kind.lower(), x, axes, keep)


@onnx_op("ArgMax", "ArgMin")
def arg(c: Call):
    axis = c.axis(0)
    y = emit(c.op.lower(), c.x, axis=axis, last=bool(c.attr("select_last_index", 0)))
    return unsqueeze(y, axis) if c.attr("keepdims", 1) else y


@onnx_op("CumSum")
def cumsum(c: Call):
    axis = c.in_rank(c.ints(1, "axis")[0], c.x.rank)
    return op.cumsum(c.x, axis=axis, exclusive=bool(c.attr("exclusive", 0)), reverse=bool(c.attr("reverse", 0)))


@onnx_op("TopK")
def topk(c: Call):
    k = c.dims(1, "k")[0] if c.version >= 10 else c.need_attr("k")
    return op.topk(c.x, k=k, axis=c.axis(-1), largest=bool(c.attr("largest", 1)), sorted=bool(c.attr("sorted", 1)))


def _rows(c: Call, f):
    """Before opset 13 these see a matrix: all axes from `axis` on in one row."""
    x = c.x
    if c.version >= 13:
        return f(x, c.axis(-1))
    axis = c.axis(1) if x.rank > 1 else 0
    if axis == x.rank - 1:
        return f(x, axis)
    flat = reshape(x, [product(x.shape[:axis]), product(x.shape[axis:])])
    return reshape(f(flat, 1), x.shape)


@onnx_op("Softmax", "LogSoftmax")
def softmax(c: Call):
    name = "softmax" if c.op == "Softmax" else "log_softmax"
    return _rows(c, lambda x, axis: emit(name, x, axis=axis))


@onnx_op("Hardmax")
def hardmax(c: Call):
    def rows(x, axis):
        top = unsqueeze(op.argmax(x, axis=axis, last=False), axis)
        return cast(op.eq(iota_along(x.shape, axis), top), x.dtype)

    return _rows(c, rows)


@onnx_op("LayerNormalization")
def layer_norm(c: Call):
    x, axis, eps = c.x, c.axis(-1), c.attr("epsilon", 1e-5)
    y = op.layer_norm(x, c[1], c.get(2), axis=axis, eps=eps)
    return (y, *norm_statistics(x, axis, eps)) if c.wants(1) or c.wants(2) else y


def norm_statistics(x: Node, axis: int, eps: float) -> tuple[Node, Node]:
    """Mean and 1 / standard deviation over the axes from `axis` on, in f32."""
    y = x if x.dtype in ("f32", "f64") else cast(x, "f32")
    axes = range(axis, x.rank)
    mean = reduce("mean", y, axes, True)
    d = op.sub(y, mean)
    return mean, op.rsqrt(op.add(reduce("mean", op.mul(d, d), axes, True), eps))


@onnx_op("RMSNormalization")
def rms_norm(c: Call):
    return op.rms_norm(c.x, c[1], axis=c.axis(-1), eps=c.attr("epsilon", 1e-5))


def standardize(x: Node, axes, eps: float) -> Node:
    """(x - mean) / sqrt(variance + eps) over the axes."""
    d = op.sub(x, reduce("mean", x, axes, True))
    return op.mul(d, op.rsqrt(op.add(reduce("mean", op.mul(d, d), axes, True), eps)))


def per_channel(v: Node, rank: int) -> Node:
    """A vector of [channels] that broadcasts along axis 1."""
    return reshape(v, [v.shape[0]] + [1] * (rank - 2))


@onnx_op("InstanceNormalization")
def instance_norm(c: Call):
    x = c.x
    y = standardize(x, range(2, x.rank), c.attr("epsilon", 1e-5))
    return op.add(op.mul(y, per_channel(c[1], x.rank)), per_channel(c[2], x.rank))


@onnx_op("GroupNormalization")
def group_norm(c: Call):
    x, groups = c.x, c.need_attr("num_groups")
    channels = x.shape[1]
    grouped = reshape(x, [x.shape[0], groups, channels // groups, *x.shape[2:]])
    work = cast(grouped, "f32") if x.dtype in ("f16", "bf16") else grouped
    y = cast(standardize(work, range(2, work.rank), c.attr("epsilon", 1e-5)), x.dtype)
    scale, bias = c[1], c[2]
    if c.version < 21:  # one gain a group, not a channel
        shape = [groups] + [1] * (grouped.rank - 2)
        return reshape(op.add(op.mul(y, reshape(scale, shape)), reshape(bias, shape)), x.shape)
    y = reshape(y, x.shape)
    return op.add(op.mul(y, per_channel(scale, x.rank)), per_channel(bias, x.rank))


@onnx_op("BatchNormalization")
def batch_norm(c: Call):
    x, scale, bias, mean, var = (c[i] for i in range(5))
    eps, training = c.attr("epsilon", 1e-5), c.attr("training_mode", 0)
    work = "f32" if "f32" in (x.dtype, scale.dtype, mean.dtype) else x.dtype
    running = ()
    if training:
        momentum = c.attr("momentum", 0.9)
        axes = [i for i in range(x.rank) if i != 1]
        wide = cast(x, mean.dtype)
        new_mean = reduce("mean", wide, axes)
        d = op.sub(wide, per_channel(new_mean, x.rank))
        new_var = reduce("mean", op.mul(d, d), axes)
        running = tuple(
            op.add(op.mul(old, momentum), op.mul(new, 1 - momentum)) for old, new in ((mean, new_mean), (var, new_var))
        )
        mean, var = new_mean, new_var
    elif c.wants(1) and c.version >= 14:
        raise ValueError("running statistics are outputs of training mode only")
    scale, bias, mean, var = (cast(v, work) for v in (scale, bias, mean, var))
    gain = op.div(scale, op.sqrt(op.add(var, eps)))
    shift = op.sub(bias, op.mul(mean, gain))
    rank = max(x.rank, 2)
    y = op.add(op.mul(cast(x, work), per_channel(gain, rank)), per_channel(shift, rank))
    return (cast(y, x.dtype), *running)


@onnx_op("LpNormalization")
def lp_norm(c: Call):
    x, axis, p = c.x, c.axis(-1), c.attr("p", 2)
    if p not in (1, 2):
        raise ValueError(f"p is {p}, 1 or 2 are defined")
    norm = reduce_of("L1" if p == 1 else "L2", x, (axis,), True)
    return op.where(op.eq(norm, 0), constant(0, x.dtype), op.div(x, norm))


@onnx_op("MeanVarianceNormalization")
def mvn(c: Call):
    axes = [c.in_rank(a, c.x.rank) for a in c.attr("axes", (0, 2, 3))]
    d = op.sub(c.x, reduce("mean", c.x, axes, True))
    return op.div(d, op.add(op.sqrt(reduce("mean", op.mul(d, d), axes, True)), 1e-9))


@onnx_op("LRN")
def lrn(c: Call):
    x, size = c.x, c.need_attr("size")
    alpha, beta, bias = c.attr("alpha", 1e-4), c.attr("beta", 0.75), c.attr("bias", 1.0)
    if not 1 <= size <= 1024:
        raise Unsupported(f"a window of {size} channels")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    padding = lambda n: tuple(n if i == 1 else 0 for i in range(x.rank))  # noqa: E731
    squares = op.pad(op.mul(x, x), before=padding(before), after=padding(after))
    total = take(squares, 1, 0, x.shape[1])
    for i in range(1, size):
        total = op.add(total, take(squares, 1, i, x.shape[1]))
    return op.div(x, op.pow(op.add(op.mul(total, alpha / size), bias), constant(beta, x.dtype)))


@onnx_op("CumProd")
def cumprod(c: Call):
    axis = c.in_rank(c.ints(1, "axis")[0], c.x.rank)
    x, n = c.x, c.x.shape[axis]
    if not isinstance(n, int) or n > 256:
        raise Unsupported(f"a cumulative product of {n} elements")
    parts = [take(x, axis, i, 1) for i in range(n)]
    if c.attr("reverse", 0):
        parts.reverse()
    total, out = broadcast(constant(np.ones(()), x.dtype), parts[0].shape), []
    for p in parts:
        after = op.mul(total, p)
        out.append(total if c.attr("exclusive", 0) else after)
        total = after
    return op.concat(*(reversed(out) if c.attr("reverse", 0) else out), axis=axis)
