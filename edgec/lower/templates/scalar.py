"""Elementwise ops as expressions on vectors in registers: one table, op -> emitter.

In registers bool is a predicate and f16 and bf16 are f32; `load` and `store` convert. Integers wrap, division by zero
gives 0, shifts of all bits or more give 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx as T

from edgec.lower.templates import vecmath
from edgec.lower.templates.builder import Builder, const, differ, is_nan, lanes_of, llvm, spread
from edgec.lower.templates.index import inline_scalar

_REGISTER = {"bool": "bool", "i8": "int8", "u8": "uint8", "i16": "int16", "u16": "uint16", "i32": "int32",
             "u32": "uint32", "i64": "int64", "u64": "uint64", "f16": "float32", "bf16": "float32",
             "f32": "float32", "f64": "float64"}  # fmt: skip
FLOATS = ("f16", "bf16", "f32", "f64")


def register_dtype(dtype: str) -> str:
    return _REGISTER[dtype]


def _as(e, dtype: str):
    lanes = lanes_of(e)
    return T.Cast(f"{dtype}x{lanes}" if lanes > 1 else dtype, e)


def _reinterpret(e, dtype: str):
    lanes = lanes_of(e)
    return T.reinterpret(f"{dtype}x{lanes}" if lanes > 1 else dtype, e)


def _like(value, e):
    return const(value, str(e.ty.dtype.with_lanes(1)), lanes_of(e))


def from_memory(e, dtype: str):
    if dtype == "bool":
        return differ(e, _like(0, e))
    if dtype == "f16":
        return _as(e, "float32")
    if dtype == "bf16":
        return _reinterpret(T.shift_left(_as(e, "uint32"), const(16, "uint32", lanes_of(e))), "float32")
    return e


def to_memory(b: Builder, e, dtype: str):
    if dtype == "bool":
        return T.Select(e, const(1, "uint8", lanes_of(e)), const(0, "uint8", lanes_of(e)))
    if dtype == "f16":
        return _as(e, "float16")
    if dtype == "bf16":  # round to even; a NaN stays one
        bits = b.let(_reinterpret(e, "uint32"))
        odd = T.bitwise_and(T.shift_right(bits, _like(16, bits)), _like(1, bits))
        rounded = T.shift_right(bits + _like(0x7FFF, bits) + odd, _like(16, bits))
        quiet = T.bitwise_or(T.shift_right(bits, _like(16, bits)), _like(0x40, bits))
        return _as(T.Select(is_nan(e), quiet, rounded), "uint16")
    return e


def literal(value, dtype: str):
    """A number of edgec's dtype as it stands in a register."""
    if dtype == "bool":
        return T.IntImm("bool", int(bool(value)))
    if dtype in FLOATS:
        return T.FloatImm(register_dtype(dtype), float(value))
    value = int(value)
    return T.const(value, register_dtype(dtype))


def _wrapping(f):
    """Unsigned integers go through signed ones: TVM marks unsigned overflow as undefined too, and 0u - x is common."""

    def emit(b, node, x, y):
        dtype = str(x.ty.dtype.with_lanes(1))
        if dtype.startswith("uint"):
            return _as(f(_as(x, dtype[1:]), _as(y, dtype[1:])), dtype)
        return f(x, y)

    return emit


def add(x, y):
    return _wrapping(lambda p, q: p + q)(None, None, x, y)


def multiply(x, y):
    return _wrapping(lambda p, q: p * q)(None, None, x, y)


def _truncated(b: Builder, x, y, op):
    """Integer quotient or remainder toward zero, 0 for a zero divisor; the least integer by -1 wraps."""
    zero = b.let(T.EQ(y, _like(0, y)))
    signed = str(y.ty.dtype).startswith("int")
    minus = b.let(T.EQ(y, _like(-1, y))) if signed else None
    safe = b.let(T.Select(T.Or(zero, minus) if signed else zero, _like(1, y), y))
    out = op(x, safe)
    if signed:
        negated = _wrapping(lambda p, q: p - q)(b, None, _like(0, x), x)
        out = T.Select(minus, negated if op is T.truncdiv else _like(0, x), out)
    return b.let(T.Select(zero, _like(0, x), out))


def _div(b, node, x, y):
    return _truncated(b, x, y, T.truncdiv) if node.inputs[0].dtype not in FLOATS else x / y


def _libm(name: str, x, y=None):
    """A call of libm for each lane."""
    single = str(x.ty.dtype.with_lanes(1)) == "float32"
    dtype = "float32" if single else "float64"
    args = (x,) if y is None else (x, y)
    lanes = lanes_of(x)

    def one(parts):
        return T.call_pure_extern(dtype, name + ("f" if single else ""), *parts)

    if lanes == 1:
        return one(args)
    return T.Shuffle([one([T.Shuffle([a], [T.IntImm("int32", k)]) for a in args]) for k in range(lanes)],
                     [T.IntImm("int32", k) for k in range(lanes)])  # fmt: skip


def _fmod(b, node, x, y):
    return _truncated(b, x, y, T.truncmod) if node.inputs[0].dtype not in FLOATS else _libm("fmod", x, y)


def _mod(b, node, x, y):
    r = b.let(_fmod(b, node, x, y))
    if str(x.ty.dtype).startswith("uint"):
        return r
    other_sign = T.Or(T.And(r < _like(0, r), y > _like(0, y)), T.And(r > _like(0, r), y < _like(0, y)))
    return T.Select(other_sign, r + y, r)


def _pow(b, node, x, y):
    if node.inputs[0].dtype not in FLOATS:
        x, y = _as(x, "float64"), _as(y, "float64")
        return convert(b, _libm("pow", x, y), register_dtype(node.dtype))
    simple = _POWERS.get(inline_scalar(node.inputs[1]))
    return simple(x) if simple else _libm("pow", x, y)


# by exponents known at build; as numpy does it, the root of -inf is NaN
_POWERS: dict[float | None, Callable] = {
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    4.0: lambda x: (x * x) * (x * x),
    -1.0: lambda x: _like(1.0, x) / x,
    -2.0: lambda x: _like(1.0, x) / (x * x),
    0.5: lambda x: llvm("sqrt", x),
}


def _extreme(keep):
    def emit(b, node, x, y):
        if node.inputs[0].dtype not in FLOATS:
            return T.Select(keep(x, y), x, y)
        return T.Select(T.Or(keep(x, y), is_nan(x)), x, y)  # a NaN in either place wins

    return emit


def _shift(op):
    def emit(b, node, x, y):
        bits = x.ty.dtype.bits
        safe = T.Select(y < _like(bits, y), y, _like(bits - 1, y))
        return T.Select(y < _like(bits, y), op(x, safe), _like(0, x))

    return emit


def convert(b: Builder, x, to: str):
    """Between register dtypes; floats to small integers by way of wide ones, so that they wrap as numpy does."""
    source = str(x.ty.dtype.with_lanes(1))
    if source == to:
        return x
    if to == "bool":
        return differ(x, _like(0, x))
    if source == "bool":
        return T.Select(x, const(1, to, lanes_of(x)), const(0, to, lanes_of(x)))
    if source.startswith("float") and "int" in to:
        if to == "uint64":
            big = b.let(x >= _like(2.0**63, x))
            low = _as(_as(T.Select(big, x - _like(2.0**63, x), x), "int64"), "uint64")
            return T.Select(big, T.bitwise_xor(low, _like(1 << 63, low)), low)
        wide = "int32" if to in ("int8", "uint8", "int16", "uint16", "int32") else "int64"
        return convert(b, _as(x, wide), to)
    return _as(x, to)


def _cast(b, node, x):
    to, source = node.dtype, node.inputs[0].dtype
    if source in ("f16", "bf16") and node.inputs[0].op in ELEMENTWISE:
        x = from_memory(b.let(to_memory(b, x, source)), source)
    value = b.let(convert(b, x, register_dtype(to)))
    if to in ("f16", "bf16") and source not in ("f16", "bf16", to):
        return from_memory(b.let(to_memory(b, value, to)), to)
    return value


def _sign(b, node, x):
    one, zero = _like(1, x), _like(0, x)
    if str(x.ty.dtype).startswith("uint"):
        return T.Select(x > zero, one, zero)
    y = T.Select(x > zero, one, T.Select(x < zero, _like(-1, x), zero))
    return T.Select(is_nan(x), x, y) if node.dtype in FLOATS else y


def _abs(b, node, x):
    if node.dtype in FLOATS:
        return llvm("fabs", x)
    return x if str(x.ty.dtype).startswith("uint") else T.Select(x < _like(0, x), _neg(b, node, x), x)


def _neg(b, node, x):
    if node.dtype in FLOATS:
        return x * _like(-1.0, x)
    return _wrapping(lambda p, q: p - q)(b, node, _like(0, x), x)


def _vector(f, name: str):
    """The polynomial for f32, libm for f64."""

    def emit(b, node, x):
        return f(b, x) if str(x.ty.dtype).startswith("float32") else _libm(name, x)

    return emit


def _sigmoid(b, node, x):
    if str(x.ty.dtype).startswith("float32"):
        return vecmath.sigmoid(b, x)
    e = b.let(_libm("exp", b.let(T.Select(x > _like(0.0, x), _like(0.0, x) - x, x))))
    return T.Select(x >= _like(0.0, x), _like(1.0, x), e) / (_like(1.0, x) + e)


def _silu(b, node, x):
    return vecmath.silu(b, x) if str(x.ty.dtype).startswith("float32") else x * _sigmoid(b, node, x)


def _softplus(b, node, x):
    """max(x, 0) + log1p(e**-|x|)."""
    e = b.let(_OPS["exp"](b, node, b.let(T.Select(x > _like(0.0, x), _like(0.0, x) - x, x))))
    u = b.let(e + _like(1.0, x))
    # log1p without its loss: log(u) + the part of e that rounding u lost
    log1p = _OPS["log"](b, node, u) + (e - (u - _like(1.0, x))) / u
    y = T.Select(x > _like(0.0, x), x, _like(0.0, x)) + log1p
    return T.Select(T.Or(is_nan(x), T.EQ(x, _like(math.inf, x))), x, y)


def _gelu(b, node, x):
    if node["approximate"] == "tanh":
        inner = b.let(x * _like(math.sqrt(2 / math.pi), x) * (x * x * _like(0.044715, x) + _like(1.0, x)))
        return x * _like(0.5, x) * (_OPS["tanh"](b, node, inner) + _like(1.0, x))
    y = b.let(x * _like(math.sqrt(0.5), x))
    return x * _like(0.5, x) * (_OPS["erf"](b, node, y) + _like(1.0, x))


def _simple(f: Callable):
    return lambda b, node, *args: f(*args)


def _call(name: str):
    return lambda b, node, *args: _libm(name, *args)


def _intrinsic(name: str):
    return lambda b, node, x: llvm(name, x)


def _xor(x, y):
    return T.Or(T.And(x, T.Not(y)), T.And(T.Not(x), y))


def _compare(f):
    def emit(b, node, x, y):
        if node.inputs[0].dtype == "bool":
            x, y = convert(b, x, "uint8"), convert(b, y, "uint8")
        return f(x, y)

    return emit


_OPS: dict[str, Callable] = {
    "neg": _neg, "abs": _abs, "sign": _sign, "cast": _cast,
    "floor": _intrinsic("floor"), "ceil": _intrinsic("ceil"), "round": _intrinsic("roundeven"),
    "sqrt": _intrinsic("sqrt"),
    "rsqrt": lambda b, node, x: _like(1.0, x) / llvm("sqrt", x), "reciprocal": lambda b, node, x: _like(1.0, x) / x,
    "exp": _vector(vecmath.exp, "exp"), "log": _vector(vecmath.log, "log"), "tanh": _vector(vecmath.tanh, "tanh"),
    "erf": _vector(vecmath.erf, "erf"), "sigmoid": _sigmoid, "softplus": _softplus, "gelu": _gelu,
    "silu": _silu,
    "sin": _call("sin"), "cos": _call("cos"), "tan": _call("tan"), "asin": _call("asin"), "acos": _call("acos"),
    "atan": _call("atan"), "sinh": _call("sinh"), "cosh": _call("cosh"), "asinh": _call("asinh"),
    "acosh": _call("acosh"),
    "atanh": _call("atanh"), "atan2": _call("atan2"),
    "relu": lambda b, node, x: T.Select(x < _like(0, x), _like(0, x), x),
    "not": _simple(T.Not), "bitwise_not": _simple(T.bitwise_not),
    "isnan": _simple(lambda x: is_nan(x)),
    "isinf": _simple(lambda x: T.Or(T.EQ(x, _like(math.inf, x)), T.EQ(x, _like(-math.inf, x)))),
    "add": _wrapping(lambda x, y: x + y), "sub": _wrapping(lambda x, y: x - y), "mul": _wrapping(lambda x, y: x * y),
    "div": _div, "mod": _mod, "fmod": _fmod, "pow": _pow,
    "max": _extreme(lambda x, y: x > y), "min": _extreme(lambda x, y: x < y),
    "and": _simple(T.And), "or": _simple(T.Or), "xor": _simple(_xor),
    "bitwise_and": _simple(T.bitwise_and), "bitwise_or": _simple(T.bitwise_or), "bitwise_xor": _simple(T.bitwise_xor),
    "shift_left": _shift(T.shift_left), "shift_right": _shift(T.shift_right),
    "eq": _compare(lambda x, y: T.EQ(x, y)), "ne": _compare(lambda x, y: differ(x, y)),
    "lt": _compare(lambda x, y: x < y),
    "le": _compare(lambda x, y: x <= y), "gt": _compare(lambda x, y: x > y), "ge": _compare(lambda x, y: x >= y),
    "where": _simple(T.Select),
}  # fmt: skip
# rough cost of one element in units of an add, for grains and for what is worth keeping instead of computing again
COST = {"exp": 12, "log": 18, "tanh": 16, "erf": 18, "sigmoid": 16, "silu": 17, "gelu": 20, "softplus": 40,
        "div": 4, "mod": 40, "fmod": 40, "pow": 100, "sqrt": 4, "rsqrt": 8, "reciprocal": 4} | {n: 60 for n in (
        "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "atan2")}  # fmt: skip
ELEMENTWISE = frozenset(_OPS)


# forms for operands that are known to be in range: exp of what is not above 0
BOUNDED: dict[str, Callable] = {"exp": _vector(vecmath.exp_not_above_0, "exp")}


def emit(b: Builder, node, args, bounded: bool = False):
    """The value of an elementwise node from its operands' values; lanes of 1 spread to the widest."""
    lanes = max(lanes_of(a) for a in args)
    args = [b.let(spread(a, lanes)) for a in args]
    return b.let((BOUNDED if bounded else _OPS)[node.op](b, node, *args))
