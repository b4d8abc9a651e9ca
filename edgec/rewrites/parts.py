"""Boxes of folded constants: which parts of its operands a part of the result needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgec.ir.data import Data, Part, full_box
from edgec.ir.ops import OPS
from edgec.ir.types import TensorType, numpy_dtype

Get = Callable[[Part], np.ndarray]
COMPUTED = ("unary", "binary", "elementwise")


def part_of(op: str, attrs: Mapping[str, Any], type: TensorType, datas: Sequence[Data | None]) -> Get | None:
    """How to compute a box of the op's value from boxes of its operands; None where all of them are needed."""
    operands = [d for d in datas if d is not None]
    if len(operands) != len(datas) or not any(d.streams for d in operands):
        return None
    x = operands[0]
    if op == "transpose":
        perm = attrs["perm"]
        return lambda box: x.part(tuple(box[perm.index(i)] for i in range(len(perm)))).transpose(perm)
    if op == "cast" and attrs["dtype"] == "f32" and x.type.dtype in ("f16", "bf16"):
        return lambda box: _to_float(x.part(box))
    if OPS[op].kind in COMPUTED:
        return lambda box: _computed(op, attrs, operands, box)
    if op == "hadamard":
        return lambda box: _hadamard(x.part((*box[:-1], slice(0, type.shape[-1]))), attrs["block"])[..., box[-1]]
    if op == "slice":
        return lambda box: _slice(x, attrs, box)
    if op == "concat":
        return lambda box: _concat(operands, attrs["axis"], box)
    if op == "reshape":
        return lambda box: _reshape(x, type.shape, box)
    if op == "gather" and attrs["axis"] == 0 and len(type.shape) == len(x.type.shape):
        return lambda box: _rows(x, operands[1].array(), box)
    return None


def _to_float(x: np.ndarray) -> np.ndarray:
    from edgec import kernels

    return kernels.to_float(x, kernels.threads()) if x.ndim == 2 else x.astype(np.float32)


def _hadamard(x: np.ndarray, block: int) -> np.ndarray:
    from edgec import kernels

    if x.dtype != np.float32:
        return OPS["hadamard"].reference(x, block)
    return kernels.hadamard(x, block, kernels.threads())


def _computed(op: str, attrs: Mapping[str, Any], operands: Sequence[Data], box: Part) -> np.ndarray:
    def operand(d: Data) -> np.ndarray:
        mine = box[len(box) - d.type.rank :]
        return d.part(tuple(slice(0, 1) if dim == 1 else s for dim, s in zip(d.type.shape, mine)))

    with np.errstate(all="ignore"):
        return OPS[op].reference(*map(operand, operands), **attrs)


def _slice(x: Data, attrs: Mapping[str, Any], box: Part) -> np.ndarray:
    source, steps = [], []
    for s, start, step in zip(box, attrs["starts"], attrs["steps"]):
        first, last = start + s.start * step, start + (s.stop - 1) * step
        low, high = (first, last) if step > 0 else (last, first)
        source.append(slice(low, high + 1) if s.stop > s.start else slice(0, 0))
        steps.append(slice(None, None, step))
    return x.part(tuple(source))[tuple(steps)]


def _concat(operands: Sequence[Data], axis: int, box: Part) -> np.ndarray:
    found, at = [], 0
    for d in operands:
        size = d.shape[axis]
        low, high = max(box[axis].start, at) - at, min(box[axis].stop, at + size) - at
        if low < high:
            found.append(d.part((*box[:axis], slice(low, high), *box[axis + 1 :])))
        at += size
    if not found:
        return operands[0].part(tuple(slice(0, 0) if i == axis else s for i, s in enumerate(box)))
    return found[0] if len(found) == 1 else np.concatenate(found, axis)


def _reshape(x: Data, shape, box: Part) -> np.ndarray:
    """The rows of the source that hold the box's rows, cut to them."""
    if not shape or not x.type.shape or 0 in shape:
        return x.array().reshape(shape)[box]
    row, source_row = math.prod(shape[1:]), math.prod(x.type.shape[1:])
    begin, end = box[0].start * row, box[0].stop * row
    first, last = begin // source_row, -(-end // source_row)
    flat = x.part((slice(first, last), *full_box(x.type.shape[1:]))).reshape(-1)
    rows = flat[begin - first * source_row : end - first * source_row].reshape(-1, *shape[1:])
    return rows[(slice(None), *box[1:])]


def _rows(x: Data, indices: np.ndarray, box: Part) -> np.ndarray:
    wanted = indices[box[0]] % x.shape[0]
    if not len(wanted):
        return x.part((slice(0, 0), *box[1:]))
    low, high = int(wanted.min()), int(wanted.max()) + 1
    if high - low > 4 * len(wanted):  # scattered: row by row
        return np.concatenate([x.part((slice(i, i + 1), *box[1:])) for i in map(int, wanted)])
    return x.part((slice(low, high), *box[1:]))[wanted - low]


def taken(data: Data, picks: Sequence[np.ndarray | None]) -> Data:
    """A handle of some positions along each axis of a plain constant (None: all), read only when asked for."""
    shape = tuple(d if p is None else len(p) for d, p in zip(data.shape, picks))

    def part(box: Part) -> np.ndarray:
        wanted = [None if p is None else p[s] for s, p in zip(box, picks)]
        if any(w is not None and not len(w) for w in wanted) or any(s.stop <= s.start for s in box):
            return np.zeros([max(0, s.stop - s.start) for s in box], numpy_dtype(data.type.dtype))
        lows = [s.start if w is None else int(w.min()) for s, w in zip(box, wanted)]
        highs = [s.stop if w is None else int(w.max()) + 1 for s, w in zip(box, wanted)]
        found = data.part(tuple(map(slice, lows, highs)))
        for axis, (w, low) in enumerate(zip(wanted, lows)):
            found = found if w is None else np.take(found, w - low, axis)
        return found

    key = ("taken", data.key, *(p if p is None else p.astype(np.int64).tobytes() for p in picks))
    return Data(replace(data.type, shape=shape), key, lambda: {"value": part(full_box(shape))}, part)
