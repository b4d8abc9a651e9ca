"""Matrix products, convolution, pooling, attention."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from edgec.ir.dims import Dim, ceildiv, floordiv
from edgec.ir.ops.elementwise import _gelu, _sigmoid
from edgec.ir.ops.hadamard import rotated
from edgec.ir.ops.reduce import _layer_norm, _rms_norm
from edgec.ir.ops.registry import (
    REQUIRED,
    at_least,
    broadcast_shapes,
    define,
    need,
    need_same_dtype,
    same_dims,
)
from edgec.ir.types import FLOATS, TensorType

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "gelu": lambda x: _gelu(x, "none"),
    "gelu_tanh": lambda x: _gelu(x, "tanh"),
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
}
# of linear: act(gate) * up, where w's rows come in panels of 16: 8 gates, then the 8 rows they multiply
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}
PANEL = 16
BLOCK = 32  # activations that share a scale
NORMS = ("none", "rms", "layer")


def _contract(op, a: Dim, b: Dim):
    need(same_dims(a, b), f"{op}: inner sizes {a} and {b} differ")


def _matmul(a, b, trans_a, trans_b):
    dtype = need_same_dtype("matmul", a, b)
    need(a.rank >= 2 and b.rank >= 2, "matmul: operands of rank 2 or more")
    m, k = a.shape[-2:][::-1] if trans_a else a.shape[-2:]
    k2, n = b.shape[-2:][::-1] if trans_b else b.shape[-2:]
    _contract("matmul", k, k2)
    return TensorType(dtype, broadcast_shapes("matmul", a.shape[:-2], b.shape[:-2]) + (m, n))


def _matmul_reference(a, b, trans_a, trans_b):
    wide = np.float64 if a.dtype.kind not in "iu" else a.dtype
    a = np.swapaxes(a, -1, -2) if trans_a else a
    b = np.swapaxes(b, -1, -2) if trans_b else b
    dtype = a.dtype
    with np.errstate(all="ignore"):
        return np.matmul(a.astype(wide), b.astype(wide)).astype(dtype)


# batched as numpy's; trans_*: the last two axes are swapped first
define("matmul", "a b", _matmul, _matmul_reference, "nn", trans_a=False, trans_b=False)


def _matmul_int(a, b, a_zero, b_zero):
    need(a.dtype in ("i8", "u8") and b.dtype in ("i8", "u8"), f"matmul_int does not take {a.dtype} and {b.dtype}")
    need(a.rank >= 2 and b.rank >= 2, "matmul_int: operands of rank 2 or more")
    _contract("matmul_int", a.shape[-1], b.shape[-2])
    for zero, name in ((a_zero, "a_zero"), (b_zero, "b_zero")):
        need(zero is None or zero.rank == 0, f"matmul_int: {name} is a scalar")
    shape = broadcast_shapes("matmul_int", a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1])
    return TensorType("i32", shape)


def _matmul_int_reference(a, b, a_zero, b_zero):
    a, b = a.astype(np.int32), b.astype(np.int32)
    a = a if a_zero is None else a - a_zero.astype(np.int32)
    b = b if b_zero is None else b - b_zero.astype(np.int32)
    return np.matmul(a, b)


# (a - a_zero) @ (b - b_zero) in i32
define("matmul_int", "a b a_zero? b_zero?", _matmul_int, _matmul_int_reference, "nn")


def _linear(x, w, bias, residual, norm_gain, norm_bias, act, activations, norm, eps, rotate):
    need(x.dtype in FLOATS and w.rank == 2 and x.rank >= 1, f"linear: {x} by {w}")
    _contract("linear", x.shape[-1], w.shape[1])
    n = w.shape[0]
    need(act in ACTIVATIONS or act in GATED, f"linear: no activation {act!r}")
    need(
        act not in GATED or (isinstance(n, int) and n % PANEL == 0), f"linear: {act} of {n} rows, not panels of {PANEL}"
    )
    need(activations in ("fp32", "int8"), f"linear: activations {activations!r}")
    need(bias is None or (bias.rank == 1 and same_dims(bias.shape[0], w.shape[0])), "linear: a bias of [n]")
    need(norm in NORMS, f"linear: no norm {norm!r}")
    for p in (norm_gain, norm_bias):
        need(p is None or norm != "none", "linear: a gain or bias of no norm")
        need(p is None or (p.rank == 1 and same_dims(p.shape[0], w.shape[1])), "linear: a gain or bias of [k]")
    out = TensorType(x.dtype, x.shape[:-1] + (n // 2 if act in GATED else n,))
    need(residual is None or residual.shape == out.shape, f"linear: the residual {residual} is not {out}")
    return out


def quantize_rows(x: np.ndarray, block: int = BLOCK) -> np.ndarray:
    """x rounded to int8 per block of the last axis with an f32 scale (absmax / 127), as values."""
    k = x.shape[-1]
    padded = np.pad(x.astype(np.float32), [(0, 0)] * (x.ndim - 1) + [(0, -k % block)])
    blocks = padded.reshape(*x.shape[:-1], padded.shape[-1] // block, block)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(all="ignore"):
        q = np.rint(blocks * np.where(scale > 0, np.float32(1) / scale, 0))
    return (q * scale).reshape(padded.shape)[..., :k]


def _linear_reference(x, w, bias, residual, norm_gain, norm_bias, act, activations, norm, eps, rotate):
    if norm == "rms":
        x = _rms_norm(x, norm_gain, x.ndim - 1, eps)
        x = x if norm_bias is None else x + norm_bias
    elif norm == "layer":
        x = _layer_norm(x, norm_gain, norm_bias, x.ndim - 1, eps)
    x = rotated(x, BLOCK) if rotate else x
    if activations == "int8":
        x = quantize_rows(x).astype(x.dtype)
    with np.errstate(all="ignore"):
        y = x.astype(np.float64) @ w.astype(np.float64).T
        y = y if bias is None else y + bias
        if act in GATED:
            y = y.reshape(*y.shape[:-1], y.shape[-1] // PANEL, 2, PANEL // 2)
            y = ACTIVATIONS[GATED[act]](y[..., 0, :]) * y[..., 1, :]
            y = y.reshape(*y.shape[:-2], w.shape[0] // 2)
        else:
            y = ACTIVATIONS[act](y)
        return (y if residual is None else y + residual).astype(x.dtype)


# act(norm(x) @ w.T + bias) + residual; norm: of each row, "rms" or "layer", with eps, norm_gain and norm_bias.
# rotate: norm(x) passes `hadamard` in blocks of 32. activations "int8": it is quantized per block of 32 then. A gated
# act (GATED) halves the columns.
define("linear", "x w bias? residual? norm_gain? norm_bias?", _linear, _linear_reference, "nn", act="none",
       activations="fp32", norm="none", eps=0.0, rotate=False)  # fmt: skip


def window(size: Dim, kernel: int, stride: int, before: Dim, after: Dim, dilation: int, ceil: bool = False) -> Dim:
    """The number of positions of a sliding window; ceil: pooling's ceil_mode (no window starts in the end padding)."""
    span = size + before + after - dilation * (kernel - 1) - 1
    if not ceil:
        return floordiv(span, stride) + 1
    count = ceildiv(span, stride) + 1
    if all(isinstance(v, int) for v in (size, before, after)):
        return count - 1 if (count - 1) * stride >= size + before else count
    from edgec.ir.dims import min_dim

    return min_dim(count, ceildiv(size + before, stride))


def _spatial(op, rank: int, kernel, strides, pads, dilations):
    n = rank - 2
    need(n >= 1, f"{op}: operand of rank {rank}")
    need(
        len(kernel) == len(strides) == len(dilations) == n and len(pads) == 2 * n,
        f"{op}: attributes do not fit {n} axes",
    )
    need(
        all(isinstance(k, int) and k >= 1 for k in (*kernel, *strides, *dilations)),
        f"{op}: kernel, strides, dilations >= 1",
    )


def _epilogue(op, out, bias, residual, act):
    need(bias is None or (bias.rank == 1 and same_dims(bias.shape[0], out.shape[1])), f"{op}: a bias of [channels]")
    need(residual is None or residual.shape == out.shape, f"{op}: the residual {residual} is not {out}")
    need(act in ACTIVATIONS, f"{op}: no activation {act!r}")
    return out


def to_grid(x: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """x [N, C, ...] / step to the nearest integer, f64, with the channel's zero point added one of 0..255. NaN is the least."""
    inverse, zero = (v.astype(np.float64).reshape(1, -1, *[1] * (x.ndim - 2)) for v in (1 / grid[0], grid[1]))
    with np.errstate(all="ignore"):
        q = np.rint(x.astype(np.float64) * inverse + zero)
    return np.clip(np.where(np.isnan(q), 0, q), 0, 255) - zero


def _conv(x, w, bias, residual, grid, strides, pads, dilations, group, act):
    need(x.rank == w.rank, f"conv: {x} by {w}")
    need(all(isinstance(d, int) for d in w.shape), "conv: weights of a fixed shape")
    _spatial("conv", x.rank, w.shape[2:], strides, pads, dilations)
    need(w.shape[0] % group == 0, f"conv: {w.shape[0]} channels in {group} groups")
    _contract("conv", x.shape[1], w.shape[1] * group)
    if grid is not None:
        need(x.dtype == grid.dtype == "f32" and grid.shape == (2, w.shape[1] * group), f"conv: {x} on a grid {grid}")
    n = x.rank - 2
    spatial = [window(x.shape[2 + i], w.shape[2 + i], strides[i], pads[i], pads[n + i], dilations[i]) for i in range(n)]
    need(all(at_least(d, 0) for d in spatial), f"conv: the kernel {w} is larger than {x}")
    out = TensorType(need_same_dtype("conv", x, w), (x.shape[0], w.shape[0], *spatial))
    return _epilogue("conv", out, bias, residual, act)


def windows(x, kernel, strides, dilations):
    """[N, C, out..., kernel...] views of a padded operand."""
    n = len(kernel)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations)]
    v = sliding_window_view(x, spans, axis=tuple(range(2, 2 + n)))
    return v[
        (slice(None),) * 2
        + tuple(slice(None, None, s) for s in strides)
        + tuple(slice(None, None, d) for d in dilations)
    ]


def pad_spatial(x, pads, value=0):
    n = x.ndim - 2
    cut = tuple(slice(max(-pads[i], 0), x.shape[2 + i] - max(-pads[n + i], 0)) for i in range(n))
    x = x[(slice(None), slice(None), *cut)]
    return np.pad(
        x, [(0, 0), (0, 0)] + [(max(pads[i], 0), max(pads[n + i], 0)) for i in range(n)], constant_values=value
    )


def _conv_reference(x, w, bias, residual, grid, strides, pads, dilations, group, act):
    n, dtype = x.ndim - 2, x.dtype
    x = x if grid is None else to_grid(x, grid)
    v = windows(pad_spatial(x.astype(np.float64), pads), w.shape[2:], strides, dilations)
    outs = []
    for xg, wg in zip(np.split(v, group, axis=1), np.split(w.astype(np.float64), group, axis=0)):
        axes = [1, *range(2 + n, 2 + 2 * n)]
        outs.append(np.moveaxis(np.tensordot(xg, wg, (axes, [1, *range(2, 2 + n)])), -1, 1))
    return _finish(np.concatenate(outs, axis=1), bias, residual, act, dtype)


def _finish(y, bias, residual, act, dtype):
    if bias is not None:
        y = y + bias.reshape((-1,) + (1,) * (y.ndim - 2))
    y = ACTIVATIONS[act](y)
    return (y if residual is None else y + residual).astype(dtype)


# x [N, C, spatial...], w [M, C / group, kernel...], bias [M]; pads: begins, then ends. act(conv + bias) + residual.
# grid [2, C]: steps and zero points. x becomes integers, of its steps, first; w is of int8 with a scale for each of M
define("conv", "x w bias? residual? grid?", _conv, _conv_reference, "nn", strides=REQUIRED, pads=REQUIRED, dilations=REQUIRED,
       group=1, act="none")  # fmt: skip


def _conv_transpose(x, w, bias, strides, pads, dilations, group, output_padding, act):
    need(x.rank == w.rank, f"conv_transpose: {x} by {w}")
    _spatial("conv_transpose", x.rank, w.shape[2:], strides, pads, dilations)
    _contract("conv_transpose", x.shape[1], w.shape[0])
    n = x.rank - 2
    spatial = tuple((x.shape[2 + i] - 1) * strides[i] + dilations[i] * (w.shape[2 + i] - 1) + 1 - pads[i] - pads[n + i]
                    + output_padding[i] for i in range(n))  # fmt: skip
    out = TensorType(need_same_dtype("conv_transpose", x, w), (x.shape[0], w.shape[1] * group, *spatial))
    return _epilogue("conv_transpose", out, bias, None, act)


def _conv_transpose_reference(x, w, bias, strides, pads, dilations, group, output_padding, act):
    n, dtype = x.ndim - 2, x.dtype
    kernel = w.shape[2:]
    full = [(x.shape[2 + i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 for i in range(n)]
    sizes = [full[i] - pads[i] - pads[n + i] + output_padding[i] for i in range(n)]
    roomy = [max(full[i], pads[i] + sizes[i]) for i in range(n)]
    outs = []
    for xg, wg in zip(np.split(x.astype(np.float64), group, axis=1), np.split(w.astype(np.float64), group, axis=0)):
        y = np.zeros((x.shape[0], w.shape[1], *roomy))
        for at in np.ndindex(*kernel):
            first = [a * d for a, d in zip(at, dilations)]
            place = tuple(
                slice(first[i], first[i] + (x.shape[2 + i] - 1) * strides[i] + 1, strides[i]) for i in range(n)
            )
            y[(slice(None), slice(None), *place)] += np.moveaxis(
                np.tensordot(xg, wg[(slice(None), slice(None), *at)], (1, 0)), -1, 1
            )
        outs.append(y)
    y = np.concatenate(outs, axis=1)[
        (slice(None), slice(None), *(slice(pads[i], pads[i] + sizes[i]) for i in range(n)))
    ]
    return _finish(y, bias, None, act, dtype)


# x [N, C, spatial...], w [C, M / group, kernel...]; pads cut the result
define("conv_transpose", "x w bias?", _conv_transpose, _conv_transpose_reference, "nn", strides=REQUIRED, pads=REQUIRED,
       dilations=REQUIRED, group=1, output_padding=REQUIRED, act="none")  # fmt: skip


def _pool(x, kernel, strides, pads, dilations, ceil, **_):
    _spatial("pool", x.rank, kernel, strides, pads, dilations)
    n = x.rank - 2
    spatial = [
        window(x.shape[2 + i], kernel[i], strides[i], pads[i], pads[n + i], dilations[i], ceil) for i in range(n)
    ]
    need(all(at_least(d, 0) for d in spatial), f"pool: the window {kernel} is larger than {x}")
    return TensorType(x.dtype, (*x.shape[:2], *spatial))


def _padded_windows(x, kernel, strides, pads, dilations, ceil, value):
    n = x.ndim - 2
    out = [window(x.shape[2 + i], kernel[i], strides[i], pads[i], pads[n + i], dilations[i], ceil) for i in range(n)]
    ends = [max(pads[n + i], (out[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - x.shape[2 + i] - pads[i])
            for i in range(n)]  # fmt: skip
    v = windows(pad_spatial(x, (*pads[:n], *ends), value), kernel, strides, dilations)
    return v[(slice(None), slice(None), *(slice(o) for o in out))], tuple(range(2 + n, 2 + 2 * n))


def _max_pool_reference(x, kernel, strides, pads, dilations, ceil):
    low = -np.inf if x.dtype.kind not in "iu" else np.iinfo(x.dtype).min
    v, axes = _padded_windows(x, kernel, strides, pads, dilations, ceil, low)
    return v.max(axis=axes)


def _avg_pool_reference(x, kernel, strides, pads, dilations, ceil, count_pads):
    v, axes = _padded_windows(x.astype(np.float64), kernel, strides, pads, dilations, ceil, 0)
    n = x.ndim - 2
    ones = np.ones((1, 1, *x.shape[2:]))
    if count_pads:  # the declared padding counts, the excess of ceil mode does not
        ones = np.pad(ones, [(0, 0), (0, 0)] + [(pads[i], pads[n + i]) for i in range(n)], constant_values=1)
        count = _padded_windows(ones, kernel, strides, (0,) * 2 * n, dilations, ceil, 0)[0]
    else:
        count = _padded_windows(ones, kernel, strides, pads, dilations, ceil, 0)[0]
    cut = tuple(slice(d) for d in v.shape[2 : 2 + n])
    total = count.sum(axis=axes)[(slice(None), slice(None), *cut)]
    return (v.sum(axis=axes) / total).astype(x.dtype)


_POOL = {"kernel": REQUIRED, "strides": REQUIRED, "pads": REQUIRED, "dilations": REQUIRED, "ceil": False}
define("max_pool", "x", _pool, _max_pool_reference, "nn", **_POOL)
define("avg_pool", "x", _pool, _avg_pool_reference, "nn", **_POOL, count_pads=False)

LAYOUTS = ("bhsd", "bshd")


def _heads_first(op: str, t: TensorType, layout: str):
    need(t.rank == 4 and layout in LAYOUTS, f"{op}: operand {t} in layout {layout!r}")
    b, s, h, d = t.shape if layout == "bshd" else (t.shape[0], t.shape[2], t.shape[1], t.shape[3])
    return b, h, s, d


def _attention(q, k, v, mask, scale, causal, window, softcap, q_layout, k_layout, v_layout, out_layout):
    need(isinstance(window, int) and window >= 0, f"attention: a window of {window}")
    need(softcap >= 0.0, f"attention: a softcap of {softcap}")
    dtype = need_same_dtype("attention", q, k, v)
    b, h, s, d = _heads_first("attention", q, q_layout)
    _, hk, t, dk = _heads_first("attention", k, k_layout)
    _, hv, tv, dv = _heads_first("attention", v, v_layout)
    _contract("attention", d, dk)
    need(same_dims(t, tv) and same_dims(hk, hv), f"attention: k {k} and v {v} differ")
    need(isinstance(h, int) and isinstance(hk, int) and hk > 0 and h % hk == 0, f"attention: {h} heads over {hk}")
    need(mask is None or mask.dtype == dtype, "attention: the mask is added, so of the operands' dtype")
    if mask is not None:
        broadcast_shapes("attention", mask.shape, (b, h, s, t))
    need(out_layout in LAYOUTS, f"attention: layout {out_layout!r}")
    return TensorType(dtype, (b, s, h, dv) if out_layout == "bshd" else (b, h, s, dv))


def _attention_reference(q, k, v, mask, scale, causal, window, softcap, q_layout, k_layout, v_layout, out_layout):
    dtype = q.dtype
    q, k, v = (
        np.swapaxes(x, 1, 2) if layout == "bshd" else x for x, layout in ((q, q_layout), (k, k_layout), (v, v_layout))
    )
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    with np.errstate(all="ignore"):
        scores = q @ np.swapaxes(k, -1, -2) * scale
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        scores = scores if mask is None else scores + mask.astype(np.float64)
        s, t = scores.shape[-2:]
        position, key = np.arange(s)[:, None] + (t - s), np.arange(t)
        if causal:
            scores = np.where(key > position, -np.inf, scores)
        if window:
            scores = np.where(key <= position - window, -np.inf, scores)
        e = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
        y = (e / e.sum(-1, keepdims=True)) @ v
    return (np.swapaxes(y, 1, 2) if out_layout == "bshd" else y).astype(dtype)


# softmax(cap(q k^T * scale) + mask) v for each head; k and v may have fewer heads (grouped-query attention), each read
# by h / hk query heads in a row. mask broadcasts to [b, h, s, t]. Query i stands at position p = i + t - s: causal, it
# sees keys up to p; window > 0: only those after p - window. softcap c > 0: cap(x) = c tanh(x / c)
define("attention", "q k v mask?", _attention, _attention_reference, "nn", scale=REQUIRED, causal=False, window=0,
       softcap=0.0, q_layout="bhsd", k_layout="bhsd", v_layout="bhsd", out_layout="bhsd")  # fmt: skip


def _cache_append(past, new, axis, layout, dtype):
    need(past.rank == 4 and axis in (1, 2), f"cache_append: {past} along axis {axis}")
    need(dtype in ("f32", "i8"), f"cache_append: a cache of {dtype}")
    need(need_same_dtype("cache_append", past, new) in FLOATS, f"cache_append does not take {past.dtype}")
    bp, hp, t, dp = _heads_first("cache_append", past, LAYOUTS[2 - axis])
    b, h, s, d = _heads_first("cache_append", new, layout)
    need(same_dims(b, bp) and same_dims(h, hp) and same_dims(d, dp), f"cache_append: {past} and {new} differ")
    return TensorType(past.dtype, past.shape[:axis] + (t + s,) + past.shape[axis + 1 :])


def _cache_append_reference(past, new, axis, layout, dtype):
    new = new if layout == LAYOUTS[2 - axis] else np.swapaxes(new, 1, 2)
    if dtype == "i8" and new.shape[-1]:
        new = quantize_rows(new, new.shape[-1]).astype(new.dtype)
    return np.concatenate([past, new], axis=axis)


# concat(past, new) along the sequence axis: 2 where past is [b, h, t, d], 1 where it is [b, t, h, d]; layout: new's.
# dtype "i8": new is rounded to int8 with one f32 scale for each token and head first. Where past is a state of the
# graph, the new tokens are written behind it in place
define("cache_append", "past new", _cache_append, _cache_append_reference, "nn", axis=2, layout="bhsd", dtype="f32")
