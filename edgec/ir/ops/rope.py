"""Rotary position embedding."""

from __future__ import annotations

import numpy as np

from edgec.ir.ops.hadamard import is_block, rotated
from edgec.ir.ops.registry import REQUIRED, broadcast_dims, define, need, need_same_dtype, same_dims
from edgec.ir.types import FLOATS, TensorType


def _rope(x, cos, sin, heads, dim, start, interleaved, rotate):
    need(x.rank == 3 and cos.rank == 3, f"rope: {x} by {cos}")
    need(need_same_dtype("rope", x, cos, sin) in FLOATS, f"rope does not take {x.dtype}")
    need(all(isinstance(i, int) and i >= 0 for i in (heads, dim, start)), f"rope: {heads} heads of {dim} from {start}")
    need(rotate == 0 or is_block(rotate), f"rope: {rotate} is no power of two")
    width, half = x.shape[2], cos.shape[2]
    need(isinstance(width, int) and start + heads * dim <= width, f"rope: columns {start}+{heads * dim} of {x}")
    need(isinstance(half, int) and 0 < 2 * half <= dim, f"rope: {cos} for heads of {dim}")
    need(all(same_dims(a, b) for a, b in zip(cos.shape, sin.shape)), f"rope: cos {cos} and sin {sin}")
    need(same_dims(cos.shape[1], x.shape[1]), f"rope: {cos} for {x}")
    batch = broadcast_dims(x.shape[0], cos.shape[0], "rope")
    need(same_dims(batch, x.shape[0]), f"rope: {cos} for {x}")
    return TensorType(x.dtype, (x.shape[0], x.shape[1], heads, dim))


def _rope_reference(x, cos, sin, heads, dim, start, interleaved, rotate):
    x = x[:, :, start : start + heads * dim].reshape(*x.shape[:2], heads, dim)
    half = cos.shape[-1]
    cos, sin = (t[:, :, None].astype(np.float64) for t in (cos, sin))
    wide = x.astype(np.float64)
    y = wide.copy()
    a, b = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    y[..., a] = wide[..., a] * cos - wide[..., b] * sin
    y[..., b] = wide[..., b] * cos + wide[..., a] * sin
    return rotated(y, rotate).astype(x.dtype) if rotate else y.astype(x.dtype)


# Columns [start, start + heads * dim) of x [b, s, w] as heads [b, s, heads, dim], the first 2r numbers of each turned in
# pairs by the angles whose cos and sin are given, [b or 1, s, r]: pair i is (i, i + r), interleaved: (2i, 2i + 1).
# rotate: heads pass `hadamard` in blocks of so many then, 0: they don't.
# Su et al., RoFormer, https://arxiv.org/abs/2104.09864
define("rope", "x cos sin", _rope, _rope_reference, "nn", heads=REQUIRED, dim=REQUIRED, start=0, interleaved=False,
       rotate=0)  # fmt: skip
