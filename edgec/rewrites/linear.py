"""Products with constant weights become `linear`, and what follows them their epilogue; the same for convolution."""

from __future__ import annotations

import numpy as np

from edgec.ir.node import Node, constant, make
from edgec.ir.ops import OPS
from edgec.ir.ops.nn import PANEL
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, num, weights
from edgec.rewrites.fold import const_node, is_constant
from edgec.rewrites.movement import reshaped
from edgec.rewrites.pattern import Pattern, b, const, either, number, optional, p, scalar_value, var

RULES: list[Rule] = []


def _matrix(node: Node) -> bool:
    """Rank 2, or leading axes of 1."""
    return node.dtype == "f32" and node.rank >= 2 and all(d == 1 for d in node.shape[:-2])


@rule(
    p.matmul(var("x"), const("w", where=_matrix)),
    promise="ulp:1",
    examples=[
        lambda: b.matmul(f32("x", "s", 5), weights(5, 7)),
        lambda: b.matmul(f32("x", 2, "s", 5), weights(1, 7, 5), trans_b=True),
        lambda: b.matmul(f32("x", 5, 2), weights(1, 5, 7), trans_a=True),
    ],
    misses=[lambda: b.matmul(f32("x", 2, 4, 5), weights(2, 5, 7)), lambda: b.matmul(f32("x", 4, 5), f32("w", 5, 7))],
    into=RULES,
)
def matmul_to_linear(m: Match):
    x, w = m.x, m.w
    if w.rank > 2:
        w = const_node("reshape", w, shape=w.shape[-2:])
    if not m.root["trans_b"]:
        w = const_node("transpose", w, perm=(1, 0))
    if m.root["trans_a"]:
        x = b.transpose(x, perm=(*range(x.rank - 2), x.rank - 1, x.rank - 2))
    return reshaped(b.linear(x, w), m.root.shape)


def interleave(gate: Node, up: Node) -> Node:
    """Constants [n, ...] of two linears as [2n, ...] in the order of a gated `linear`: 8 gates, the 8 rows they multiply,
    and so on. n is a multiple of 8."""
    half = PANEL // 2
    parts = [const_node("reshape", c, shape=(c.shape[0] // half, 1, half, *c.shape[1:])) for c in (gate, up)]
    return const_node("reshape", const_node("concat", *parts, axis=1), shape=(2 * gate.shape[0], *gate.shape[1:]))


# --- conv and linear: scale, bias, activation, residual -------------------------------------------------------------


def _bare(op: str) -> Pattern:
    """A conv or linear without activation and residual, read once; with a bias or without."""
    return p.op(op, var("x"), const("w"), optional("bias"), act="none", name="node").single()


def _channels(node: Node, c: Node) -> Node | None:
    """The constant as a vector over the output channels of a conv or linear, if it is one and broadcasts so."""
    axis = 1 if node.op.startswith("conv") else node.rank - 1
    if c.rank > node.rank or c.dtype != node.dtype:
        return None
    shape = (1,) * (node.rank - c.rank) + c.shape
    if any(d != 1 for i, d in enumerate(shape) if i != axis):
        return None
    vector = const_node("reshape", c, shape=(shape[axis],))
    channels = node.shape[axis]
    return vector if shape[axis] == channels else const_node("expand", vector, shape=(channels,))


def _with(node: Node, **changes) -> Node:
    """The same op with operands (by their names x, w, bias, residual ...) or attributes changed."""
    names = [name.rstrip("?") for name in OPS[node.op].operands]
    inputs = [changes.pop(n, i) for n, i in zip(names, node.inputs)]
    return make(node.op, *inputs, **(dict(node.attrs) | changes))


_CONV = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
_CHANNELS = lambda *s: weights(*s, seed=3)  # noqa: E731


@rule(
    p.add(_bare("linear conv conv_transpose"), const("c")),
    promise="ulp:2",
    examples=[
        lambda: b.add(b.linear(f32("x", "s", 5), weights(7, 5)), _CHANNELS(7)),
        lambda: b.add(b.linear(f32("x", 2, 3, 5), weights(7, 5), _CHANNELS(7)), num(0.5)),
        lambda: b.add(b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_CONV), _CHANNELS(1, 3, 1, 1)),
    ],
    misses=[
        lambda: b.add(b.linear(f32("x", 7, 5), weights(7, 5)), _CHANNELS(7, 1)),
        lambda: b.add(b.linear(f32("x", 7, 5), weights(7, 5), act="relu"), _CHANNELS(7)),
        lambda: b.add(b.conv(f32("x", 1, 2, 4, 5), weights(3, 2, 2, 2), **_CONV), _CHANNELS(4)),
    ],
    into=RULES,
)
def bias(m: Match):
    vector = _channels(m.node, m.c) if m.node.shape == m.root.shape else None
    if vector is None:
        return "the constant is not one number a channel"
    return _with(m.node, bias=vector if m.bias is None else const_node("add", m.bias, vector))


@rule(
    p.mul(_bare("linear conv conv_transpose"), const("c")),
    promise="ulp:8",
    examples=[
        lambda: b.mul(b.linear(f32("x", "s", 5), weights(7, 5), _CHANNELS(7)), _CHANNELS(1, 7)),
        lambda: b.mul(b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_CONV), _CHANNELS(3, 1, 1)),
    ],
    misses=[
        lambda: b.mul(b.linear(f32("x", 7, 5), weights(7, 5)), _CHANNELS(7, 1)),
        lambda: b.mul(b.linear(f32("x", 7, 5), weights(7, 5)), constant(np.float32(np.nan))),
    ],
    into=RULES,
)
def scale_into_weights(m: Match):
    """BatchNorm after a convolution, and the scale of attention on q or k."""
    if not m.single(m.w):
        return "the weights are read elsewhere too, as tied ones are"
    vector = _channels(m.node, m.c) if m.node.shape == m.root.shape else None
    if vector is None:
        return "the constant is not one number a channel"
    if not np.isfinite(vector["data"].array()).all():
        return "the scale is not finite"
    transposed = m.node.op == "conv_transpose"
    if transposed and m.node["group"] != 1:
        return "the channels are not an axis of the weights"
    shape: tuple[int, ...] = (1, vector.shape[0]) if transposed else (vector.shape[0],)
    w = const_node("mul", m.w, const_node("reshape", vector, shape=shape + (1,) * (m.w.rank - len(shape))))
    return _with(m.node, w=w, bias=None if m.bias is None else const_node("mul", m.bias, vector))


def _columns(node: Node, x: Node, c: Node) -> Node | None:
    """The constant as a vector over the input channels of a conv (one group) or linear, if it broadcasts so to x."""
    if node.op == "conv" and node["group"] != 1:
        return None
    axis = 1 if node.op == "conv" else x.rank - 1
    shape = (1,) * (x.rank - c.rank) + c.shape
    if c.rank > x.rank or c.dtype != x.dtype or any(d != 1 for i, d in enumerate(shape) if i != axis):
        return None
    vector = const_node("reshape", c, shape=(shape[axis],))
    channels = node.inputs[1].shape[1]
    return vector if shape[axis] == channels else const_node("expand", vector, shape=(channels,))


def _before(inner: Pattern) -> Pattern:
    def plain(node: Node) -> bool:
        return node.op == "conv" or node["norm"] == "none"

    return p.op("linear conv", inner, const("w"), optional("bias"), optional("residual"), name="node", where=plain)


_PADDED = _CONV | {"pads": (1, 0, 0, 0)}


@rule(
    _before(p.mul(var("x"), const("c")).single()),
    promise="ulp:8",
    examples=[
        lambda: b.linear(b.mul(f32("x", "s", 5), weights(5, seed=4)), weights(7, 5)),
        lambda: b.conv(b.mul(f32("x", 1, 2, 4, 4), weights(2, 1, 1)), weights(3, 2, 2, 2), **_PADDED),
    ],
    misses=[
        lambda: b.linear(b.mul(f32("x", 4, 5), weights(4, 1)), weights(7, 5)),
        lambda: b.sub(b.linear(b.mul(f32("x", 4, 5), num(2)), weights(7, 5)), b.linear(f32("y", 4, 5), weights(7, 5))),
    ],
    into=RULES,
)
def scale_before(m: Match):
    if not m.single(m.w):
        return "the weights are read elsewhere too, as tied ones are"
    vector = _columns(m.node, m.x, m.c) if m.x.shape == m.node.inputs[0].shape else None
    if vector is None:
        return "the constant is not one number an input channel"
    if not np.isfinite(vector["data"].array()).all():
        return "the scale is not finite"
    scale = const_node("reshape", vector, shape=(1, vector.shape[0]) + (1,) * (m.w.rank - 2))
    return _with(m.node, x=m.x, w=const_node("mul", m.w, scale))


@rule(
    _before(p.add(var("x"), const("c")).single()),
    promise="ulp:16",
    examples=[
        lambda: b.linear(b.add(f32("x", "s", 5), weights(5, seed=4)), weights(7, 5), _CHANNELS(7)),
        lambda: b.conv(b.add(f32("x", 1, 2, 4, 4), num(0.5)), weights(3, 2, 2, 2), **_CONV),
    ],
    misses=[
        lambda: b.linear(b.add(f32("x", 4, 5), weights(4, 1)), weights(7, 5)),
        lambda: b.conv(b.add(f32("x", 1, 2, 4, 4), num(0.5)), weights(3, 2, 2, 2), **_PADDED),
    ],
    into=RULES,
)
def shift_before(m: Match):
    """W (x + c) = W x + W c, where no padding comes between."""
    if m.node.op == "conv" and any(m.node["pads"]):
        return "the padding is not shifted"
    vector = _columns(m.node, m.x, m.c) if m.x.shape == m.node.inputs[0].shape else None
    if vector is None:
        return "the constant is not one number an input channel"
    if not np.isfinite(vector["data"].array()).all():
        return "the shift is not finite"
    shift = const_node("reshape", vector, shape=(1, vector.shape[0]) + (1,) * (m.w.rank - 2))
    shift = const_node("reduce_sum", const_node("mul", m.w, shift), axes=tuple(range(1, m.w.rank)))
    return _with(m.node, x=m.x, bias=shift if m.bias is None else const_node("add", m.bias, shift))


def _padded(channels: int, value: Node | None, before, after):
    x = b.pad(f32("x", 1, channels, 4, 4), value, before=before, after=after)
    return b.conv(x, weights(3, 2, 2, 2), **_CONV)


@rule(
    p.conv(
        p.pad(var("x"), optional("value"), mode="constant", name="pad").single(),
        var("w"),
        optional("bias"),
        optional("residual"),
        name="node",
    ),
    examples=[lambda: _padded(2, None, (0, 0, 1, 0), (0, 0, 1, 2))],
    misses=[
        lambda: _padded(2, num(1), (0, 0, 1, 0), (0, 0, 1, 2)),
        lambda: _padded(1, None, (0, 1, 0, 0), (0, 0, 0, 0)),
        lambda: _padded(2, None, (0, 0, -1, 0), (0, 0, 0, 0)),
    ],
    into=RULES,
)
def pad_into_conv(m: Match):
    if m.value is not None and scalar_value(m.value) != 0:
        return "the padding is not 0"
    before, after = m.pad["before"], m.pad["after"]
    if any(v != 0 for v in (*before[:2], *after[:2])):
        return "it pads batch or channels"
    if not all(isinstance(v, int) and v >= 0 for v in (*before, *after)):
        return "it cuts, or by a symbolic amount"
    pads = tuple(a + c for a, c in zip(m.node["pads"], (*before[2:], *after[2:])))
    return _with(m.node, x=m.x, pads=pads)


_ACTS = {"relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "silu": "silu", "gelu": "gelu"}


@rule(
    p.op(" ".join(_ACTS), _bare("linear conv conv_transpose")),
    promise="ulp:2",
    examples=[lambda op=op: getattr(b, op)(b.linear(f32("x", "s", 5), weights(7, 5))) for op in _ACTS]
    + [lambda: b.relu(b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_CONV))],
    misses=[lambda: b.relu(b.linear(f32("x", 4, 5), weights(7, 5), None, f32("r", 4, 7)))],
    into=RULES,
)
def activation(m: Match):
    act = _ACTS[m.root.op]
    if m.root.op == "gelu" and m.root["approximate"] == "tanh":
        act = "gelu_tanh"
    return _with(m.node, act=act)


def _clip(x: Pattern, high: float) -> Pattern:
    return p.min(p.relu(x), number(high))


_Y = _bare("linear conv conv_transpose")
_Y = Pattern(_Y.ops, _Y.inputs, _Y.attrs, _Y.name, _Y.where)  # read by several nodes, all of the pattern: m.closed()
_HARD_SIGMOID = _clip(p.add(p.mul(_Y, number(1 / 6, rtol=1e-5)), number(0.5)), 1.0)
_SIX_TIMES = _clip(p.add(_Y, number(3.0)), 6.0)  # 6 * hard_sigmoid(y): what divides it by 6 cancels


def _composite(act: str):
    y = {
        "relu6": lambda y: b.min(b.relu(y), num(6)),
        "hard_sigmoid": lambda y: b.min(b.relu(b.add(b.mul(y, num(1 / 6)), num(0.5))), num(1)),
        "6 hard_sigmoid": lambda y: b.min(b.relu(b.add(y, num(3))), num(6)),
        "hard_swish": lambda y: b.mul(y, b.min(b.relu(b.add(b.mul(y, num(1 / 6)), num(0.5))), num(1))),
        "6 hard_swish": lambda y: b.mul(y, b.min(b.relu(b.add(y, num(3))), num(6))),
    }[act]
    return lambda: y(b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_CONV))


@rule(
    _clip(_Y, 6.0),
    promise="ulp:2",
    examples=[_composite("relu6")],
    misses=[lambda: b.min(b.relu(b.linear(f32("x", 4, 5), weights(7, 5))), num(5))],
    into=RULES,
)
def relu6(m: Match):
    return _with(m.node, act="relu6") if m.closed() else "it is read elsewhere too"


@rule(
    either(_HARD_SIGMOID, _SIX_TIMES),
    promise="ulp:8",
    examples=[_composite("hard_sigmoid"), _composite("6 hard_sigmoid")],
    misses=[lambda: b.min(b.relu(b.add(b.linear(f32("x", 4, 5), weights(7, 5)), num(2))), num(6))],
    into=RULES,
)
def hard_sigmoid(m: Match):
    if not m.closed():
        return "it is read elsewhere too"
    y = _with(m.node, act="hard_sigmoid")
    return b.mul(y, num(6)) if 6.0 in map(scalar_value, m.root.inputs) else y


@rule(
    either(p.mul(_Y, _HARD_SIGMOID), p.mul(_Y, _SIX_TIMES)),
    promise="ulp:8",
    examples=[_composite("hard_swish"), _composite("6 hard_swish")],
    misses=[
        lambda: (lambda y: b.mul(b.relu(y), b.min(b.relu(b.add(y, num(3))), num(6))))(
            b.linear(f32("x", 4, 5), weights(7, 5))
        )
    ],
    into=RULES,
)
def hard_swish(m: Match):
    if not m.closed():
        return "it is read elsewhere too"
    y = _with(m.node, act="hard_swish")
    six = any(6.0 in map(scalar_value, n.inputs) for n in m.nodes if n.op == "min")
    return b.mul(y, num(6)) if six else y


@rule(
    p.add(p.op("linear conv", var("x"), var("w"), optional("bias"), None, name="node").single(), var("r")),
    promise="ulp:1",
    examples=[
        lambda: b.add(b.linear(f32("x", "s", 5), weights(7, 5), act="relu"), f32("r", "s", 7)),
        lambda: b.add(f32("r", 1, 3, 3, 3), b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_CONV)),
    ],
    misses=[
        lambda: b.add(b.linear(f32("x", 4, 5), weights(7, 5)), f32("r", 1, 7)),
        lambda: b.add(b.linear(f32("x", 4, 5), weights(7, 5)), weights(4, 7)),
    ],
    into=RULES,
)
def residual(m: Match):
    if m.r.type != m.root.type or m.node.type != m.root.type:
        return "the other operand is broadcast"
    if m.r.op == "constant":
        return "the other operand is constant"
    return _with(m.node, residual=m.r)


# --- reshapes between a product and its epilogue --------------------------------------------------------------------


def _under_reshape(c: Node, outer: tuple, inner: tuple) -> Node | None:
    """The constant that does before a reshape (from `inner` to `outer`) what c does after it; None if there is none."""
    shape = (1,) * (len(outer) - c.rank) + c.shape
    if all(d == 1 for d in shape):
        return const_node("reshape", c, shape=())
    if [d for d in outer if d != 1] == [d for d in inner if d != 1]:  # axes of 1 come or go
        sizes = iter([n for d, n in zip(outer, shape) if d != 1])
        return const_node("reshape", c, shape=tuple(1 if d == 1 else next(sizes) for d in inner))
    if all(d == 1 for d in shape[:-1]) and inner and inner[-1] == outer[-1]:
        return const_node("reshape", c, shape=shape[-1:])
    return None


@rule(
    Pattern(
        ops=tuple(name for name, op in OPS.items() if op.kind in ("unary", "binary")),
        name="node",
        where=lambda n: any(i.op == "reshape" for i in n.inputs),
    ),
    examples=[
        lambda: b.relu(b.reshape(f32("x", 2, 3), shape=(6,))),
        lambda: b.sub(b.reshape(f32("x", 2, 3), shape=(6,)), b.reshape(f32("y", 2, 3), shape=(6,))),
        lambda: b.mul(num(2), b.reshape(f32("x", 2, 3), shape=(6,))),
        lambda: b.add(b.reshape(f32("x", 6, 3), shape=(2, 3, 3)), weights(3)),
        lambda: b.add(b.reshape(f32("x", 2, 3, 4, 1), shape=(2, 3, 4)), weights(1, 3, 1)),
    ],
    misses=[
        lambda: b.add(b.reshape(f32("x", 2, 3), shape=(6,)), f32("y", 6)),
        lambda: b.add(b.reshape(f32("x", 2, 3), shape=(6,)), b.reshape(f32("y", 3, 2), shape=(6,))),
        lambda: b.add(b.reshape(f32("x", 4, 3), shape=(2, 2, 3)), weights(2, 1)),
    ],
    into=RULES,
)
def reshape_after_elementwise(m: Match):
    """So that a bias or an activation meets the product that it follows."""
    first = next(i for i in m.node.inputs if i.op == "reshape")
    outer, inner = first.shape, first.inputs[0].shape
    inputs: list[Node] = []
    for i in m.node.inputs:
        if i.op == "reshape" and i.shape == outer and i.inputs[0].shape == inner:
            inputs.append(i.inputs[0])
        elif is_constant(i) and m.root.shape == outer and (c := _under_reshape(i, outer, inner)) is not None:
            inputs.append(c)
        else:
            return "the operands have several shapes"
    return reshaped(make(m.node.op, *inputs, **m.node.attrs), m.root.shape)
