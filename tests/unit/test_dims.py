"""Symbolic dims against plain integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec.ir.dims import (
    bcast,
    ceildiv,
    evaluate,
    floordiv,
    format_dim,
    is_ge,
    max_dim,
    min_dim,
    mod,
    parse_dim,
    postfix,
    product,
    substitute,
    symbol,
    symbol_name,
    symbols_of,
)

NAMES = ("a", "b", "odd name.1")
ENV = st.fixed_dictionaries({n: st.integers(0, 20) for n in NAMES})


def _binary(op):
    """(dim of two dims, int of two ints); the divisors are positive."""
    return {
        "+": (lambda x, y: x + y, lambda x, y: x + y),
        "-": (lambda x, y: x - y, lambda x, y: x - y),
        "*": (lambda x, y: x * y, lambda x, y: x * y),
        "//": (floordiv, lambda x, y: x // y),
        "%": (mod, lambda x, y: x % y),
        "ceil": (ceildiv, lambda x, y: -(-x // y)),
        "max": (max_dim, max),
        "min": (min_dim, min),
        "bcast": (bcast, lambda x, y: x if x != 1 else y),
    }[op]


leaves = st.one_of(
    st.integers(-5, 12).map(lambda i: (i, lambda env: i)),
    st.sampled_from(NAMES).map(lambda n: (symbol(n), lambda env: env[n])),
)


def _compose(args):
    op, (dim_x, int_x), (dim_y, int_y), divisor = args
    dim_op, int_op = _binary(op)
    if op in ("//", "%", "ceil"):
        return dim_op(dim_x, divisor), lambda env: int_op(int_x(env), divisor)
    return dim_op(dim_x, dim_y), lambda env: int_op(int_x(env), int_y(env))


OPS = ("+", "-", "*", "//", "%", "ceil", "max", "min")
expressions = st.recursive(
    leaves, lambda e: st.tuples(st.sampled_from(OPS), e, e, st.integers(1, 9)).map(_compose), max_leaves=6
)


@given(expressions, ENV)
def test_value_is_that_of_the_integers(expression, env):
    dim, value = expression
    assert evaluate(dim, env) == value(env)


@given(expressions)
def test_text_round_trip(expression):
    dim, _ = expression
    assert parse_dim(format_dim(dim)) == dim


@given(expressions, expressions, ENV)
def test_equal_dims_have_equal_values(x, y, env):
    (dim_x, int_x), (dim_y, int_y) = x, y
    if dim_x == dim_y:
        assert int_x(env) == int_y(env) and hash(dim_x) == hash(dim_y)
    known = is_ge(dim_x, dim_y)
    if known is not None:
        assert (int_x(env) >= int_y(env)) is known


@given(expressions, ENV)
def test_substitution_of_some_then_the_rest(expression, env):
    dim, value = expression
    first = substitute(dim, {"a": env["a"]})
    assert "a" not in symbols_of(first)
    assert evaluate(first, env) == value(env)


def _run(words, env, names):
    """The plan's postfix program (ARCHITECTURE.md)."""
    stack, at = [], 0
    binary = {
        3: lambda x, y: x + y,
        4: lambda x, y: x - y,
        5: lambda x, y: x * y,
        6: lambda x, y: x // y,
        7: lambda x, y: x % y,
        8: min,
        9: max,
        10: lambda x, y: x if x != 1 else y,
        11: lambda x, y: -(-x // y),
    }
    while at < len(words):
        if words[at] in (0, 1):
            stack.append(words[at + 1] if words[at] == 0 else env[names[words[at + 1]]])
            at += 2
        else:
            y, x = stack.pop(), stack.pop()
            stack.append(binary[words[at]](x, y))
            at += 1
    assert len(stack) == 1
    return stack[0]


@given(expressions, ENV)
def test_postfix_program(expression, env):
    dim, value = expression
    assert _run(postfix(dim, NAMES.index), env, NAMES) == value(env)


@given(st.integers(1, 9), st.integers(1, 9), ENV)
def test_broadcast_of_symbols(x, y, env):
    a, b = symbol("a"), symbol("b")
    size = {"a": x, "b": x if y % 2 else 1}
    assert evaluate(bcast(a, b), size) == x
    assert bcast(a, a) == a and bcast(1, a) == a and bcast(a, 1) == a
    assert bcast(a, b) == bcast(b, a) == bcast(bcast(a, b), a)
    assert bcast(4, a) == 4


def test_normal_forms():
    s, t = symbol("s"), symbol("t")
    assert (s * 4 + 8) // 4 == s + 2
    assert (s * 6) // (s * 2) == 3
    assert s - s == 0 and isinstance(s - s, int)
    assert (s + 1) * (t - 1) == s * t - s + t - 1
    assert floordiv(floordiv(s, 2), 3) == floordiv(s, 6)
    assert mod(s * 8, 4) == 0
    assert symbol_name(s) == "s" and symbol_name(s + 1) is None
    assert product([s, 2, t]) == 2 * t * s
    with pytest.raises(TypeError):
        bool(s)


@pytest.mark.parametrize("text", ["", "a +", "(a", "a b", "a//", "3 ** 2", "bcast(a)", "a$", "`a"])
def test_what_cannot_be_read(text):
    with pytest.raises(ValueError):
        parse_dim(text)
