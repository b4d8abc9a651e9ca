"""Products with constant weights become `linear`, and what follows them their epilogue; the same for convolution."""

from __future__ import annotations

import math

import numpy as np

from edgec.ir.node import Node, constant, make
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, num, weights
from edgec.rewrites.fold import const_node
from edgec.rewrites.movement import reshaped
from edgec.rewrites.pattern import Pattern, b, const, number, optional, p, var

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
    """The same op with operands (by their names x, w, bias, residual) or attributes changed."""
    names = ("x", "w", "bias", "residual")[: len(node.inputs)]
    inputs = [changes.pop(n, i) for n, i in zip(names, node.inputs)]
    return make(node.op, *inputs, **(dict(node.attrs) | changes))


_conv = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
_CHANNELS = lambda *s: weights(*s, seed=3)  # noqa: E731


@rule(
    p.add(_bare("linear conv conv_transpose"), const("c")),
    promise="ulp:2",
    examples=[
        lambda: b.add(b.linear(f32("x", "s", 5), weights(7, 5)), _CHANNELS(7)),
        lambda: b.add(b.linear(f32("x", 2, 3, 5), weights(7, 5), _CHANNELS(7)), num(0.5)),
        lambda: b.add(b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_conv), _CHANNELS(1, 3, 1, 1)),
    ],
    misses=[
        lambda: b.add(b.linear(f32("x", 7, 5), weights(7, 5)), _CHANNELS(7, 1)),
        lambda: b.add(b.linear(f32("x", 7, 5), weights(7, 5), act="relu"), _CHANNELS(7)),
        lambda: b.add(b.conv(f32("x", 1, 2, 4, 5), weights(3, 2, 2, 2), **_conv), _CHANNELS(4)),
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
        lambda: b.mul(b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_conv), _CHANNELS(3, 1, 1)),
    ],
    misses=[
        lambda: b.mul(b.linear(f32("x", 7, 5), weights(7, 5)), _CHANNELS(7, 1)),
        lambda: b.mul(b.linear(f32("x", 7, 5), weights(7, 5)), constant(np.float32(np.nan))),
    ],
    into=RULES,
)
def scale_into_weights(m: Match):
    """BatchNorm after a convolution, and the scale of attention on q or k."""
    vector = _channels(m.node, m.c) if m.node.shape == m.root.shape else None
    if vector is None:
        return "the constant is not one number a channel"
    if not np.isfinite(vector["data"].array()).all():
        return "the scale is not finite"
    transposed = m.node.op == "conv_transpose"
    if transposed and m.node["group"] != 1:
        return "the channels are not an axis of the weights"
    shape = (1, -1) if transposed else (-1,)
    shape = tuple(vector.shape[0] if d == -1 else d for d in shape)
    w = const_node("mul", m.w, const_node("reshape", vector, shape=shape + (1,) * (m.w.rank - len(shape))))
    return _with(m.node, w=w, bias=None if m.bias is None else const_node("mul", m.bias, vector))


@rule(
    p.linear(p.mul(var("x"), const("c")).single(), const("w"), optional("bias"), optional("residual"), name="node"),
    promise="ulp:8",
    examples=[lambda: b.linear(b.mul(f32("x", "s", 5), weights(5, seed=4)), weights(7, 5))],
    misses=[lambda: b.linear(b.mul(f32("x", 4, 5), weights(4, 1)), weights(7, 5))],
    into=RULES,
)
def scale_before_linear(m: Match):
    if m.x.shape != m.node.inputs[0].shape or math.prod(m.c.shape[:-1]) != 1:
        return "the constant is not one number an input channel"
    if not np.isfinite(m.c["data"].array()).all():
        return "the scale is not finite"
    return _with(m.node, x=m.x, w=const_node("mul", m.w, const_node("reshape", m.c, shape=(1, math.prod(m.c.shape)))))


_ACTS = {"relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "silu": "silu", "gelu": "gelu"}


@rule(
    p.op(" ".join(_ACTS), _bare("linear conv conv_transpose")),
    promise="ulp:2",
    examples=[lambda op=op: getattr(b, op)(b.linear(f32("x", "s", 5), weights(7, 5))) for op in _ACTS]
    + [lambda: b.relu(b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_conv))],
    misses=[lambda: b.relu(b.linear(f32("x", 4, 5), weights(7, 5), None, f32("r", 4, 7)))],
    into=RULES,
)
def activation(m: Match):
    act = _ACTS[m.root.op]
    if m.root.op == "gelu" and m.root["approximate"] == "tanh":
        act = "gelu_tanh"
    return _with(m.node, act=act)


def _mul_sixth(x: Pattern) -> Pattern:
    return p.mul(x, number(1 / 6, rtol=1e-5))


def _clip(x: Pattern, high: float) -> Pattern:
    return p.min(p.relu(x), number(high))


_Y = _bare("linear conv conv_transpose")
_Y = Pattern(_Y.ops, _Y.inputs, _Y.attrs, _Y.name, _Y.where)  # read by several nodes, all of the pattern: m.closed()
_HARD_SIGMOID = (
    _clip(p.add(_mul_sixth(_Y), number(0.5)), 1.0),
    _mul_sixth(_clip(p.add(_Y, number(3.0)), 6.0)),
)


def _composite(act: str):
    y = {
        "relu6": lambda y: b.min(b.relu(y), num(6)),
        "hard_sigmoid": lambda y: b.min(b.relu(b.add(b.mul(y, num(1 / 6)), num(0.5))), num(1)),
        "hard_swish": lambda y: b.mul(y, b.mul(b.min(b.relu(b.add(y, num(3))), num(6)), num(1 / 6))),
    }[act]
    return lambda: y(b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_conv))


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
    Pattern(choices=_HARD_SIGMOID),
    promise="ulp:8",
    examples=[_composite("hard_sigmoid")],
    into=RULES,
)
def hard_sigmoid(m: Match):
    return _with(m.node, act="hard_sigmoid") if m.closed() else "it is read elsewhere too"


@rule(
    Pattern(
        choices=(
            *[p.mul(_Y, h) for h in _HARD_SIGMOID],
            _mul_sixth(p.mul(_Y, _clip(p.add(_Y, number(3.0)), 6.0))),
            p.mul(_mul_sixth(_Y), _clip(p.add(_Y, number(3.0)), 6.0)),
        )
    ),
    promise="ulp:8",
    examples=[
        _composite("hard_swish"),
        lambda: (lambda y: b.mul(b.mul(y, b.min(b.relu(b.add(y, num(3))), num(6))), num(1 / 6)))(
            b.linear(f32("x", 4, 5), weights(7, 5))
        ),
    ],
    into=RULES,
)
def hard_swish(m: Match):
    return _with(m.node, act="hard_swish") if m.closed() else "it is read elsewhere too"


@rule(
    p.add(p.op("linear conv", var("x"), var("w"), optional("bias"), None, name="node").single(), var("r")),
    promise="ulp:1",
    examples=[
        lambda: b.add(b.linear(f32("x", "s", 5), weights(7, 5), act="relu"), f32("r", "s", 7)),
        lambda: b.add(f32("r", 1, 3, 3, 3), b.conv(f32("x", 1, 2, 4, 4), weights(3, 2, 2, 2), **_conv)),
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
