"""Transcendental functions of f32 vectors as polynomials (fitted by least squares with Lawson's weights).

Bounds over all f32, in units in the last place with fused multiply-add: exp 1.0 (subnormal results included), log 1.5,
tanh 2.5, erf 2.0, sigmoid 2.5 (tests/property/test_vecmath.py). Infinities and NaN come out as IEEE has it.
"""

from __future__ import annotations

import math

from tvm import tirx as T

from edgec.lower.templates.builder import Builder, const, is_nan, lanes_of, llvm

_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer that stands in the low bits
_LN2_HI, _LN2_LO = 0.693145751953125, 1.42860682030941723212e-6
_EXP = (0.49999993050712416, 0.16666514791278228, 0.04166845678979384, 0.0083694188465299, 0.0013813144393720438)
_LOG = (0.33333312603992704, -0.25000009599637785, 0.20002118662904744, -0.16667995843393632, 0.14219552278925165,
        -0.12405589061727915, 0.11888162967729596, -0.116756512215913, 0.06746638282397205)  # fmt: skip
_TANH = (-0.33333280221176737, 0.1333138368086198, -0.053734002472893644, 0.020618129857288447, -0.005679311927432811)
_ERF = (1.1283791666159937, -0.3761263353066366, 0.11283692370904111, -0.026859225555937744, 0.005200604324581571,
        -0.0008137852354287183, 8.349602977545873e-05)  # fmt: skip
_ERFC = (-0.00016920392578878563, 1.1294884002368588, 0.6334008642808848, 0.10822036821187855, -0.025080605527962423,
         0.004156250462089754, -0.00043139258431406464, 2.082852797127341e-05)  # fmt: skip


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


def magnitude(x):
    return llvm("fabs", x)


def _with_sign(b: Builder, x, sign_of):
    return _float(T.bitwise_or(_bits(x), T.bitwise_and(_bits(sign_of), _i(-0x80000000, x))))


def _horner(b: Builder, x, coefficients):
    total = _f(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        total = total * x + _f(c, x)
    return b.let(total)


def _reduced(b: Builder, x):
    """n's bits above _MAGIC's and e**r with x = n ln2 + r."""
    shifted = b.let(x * _f(math.log2(math.e), x) + _f(_MAGIC, x))
    n = b.let(shifted - _f(_MAGIC, x))
    r = b.let(x - n * _f(_LN2_HI, x) - n * _f(_LN2_LO, x))
    return b.let(_bits(shifted)), b.let((r * r) * _horner(b, r, _EXP) + (r + _f(1.0, x)))


def exp(b: Builder, x):
    """e**x, subnormals included."""
    x = b.let(T.Select(x > _f(89.0, x), _f(89.0, x), x))
    x = b.let(T.Select(x < _f(-104.0, x), _f(-104.0, x), x))
    bits, p = _reduced(b, x)
    n = b.let(bits - _i(0x4B400000, x))
    half = b.let(T.shift_right(n, _i(1, x)))
    scale = [_float(T.shift_left(e + _i(127, x), _i(23, x))) for e in (half, n - half)]
    return b.let(p * scale[0] * scale[1])


def exp_normal(b: Builder, x):
    """e**x for x <= 88.3; below -87.3 it stays at 2**-126, about 1.2e-38."""
    x = b.let(T.Select(x < _f(-87.3, x), _f(-87.3, x), x))
    bits, p = _reduced(b, x)
    return b.let(p * _float(T.shift_left(bits, _i(23, x)) + _i(0x3F800000, x)))


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
    """1 / (1 + e**-x), through e**-|x| so that nothing overflows."""
    e = exp(b, _f(0.0, x) - magnitude(x))
    return b.let(T.Select(x >= _f(0.0, x), _f(1.0, x), e) / (_f(1.0, x) + e))


def tanh(b: Builder, x):
    a = b.let(magnitude(x))
    e = exp_normal(b, T.Select(a > _f(20.0, x), _f(40.0, x), a + a))
    large = _with_sign(b, _f(1.0, x) - _f(2.0, x) / (e + _f(1.0, x)), x)
    square = b.let(x * x)
    small = x + (x * square) * _horner(b, square, _TANH)
    y = T.Select(a < _f(0.63, x), small, large)
    return b.let(T.Select(is_nan(x), x, y))


def erf(b: Builder, x):
    a = b.let(magnitude(x))
    clamped = b.let(T.Select(a > _f(4.0, x), _f(4.0, x), a))
    large = _with_sign(b, _f(1.0, x) - exp_normal(b, _f(0.0, x) - _horner(b, clamped, _ERFC)), x)
    square = b.let(x * x)
    small = x * _horner(b, square, _ERF)
    return b.let(T.Select(T.Or(a < _f(0.925, x), is_nan(x)), small, large))
