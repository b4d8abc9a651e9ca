"""Norms, activations and softmax from the elementwise forms that exporters write. Canonical forms are assumed."""

from __future__ import annotations

import math

import numpy as np

from edgec.ir.dims import product
from edgec.ir.node import Node, constant, make
from edgec.ir.types import numpy_dtype
from edgec.rewrites.elementwise import fit
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, num, value, weights
from edgec.rewrites.fold import const_node
from edgec.rewrites.movement import reshaped
from edgec.rewrites.pattern import Pattern, b, const, either, maybe, number, optional, p, scalar_value, var

RULES: list[Rule] = []

# --- activations ---------------------------------------------------------------------------------------------------

_CLOSE = 2e-3  # exporters write 0.7978, 1.41421 and the like in f16 or with few digits


@rule(
    p.reciprocal(p.add(p.exp(p.neg(var("x"))), number(1.0))),
    promise="ulp:4",
    examples=[lambda: b.reciprocal(b.add(b.exp(b.neg(f32("x", 3))), num(1)))],
    misses=[lambda: b.reciprocal(b.add(b.exp(f32("x", 3)), num(1)))],
    into=RULES,
)
def sigmoid(m: Match):
    return b.sigmoid(m.x)


@rule(
    p.mul(var("x"), p.sigmoid(var("x"))),
    promise="ulp:2",
    examples=[lambda: b.mul(f32("x", 3), b.sigmoid(f32("x", 3)))],
    misses=[lambda: b.mul(f32("x", 3), b.sigmoid(f32("y", 3)))],
    into=RULES,
)
def silu(m: Match):
    return b.silu(m.x)


def _half_times(x: Pattern, y: Pattern) -> Pattern:
    """0.5 * x * y however it is bracketed."""
    half = number(0.5)
    return either(p.mul(x, p.mul(y, half)), p.mul(p.mul(x, half), y), p.mul(p.mul(x, y), half))


_X = var("x")


@rule(
    _half_times(_X, p.add(p.erf(p.mul(_X, number(math.sqrt(0.5), rtol=_CLOSE))), number(1.0))),
    promise="ulp:8",
    examples=[
        lambda: (lambda x: b.mul(x, b.mul(num(0.5), b.add(b.erf(b.mul(x, num(0.70710677))), num(1)))))(f32("x", 2, 3)),
        lambda: (lambda x: b.mul(b.mul(x, b.add(b.erf(b.mul(x, num(0.70710677))), num(1))), num(0.5)))(f32("x", 2, 3)),
    ],
    misses=[
        lambda: (lambda x: b.mul(x, b.mul(num(0.5), b.add(b.erf(b.mul(x, num(0.8))), num(1)))))(f32("x", 2, 3)),
    ],
    into=RULES,
)
def gelu(m: Match):
    return b.gelu(m.x)


_SQUARE = p.mul(_X, _X)
_CUBIC = number(0.044715, rtol=_CLOSE)
_INNER = either(
    p.add(_X, p.mul(p.mul(_SQUARE, _X), _CUBIC)),
    p.add(_X, p.mul(_X, p.mul(_X, p.mul(_X, _CUBIC)))),
    p.add(_X, p.mul(_X, p.mul(_SQUARE, _CUBIC))),
    p.add(_X, p.mul(_SQUARE, p.mul(_X, _CUBIC))),
    p.mul(_X, p.add(p.mul(_SQUARE, _CUBIC), number(1.0))),
    p.mul(_X, p.add(p.mul(_X, p.mul(_X, _CUBIC)), number(1.0))),
)
_SQRT_2_PI = number(math.sqrt(2 / math.pi), rtol=_CLOSE)
_TANH_ARGUMENT = either(
    p.mul(_INNER, _SQRT_2_PI),
    p.mul(p.mul(_X, _SQRT_2_PI), p.add(p.mul(_SQUARE, _CUBIC), number(1.0))),
    p.mul(_X, p.mul(p.add(p.mul(_SQUARE, _CUBIC), number(1.0)), _SQRT_2_PI)),
)


def _gelu_tanh(cubic: float):
    def build():
        x = f32("x", 2, 3)
        inner = b.add(x, b.mul(x, b.mul(x, b.mul(num(cubic), x))))
        return b.mul(x, b.mul(b.add(b.tanh(b.mul(inner, num(0.7978846))), num(1)), num(0.5)))

    return build


@rule(
    _half_times(_X, p.add(p.tanh(_TANH_ARGUMENT), number(1.0))),
    promise="ulp:8",
    examples=[_gelu_tanh(0.044715)],
    misses=[_gelu_tanh(0.05)],
    into=RULES,
)
def gelu_tanh(m: Match):
    return b.gelu(m.x, approximate="tanh")


# --- reductions ----------------------------------------------------------------------------------------------------


@rule(
    p.mul(maybe("reshape", p.reduce_sum(var("x"), name="sum")), number(name="c")),
    promise="ulp:2",
    examples=[
        lambda: b.mul(b.reduce_sum(f32("x", 2, 4), axes=(1,)), num(0.25)),
        lambda: b.mul(b.reshape(b.reduce_sum(f32("x", 2, 4), axes=(1,), keepdims=True), shape=(2,)), num(0.25)),
    ],
    misses=[lambda: b.mul(b.reduce_sum(f32("x", 2, 4), axes=(1,)), num(0.5))],
    into=RULES,
)
def mean_of_sum(m: Match):
    count = product(m.x.shape[a] for a in m.sum["axes"])
    if not isinstance(count, int) or count == 0 or product(m.sum.shape) != product(m.root.shape):
        return "the count is not known"
    if abs(scalar_value(m.c) * count - 1) > 1e-6:
        return "the factor is not 1 / count"
    return reshaped(b.reduce_mean(m.x, **m.sum.attrs), m.root.shape)


@rule(
    p.op("reduce_sum reduce_mean reduce_max reduce_min reduce_prod", var("x"), keepdims=False),
    examples=[lambda: b.reduce_max(f32("x", 2, "s", 4), axes=(2,))],
    misses=[lambda: b.reduce_max(f32("x", 2, 3, 4), axes=(2,), keepdims=True)],
    into=RULES,
)
def keep_reduced_dims(m: Match):
    """One form: the reduced axes stay as 1, and a reshape (which costs nothing) drops them."""
    return b.reshape(make(m.root.op, m.x, axes=m.root["axes"], keepdims=True), shape=m.root.shape)


def _kept(x: Pattern) -> Pattern:
    """A reduction that has been given its dims back."""
    return maybe("reshape", x)


@rule(
    either(
        p.div(
            p.exp(p.sub(var("x"), _kept(maybe("max", p.reduce_max(var("x"), name="max")))), name="e"),
            _kept(p.reduce_sum(var("e"), name="sum")),
        ),
        p.mul(
            p.exp(p.sub(var("x"), _kept(p.reduce_max(var("x"), name="max"))), name="e"),
            p.reciprocal(_kept(p.reduce_sum(var("e"), name="sum"))),
        ),
    ),
    promise="ulp:4",
    examples=[
        lambda: (lambda e: b.div(e, b.reduce_sum(e, axes=(1,), keepdims=True)))(
            b.exp(b.sub(f32("x", 2, 5), b.reduce_max(f32("x", 2, 5), axes=(1,), keepdims=True)))
        )
    ],
    misses=[
        lambda: (lambda e: b.div(e, b.reduce_sum(e, axes=(0,), keepdims=True)))(
            b.exp(b.sub(f32("x", 2, 5), b.reduce_max(f32("x", 2, 5), axes=(1,), keepdims=True)))
        )
    ],
    into=RULES,
)
def softmax(m: Match):
    axes = m.sum["axes"]
    if len(axes) != 1 or m.max["axes"] != axes or _keepdims(m.sum) != _keepdims(m.max):
        return "the axes differ"
    if m.e.shape != m.x.shape or m.root.shape != m.x.shape:
        return "the sums broadcast along another axis"
    if not (m.sum["keepdims"] and m.max["keepdims"]):
        return "the reduced axis is not kept"
    return b.softmax(m.x, axis=axes[0])


def _keepdims(node: Node) -> bool:
    return node["keepdims"]


# --- norms ---------------------------------------------------------------------------------------------------------


def _trailing(reduction: Node) -> int | None:
    """The first axis of a reduction over the last axes; None of another."""
    axes, rank = reduction["axes"], reduction.inputs[0].rank
    return axes[0] if axes and axes == tuple(range(axes[0], rank)) else None


_EPS = number(name="eps", where=lambda c: 0 <= c < 0.1)
_MEAN = p.reduce_mean(var("x"), name="mean", keepdims=True)
_CENTRED = p.sub(var("x"), _MEAN, name="d")
_VARIANCE = p.reduce_mean(p.mul(var("d"), var("d")), name="var", keepdims=True)
_MEAN_AGAIN = maybe("reshape", var("mean"))
_TWO_SUMS = p.sub(
    maybe("reshape", p.reduce_mean(p.mul(var("x"), var("x")), name="var", keepdims=True)),
    p.mul(_MEAN_AGAIN, _MEAN_AGAIN),
)
_TWO_SUMS = maybe("reshape", maybe("relu", _TWO_SUMS))


def _inverse(variance: Pattern) -> Pattern:
    return p.rsqrt(p.add(variance, _EPS))


def _layer_norm_example(two_sums: bool = False, axes=(1,), other: bool = False):
    def build():
        x = f32("x", 3, 8)
        mean = b.reduce_mean(x, axes=axes, keepdims=True)
        d = b.sub(f32("z", 3, 8) if other else x, mean)
        if two_sums:
            var_ = b.relu(b.sub(b.reduce_mean(b.mul(x, x), axes=axes, keepdims=True), b.mul(mean, mean)))
        else:
            var_ = b.reduce_mean(b.mul(d, d), axes=axes, keepdims=True)
        return b.mul(d, b.rsqrt(b.add(var_, num(1e-5))))

    return build


@rule(
    either(
        p.mul(_CENTRED, _inverse(_VARIANCE)),
        p.mul(_CENTRED, p.mul(_inverse(_VARIANCE), const("gain"))),
        p.mul(_CENTRED, _inverse(_TWO_SUMS)),
        p.mul(_CENTRED, p.mul(_inverse(_TWO_SUMS), const("gain"))),
    ),
    promise="ulp:64",
    examples=[_layer_norm_example(), _layer_norm_example(two_sums=True)],
    misses=[_layer_norm_example(axes=(0,)), _layer_norm_example(other=True)],
    into=RULES,
)
def layer_norm(m: Match):
    axis = _trailing(m.mean)
    if axis is None or m.var["axes"] != m.mean["axes"]:
        return "it is not over the last axes"
    if m.d.shape != m.x.shape:
        return "the mean broadcasts"
    normed = b.layer_norm(m.x, axis=axis, eps=float(scalar_value(m.eps)))
    return normed if m.get("gain") is None else fit(b.mul(normed, m.gain), m.root)


@rule(
    p.mul(var("x"), p.rsqrt(p.add(p.reduce_mean(p.mul(var("x"), var("x")), name="var", keepdims=True), _EPS))),
    promise="ulp:16",
    examples=[
        lambda: (lambda x: b.mul(x, b.rsqrt(b.add(b.reduce_mean(b.mul(x, x), axes=(1,), keepdims=True), num(1e-6)))))(
            f32("x", "s", 8)
        )
    ],
    misses=[
        lambda: (lambda x: b.mul(x, b.rsqrt(b.add(b.reduce_mean(b.mul(x, x), axes=(0,), keepdims=True), num(1e-6)))))(
            f32("x", 8, 8)
        )
    ],
    into=RULES,
)
def rms_norm(m: Match):
    axis = _trailing(m.var)
    if axis is None:
        return "it is not over the last axes"
    return b.rms_norm(m.x, axis=axis, eps=float(scalar_value(m.eps)))


def _parameter(norm: Node, c: Node) -> Node | None:
    """A constant as a gain or bias over the norm's axes; None where it does not broadcast within them."""
    rank, lead = norm.rank - norm["axis"], max(c.rank - norm.rank + norm["axis"], 0)
    if c.rank > norm.rank or c.dtype != norm.dtype or any(d != 1 for d in c.shape[:lead]):
        return None
    full = tuple(norm.shape[norm["axis"] :])
    if not all(isinstance(d, int) for d in full):
        return None
    c = const_node("reshape", c, shape=c.shape[lead:]) if lead else c
    assert c.rank <= rank
    return c if c.shape == full else const_node("expand", c, shape=full)


@rule(
    p.mul(either(p.layer_norm(var("x"), name="norm"), p.rms_norm(var("x"), name="norm")).single(), const("c")),
    promise="ulp:8",
    examples=[
        lambda: b.mul(b.rms_norm(f32("x", "s", 8), axis=1, eps=1e-6), weights(8)),
        lambda: b.mul(weights(1, 1, 8), b.layer_norm(f32("x", 2, 3, 8), axis=2, eps=1e-6)),
    ],
    misses=[lambda: b.mul(b.rms_norm(f32("x", 3, 8), axis=1, eps=1e-6), weights(3, 1))],
    into=RULES,
)
def gain(m: Match):
    if m.root.shape != m.norm.shape or not m.single(m.norm):
        return "the norm is broadcast, or read elsewhere"
    c = _parameter(m.norm, m.c)
    if c is None:
        return "the constant is not over the norm's axes"
    return make(m.norm.op, m.x, c, **m.norm.attrs)


@rule(
    p.add(p.layer_norm(var("x"), optional("gain"), name="norm").single(), const("c")),
    promise="ulp:8",
    examples=[lambda: b.add(b.layer_norm(f32("x", "s", 8), weights(8), axis=1, eps=1e-6), weights(8))],
    misses=[lambda: b.add(b.layer_norm(f32("x", 3, 8), weights(8), axis=1, eps=1e-6), weights(3, 1))],
    into=RULES,
)
def norm_bias(m: Match):
    if m.root.shape != m.norm.shape:
        return "the norm is broadcast"
    c = _parameter(m.norm, m.c)
    return "the constant is not over the norm's axes" if c is None else b.layer_norm(m.x, m.gain, c, **m.norm.attrs)


# --- a row of a table ----------------------------------------------------------------------------------------------


def _counts(node: Node) -> bool:
    """0, 1, ..., n - 1 along the last axis."""
    if node.op != "constant" or node.type.encoding or node.rank == 0 or math.prod(node.shape[:-1]) != 1:
        return False
    n = node.shape[-1]
    return n <= 1 << 20 and bool((node["data"].array().reshape(-1) == np.arange(n)).all())


@rule(
    p.linear(
        p.cast(
            p.eq(maybe("expand", var("i", where=lambda n: n.rank > 0 and n.shape[-1] == 1)), const("n", where=_counts)),
            dtype="f32",
        ),
        const("w"),
        optional("bias"),
        optional("residual"),
        name="node",
    ),
    examples=[
        lambda: b.linear(
            b.cast(b.eq(value("i32", "i", "s", 1), constant(np.arange(3, dtype=np.int32)[None])), dtype="f32"),
            weights(4, 3),
            weights(4),
        )
    ],
    misses=[
        lambda: b.linear(
            b.cast(b.eq(value("i32", "i", "s", 1), constant([[0, 2, 1]], "i32")), dtype="f32"), weights(4, 3)
        )
    ],
    into=RULES,
)
def one_hot_product(m: Match):
    """A row of the weights; indices outside of them read a row of zeros."""
    n = m.w.shape[1]
    if m.i.dtype not in ("i32", "i64") or m.node["activations"] != "fp32":
        return "the indices are not integers"
    if m.node.inputs[0].shape[:-1] != m.i.shape[:-1] or m.n.rank > m.i.rank:
        return "the indices are broadcast"
    index = b.reshape(m.i, shape=m.i.shape[:-1])
    limit, zero = (constant(np.asarray(v, numpy_dtype(m.i.dtype))) for v in (n, 0))
    inside = make("and", b.ge(index, zero), b.lt(index, limit))
    table = const_node("transpose", m.w, perm=(1, 0))
    table = const_node("concat", table, constant(np.zeros((1, m.w.shape[0]), np.float32)), axis=0)
    if m.bias is not None:
        table = const_node("add", table, m.bias)
    if m.node["act"] != "none":
        return "the activation comes after"
    row = b.gather(table, b.where(inside, index, limit), axis=0)
    return row if m.residual is None else b.add(row, m.residual)
