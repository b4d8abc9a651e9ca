"""Ops that move data without computing."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgec.ir.dims import Dim, product
from edgec.ir.ops.registry import (
    REQUIRED,
    at_least,
    broadcast_dims,
    define,
    need,
    need_same_dtype,
    same_dims,
)
from edgec.ir.types import INTS, TensorType


def _reshape(x, shape):
    a, b = product(x.shape), product(shape)
    need(same_dims(a, b), f"reshape: {x} has {a} elements, {shape} has {b}")
    return TensorType(x.dtype, shape)


define("reshape", "x", _reshape, lambda x, shape: np.reshape(x, shape), "movement", shape=REQUIRED)


def _transpose(x, perm):
    need(sorted(perm) == list(range(x.rank)), f"transpose: perm {perm} of rank {x.rank}")
    return TensorType(x.dtype, tuple(x.shape[p] for p in perm))


define("transpose", "x", _transpose, lambda x, perm: np.transpose(x, perm), "movement", perm=REQUIRED)


def _expand(x, shape):
    need(x.rank <= len(shape), f"expand: {x} to {shape}")
    for d, s in zip(x.shape, shape[len(shape) - x.rank :]):
        need(
            broadcast_dims(d, s, "expand") == s or same_dims(broadcast_dims(d, s, "expand"), s),
            f"expand: {x} to {shape}",
        )
    return TensorType(x.dtype, shape)


# to exactly this shape (which the operand's broadcasts to)
define("expand", "x", _expand, lambda x, shape: np.broadcast_to(x, shape).copy(), "movement", shape=REQUIRED)


def _slice(x, starts, sizes, steps):
    need(len(starts) == len(sizes) == len(steps) == x.rank, f"slice: {len(starts)} starts of rank {x.rank}")
    for d, start, size, step in zip(x.shape, starts, sizes, steps):
        need(isinstance(step, int) and step != 0, "slice: a step is an int other than 0")
        low, high = (start, start + (size - 1) * step) if step > 0 else (start + (size - 1) * step, start)
        ok = at_least(size, 0) and (size == 0 or (at_least(low, 0) and at_least(d, high + 1)))
        need(ok, f"slice: [{start}:+{size}:{step}] of a dim of {d}")
    return TensorType(x.dtype, tuple(sizes))


def _slice_reference(x, starts, sizes, steps):
    for axis, (start, size, step) in enumerate(zip(starts, sizes, steps)):
        x = np.take(x, start + step * np.arange(size), axis=axis)
    return x


# for each axis: `size` elements from `start` on, `step` apart (negative: backwards); all within the operand
define("slice", "x", _slice, _slice_reference, "movement", starts=REQUIRED, sizes=REQUIRED, steps=REQUIRED)


def _concat(*xs, axis):
    dtype, rank = need_same_dtype("concat", *xs), xs[0].rank
    need(all(x.rank == rank for x in xs) and 0 <= axis < rank, f"concat: axis {axis} of {', '.join(map(str, xs))}")
    shape: list[Dim] = list(xs[0].shape)
    for x in xs[1:]:
        for i, d in enumerate(x.shape):
            need(i == axis or same_dims(d, shape[i]), f"concat: {x} beside {xs[0]} along axis {axis}")
            if i != axis and isinstance(d, int):
                shape[i] = d
    total: Dim = 0
    for x in xs:
        total = total + x.shape[axis]
    shape[axis] = total
    return TensorType(dtype, tuple(shape))


define("concat", "xs*", _concat, lambda *xs, axis: np.concatenate(xs, axis=axis), "movement", axis=REQUIRED)

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _pad(x, value, before, after, mode):
    need(len(before) == len(after) == x.rank, f"pad: {len(before)} amounts for rank {x.rank}")
    need(mode in PAD_MODES, f"pad: no mode {mode!r}")
    need(
        value is None or (value.dtype == x.dtype and value.shape == ()),
        "pad: the value is a scalar of the operand's dtype",
    )
    shape = tuple(b + d + a for b, d, a in zip(before, x.shape, after))
    need(all(at_least(d, 0) for d in shape), f"pad: {x} by {before} and {after}")
    return TensorType(x.dtype, shape)


def _pad_reference(x, value, before, after, mode):
    cut = tuple(slice(max(-b, 0), d - max(-a, 0)) for b, d, a in zip(before, x.shape, after))
    widths = [(max(b, 0), max(a, 0)) for b, a in zip(before, after)]
    extra = {"constant_values": 0 if value is None else value} if mode == "constant" else {}
    return np.pad(x[cut], widths, mode=PAD_MODES[mode], **extra)


# negative amounts cut; an absent value is 0
define("pad", "x value?", _pad, _pad_reference, "movement", before=REQUIRED, after=REQUIRED, mode="constant")


def _gather(x, indices, axis):
    need(indices.dtype in INTS and 0 <= axis < x.rank, f"gather: axis {axis} of {x} by {indices}")
    need(x.encoding is None or axis == 0, "gather: a quantized table is read by rows")
    return TensorType(x.dtype, x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def _wrapped(indices, size, op):
    indices = indices.astype(np.int64)
    if ((indices < -size) | (indices >= size)).any():
        raise IndexError(f"{op}: an index is outside of {size} elements")
    return np.where(indices < 0, indices + size, indices)


def _gather_reference(x, indices, axis):
    return np.take(x, _wrapped(indices, x.shape[axis], "gather"), axis=axis)


# negative indices count from the end; one outside of the axis is an error at run time. A quantized x is dequantized
define("gather", "x indices", _gather, _gather_reference, "movement", axis=REQUIRED)


def _gather_elements(x, indices, axis):
    need(indices.dtype in INTS and x.rank == indices.rank and 0 <= axis < x.rank, f"gather_elements: {x} by {indices}")
    return TensorType(x.dtype, indices.shape)


def _gather_elements_reference(x, indices, axis):
    cut = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
    return np.take_along_axis(x[cut], _wrapped(indices, x.shape[axis], "gather_elements"), axis=axis)


define("gather_elements", "x indices", _gather_elements, _gather_elements_reference, "movement", axis=REQUIRED)


def _gather_nd(x, indices, batch_dims):
    depth = indices.shape[-1] if indices.rank else None
    need(indices.dtype in INTS and isinstance(depth, int), f"gather_nd: {x} by {indices}")
    need(batch_dims < indices.rank and batch_dims + depth <= x.rank, f"gather_nd: {x} by {indices}")
    return TensorType(x.dtype, indices.shape[:-1] + x.shape[batch_dims + depth :])


def _gather_nd_reference(x, indices, batch_dims):
    depth, lead = indices.shape[-1], indices.shape[:-1]
    picks = [_wrapped(indices[..., i], x.shape[batch_dims + i], "gather_nd") for i in range(depth)]
    grids = [np.arange(n).reshape((-1,) + (1,) * (len(lead) - i - 1)) for i, n in enumerate(lead[:batch_dims])]
    return x[tuple(grids + picks)] if grids or picks else np.broadcast_to(x, lead + x.shape).copy()


define("gather_nd", "x indices", _gather_nd, _gather_nd_reference, "movement", batch_dims=0)

REDUCTIONS = {"none": None, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter_elements(x, indices, updates, axis, reduction):
    need(indices.dtype in INTS and x.rank == indices.rank == updates.rank, f"scatter_elements: {x} by {indices}")
    need_same_dtype("scatter_elements", x, updates)
    need(0 <= axis < x.rank and reduction in REDUCTIONS, f"scatter_elements: axis {axis}, reduction {reduction!r}")
    return TensorType(x.dtype, x.shape)


def _scatter(out, place, updates, reduction):
    if reduction == "none":
        out[place] = updates
    else:
        REDUCTIONS[reduction].at(out, place, updates)
    return out


def _scatter_elements_reference(x, indices, updates, axis, reduction):
    place = list(np.indices(indices.shape))
    place[axis] = _wrapped(indices, x.shape[axis], "scatter_elements")
    cut = updates[tuple(slice(n) for n in indices.shape)]
    return _scatter(x.copy(), tuple(place), cut, reduction)


define("scatter_elements", "x indices updates", _scatter_elements, _scatter_elements_reference, "movement",
       axis=REQUIRED, reduction="none")  # fmt: skip


def _scatter_nd(x, indices, updates, reduction):
    depth = indices.shape[-1] if indices.rank else None
    need(indices.dtype in INTS and isinstance(depth, int) and depth <= x.rank, f"scatter_nd: {x} by {indices}")
    need_same_dtype("scatter_nd", x, updates)
    need(reduction in REDUCTIONS, f"scatter_nd: reduction {reduction!r}")
    need(updates.rank == indices.rank - 1 + x.rank - depth, f"scatter_nd: updates {updates} for {x} by {indices}")
    return TensorType(x.dtype, x.shape)


def _scatter_nd_reference(x, indices, updates, reduction):
    depth = indices.shape[-1]
    place = tuple(_wrapped(indices[..., i], x.shape[i], "scatter_nd") for i in range(depth))
    return _scatter(x.copy(), place if depth else (Ellipsis,), updates, reduction)


define("scatter_nd", "x indices updates", _scatter_nd, _scatter_nd_reference, "movement", reduction="none")


def resize_matrix(size: int, out: int, scale: float, start: float, end: float, *, mode: str, coordinates: str,
                  nearest: str, cubic_a: float, exclude_outside: bool, antialias: bool):  # fmt: skip
    """Interpolation along one axis as a matrix [out, size] in f64, and a bool [out]: outside of the operand
    (tf_crop_and_resize). ONNX Resize-19, https://onnx.ai/onnx/operators/onnx__Resize.html
    """
    i = np.arange(out, dtype=np.float64)
    if coordinates == "asymmetric":
        x = i / scale
    elif coordinates == "align_corners":
        x = i * (size - 1) / (out - 1) if out > 1 else np.zeros(out)
    elif coordinates == "tf_crop_and_resize":
        span = end * (size - 1) - start * (size - 1)
        x = start * (size - 1) + (i * span / (out - 1) if out > 1 else np.full(out, span / 2))
    elif coordinates == "half_pixel_symmetric":
        adjustment = out / (scale * size)
        x = size / 2 * (1 - adjustment) + (i + 0.5) / scale - 0.5
    elif coordinates == "pytorch_half_pixel" and out == 1:
        x = np.zeros(1)
    elif coordinates == "tf_half_pixel_for_nn":
        x = (i + 0.5) / scale
    else:
        x = (i + 0.5) / scale - 0.5
    outside = (x < 0) | (x > size - 1) if coordinates == "tf_crop_and_resize" else np.zeros(out, bool)
    matrix = np.zeros((out, size))
    if mode == "nearest":
        f: Any = {"round_prefer_floor": lambda v: np.ceil(v - 0.5), "round_prefer_ceil": lambda v: np.floor(v + 0.5),
                  "floor": np.floor, "ceil": np.ceil, "simple": np.trunc}[nearest]  # fmt: skip
        matrix[np.arange(out), np.clip(f(x), 0, size - 1).astype(int)] = 1
        return matrix, outside
    stretch = max(1.0, 1 / scale) if antialias else 1.0
    radius = (2.0 if mode == "cubic" else 1.0) * stretch
    for o in range(out):
        first = int(np.floor(x[o] - radius)) if stretch > 1 else int(np.floor(x[o])) - (1 if mode == "cubic" else 0)
        last = int(np.ceil(x[o] + radius)) if stretch > 1 else int(np.floor(x[o])) + (2 if mode == "cubic" else 1)
        taps = np.arange(first, last + 1)
        t = np.abs(x[o] - taps) / stretch
        if mode == "cubic":
            a = cubic_a
            w = np.where(t <= 1, ((a + 2) * t - (a + 3)) * t * t + 1,
                         np.where(t < 2, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a, 0))  # fmt: skip
        else:
            w = np.maximum(0, 1 - t)
        if exclude_outside or stretch > 1:
            w = np.where((taps >= 0) & (taps < size), w, 0) if exclude_outside else w
        w = w / w.sum() if w.sum() != 0 else w
        np.add.at(matrix[o], np.clip(taps, 0, size - 1), w)
    return matrix, outside


def _resize(x, sizes, scales, roi, mode, coordinates, nearest, cubic_a, exclude_outside, antialias, extrapolation):
    need(len(sizes) == x.rank and len(scales) == x.rank, f"resize: {len(sizes)} sizes for rank {x.rank}")
    need(mode in ("nearest", "linear", "cubic"), f"resize: no mode {mode!r}")
    return TensorType(x.dtype, tuple(sizes))


def _resize_reference(x, sizes, scales, roi, extrapolation, **how):
    y = x.astype(np.float64)
    outside = np.zeros(sizes, bool)
    for axis, out in enumerate(sizes):
        size = x.shape[axis]
        start, end = (roi[axis], roi[axis + x.ndim]) if roi else (0.0, 1.0)
        crop = how["coordinates"] == "tf_crop_and_resize"
        if out == size and scales[axis] in (0.0, 1.0) and not (crop and (start, end) != (0.0, 1.0)):
            continue
        matrix, out_here = resize_matrix(size, out, scales[axis] or out / size, start, end, **how)
        y = np.moveaxis(np.tensordot(matrix, y, (1, axis)), 0, axis)
        outside |= out_here.reshape((-1,) + (1,) * (x.ndim - axis - 1))
    y = np.where(outside, extrapolation, y)
    if x.dtype.kind in "iu":
        y = np.clip(np.rint(y), np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)
    return y.astype(x.dtype)


# sizes: of every axis. scales: of every axis, 0.0 where it is size / operand's size. roi: () or starts then ends.
# As ONNX Resize-19: mode, coordinate_transformation_mode, nearest_mode, cubic_coeff_a, extrapolation_value
define("resize", "x", _resize, _resize_reference, "nn", sizes=REQUIRED, scales=REQUIRED, roi=(), mode="nearest",
       coordinates="half_pixel", nearest="round_prefer_floor", cubic_a=-0.75, exclude_outside=False, antialias=False,
       extrapolation=0.0)  # fmt: skip
