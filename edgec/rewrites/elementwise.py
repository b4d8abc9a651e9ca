"""Identities of elementwise ops; they leave one form of each idea, which the fusions then look for."""

from __future__ import annotations

import math

import numpy as np

from edgec.ir.dims import is_ge
from edgec.ir.node import Node, constant, make
from edgec.ir.types import FLOATS, INTS, numpy_dtype
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, i64, num, value
from edgec.rewrites.fold import const_node
from edgec.rewrites.pattern import Pattern, b, const, number, p, scalar_value, var

RULES: list[Rule] = []


def fit(x: Node, like: Node) -> Node:
    """x broadcast to the shape of another node."""
    return x if x.shape == like.shape else b.expand(x, shape=like.shape)


def _scalar(x, like: Node) -> Node:
    return constant(np.asarray(x, numpy_dtype(like.dtype)))


@rule(
    Pattern(
        choices=(
            p.add(var("x"), number(0)),
            p.sub(var("x"), number(0)),
            p.mul(var("x"), number(1)),
            p.div(var("x"), number(1)),
            p.pow(var("x"), number(1)),
            p.op("or xor", var("x"), number(False)),
            p.op("or xor", number(False), var("x")),
            p.op("and", var("x"), number(True)),
            p.op("and", number(True), var("x")),
            p.max(var("x"), number(-math.inf)),
            p.min(var("x"), number(math.inf)),
        )
    ),
    examples=[
        lambda: b.add(f32("x", 3), num(0)),
        lambda: b.add(num(0), f32("x", 3)),
        lambda: b.mul(f32("x", 3), constant(np.ones((2, 3), np.float32))),
        lambda: b.div(i64("x", 3), constant(np.int64(1))),
        lambda: b.max(f32("x", 3), num(-math.inf)),
    ],
    misses=[
        lambda: b.sub(num(0.5), f32("x", 3)),
        lambda: b.add(f32("x", 3), num(1e-30)),
        lambda: b.div(num(1), f32("x", 3)),
    ],
    into=RULES,
)
def neutral_operand(m: Match):
    return fit(m.x, m.root)


@rule(
    p.sub(var("x"), const("c")),
    examples=[lambda: b.sub(f32("x", 3), num(2)), lambda: b.sub(i64("x", 3), constant(np.int64(2)))],
    misses=[lambda: b.sub(num(2), f32("x", 3)), lambda: b.sub(value("u8", "x", 3), constant(np.uint8(2)))],
    into=RULES,
)
def subtract_constant(m: Match):
    if m.c.dtype.startswith("u"):
        return "an unsigned constant has no negative"
    return b.add(m.x, const_node("neg", m.c))


@rule(p.neg(p.neg(var("x"))), examples=[lambda: b.neg(b.neg(f32("x", 3)))], into=RULES)
def double_negation(m: Match):
    return m.x


@rule(
    Pattern(choices=(p.sub(number(0), var("x")), p.mul(var("x"), number(-1)))),
    examples=[lambda: b.sub(num(0), f32("x", 3)), lambda: b.mul(f32("x", 2, 3), num(-1))],
    misses=[lambda: b.sub(num(1), f32("x", 3))],
    into=RULES,
)
def negation(m: Match):
    if m.x.dtype not in FLOATS + ("i8", "i16", "i32", "i64"):
        return "unsigned"
    return fit(b.neg(m.x), m.root)


@rule(
    Pattern(choices=(p.add(var("x"), p.neg(var("y"))), p.sub(var("x"), p.neg(var("z"))))),
    examples=[lambda: b.add(f32("x", 3), b.neg(f32("y", 3))), lambda: b.sub(f32("x", 3), b.neg(f32("y", 3)))],
    into=RULES,
)
def add_of_negation(m: Match):
    return b.sub(m.x, m.y) if m.get("y") else b.add(m.x, m.z)


@rule(
    p.mul(p.neg(var("x")).single(), const("c")),
    examples=[lambda: b.mul(b.neg(f32("x", 3)), num(2))],
    into=RULES,
)
def negation_into_constant(m: Match):
    return b.mul(m.x, const_node("neg", m.c))


_POWERS = {
    2.0: lambda x: b.mul(x, x),
    3.0: lambda x: b.mul(b.mul(x, x), x),
    0.5: b.sqrt,
    -1.0: b.reciprocal,
    -0.5: lambda x: b.rsqrt(x),
}


@rule(
    p.pow(var("x", where=lambda n: n.dtype in FLOATS), number(name="c", where=lambda c: c in _POWERS)),
    promise="ulp:4",
    examples=[lambda c=c: b.pow(f32("x", 3), num(c)) for c in _POWERS],
    misses=[lambda: b.pow(f32("x", 3), num(2.5)), lambda: b.pow(num(2), f32("x", 3))],
    into=RULES,
)
def small_power(m: Match):
    return fit(_POWERS[scalar_value(m.c)](m.x), m.root)


def _invertible(node: Node) -> bool:
    if node.dtype not in FLOATS or node.op != "constant" or math.prod(node.shape) > 1 << 20:
        return False
    c = np.abs(node["data"].array().astype(np.float64))
    limits = np.finfo(np.float32 if node.dtype in ("f32", "bf16") else numpy_dtype(node.dtype))
    return bool(((c > 4 * float(limits.tiny)) & (c < 0.25 / float(limits.tiny)) & (c < float(limits.max))).all())


def _power_of_two(c: Node) -> bool:
    return bool((np.frexp(np.abs(c["data"].array().astype(np.float64)))[0] == 0.5).all())


@rule(
    p.div(var("x"), const("c", where=_invertible)),
    promise="ulp:1",
    examples=[lambda: b.div(f32("x", 3), num(3)), lambda: b.div(f32("x", 2), constant([2, 5], "f32"))],
    misses=[
        lambda: b.div(f32("x", 3), num(0)),
        lambda: b.div(i64("x", 3), constant(np.int64(3))),
        lambda: b.round(b.div(f32("x", 3), num(3))),
    ],
    into=RULES,
)
def divide_by_constant(m: Match):
    """One rounding more than the division; none where c is a power of two."""
    inverse = const_node("reciprocal", m.c)
    if m.read_by("round") and not _power_of_two(m.c):
        return "what is rounded must not move off a half"
    return b.mul(m.x, inverse)


@rule(
    p.div(number(1), var("x", where=lambda n: n.dtype in FLOATS)),
    examples=[lambda: b.div(num(1), f32("x", 3))],
    misses=[lambda: b.div(constant(np.int64(1)), i64("x", 3))],
    into=RULES,
)
def one_over(m: Match):
    return fit(b.reciprocal(m.x), m.root)


@rule(
    p.reciprocal(p.sqrt(var("x"))),
    promise="ulp:2",
    examples=[lambda: b.reciprocal(b.sqrt(b.abs(f32("x", 3))))],
    into=RULES,
)
def reciprocal_of_sqrt(m: Match):
    return b.rsqrt(m.x)


@rule(
    p.div(var("x"), p.sqrt(var("v"))),
    promise="ulp:4",
    examples=[lambda: b.div(f32("x", 2, 3), b.sqrt(b.exp(f32("v", 2, 1))))],
    misses=[lambda: b.div(f32("x", 2, 3), b.sqrt(b.abs(f32("v", 2, 3))))],
    into=RULES,
)
def divide_by_sqrt(m: Match):
    if m.v.shape == m.root.shape:
        return "the root is not broadcast: the division is as cheap"
    return b.mul(m.x, b.rsqrt(m.v))


def _product_safe(a: Node, c: Node) -> bool:
    """Whether the constants' product neither overflows nor leaves the normal numbers."""
    x, y = (np.abs(n["data"].array().astype(np.float64)) for n in (a, c))
    limits = np.finfo(np.float32 if a.dtype in ("f32", "bf16") else numpy_dtype(a.dtype))
    low, high = float(limits.tiny) * 16, float(limits.max) / 16
    return all(((v == 0) | ((v > low) & (v < high))).all() for v in (x, y, x * y))


@rule(
    p.mul(p.mul(var("x"), const("c1")).single(), const("c2")),
    promise="ulp:2",
    examples=[lambda: b.mul(b.mul(f32("x", 2, 3), num(3)), num(0.1))],
    misses=[
        lambda: b.mul(b.mul(f32("x", 2, 3), num(1e-30)), num(1e-30)),
        lambda: b.mul(b.mul(f32("x", 3), f32("y", 3)), num(2)),
    ],
    into=RULES,
)
def multiply_constants(m: Match):
    if m.x.op == "constant":
        return "all of it is constant"
    if max(math.prod(m.c1.shape), math.prod(m.c2.shape)) > 1 << 20:
        return "the constants are large"
    product = b.mul(m.c1, m.c2)
    if math.prod(product.shape) > max(math.prod(m.c1.shape), math.prod(m.c2.shape)):
        return "the constants' product is larger than they are"
    if m.c1.dtype in FLOATS and not _product_safe(m.c1, m.c2):
        return "the constants' product leaves the normal numbers"
    return b.mul(m.x, const_node("mul", m.c1, m.c2))


@rule(
    p.add(p.add(var("x", where=lambda n: n.dtype in INTS and n.op != "constant"), const("c1")), const("c2")),
    examples=[lambda: b.add(b.add(i64("x", 3), constant(np.int64(3))), constant(np.int64(4)))],
    misses=[lambda: b.add(b.add(f32("x", 3), num(1e8)), num(-1e8))],
    into=RULES,
)
def add_integer_constants(m: Match):
    total = const_node("add", m.c1, m.c2)
    if math.prod(total.shape) > max(math.prod(m.c1.shape), math.prod(m.c2.shape)):
        return "the constants' sum is larger than they are"
    return b.add(m.x, total)


@rule(
    p.max(var("x"), number(0)),
    examples=[lambda: b.max(f32("x", 3), num(0)), lambda: b.max(constant(np.int64(0)), i64("x", 3))],
    misses=[lambda: b.max(f32("x", 3), num(0.1))],
    into=RULES,
)
def max_with_zero(m: Match):
    return fit(b.relu(m.x), m.root)


@rule(
    Pattern(
        choices=(
            p.max(p.min(var("x"), number(name="high")), number(name="low")),
            p.relu(p.min(var("x"), number(name="high"))),
        )
    ),
    examples=[lambda: b.max(b.min(f32("x", 3), num(6)), num(-1)), lambda: b.relu(b.min(f32("x", 3), num(1)))],
    misses=[lambda: b.max(b.min(f32("x", 3), num(-1)), num(1))],
    into=RULES,
)
def clip_low_first(m: Match):
    low = m.get("low") or _scalar(0, m.x)
    if not scalar_value(low) <= scalar_value(m.high):
        return "the bounds are crossed"
    return fit(b.min(b.max(m.x, low), m.high), m.root)


@rule(
    p.op("max min and or", var("x"), var("x")),
    examples=[lambda: b.max(f32("x", 3), f32("x", 3)), lambda: make_and()],
    into=RULES,
)
def same_operands(m: Match):
    return m.x


def make_and() -> Node:
    x = value("bool", "x", 3)
    return make("and", x, x)


@rule(
    Pattern(
        choices=(
            p.op("relu abs floor ceil round sign", p.op("relu abs floor ceil round sign", var("_"), name="inner")),
            p.relu(p.op("sigmoid exp sqrt", var("_"), name="inner")),
            p.abs(p.op("sigmoid exp", var("_"), name="inner")),
        )
    ),
    examples=[lambda: b.relu(b.relu(f32("x", 3))), lambda: b.abs(b.exp(f32("x", 3)))],
    misses=[lambda: b.relu(b.floor(f32("x", 3)))],
    into=RULES,
)
def idempotent(m: Match):
    same = m.root.op == m.inner.op or m.inner.op in ("sigmoid", "exp", "sqrt")
    return m.inner if same or (m.root.op, m.inner.op) in (("abs", "relu"), ("relu", "abs")) else "another function"


# --- casts -------------------------------------------------------------------------------------------------------

_WIDER = {
    "bool": ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "bf16", "f32", "f64"),
    "i8": ("i16", "i32", "i64", "f16", "f32", "f64"),
    "u8": ("i16", "u16", "i32", "u32", "i64", "u64", "f16", "f32", "f64"),
    "i16": ("i32", "i64", "f32", "f64"),
    "u16": ("i32", "u32", "i64", "u64", "f32", "f64"),
    "i32": ("i64", "f64"),
    "u32": ("i64", "u64", "f64"),
    "f16": ("f32", "f64"),
    "bf16": ("f32", "f64"),
    "f32": ("f64",),
}


@rule(
    p.cast(var("x"), name="cast"),
    examples=[lambda: b.cast(f32("x", 3), dtype="f32")],
    misses=[lambda: b.cast(f32("x", 3), dtype="f16")],
    into=RULES,
)
def cast_to_same(m: Match):
    return m.x if m.x.dtype == m.root.dtype else "another dtype"


@rule(
    p.cast(p.cast(var("x"), name="inner")),
    examples=[
        lambda: b.cast(b.cast(value("i32", "x", 3), dtype="i64"), dtype="f32"),
        lambda: b.cast(b.cast(value("bool", "x", 3), dtype="f32"), dtype="bool"),
    ],
    misses=[lambda: b.cast(b.cast(f32("x", 3), dtype="i64"), dtype="f32")],
    into=RULES,
)
def cast_of_cast(m: Match):
    if m.inner.dtype not in _WIDER.get(m.x.dtype, ()):
        return "the first cast rounds"
    return b.cast(m.x, dtype=m.root.dtype)


# --- conditions --------------------------------------------------------------------------------------------------


@rule(
    p.where(number(name="c"), var("x"), var("y")),
    examples=[
        lambda: b.where(constant(np.bool_(True)), f32("x", 3), f32("y", 2, 3)),
        lambda: b.where(constant(np.zeros((2, 3), bool)), f32("x", 3), f32("y", 3)),
    ],
    misses=[lambda: b.where(constant(np.bool_([True, False, True])), f32("x", 3), f32("y", 3))],
    into=RULES,
)
def constant_where(m: Match):
    return fit(m.x if scalar_value(m.c) else m.y, m.root)


@rule(
    p.where(var("c"), var("x"), var("x")),
    examples=[lambda: b.where(value("bool", "c", 3), f32("x", 3), f32("x", 3))],
    into=RULES,
)
def where_of_equals(m: Match):
    return fit(m.x, m.root)


@rule(
    p.where(Pattern(ops=("not",), inputs=(var("c"),)), var("x"), var("y")),
    examples=[lambda: b.where(_not(value("bool", "c", 3)), f32("x", 3), f32("y", 3))],
    into=RULES,
)
def where_not(m: Match):
    return b.where(m.c, m.y, m.x)


def _not(x: Node) -> Node:
    return make("not", x)


_INVERSE = {"eq": "ne", "ne": "eq"}
_INVERSE_INT = _INVERSE | {"lt": "ge", "ge": "lt", "le": "gt", "gt": "le"}


@rule(
    Pattern(
        choices=(
            Pattern(ops=("not",), inputs=(Pattern(ops=("not",), inputs=(var("x"),)),)),
            Pattern(ops=("not",), inputs=(Pattern(ops=tuple(_INVERSE_INT), name="test"),)),
        )
    ),
    examples=[lambda: _not(_not(value("bool", "c", 3))), lambda: _not(b.lt(i64("x", 3), i64("y", 3)))],
    misses=[lambda: _not(b.lt(f32("x", 3), f32("y", 3)))],
    into=RULES,
)
def not_of_test(m: Match):
    test = m.get("test")
    if test is None:
        return m.x
    table = _INVERSE if test.inputs[0].dtype in FLOATS else _INVERSE_INT
    if test.op not in table:
        return "NaN is neither less nor more"
    return make(table[test.op], *test.inputs)


def _least(node: Node) -> int | None:
    """A number that no element is below, if one is known without looking at data."""
    if node.op in ("iota",):
        return 0
    if (
        node.op == "constant"
        and node.type.encoding is None
        and node.dtype in INTS
        and 0 < math.prod(node.shape) <= 4096
    ):
        return int(node["data"].array().min())
    if node.op == "dim_value":
        return 0 if is_ge(node["value"], 0) else None
    if node.op in ("reshape", "transpose", "expand", "slice", "gather"):
        return _least(node.inputs[0])
    if node.op == "add":
        low = [_least(i) for i in node.inputs]
        return None if None in low else sum(v for v in low if v is not None)
    return None


@rule(
    Pattern(choices=(p.ge(var("x"), number(name="c")), p.le(number(name="c"), var("x")))),
    examples=[
        lambda: b.ge(
            b.reshape(b.iota(size=f32("x", "s").shape[0]), shape=(1, f32("x", "s").shape[0])), constant(np.int64(0))
        )
    ],
    misses=[lambda: b.ge(i64("x", 3), constant(np.int64(0)))],
    into=RULES,
)
def always_at_least(m: Match):
    if m.x.dtype not in INTS or m.x.op == "constant":
        return "not integers that are computed"
    low = _least(m.x)
    if low is None or low < scalar_value(m.c):
        return "the operand may be less"
    return fit(constant(np.bool_(True)), m.root)
