"""Reductions, scans and sorting."""

from __future__ import annotations

import numpy as np

from edgec.ir.dims import Dim
from edgec.ir.ops.registry import REQUIRED, at_least, define, need, need_same_dtype
from edgec.ir.types import FLOATS, TensorType, TupleType


def _wide(x):
    """Float sums accumulate in f64: the reference is the accurate one."""
    return x.astype(np.float64) if x.dtype.kind not in "iub" else x


def _extreme(f, high: bool):
    def reduce(x, axis, keepdims):
        if x.dtype.kind in "iu":
            empty = np.iinfo(x.dtype).min if high else np.iinfo(x.dtype).max
        else:
            empty = x.dtype.type(-np.inf if high else np.inf) if x.dtype.kind != "b" else not high
        return f(x, axis=axis, keepdims=keepdims, initial=empty)

    return reduce


REDUCE = {
    "reduce_sum": lambda x, axis, keepdims: np.sum(_wide(x), axis=axis, keepdims=keepdims),
    "reduce_mean": lambda x, axis, keepdims: np.mean(_wide(x), axis=axis, keepdims=keepdims),
    "reduce_prod": lambda x, axis, keepdims: np.prod(_wide(x), axis=axis, keepdims=keepdims),
    "reduce_max": _extreme(np.max, True),
    "reduce_min": _extreme(np.min, False),
}


def reduced_shape(shape: tuple[Dim, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[Dim, ...]:
    return tuple(1 if i in axes else d for i, d in enumerate(shape) if keepdims or i not in axes)


def _reduce(name):
    def infer(x, axes, keepdims):
        need(
            all(0 <= a < x.rank for a in axes) and list(axes) == sorted(set(axes)),
            f"{name}: axes {axes} of rank {x.rank}",
        )
        need(x.dtype != "bool" or name in ("reduce_max", "reduce_min"), f"{name} does not take bool")
        return TensorType(x.dtype, reduced_shape(x.shape, axes, keepdims))

    return infer


def _reference(f):
    def reference(x, axes, keepdims):
        with np.errstate(all="ignore"):
            return np.asarray(f(x, tuple(axes), keepdims)).astype(x.dtype)

    return reference


# axes: sorted, not negative; () reduces nothing
for _name, _f in REDUCE.items():
    define(_name, "x", _reduce(_name), _reference(_f), "reduce", axes=REQUIRED, keepdims=False)


def _arg(x, axis, last):
    need(0 <= axis < x.rank, f"argmax: axis {axis} of rank {x.rank}")
    return TensorType("i64", reduced_shape(x.shape, (axis,), False))


def _arg_reference(f):
    def reference(x, axis, last):
        if last:
            return (x.shape[axis] - 1 - f(np.flip(x, axis), axis=axis)).astype(np.int64)
        return f(x, axis=axis).astype(np.int64)

    return reference


# the axis is dropped; of equal elements the first index wins, or the last one
define("argmax", "x", _arg, _arg_reference(np.argmax), "reduce", axis=REQUIRED, last=False)
define("argmin", "x", _arg, _arg_reference(np.argmin), "reduce", axis=REQUIRED, last=False)


def _cumsum_reference(x, axis, exclusive, reverse):
    y = np.flip(x, axis) if reverse else x
    total = np.cumsum(_wide(y), axis=axis).astype(x.dtype)
    if exclusive:
        total = np.roll(total, 1, axis)
        total[(slice(None),) * axis + (slice(0, 1),)] = 0
    return np.flip(total, axis) if reverse else total


def _cumsum(x, axis, exclusive, reverse):
    need(0 <= axis < x.rank, f"cumsum: axis {axis} of rank {x.rank}")
    return TensorType(x.dtype, x.shape)


define("cumsum", "x", _cumsum, _cumsum_reference, "reduce", axis=REQUIRED, exclusive=False, reverse=False)


def _topk(x, k, axis, largest, sorted):
    need(0 <= axis < x.rank, f"topk: axis {axis} of rank {x.rank}")
    need(at_least(x.shape[axis], k), f"topk: k = {k} of {x.shape[axis]} elements")
    shape = x.shape[:axis] + (k,) + x.shape[axis + 1 :]
    return TupleType((TensorType(x.dtype, shape), TensorType("i64", shape)))


def _topk_reference(x, k, axis, largest, sorted):
    moved = np.moveaxis(x, axis, -1)
    keys = np.flip(moved, -1) if largest else moved
    order = np.argsort(keys, axis=-1, kind="stable")
    if largest:
        order = moved.shape[-1] - 1 - np.flip(order, -1)
    order = order[..., :k].astype(np.int64)
    return tuple(np.moveaxis(a, -1, axis) for a in (np.take_along_axis(moved, order, -1), order))


# values and i64 indices; of equal elements the lower index first; sorted in any case
define("topk", "x", _topk, _topk_reference, "reduce", k=REQUIRED, axis=REQUIRED, largest=True, sorted=True)


def _softmax(x, axis):
    need(x.dtype in FLOATS and 0 <= axis < x.rank, f"softmax: axis {axis} of {x}")
    return TensorType(x.dtype, x.shape)


def _softmax_reference(x, axis):
    with np.errstate(all="ignore"):
        y = x.astype(np.float64)
        e = np.exp(y - np.max(y, axis=axis, keepdims=True, initial=-np.inf))
        return (e / np.sum(e, axis=axis, keepdims=True)).astype(x.dtype)


def _log_softmax_reference(x, axis):
    with np.errstate(all="ignore"):
        y = x.astype(np.float64)
        y = y - np.max(y, axis=axis, keepdims=True, initial=-np.inf)
        return (y - np.log(np.sum(np.exp(y), axis=axis, keepdims=True))).astype(x.dtype)


define("softmax", "x", _softmax, _softmax_reference, "reduce", axis=REQUIRED)
define("log_softmax", "x", _softmax, _log_softmax_reference, "reduce", axis=REQUIRED)


def _norm(x, *params, axis, eps):
    need(x.dtype in FLOATS and 0 <= axis <= x.rank, f"norm: axis {axis} of {x}")
    need_same_dtype("norm", x, *params)
    for p in params:
        need(p is None or p.rank <= x.rank - axis, f"norm: a gain or bias of rank {getattr(p, 'rank', 0)}")
    return TensorType(x.dtype, x.shape)


def _layer_norm(x, gain, bias, axis, eps):
    axes = tuple(range(axis, x.ndim))
    y = x.astype(np.float64)
    y = y - y.mean(axis=axes, keepdims=True)
    y = y / np.sqrt((y * y).mean(axis=axes, keepdims=True) + eps)
    y = y if gain is None else y * gain.astype(np.float64)
    return (y if bias is None else y + bias.astype(np.float64)).astype(x.dtype)


def _rms_norm(x, gain, axis, eps):
    y = x.astype(np.float64)
    y = y / np.sqrt((y * y).mean(axis=tuple(range(axis, x.ndim)), keepdims=True) + eps)
    return (y if gain is None else y * gain.astype(np.float64)).astype(x.dtype)


# over the axes from `axis` on; gain and bias broadcast against those
define("layer_norm", "x gain? bias?", _norm, _layer_norm, "reduce", axis=REQUIRED, eps=REQUIRED)
define("rms_norm", "x gain?", _norm, _rms_norm, "reduce", axis=REQUIRED, eps=REQUIRED)
