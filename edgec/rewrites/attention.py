"""softmax(q k^T * scale + mask) v as one op, whichever way an exporter has written it."""

from __future__ import annotations

import math

from edgec.ir.dims import bcast
from edgec.ir.node import Node, constant
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, num, value
from edgec.rewrites.movement import reshaped
from edgec.rewrites.pattern import b, p, scalar_value, var

RULES: list[Rule] = []

_SWAP_HEADS = (0, 2, 1, 3)
ABSORBING = -1e9  # a mask value that leaves nothing of a score: adding it is replacing by it


def _factor(node: Node) -> tuple[Node, float]:
    """The node without multiplications by numbers, and their product."""
    factor = 1.0
    while node.op == "mul":
        for x, c in (node.inputs, node.inputs[::-1]):
            number = scalar_value(c)
            if number is not None and x.shape == node.shape:
                node, factor = x, factor * float(number)
                break
        else:
            break
    return node, factor


def _strip(node: Node) -> tuple[Node, tuple[int, ...], float]:
    """The node under multiplications by numbers and transposes: (node, perm of the transposes together, factor)."""
    perm, factor = tuple(range(node.rank)), 1.0
    while True:
        node, f = _factor(node)
        factor *= f
        if node.op != "transpose":
            return node, perm, factor
        perm = tuple(node["perm"][i] for i in perm)
        node = node.inputs[0]


def _heads(node: Node, perm: tuple[int, ...]) -> tuple[Node, str]:
    """The operand whose transpose by perm is [b, h, s, d], and its layout; with a transpose left where none fits."""
    if perm == (0, 1, 2, 3):
        return node, "bhsd"
    return (node, "bshd") if perm == _SWAP_HEADS else (b.transpose(node, perm=perm), "bhsd")


def _unrepeated(node: Node, heads) -> Node:
    """The operand under repeat_kv ([b, hk, t, d] -> [b, hk, 1, t, d] -> [b, hk, g, t, d] -> [b, hk * g, t, d])."""
    if node.op != "reshape" or node.inputs[0].op != "expand":
        return node
    wide = node.inputs[0]
    narrow = wide.inputs[0]
    if wide.rank != 5 or narrow.rank != 5 or narrow.shape[2] != 1 or node.shape[1] != heads:
        return node
    bs, hk, _, t, d = narrow.shape
    same = (wide.shape[0], wide.shape[1], wide.shape[3], wide.shape[4]) == (bs, hk, t, d)
    if not same or node.shape != (bs, wide.shape[1] * wide.shape[2], t, d) or not isinstance(hk, int) or hk == 0:
        return node
    return reshaped(narrow, (bs, hk, t, d))


def _additive(node: Node) -> tuple[Node, Node | None] | str:
    """(scores, mask that is added to them)."""
    if node.op == "add":
        x, y = node.inputs
        if _is_product(x) != _is_product(y):
            return (x, y) if _is_product(x) else (y, x)
        return "the mask cannot be told from the scores"
    if node.op == "where":
        c, x, y = node.inputs
        scores, other, keep = (x, y, True) if _is_product(x) else (y, x, False)
        low = scalar_value(other)
        if low is None or not low <= ABSORBING:
            return "what replaces masked scores is not a large negative number"
        zero, fill = constant(0, node.dtype), constant(low, node.dtype)
        return scores, b.where(c, zero, fill) if keep else b.where(c, fill, zero)
    return node, None


def _is_product(node: Node) -> bool:
    return _factor(node)[0].op == "matmul"


def build_attention(softmax: Node, v: Node, trans_v: bool) -> Node | str:
    """The attention node of softmax(scores) @ v; rank 4 [b, h, s, d], or rank 3 [n, s, d] as one head."""
    rank = softmax.rank
    if softmax["axis"] != rank - 1 or rank not in (3, 4) or v.rank != rank:
        return "not a softmax over the last axis of rank 3 or 4"
    found = _additive(softmax.inputs[0])
    if isinstance(found, str):
        return found
    scores, mask = found
    product, scale = _factor(scores)
    if product.op != "matmul":
        return "the scores are not a product"
    if product.shape != softmax.shape:
        keys = product.shape[-1]
        if mask is None or product.shape[:-1] != softmax.shape[:-1] or softmax.shape[-1] != bcast(keys, mask.shape[-1]):
            return "the mask broadcasts the scores"
        # a mask whose size has another name, as past + sequence often has: it must be that long
        sizes = (*mask.shape[:-1], keys)
        mask = b.slice(mask, starts=(0,) * mask.rank, sizes=sizes, steps=(1,) * mask.rank)
    swap = (*range(rank - 2), rank - 1, rank - 2)
    q, q_perm, q_factor = _strip(product.inputs[0])
    k, k_perm, k_factor = _strip(product.inputs[1])
    v, v_perm, v_factor = _strip(v)
    if v_factor != 1.0:
        return "v is scaled"
    if product["trans_a"]:
        q_perm = tuple(q_perm[i] for i in swap)
    if not product["trans_b"]:
        k_perm = tuple(k_perm[i] for i in swap)
    if trans_v:
        v_perm = tuple(v_perm[i] for i in swap)
    scale *= q_factor * k_factor
    if not math.isfinite(scale):
        return "the scale is not finite"
    if rank == 3:
        q, k, v = (
            b.reshape(x, shape=(x.shape[0], 1, *x.shape[1:]))
            for x in (_transposed(q, q_perm), _transposed(k, k_perm), _transposed(v, v_perm))
        )
        q_perm = k_perm = v_perm = (0, 1, 2, 3)
        if mask is not None and mask.rank == 3:
            mask = b.reshape(mask, shape=(mask.shape[0], 1, *mask.shape[1:]))
    q, q_layout = _heads(q, q_perm)
    heads = q.shape[2] if q_layout == "bshd" else q.shape[1]
    k, k_layout = _key_value(k, k_perm, heads)
    v, v_layout = _key_value(v, v_perm, heads)
    if _sizes(k, k_layout)[:2] != _sizes(v, v_layout)[:2] or _sizes(k, k_layout)[0] != _sizes(q, q_layout)[0]:
        return "batch or heads are broadcast"
    if not all(isinstance(h, int) and h > 0 for h in (heads, _sizes(k, k_layout)[1])):
        return "the number of heads is not fixed"
    if heads % _sizes(k, k_layout)[1]:
        return "heads are broadcast"
    if mask is not None and mask.dtype != q.dtype:
        return "the mask has another dtype"
    return b.attention(q, k, v, mask, scale=scale, q_layout=q_layout, k_layout=k_layout, v_layout=v_layout)


def _transposed(x: Node, perm: tuple[int, ...]) -> Node:
    return x if perm == tuple(range(x.rank)) else b.transpose(x, perm=perm)


def _key_value(x: Node, perm: tuple[int, ...], heads) -> tuple[Node, str]:
    if perm == (0, 1, 2, 3):
        x = _unrepeated(x, heads)
        x, perm, factor = _strip(x)
        assert factor == 1.0 or x
        if factor != 1.0:
            x, perm = b.mul(_transposed(x, perm), constant(factor, x.dtype)), (0, 1, 2, 3)
    return _heads(x, perm)


def _sizes(x: Node, layout: str) -> tuple:
    return (x.shape[0], x.shape[2]) if layout == "bshd" else (x.shape[0], x.shape[1])


def _example(mask=None, scale="scores", transposed=True, rank=4, kv_heads=3, extra=None):
    def build():
        s, t = f32("q", "s").shape[0], f32("k", "t").shape[0]
        if rank == 3:
            q, k, v = f32("q", 6, "s", 4), f32("k", 6, "t", 4), f32("v", 6, "t", 5)
            kt = b.transpose(k, perm=(0, 2, 1))
        elif transposed:
            q, k, v = f32("q", 2, "s", 3, 4), f32("k", 2, "t", 3, 4), f32("v", 2, "t", 3, 5)
            q, v, kt = (
                b.transpose(q, perm=(0, 2, 1, 3)),
                b.transpose(v, perm=(0, 2, 1, 3)),
                b.transpose(k, perm=(0, 2, 3, 1)),
            )
        else:
            q, k, v = f32("q", 2, 3, "s", 4), f32("k", 2, kv_heads, "t", 4), f32("v", 2, kv_heads, "t", 5)
            if kv_heads != 3:
                k, v = (
                    b.reshape(b.expand(b.reshape(x, shape=(2, 1, 1, t, d)), shape=(2, 1, 3, t, d)), shape=(2, 3, t, d))
                    for x, d in ((k, 4), (v, 5))
                )
            kt = b.transpose(k, perm=(0, 1, 3, 2))
        if scale in ("q", "both"):
            q = b.mul(q, num(0.5))
        if scale == "both":
            kt = b.mul(kt, num(0.5))
        scores = b.matmul(q, kt)
        if scale == "scores":
            scores = b.mul(scores, num(0.5))
        if mask == "add":
            scores = b.add(scores, f32("mask", 2, 1, s, t))
        elif mask == "where":
            scores = b.where(value("bool", "mask", 1, 1, s, t), num(-math.inf), scores)
        elif mask == "soft":
            scores = b.where(value("bool", "mask", 1, 1, s, t), num(-10), scores)
        probabilities = b.softmax(scores, axis=rank - 1)
        if extra:
            probabilities = extra(probabilities)
        return b.matmul(probabilities, v)

    return build


@rule(
    p.matmul(p.softmax(var("_s"), name="softmax"), var("v"), trans_a=False),
    promise="ulp:64",
    examples=[
        _example(),
        _example(mask="add", scale="q"),
        _example(mask="where", scale="both", transposed=False),
        _example(transposed=False, kv_heads=1),
        _example(rank=3),
    ],
    misses=[_example(mask="soft"), _example(extra=lambda s: b.mul(s, num(0.9)))],
    into=RULES,
)
def attention(m: Match):
    new = build_attention(m.softmax, m.v, m.root["trans_b"])
    if isinstance(new, str):
        return new
    new = reshaped(new, m.root.shape) if m.root.rank == 3 else new
    return new if new.type == m.root.type else "a broadcast gives the result its shape"


_LAYOUTS = {"bhsd": "bshd", "bshd": "bhsd"}


@rule(
    p.transpose(p.attention(name="attention").single(), perm=_SWAP_HEADS),
    examples=[
        lambda: b.transpose(
            b.attention(f32("q", 1, 2, "s", 4), f32("k", 1, 2, "t", 4), f32("v", 1, 2, "t", 4), scale=0.5),
            perm=_SWAP_HEADS,
        )
    ],
    misses=[
        lambda: b.transpose(
            b.attention(f32("q", 1, 2, "s", 4), f32("k", 1, 2, "t", 4), f32("v", 1, 2, "t", 4), scale=0.5),
            perm=(0, 1, 3, 2),
        )
    ],
    into=RULES,
)
def transpose_after_attention(m: Match):
    attrs = dict(m.attention.attrs)
    return b.attention(*m.attention.inputs, **(attrs | {"out_layout": _LAYOUTS[attrs["out_layout"]]}))


@rule(
    p.attention(name="attention"),
    examples=[
        lambda: b.attention(
            b.transpose(f32("q", 1, "s", 2, 4), perm=_SWAP_HEADS),
            f32("k", 1, 2, "t", 4),
            b.transpose(f32("v", 1, "t", 2, 4), perm=_SWAP_HEADS),
            scale=0.5,
        )
    ],
    misses=[lambda: b.attention(f32("q", 1, 2, "s", 4), f32("k", 1, 2, "t", 4), f32("v", 1, 2, "t", 4), scale=0.5)],
    into=RULES,
)
def transpose_before_attention(m: Match):
    inputs, attrs = list(m.attention.inputs), dict(m.attention.attrs)
    for i, name in enumerate(("q_layout", "k_layout", "v_layout")):
        if inputs[i].op == "transpose" and inputs[i]["perm"] == _SWAP_HEADS:
            inputs[i], attrs[name] = inputs[i].inputs[0], _LAYOUTS[attrs[name]]
    return b.attention(*inputs, **attrs)


def _masked(*shape):
    mask = b.expand(f32("mask", 1, 1, 1, "t"), shape=tuple(f32("_", *shape).shape))
    return b.attention(f32("q", 1, 2, "s", 4), f32("k", 1, 2, "t", 4), f32("v", 1, 2, "t", 4), mask, scale=0.5)


@rule(
    p.attention(var("q"), var("k"), var("v"), p.expand(var("mask")), name="attention"),
    examples=[lambda: _masked(1, 1, "s", "t"), lambda: _masked(1, 2, "s", "t")],
    into=RULES,
)
def expanded_mask(m: Match):
    """The mask broadcasts to the scores by itself."""
    return b.attention(m.q, m.k, m.v, m.mask, **m.attention.attrs)
