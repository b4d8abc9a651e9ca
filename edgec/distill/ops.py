"""The canonical ops in torch, so that gradients flow through them. Each does what its numpy reference does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from edgec.ir.node import Node
from edgec.ir.ops.hadamard import matrix, spans
from edgec.ir.ops.movement import resize_matrix
from edgec.ir.ops.nn import GATED, PANEL, window

Tensor = torch.Tensor
DTYPES = {
    "bool": torch.bool, "i8": torch.int8, "u8": torch.uint8, "i16": torch.int16, "u16": torch.uint16,
    "i32": torch.int32, "u32": torch.uint32, "i64": torch.int64, "u64": torch.uint64,
    "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
}  # fmt: skip
BLOCK = 32  # activations that share an int8 scale

LEAVES = ("input", "constant", "iota", "dim_value", "cast", "branch")  # what torch_graph computes itself
# op -> function of its operands (None: absent) and attributes, dims bound to ints
TORCH: dict[str, Callable] = {}


def _op(name: str):
    def wrap(f: Callable) -> Callable:
        TORCH[name] = f
        return f

    return wrap


class RoundActivations(torch.autograd.Function):
    """int8 per block of the last axis, as edgec.ir.ops.nn.quantize_rows; the gradient passes as if it were not there
    (Bengio et al., straight-through estimator, https://arxiv.org/abs/1308.3432)."""

    @staticmethod
    def forward(ctx, x: Tensor, block: int) -> Tensor:
        k = x.shape[-1]
        padded = F.pad(x, (0, -k % block)) if k % block else x
        blocks = padded.reshape(*x.shape[:-1], padded.shape[-1] // block, block)
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        inverse = torch.where(scale > 0, 1 / scale, 0)
        return (blocks * inverse).round_().mul_(scale).reshape(padded.shape)[..., :k]

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def round_rows(x: Tensor, block: int = BLOCK) -> Tensor:
    return RoundActivations.apply(x, block)


# --- elementwise -------------------------------------------------------------------------------------------------------

for _name in ("neg", "abs", "sign", "floor", "ceil", "round", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos",
              "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "relu",
              "isnan", "isinf", "bitwise_not", "sub", "mul", "fmod", "pow", "atan2", "bitwise_and", "bitwise_or",
              "bitwise_xor", "eq", "ne", "lt", "le", "gt", "ge"):  # fmt: skip
    TORCH[_name] = getattr(torch, _name)
TORCH |= {
    "add": torch.add,
    "not": torch.logical_not,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "xor": torch.logical_xor,
    "max": torch.maximum,
    "min": torch.minimum,
    "silu": F.silu,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros((), dtype=x.dtype)),
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "where": torch.where,
    "pack": lambda w, format: w,
    "item": lambda x, index: x[index],
}


@_op("div")
def _div(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    return torch.where(b == 0, 0, torch.div(a, torch.where(b == 0, 1, b), rounding_mode="trunc"))


@_op("mod")
def _mod(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return torch.remainder(a, b)
    return torch.where(b == 0, 0, torch.remainder(a, torch.where(b == 0, 1, b)))


_ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hard_swish": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "hard_sigmoid": lambda x: torch.clamp(x / 6 + 0.5, 0, 1),
}


# --- reductions --------------------------------------------------------------------------------------------------------


def _reduction(f: Callable, *, by_axis: bool = False) -> Callable:
    def reduce(x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
        if not axes:
            return x
        if not by_axis:
            return f(x, dim=tuple(axes), keepdim=keepdims)
        for axis in reversed(axes):
            x = f(x, dim=axis, keepdim=keepdims)
        return x

    return reduce


def _sum(x: Tensor, dim, keepdim) -> Tensor:
    return x.sum(dim=dim, keepdim=keepdim, dtype=x.dtype)


def _mean(x: Tensor, dim, keepdim) -> Tensor:
    if x.is_floating_point():
        return x.mean(dim=dim, keepdim=keepdim)
    return x.double().mean(dim=dim, keepdim=keepdim).to(x.dtype)


TORCH |= {
    "reduce_sum": _reduction(_sum),
    "reduce_mean": _reduction(_mean),
    "reduce_prod": _reduction(lambda x, dim, keepdim: x.prod(dim=dim, keepdim=keepdim, dtype=x.dtype), by_axis=True),
    "reduce_max": _reduction(torch.amax),
    "reduce_min": _reduction(torch.amin),
    "softmax": lambda x, axis: torch.softmax(x, axis),
    "log_softmax": lambda x, axis: torch.log_softmax(x, axis),
}


@_op("cumsum")
def _cumsum(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    y = x.flip(axis) if reverse else x
    total = torch.cumsum(y, axis, dtype=x.dtype)
    if exclusive:
        total = torch.cat([torch.zeros_like(total.narrow(axis, 0, min(1, total.shape[axis]))),
                           total.narrow(axis, 0, max(0, total.shape[axis] - 1))], axis)  # fmt: skip
    return total.flip(axis) if reverse else total


@_op("topk")
def _topk(x: Tensor, k: int, axis: int, largest: bool, sorted: bool) -> tuple[Tensor, Tensor]:
    values, order = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), order.narrow(axis, 0, k)


@_op("layer_norm")
def _layer_norm(x: Tensor, gain: Tensor | None, bias: Tensor | None, axis: int, eps: float) -> Tensor:
    shape = x.shape[axis:]
    if shape and all(p is None or p.shape == shape for p in (gain, bias)):
        return F.layer_norm(x, shape, gain, bias, eps)
    axes = tuple(range(axis, x.ndim))
    y = x - x.mean(axes, keepdim=True) if axes else x - x
    y = y * torch.rsqrt((y * y).mean(axes, keepdim=True) + eps) if axes else y / math.sqrt(eps)
    y = y if gain is None else y * gain
    return y if bias is None else y + bias


@_op("rms_norm")
def _rms_norm(x: Tensor, gain: Tensor | None, axis: int, eps: float) -> Tensor:
    axes = tuple(range(axis, x.ndim))
    square = (x * x).mean(axes, keepdim=True) if axes else x * x
    y = x * torch.rsqrt(square + eps)
    return y if gain is None else y * gain


# --- movement ----------------------------------------------------------------------------------------------------------


TORCH |= {
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, perm: x.permute(perm),
    "expand": lambda x, shape: x.expand(shape),
    "concat": lambda *xs, axis: torch.cat(xs, axis),
}


@_op("slice")
def _slice(x: Tensor, starts, sizes, steps) -> Tensor:
    for axis, (start, size, step) in enumerate(zip(starts, sizes, steps)):
        if step < 0:
            x, start, step = x.flip(axis), x.shape[axis] - 1 - start, -step
        if step != 1 and size:
            x = x[(slice(None),) * axis + (slice(start, start + (size - 1) * step + 1, step),)]
        elif (start, size) != (0, x.shape[axis]):
            x = x.narrow(axis, start if size else 0, size)
    return x


def _cut_and_grow(x: Tensor, before, after) -> tuple[Tensor, list[tuple[int, int]]]:
    """The operand without what negative amounts cut, and the amounts to add."""
    for axis, (b, a) in enumerate(zip(before, after)):
        if b < 0 or a < 0:
            x = x.narrow(axis, max(-b, 0), x.shape[axis] - max(-b, 0) - max(-a, 0))
    return x, [(max(b, 0), max(a, 0)) for b, a in zip(before, after)]


@_op("pad")
def _pad(x: Tensor, value: Tensor | None, before, after, mode: str) -> Tensor:
    x, amounts = _cut_and_grow(x, before, after)
    if mode == "constant" and (value is None or not value.requires_grad):
        return F.pad(x, [n for pair in reversed(amounts) for n in pair], value=0 if value is None else value.item())
    for axis, (b, a) in enumerate(amounts):
        if not (b or a):
            continue
        if mode == "constant":
            shape = list(x.shape)
            fill = [value.expand([n if i == axis else d for i, d in enumerate(shape)]) for n in (b, a)]  # type: ignore
            x = torch.cat([fill[0], x, fill[1]], axis)
            continue
        at = torch.arange(-b, x.shape[axis] + a)
        x = x.index_select(axis, _reflected(at, x.shape[axis]) if mode == "reflect" else
                           at.clamp(0, x.shape[axis] - 1) if mode == "edge" else at % x.shape[axis])  # fmt: skip
    return x


def _reflected(at: Tensor, size: int) -> Tensor:
    if size == 1:
        return torch.zeros_like(at)
    at = at % (2 * size - 2)
    return torch.where(at < size, at, 2 * size - 2 - at)


def _wrapped(indices: Tensor, size: int) -> Tensor:
    indices = indices.long()
    if ((indices < -size) | (indices >= size)).any():
        raise IndexError(f"an index is outside of {size} elements")
    return torch.where(indices < 0, indices + size, indices)


@_op("gather")
def _gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    indices = _wrapped(indices, x.shape[axis])
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return F.embedding(indices, x)
    picked = x.index_select(axis, indices.reshape(-1))
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@_op("gather_elements")
def _gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


@_op("gather_nd")
def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    depth, lead = indices.shape[-1], indices.shape[:-1]
    picks = [_wrapped(indices[..., i], x.shape[batch_dims + i]) for i in range(depth)]
    grids = [torch.arange(n).reshape((-1,) + (1,) * (len(lead) - i - 1)) for i, n in enumerate(lead[:batch_dims])]
    return x[tuple(grids + picks)] if grids or picks else x.expand(lead + x.shape)


@_op("scatter_nd")
def _scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    place = tuple(_wrapped(indices[..., i], x.shape[i]) for i in range(indices.shape[-1]))
    return x.index_put(place, updates, accumulate=reduction == "add")


@_op("scatter_elements")
def _scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    at = _wrapped(indices, x.shape[axis])
    cut = updates[tuple(slice(n) for n in at.shape)]
    return torch.scatter(x, axis, at, cut) if reduction == "none" else torch.scatter_add(x, axis, at, cut)


# --- products ----------------------------------------------------------------------------------------------------------


@_op("matmul")
def _matmul(a: Tensor, b: Tensor, trans_a: bool, trans_b: bool) -> Tensor:
    return torch.matmul(a.mT if trans_a else a, b.mT if trans_b else b)


@_op("hadamard")
def _hadamard(x: Tensor, block: int) -> Tensor:
    whole, parts = x.shape[-1] // block * block, []
    with torch.autocast("cpu", enabled=False):  # products in bf16 would cost more than a rotation gains
        x = x.float() if x.dtype == torch.bfloat16 else x
        if whole:
            parts.append((x[..., :whole].unflatten(-1, (-1, block)) @ _turn(block, x.dtype)).flatten(-2))
        for begin, end in spans(x.shape[-1] - whole, block):
            parts.append(x[..., whole + begin : whole + end] @ _turn(end - begin, x.dtype))
        return torch.cat(parts, -1) if parts else x


def _turn(size: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(matrix(size)).to(dtype)


@_op("linear")
def _linear(x, w, bias, residual, norm_gain, norm_bias, act, activations, norm, eps, rotate) -> Tensor:
    if norm == "rms":
        x = _rms_norm(x, norm_gain, x.ndim - 1, eps)
        x = x if norm_bias is None else x + norm_bias
    elif norm == "layer":
        x = _layer_norm(x, norm_gain, norm_bias, x.ndim - 1, eps)
    x = _hadamard(x, BLOCK) if rotate else x
    if activations == "int8":
        x = round_rows(x)
    if act in GATED:
        gate, up = F.linear(x, _Apart.apply(w), None if bias is None else _Apart.apply(bias)).chunk(2, -1)
        y = _ACTS[GATED[act]](gate) * up
    else:
        y = _ACTS[act](F.linear(x, w, bias))
    return y if residual is None else y + residual


class _Apart(torch.autograd.Function):
    """Rows of gates, then those that they multiply, of panels of both: a pass over weights that need one for autocast
    anyway. Activations in panels of 8 columns took silu seven times as long."""

    @staticmethod
    def forward(ctx, w: Tensor) -> Tensor:
        half = torch.is_autocast_enabled("cpu") and w.dtype == torch.float32
        ctx.dtype, dtype = w.dtype, torch.get_autocast_dtype("cpu") if half else w.dtype
        panels = w.unflatten(0, (len(w) // PANEL, 2, PANEL // 2)).transpose(0, 1)
        return panels.to(dtype, memory_format=torch.contiguous_format, copy=True).view(w.shape)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        (grad,) = grads
        panels = grad.unflatten(0, (2, len(grad) // PANEL, PANEL // 2)).transpose(0, 1)
        return panels.to(ctx.dtype, memory_format=torch.contiguous_format).reshape(grad.shape)


_CONV = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def _spatial_pad(x: Tensor, pads, value: float = 0.0) -> Tensor:
    n = x.ndim - 2
    x, amounts = _cut_and_grow(x, (0, 0, *pads[:n]), (0, 0, *pads[n:]))
    return F.pad(x, [n for pair in reversed(amounts) for n in pair], value=value)


@_op("conv")
def _conv(x, w, bias, residual, grid, strides, pads, dilations, group, act) -> Tensor:
    f = _CONV[x.ndim - 3]
    if grid is not None:  # the gradient passes the rounding, as round_rows'
        step, zero = (v.reshape(1, -1, *[1] * (x.ndim - 2)) for v in grid)
        exact = x / step
        x = exact + (torch.clamp(torch.round(exact + zero), 0, 255) - zero - exact).detach()
    y = _ACTS[act](f(_spatial_pad(x, pads), w, bias, stride=strides, dilation=dilations, groups=group))
    return y if residual is None else y + residual


@_op("conv_transpose")
def _conv_transpose(x, w, bias, strides, pads, dilations, group, output_padding, act) -> Tensor:
    n = x.ndim - 2
    y = _CONV_TRANSPOSE[n - 1](x, w, None, stride=strides, groups=group, dilation=dilations)
    sizes = [y.shape[2 + i] - pads[i] - pads[n + i] + output_padding[i] for i in range(n)]
    ends = [pads[i] + sizes[i] - y.shape[2 + i] for i in range(n)]
    y = _spatial_pad(y, (*(-p for p in pads[:n]), *ends))
    return _ACTS[act](y if bias is None else y + bias.reshape((-1,) + (1,) * n))


def _windows(x: Tensor, kernel, strides, pads, dilations, ceil: bool, value: float) -> Tensor:
    """[N, C, out..., kernel...] of the padded operand, every window whole."""
    n = len(kernel)
    out = [int(window(x.shape[2 + i], kernel[i], strides[i], pads[i], pads[n + i], dilations[i], ceil))
           for i in range(n)]  # fmt: skip
    ends = [max(pads[n + i], (out[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - x.shape[2 + i] - pads[i])
            for i in range(n)]  # fmt: skip
    y = _spatial_pad(x, (*pads[:n], *ends), value)
    for i in range(n):
        y = y.unfold(2 + i, dilations[i] * (kernel[i] - 1) + 1, strides[i])
    y = y[(slice(None),) * 2 + tuple(slice(o) for o in out)]
    return y[(slice(None),) * (2 + n) + tuple(slice(None, None, d) for d in dilations)]


@_op("max_pool")
def _max_pool(x: Tensor, kernel, strides, pads, dilations, ceil) -> Tensor:
    low = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    return _windows(x, kernel, strides, pads, dilations, ceil, low).flatten(x.ndim).amax(-1)


@_op("avg_pool")
def _avg_pool(x: Tensor, kernel, strides, pads, dilations, ceil, count_pads) -> Tensor:
    n = x.ndim - 2
    total = _windows(x, kernel, strides, pads, dilations, ceil, 0).flatten(x.ndim).sum(-1)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    if count_pads:
        ones, pads = _spatial_pad(ones, pads, 1.0), (0,) * 2 * n
    count = _windows(ones, kernel, strides, pads, dilations, ceil, 0).flatten(x.ndim).sum(-1)
    return total / count[(slice(None), slice(None), *(slice(d) for d in total.shape[2:]))]


@_op("resize")
def _resize(x: Tensor, sizes, scales, roi, extrapolation, **how) -> Tensor:
    if not x.is_floating_point():
        raise NotImplementedError("resize of integers")
    y, outside = x, torch.zeros(sizes, dtype=torch.bool)
    for axis, out in enumerate(sizes):
        size = x.shape[axis]
        start, end = (roi[axis], roi[axis + x.ndim]) if roi else (0.0, 1.0)
        crop = how["coordinates"] == "tf_crop_and_resize"
        if out == size and scales[axis] in (0.0, 1.0) and not (crop and (start, end) != (0.0, 1.0)):
            continue
        matrix, out_here = resize_matrix(size, out, scales[axis] or out / size, start, end, **how)
        weights = torch.from_numpy(matrix).to(x.dtype)
        y = torch.tensordot(weights, y, ([1], [axis])).movedim(0, axis)
        outside |= torch.from_numpy(out_here).reshape((-1,) + (1,) * (x.ndim - axis - 1))
    return torch.where(outside, torch.tensor(extrapolation, dtype=x.dtype), y) if outside.any() else y


# --- attention ---------------------------------------------------------------------------------------------------------


@_op("attention")
def _attention(q, k, v, mask, scale, causal, window, softcap, q_layout, k_layout, v_layout, out_layout) -> Tensor:
    q, k, v = (x.transpose(1, 2) if at == "bshd" else x for x, at in ((q, q_layout), (k, k_layout), (v, v_layout)))
    s, t = q.shape[2], k.shape[2]
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    hidden = None
    if causal or window:
        position, key = torch.arange(s)[:, None] + (t - s), torch.arange(t)
        hidden = key > position if causal else torch.zeros(s, t, dtype=torch.bool)
        hidden = hidden | (key <= position - window) if window else hidden
    if softcap:
        scores = softcap * torch.tanh(q @ k.mT * scale / softcap)
        scores = scores if mask is None else scores + mask
        scores = scores if hidden is None else scores.masked_fill(hidden, -math.inf)
        y = torch.softmax(scores, -1) @ v
    else:
        if hidden is not None:
            block = torch.zeros(s, t, dtype=q.dtype).masked_fill(hidden, -math.inf)
            mask = block if mask is None else mask + block
        if mask is not None:  # torch wants a mask that has all of its axes
            mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape).expand(*(-1,) * 2, s, t)
        if torch.is_autocast_enabled("cpu"):  # its gradient is slower in bf16
            q, k, v = (x.float() for x in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return y.transpose(1, 2) if out_layout == "bshd" else y


@_op("cache_append")
def _cache_append(past: Tensor, new: Tensor, axis: int, layout: str, dtype: str) -> Tensor:
    new = new if (layout == "bhsd") == (axis == 2) else new.transpose(1, 2)
    if dtype == "i8" and new.shape[-1]:
        new = round_rows(new, new.shape[-1])
    return torch.cat([past, new], axis)


@_op("rope")
def _rope(x: Tensor, cos: Tensor, sin: Tensor, heads, dim, start, interleaved, rotate) -> Tensor:
    x = x[:, :, start : start + heads * dim].unflatten(-1, (heads, dim))
    half = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    pair = (a * cos - b * sin, b * cos + a * sin)
    y = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    y = torch.cat([y, rest], -1) if rest.shape[-1] else y
    return _hadamard(y, rotate) if rotate else y


def refuses(node: Node) -> str | None:
    """Why the node has no form in torch; None where it has one."""
    if node.op not in TORCH and node.op not in LEAVES:
        return "it has no gradient here"
    if node.op.startswith("scatter") and node["reduction"] not in ("none", "add"):
        return f"the reduction {node['reduction']!r} has no gradient here"
    if node.op in ("conv", "conv_transpose") and not 3 <= node.rank <= 5:
        return f"a convolution of rank {node.rank}"
    return None
