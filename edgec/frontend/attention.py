"""Attention of ONNX 23 and of com.microsoft, and rotary embeddings."""

from __future__ import annotations

import math

import numpy as np

from edgec.frontend import symbolic
from edgec.frontend.emit import array_of, cast, dim, emit, op, reduce, reshape, split, take, transpose, unsqueeze
from edgec.frontend.nn import matmul
from edgec.frontend.registry import MICROSOFT, Call, Unsupported, onnx_op
from edgec.ir.dims import Dim, Expr, bcast, max_dim
from edgec.ir.node import Node, constant


def heads_of(x: Node, heads: int) -> Node:
    """[batch, steps, heads * size] -> [batch, steps, heads, size]."""
    if x.rank == 4:
        return x
    width = x.shape[2]
    if not isinstance(width, int) or width % heads:
        raise ValueError(f"{width} channels do not divide into {heads} heads")
    return reshape(x, [x.shape[0], x.shape[1], heads, width // heads])


def attend(q: Node, k: Node, v: Node, mask: Node | None, scale: float, causal=False, softcap: float = 0.0) -> Node:
    """Heads-first attention [b, h, s, d]."""
    return op.attention(q, k, v, mask, scale=float(scale), causal=bool(causal), softcap=float(softcap))


def rotary(x: Node, places: Node | None, cos: Node, sin: Node, size: int, interleaved: bool) -> Node:
    """x [batch, steps, heads, size]; places [batch or 1, steps] choose rows of cos and sin."""
    half = (size or int(x.shape[-1])) // 2
    if places is not None:
        cos, sin = op.gather(cos, places, axis=0), op.gather(sin, places, axis=0)
    cos, sin = (cast(take(t, -1, 0, half), x.dtype) for t in (cos, sin))
    batch, steps, heads, dim = x.shape
    flat = reshape(x, [batch, steps, heads * dim])
    return op.rope(flat, cos, sin, heads=heads, dim=dim, interleaved=interleaved)


@onnx_op("RotaryEmbedding")
def rotary_embedding(c: Call):
    x = c[0]
    y = transpose(x, (0, 2, 1, 3)) if x.rank == 4 else heads_of(x, c.need_attr("num_heads"))
    places = c.get(3)
    y = rotary(y, places, c[1], c[2], c.attr("rotary_embedding_dim", 0), bool(c.attr("interleaved", 0)))
    return transpose(y, (0, 2, 1, 3)) if x.rank == 4 else reshape(y, x.shape)


@onnx_op("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding_microsoft(c: Call):
    x, places, cos, sin = c[0], c[1], c[2], c[3]
    size, heads = c.attr("rotary_embedding_dim", 0), c.attr("num_heads", 0)
    if x.rank == 4:
        y = transpose(x, (0, 2, 1, 3))
    else:
        if not heads:
            width = 2 * int(cos.shape[-1])
            heads = x.shape[2] // width if isinstance(x.shape[2], int) else 0
        y = heads_of(x, heads)
    batch, steps = y.shape[:2]
    if places.shape in ((1,), ()):
        line = reshape(emit("iota", size=steps), [1, steps])
        places = op.expand(op.add(line, reshape(places, ())), shape=(batch, steps))
    y = rotary(y, places, cos, sin, size, bool(c.attr("interleaved", 0)))
    return transpose(y, (0, 2, 1, 3)) if x.rank == 4 else reshape(y, x.shape)


def _with_past(past: Node | None, x: Node) -> Node:
    return x if past is None else op.concat(past, x, axis=2)


def _is_all(size: Dim, whole: Dim, one: bool = False) -> bool:
    """Whether a mask's size is that of the operands (bcast: as it must be where it is not 1), not a part that is padded."""
    return size == whole or (one and size == 1) or bcast(size, whole) == size


@onnx_op("Attention")
def attention(c: Call):
    """The usual forms as one op; the others by ONNX's own definition."""
    mask, causal = c.get(3), bool(c.attr("is_causal", 0))
    rare = c.wants(3) or c.has(6) or c.attr("softcap", 0.0) or (mask is not None and causal)
    if rare or max(c.attr("left_window_size", -1), c.attr("right_window_size", -1)) >= 0:
        return NotImplemented
    flat = c[0].rank == 3
    counts = [c.attr("q_num_heads"), c.attr("kv_num_heads"), c.attr("kv_num_heads")]
    if flat and None in counts:
        raise ValueError("operands of rank 3 need q_num_heads and kv_num_heads")
    q, k, v = (transpose(heads_of(c[i], counts[i]), (0, 2, 1, 3)) if flat else c[i] for i in range(3))
    if causal and q.shape[2] != k.shape[2]:
        return NotImplemented
    k, v = _with_past(c.get(4), k), _with_past(c.get(5), v)
    dead = None
    if mask is not None:
        if (
            mask.rank < 2
            or not _is_all(mask.shape[-1], k.shape[2])
            or not _is_all(mask.shape[-2], q.shape[2], one=True)
        ):
            return NotImplemented
        mask = reshape(mask, [1] * (4 - mask.rank) + [*mask.shape])
        if mask.dtype == "bool":
            mask = op.where(mask, constant(0, q.dtype), constant(-math.inf, q.dtype))
        # a row that is masked whole gives 0
        dead = op.eq(reduce("max", mask, (3,), True), constant(-math.inf, mask.dtype))
    y = attend(q, k, v, mask, c.attr("scale") or 1 / math.sqrt(int(q.shape[-1])), causal)
    if dead is not None:
        y = op.where(dead, constant(0, y.dtype), y)
    if flat:
        y = transpose(y, (0, 2, 1, 3))
        y = reshape(y, [*y.shape[:2], y.shape[2] * y.shape[3]])
    return y, k, v


@onnx_op("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(c: Call):
    heads = c.need_attr("num_heads")
    q, k, v, bias = c[0], c.get(1), c.get(2), c.get(3)
    if q.rank == 5 or (k is not None and k.rank == 5):
        raise Unsupported("packed queries, keys and values")
    if k is None or v is None or c.has(8) or c.has(9):
        raise Unsupported("keys and values that are packed or in a shared buffer")
    if bias is not None:
        width = q.shape[2]
        parts = split(bias, 0, [width, width, bias.shape[0] - 2 * width])
        q = op.add(q, parts[0])
        k, v = (op.add(x, p) if x.rank == 3 else x for x, p in zip((k, v), parts[1:]))
    q = transpose(heads_of(q, heads), (0, 2, 1, 3))
    # keys of rank 4 are heads-first already (cross attention with a cache)
    k, v = (x if x.rank == 4 else transpose(heads_of(x, heads), (0, 2, 1, 3)) for x in (k, v))
    k, v = _with_past(c.get(6), k), _with_past(c.get(7), v)
    mask = c.get(5)
    if c.has(4):
        mask = _sum(mask, _padding_mask(c[4], q, k, c.attr("mask_filter_value", -10000.0)))
    if c.wants(3):
        raise Unsupported("the scores as an output")
    y = attend(
        q, k, v, mask, c.attr("scale", 0.0) or 1 / math.sqrt(int(q.shape[-1])), bool(c.attr("unidirectional", 0))
    )
    y = transpose(y, (0, 2, 1, 3))
    return reshape(y, [*y.shape[:2], y.shape[2] * y.shape[3]]), k, v


def _sum(a: Node | None, b: Node) -> Node:
    return b if a is None else op.add(a, b)


def _padding_mask(mask: Node, q: Node, k: Node, low: float) -> Node:
    """0 where a key counts, `low` where it doesn't: of key lengths [b], or a mask [b, t] or [b, s, t]."""
    batch, steps = k.shape[0], k.shape[2]
    if mask.rank == 1:
        if mask.shape[0] != batch:
            raise Unsupported(f"a key padding mask {mask.type}")
        keep = op.lt(reshape(emit("iota", size=steps), [1, steps]), reshape(cast(mask, "i64"), [batch, 1]))
    else:
        keep = op.ne(cast(mask, "i64"), 0)
    keep = reshape(keep, [keep.shape[0], 1, 1, keep.shape[1]]) if keep.rank == 2 else unsqueeze(keep, 1)
    return op.where(keep, constant(0, q.dtype), constant(low, q.dtype))


def _lengths(c: Call, steps: Dim, batch: Dim) -> tuple[Node, Dim | None]:
    """GroupQueryAttention's number of tokens before the new ones in each row, i64 [batch], and the cache's new size.

    seqlens_k is the place of the last valid token. A prompt (as many steps as tokens in all) starts at 0, padded on
    the right where it is shorter.
    """
    last, total = op.reshape(cast(c[5], "i64"), shape=(batch,)), reshape(cast(c[6], "i64"), ())
    known = symbolic.content(total)
    size = known[()] if known is not None else None
    before = op.sub(op.add(last, 1), dim(steps))
    before = op.where(op.eq(total, dim(steps)), constant(0, "i64"), before)
    return before, size if isinstance(size, (int, Expr)) else None


def _appended(past: Node | None, new: Node, lengths: Node, size: Dim | None) -> Node:
    """Row b of `new` [b, h, s, d] behind the first lengths[b] tokens of past [b, h, t, d]; zeros beyond.

    As one read of concat(past, new) at places that differ between rows.
    """
    both = new if past is None else op.concat(past, new, axis=2)
    before: Dim = 0 if past is None else past.shape[2]
    steps = new.shape[2]
    size = both.shape[2] if size is None else max_dim(before, size)
    t, first = reshape(emit("iota", size=size), [1, size]), reshape(lengths, [lengths.shape[0], 1])
    full = op.lt(t, op.add(first, dim(steps)))
    place = op.where(
        op.and_(op.ge(t, first), full), op.add(op.sub(t, first), dim(before)), op.min(t, dim(before + steps - 1))
    )
    known = array_of(place)
    if known is not None and isinstance(both.shape[2], int) and (known == np.arange(both.shape[2])).all():
        return both
    rows = op.gather_nd(transpose(both, (0, 2, 1, 3)), unsqueeze(place, 2), batch_dims=1)
    rows = op.where(reshape(full, [*full.shape, 1, 1]), rows, constant(0, new.dtype))
    return transpose(rows, (0, 2, 1, 3))


@onnx_op("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(c: Call):
    """Each row of the batch has its own number of tokens before the new ones: seqlens_k."""
    heads, kv_heads = c.need_attr("num_heads"), c.need_attr("kv_num_heads")
    if c.attr("smooth_softmax", 0) or c.has(11) or c.attr("kv_cache_bit_width", 0):
        raise Unsupported("smooth softmax, sinks or a quantized cache")
    if any(c.has(i) for i in range(12, 17)) or c.wants(3) or c.attr("qk_output", 0):
        raise Unsupported("scales or gains of the cache, or the scores as an output")
    q, k, v = c[0], c.get(1), c.get(2)
    if k is None or v is None:  # packed
        width = q.shape[2]
        if not isinstance(width, int) or width % (heads + 2 * kv_heads):
            raise Unsupported(f"packed queries {q.type}")
        size = width // (heads + 2 * kv_heads)
        q, k, v = split(q, 2, [heads * size, kv_heads * size, kv_heads * size])
    q, k, v = heads_of(q, heads), heads_of(k, kv_heads), heads_of(v, kv_heads)
    batch, steps = q.shape[:2]
    lengths, size = _lengths(c, steps, batch)
    first = reshape(lengths, [batch, 1])
    if c.attr("do_rotary", 0):
        places = c.get(9)
        if places is None:
            places = op.add(reshape(emit("iota", size=steps), [1, steps]), first)
        turn = bool(c.attr("rotary_interleaved", 0))
        q, k = (rotary(x, places, c[7], c[8], 2 * int(c[7].shape[-1]), turn) for x in (q, k))
    q, k, v = (transpose(x, (0, 2, 1, 3)) for x in (q, k, v))
    k, v = (_appended(c.get(i), x, lengths, size) for i, x in ((3, k), (4, v)))
    total = k.shape[2]
    place = op.add(reshape(lengths, [batch, 1, 1, 1]), reshape(emit("iota", size=steps), [1, 1, steps, 1]))
    key = reshape(emit("iota", size=total), [1, 1, 1, total])
    seen = op.le(key, place) if c.attr("causal", 1) else op.lt(key, op.add(reshape(lengths, [batch, 1, 1, 1]), steps))
    window = c.attr("local_window_size", -1)
    if window > 0:
        seen = op.and_(seen, op.gt(key, op.sub(place, window)))
    mask = op.where(seen, constant(0, q.dtype), constant(-np.inf, q.dtype))
    if (bias := c.get(10)) is not None:
        sizes = (*bias.shape[:3], total)
        mask = op.add(
            mask, op.slice(bias, starts=(0,) * 4, sizes=sizes, steps=(1,) * 4) if bias.shape != sizes else bias
        )
    scale = c.attr("scale", 0.0) or 1 / math.sqrt(int(q.shape[-1]))
    y = transpose(attend(q, k, v, mask, scale, softcap=c.attr("softcap", 0.0)), (0, 2, 1, 3))
    return reshape(y, [*y.shape[:2], y.shape[2] * y.shape[3]]), k, v


@onnx_op("Attention", domain=MICROSOFT)
def attention_microsoft(c: Call):
    """Projection of queries, keys and values in one product, then attention."""
    x, w, bias, mask, past = c[0], c[1], c.get(2), c.get(3), c.get(4)
    heads = c.need_attr("num_heads")
    if c.attr("do_rotary", 0) or c.has(6) or c.attr("past_present_share_buffer", 0):
        raise Unsupported("rotary embedding inside, or a shared buffer")
    y = matmul(x, w)
    y = y if bias is None else op.add(y, bias)
    third = w.shape[1] // 3
    sizes = c.attr("qkv_hidden_sizes", (third, third, third))
    q, k, v = (transpose(heads_of(p, heads), (0, 2, 1, 3)) for p in split(y, 2, sizes))
    if past is not None:
        before = [reshape(take(past, 0, i, 1), past.shape[1:]) for i in (0, 1)]
        k, v = _with_past(before[0], k), _with_past(before[1], v)
    bias_mask = c.get(5)
    if mask is not None:
        if mask.rank == 4:
            raise Unsupported(f"a mask {mask.type}")
        bias_mask = _sum(bias_mask, _padding_mask(mask, q, k, c.attr("mask_filter_value", -10000.0)))
    scale = c.attr("scale", 0.0) or 1 / math.sqrt(int(q.shape[-1]))
    y = transpose(attend(q, k, v, bias_mask, scale, bool(c.attr("unidirectional", 0))), (0, 2, 1, 3))
    present = op.concat(unsqueeze(k, 0), unsqueeze(v, 0), axis=0) if c.wants(1) else None
    return reshape(y, [*y.shape[:2], y.shape[2] * y.shape[3]]), present
