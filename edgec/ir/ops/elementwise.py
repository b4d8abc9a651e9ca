"""Elementwise ops with numpy broadcasting."""

from __future__ import annotations

import math

import numpy as np

from edgec.ir.ops.registry import REQUIRED, broadcast_shapes, define, need, need_same_dtype
from edgec.ir.types import DTYPES, FLOATS, INTS, TensorType, numpy_dtype


def _through_f32(f):
    """f16 and bf16 compute in f32 and round once."""

    def reference(*arrays, **attrs):
        dtype = arrays[0].dtype
        with np.errstate(all="ignore"):
            if dtype.itemsize == 2 and dtype.kind not in "iu":
                return f(*[a.astype(np.float32) for a in arrays], **attrs).astype(dtype)
            return np.asarray(f(*arrays, **attrs)).astype(dtype, copy=False)

    return reference


erf = np.vectorize(math.erf, otypes=[np.float64])


def _erf(x):
    return erf(x).astype(x.dtype) if x.size else x


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def _gelu(x, approximate):
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return (0.5 * x.astype(np.float64) * (1 + erf(x / math.sqrt(2)))).astype(x.dtype) if x.size else x


# name: (reference, dtypes)
UNARY = {
    "neg": (np.negative, FLOATS + INTS),
    "abs": (np.abs, FLOATS + INTS),
    "sign": (np.sign, FLOATS + INTS),
    "floor": (np.floor, FLOATS),
    "ceil": (np.ceil, FLOATS),
    "round": (np.rint, FLOATS),  # half to even
    "sqrt": (np.sqrt, FLOATS),
    "rsqrt": (lambda x: 1 / np.sqrt(x), FLOATS),
    "reciprocal": (np.reciprocal, FLOATS),
    "exp": (np.exp, FLOATS),
    "log": (np.log, FLOATS),
    "sin": (np.sin, FLOATS),
    "cos": (np.cos, FLOATS),
    "tan": (np.tan, FLOATS),
    "asin": (np.arcsin, FLOATS),
    "acos": (np.arccos, FLOATS),
    "atan": (np.arctan, FLOATS),
    "sinh": (np.sinh, FLOATS),
    "cosh": (np.cosh, FLOATS),
    "tanh": (np.tanh, FLOATS),
    "asinh": (np.arcsinh, FLOATS),
    "acosh": (np.arccosh, FLOATS),
    "atanh": (np.arctanh, FLOATS),
    "erf": (_erf, FLOATS),
    "sigmoid": (_sigmoid, FLOATS),
    "relu": (lambda x: np.maximum(x, 0), FLOATS + INTS),
    "silu": (lambda x: x * _sigmoid(x), FLOATS),
    "softplus": (lambda x: np.logaddexp(x, 0), FLOATS),
    "not": (np.logical_not, ("bool",)),
    "bitwise_not": (np.bitwise_not, INTS),
}


def _unary(name, dtypes):
    def infer(x, **_):
        need(x.dtype in dtypes, f"{name} does not take {x.dtype}")
        return TensorType(x.dtype, x.shape)

    return infer


for _name, (_f, _dtypes) in UNARY.items():
    define(_name, "x", _unary(_name, _dtypes), _through_f32(_f), "unary")
define("gelu", "x", _unary("gelu", FLOATS), _through_f32(_gelu), "unary", approximate="none")


def _predicate(name):
    def infer(x):
        need(x.dtype in FLOATS, f"{name} does not take {x.dtype}")
        return TensorType("bool", x.shape)

    return infer


define("isnan", "x", _predicate("isnan"), np.isnan, "unary")
define("isinf", "x", _predicate("isinf"), np.isinf, "unary")


def _cast_reference(x, dtype):
    """Floats to ints truncate; what does not fit in an integer type is undefined, as in ONNX."""
    to = numpy_dtype(dtype)
    with np.errstate(all="ignore"):
        return x.astype(to)


def _cast(x, dtype):
    need(dtype in DTYPES, f"cast: no dtype {dtype!r}")
    return TensorType(dtype, x.shape)


define("cast", "x", _cast, _cast_reference, "unary", dtype=REQUIRED)


def _div(a, b):
    if a.dtype.kind in "iu":  # integers truncate toward zero; dividing by 0 gives 0
        safe = np.where(b == 0, 1, b)
        q = a // safe
        return np.where(b == 0, 0, q + ((a % safe != 0) & ((a < 0) != (safe < 0))))
    return a / b


def _mod(a, b):
    """The sign of the divisor (Python's)."""
    if a.dtype.kind in "iu":
        return np.where(b == 0, 0, np.mod(a, np.where(b == 0, 1, b)))
    return np.mod(a, b)


def _fmod(a, b):
    """The sign of the dividend (C's)."""
    if a.dtype.kind in "iu":
        return np.where(b == 0, 0, np.fmod(a, np.where(b == 0, 1, b)))
    return np.fmod(a, b)


def _pow(a, b):
    return np.power(a.astype(np.float64), b).astype(a.dtype) if a.dtype.kind in "iu" else np.power(a, b)


def _shift(f):
    def reference(a, b):
        bits = a.dtype.itemsize * 8
        return np.where(b < bits, f(a, np.minimum(b, bits - 1)), 0)

    return reference


BINARY = {
    "add": (np.add, FLOATS + INTS),
    "sub": (np.subtract, FLOATS + INTS),
    "mul": (np.multiply, FLOATS + INTS),
    "div": (_div, FLOATS + INTS),
    "mod": (_mod, FLOATS + INTS),
    "fmod": (_fmod, FLOATS + INTS),
    "pow": (_pow, FLOATS + INTS),
    "max": (np.maximum, FLOATS + INTS),  # NaN wins
    "min": (np.minimum, FLOATS + INTS),
    "atan2": (np.arctan2, FLOATS),
    "and": (np.logical_and, ("bool",)),
    "or": (np.logical_or, ("bool",)),
    "xor": (np.logical_xor, ("bool",)),
    "bitwise_and": (np.bitwise_and, INTS),
    "bitwise_or": (np.bitwise_or, INTS),
    "bitwise_xor": (np.bitwise_xor, INTS),
    "shift_left": (_shift(np.left_shift), ("u8", "u16", "u32", "u64")),
    "shift_right": (_shift(np.right_shift), ("u8", "u16", "u32", "u64")),
}
COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def _binary(name, dtypes, out=None):
    def infer(a, b):
        dtype = need_same_dtype(name, a, b)
        need(dtype in dtypes, f"{name} does not take {dtype}")
        return TensorType(out or dtype, broadcast_shapes(name, a.shape, b.shape))

    return infer


for _name, (_f, _dtypes) in BINARY.items():
    define(_name, "a b", _binary(_name, _dtypes), _through_f32(_f), "binary")
for _name, _f in COMPARE.items():
    define(_name, "a b", _binary(_name, DTYPES, "bool"), _f, "binary")


def _where(c, a, b):
    need(c.dtype == "bool", "where: the condition is bool")
    return TensorType(need_same_dtype("where", a, b), broadcast_shapes("where", c.shape, a.shape, b.shape))


define("where", "c a b", _where, np.where, "elementwise")
