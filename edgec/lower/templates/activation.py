"""The activations that `linear` and `conv` carry, on vectors in registers."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx as T

from edgec.lower.templates import scalar
from edgec.lower.templates.builder import Builder, const, lanes_of, scalar_of


def _like(value: float, x):
    return const(value, scalar_of(x), lanes_of(x))


def _clip(b: Builder, x, low: float, high: float):
    """A NaN stays one."""
    x = b.let(T.Select(x < _like(low, x), _like(low, x), x))
    return b.let(T.Select(x > _like(high, x), _like(high, x), x))


def _op(name: str, **attrs) -> Callable:
    return lambda b, x: scalar._OPS[name](b, attrs, x)


_ACTIVATIONS: dict[str, Callable] = {
    "none": lambda b, x: x,
    "relu": lambda b, x: T.Select(x < _like(0.0, x), _like(0.0, x), x),
    "relu6": lambda b, x: _clip(b, x, 0.0, 6.0),
    "gelu": _op("gelu", approximate="none"),
    "gelu_tanh": _op("gelu", approximate="tanh"),
    "silu": _op("silu"),
    "tanh": _op("tanh"),
    "sigmoid": _op("sigmoid"),
    "hard_swish": lambda b, x: x * _clip(b, b.let(x * _like(1 / 6, x) + _like(0.5, x)), 0.0, 1.0),
    "hard_sigmoid": lambda b, x: _clip(b, b.let(x * _like(1 / 6, x) + _like(0.5, x)), 0.0, 1.0),
}


def activate(b: Builder, name: str, x):
    """act(x), x f32 or f64 of any lanes."""
    return b.let(_ACTIVATIONS[name](b, b.let(x)))
