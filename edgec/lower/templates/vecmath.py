"""Transcendental functions of f32 vectors: polynomials and their ratios, by least squares with Lawson's weights.

Bounds over all f32, in units in the last place, with fused multiply-add: exp 1.5, log 2, sigmoid 4, tanh and erf 7.
Infinities and NaN come out as IEEE has it; results of exp below 2**-126 are 0 (tests/property/test_vecmath.py).
"""

from __future__ import annotations

import math

from tvm import tirx as T

from edgec.lower.templates.builder import Builder, const, is_nan, lanes_of

_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer that stands in the low bits
_EXP_LOW, _EXP_HIGH = -87.33654022216797, 88.72283172607422  # where e**x is 2**-126, and the largest f32
_LN2_HI, _LN2_LO = 0.693145751953125, 1.42860682030941723212e-6
_EXP = (0.49999993050712416, 0.16666514791278228, 0.04166845678979384, 0.0083694188465299, 0.0013813144393720438)
_LOG = (0.33333312603992704, -0.25000009599637785, 0.20002118662904744, -0.16667995843393632, 0.14219552278925165,
        -0.12405589061727915, 0.11888162967729596, -0.116756512215913, 0.06746638282397205)  # fmt: skip
# x P(x**2) / Q(x**2), numerator and denominator; beyond the limit the function is 1 in f32
_TANH = (9.02, (0.9999999791210755, 0.13379731611455462, 0.0034940503187668977, 2.0583722173476523e-05,
                1.3319371937362069e-08),
         (1.0, 0.4671304688028397, 0.025871134375235107, 0.00032831178103560346, 7.762149342822809e-07))  # fmt: skip
_ERF = (3.92, (1.1283791462410808, 0.19040447130592736, 0.052748466291403444, 0.003765532269154517,
               0.0002848809705019481, 2.0501052039651123e-06),
        (1.0, 0.5020743109383304, 0.11410829261934613, 0.014969048434340076, 0.0011625151635779093,
         3.809180754793358e-05))  # fmt: skip


def _f(value: float, like):
    return const(value, "float32", lanes_of(like))


def _i(value: int, like):
    return const(value, "int32", lanes_of(like))


def _bits(x):
    lanes = lanes_of(x)
    return T.reinterpret(f"int32x{lanes}" if lanes > 1 else "int32", x)


def _float(bits):
    lanes = lanes_of(bits)
    return T.reinterpret(f"float32x{lanes}" if lanes > 1 else "float32", bits)


def _horner(b: Builder, x, coefficients: tuple[float, ...]):
    total = _f(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        total = total * x + _f(c, x)
    return b.let(total)


def _clamp(b: Builder, x, low: float, high: float):
    """A NaN stays."""
    x = b.let(T.Select(x > _f(high, x), _f(high, x), x))
    return b.let(T.Select(x < _f(low, x), _f(low, x), x))


def _exponential(b: Builder, x):
    """e**r and the bits of n above _MAGIC's, with x = n ln2 + r."""
    shifted = b.let(x * _f(math.log2(math.e), x) + _f(_MAGIC, x))
    n = b.let(shifted - _f(_MAGIC, x))
    r = b.let(x - n * _f(_LN2_HI, x) - n * _f(_LN2_LO, x))
    return b.let((r * r) * _horner(b, r, _EXP) + (r + _f(1.0, x))), _bits(shifted)


def exp(b: Builder, x):
    """n goes straight into the exponent of e**r, so that 2**128 e**r with e**r < 1 is had too."""
    p, n = _exponential(b, x)
    y = T.Select(x <= _f(_EXP_HIGH, x), _float(_bits(p) + T.shift_left(n, _i(23, x))), x * _f(math.inf, x))  # NaN too
    return b.let(T.Select(x < _f(_EXP_LOW, x), _f(0.0, x), y))


def _scaled(b: Builder, x):
    """e**x for x within [-87.3, 88], or NaN."""
    p, n = _exponential(b, x)
    return p * _float(T.shift_left(n, _i(23, x)) + _i(127 << 23, x))


def exp_not_above_0(b: Builder, x):
    return b.let(T.Select(x < _f(_EXP_LOW, x), _f(0.0, x), _scaled(b, x)))


def log(b: Builder, x):
    tiny = b.let(x < _f(2.0**-126, x))
    scaled = b.let(T.Select(tiny, x * _f(2.0**23, x), x))
    bits = b.let(_bits(scaled) - _i(0x3F3504F3, x))  # the bits of sqrt(1/2)
    exponent = b.let(T.Cast(str(x.ty.dtype), T.shift_right(bits, _i(23, x))) - T.Select(tiny, _f(23.0, x), _f(0.0, x)))
    m = _float(T.bitwise_and(bits, _i(0x7FFFFF, x)) + _i(0x3F3504F3, x))
    f = b.let(m - _f(1.0, x))
    square = b.let(f * f)
    tail = b.let((f * square) * _horner(b, f, _LOG) + exponent * _f(-2.12194440e-4, x))
    y = b.let(tail - square * _f(0.5, x) + f + exponent * _f(0.693359375, x))
    y = T.Select(T.EQ(x, _f(math.inf, x)), x, y)
    y = T.Select(T.EQ(x, _f(0.0, x)), _f(-math.inf, x), y)
    return b.let(T.Select(T.Or(x < _f(0.0, x), is_nan(x)), _f(math.nan, x), y))


def sigmoid(b: Builder, x):
    """No smaller than 6e-39."""
    return b.let(_f(1.0, x) / (_f(1.0, x) + _scaled(b, _clamp(b, b.let(_f(0.0, x) - x), -87.0, 88.0))))


def silu(b: Builder, x):
    """x sigmoid(x), with a sigmoid of exactly 0 where a large x would show that it isn't."""
    return b.let(x * T.Select(x < _f(_EXP_LOW, x), _f(0.0, x), sigmoid(b, x)))


def _ratio(b: Builder, x, fitted):
    limit, above, below = fitted
    y = _clamp(b, x, -limit, limit)
    square = b.let(y * y)
    return _clamp(b, b.let(y * _horner(b, square, above) / _horner(b, square, below)), -1.0, 1.0)


def tanh(b: Builder, x):
    return _ratio(b, x, _TANH)


def erf(b: Builder, x):
    return _ratio(b, x, _ERF)
