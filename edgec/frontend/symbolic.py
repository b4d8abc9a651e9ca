"""What is known of a small tensor's elements while importing: numbers, dims and ratios of dims.

`content(node)` is an object array whose entries are an int, a Dim, a Ratio or UNKNOWN; None where nothing is known.
Shape arithmetic of a model is followed through it, so that reshapes and slices get dims as attributes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from edgec.ir.dims import Dim, Expr, ceildiv, floordiv, is_ge, max_dim, min_dim, mod
from edgec.ir.node import Node
from edgec.ir.types import FLOATS, TensorType

LIMIT = 1024  # elements of a tensor whose content is followed


class _Unknown:
    def __repr__(self):
        return "?"


UNKNOWN = _Unknown()


class Ratio:
    """num / den of dims where den does not divide num; den is assumed positive."""

    __slots__ = ("den", "num")

    def __init__(self, num: Dim, den: Dim):
        self.num, self.den = num, den

    def __repr__(self):
        return f"({self.num})/({self.den})"


def _ratio(num: Dim, den: Dim):
    if isinstance(den, int):
        if den == 0:
            return UNKNOWN
        if den < 0:
            num, den = -num, -den
    if isinstance(num, int) and isinstance(den, int):
        f = Fraction(num, den)
        return f.numerator if f.denominator == 1 else Ratio(f.numerator, f.denominator)
    q = floordiv(num, den)
    return q if q * den - num == 0 else Ratio(num, den)


def _parts(v) -> tuple[Dim, Dim]:
    return (v.num, v.den) if isinstance(v, Ratio) else (v, 1)


def of_number(value):
    """The entry of a number; floats become the simplest fraction that rounds to them."""
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return int(value)
    value = float(value)
    if not np.isfinite(value) or abs(value) > 2.0**62:
        return UNKNOWN
    f = Fraction(value).limit_denominator(1000)
    if np.float32(float(f)) != np.float32(value):
        f = Fraction(value)
        if f.denominator > 1 << 40:
            return UNKNOWN
    return _ratio(f.numerator, f.denominator)


def _add(a, b):
    (n1, d1), (n2, d2) = _parts(a), _parts(b)
    return n1 + n2 if d1 == 1 and d2 == 1 else _ratio(n1 * d2 + n2 * d1, d1 * d2)


def _neg(a):
    return Ratio(-a.num, a.den) if isinstance(a, Ratio) else -a


def _mul(a, b):
    (n1, d1), (n2, d2) = _parts(a), _parts(b)
    return _ratio(n1 * n2, d1 * d2)


def _true_div(a, b):
    (n1, d1), (n2, d2) = _parts(a), _parts(b)
    return _ratio(n1 * d2, d1 * n2)


def _int_div(a, b):
    """Toward zero, where the signs are known."""
    if isinstance(b, int):
        if b == 0:
            return 0
        if b < 0:
            a, b = -a, -b
    if is_ge(a, 0):
        return floordiv(a, b)
    return -floordiv(-a, b) if is_ge(0, a) else UNKNOWN


def _floor(a):
    return floordiv(a.num, a.den) if isinstance(a, Ratio) else a


def _ceil(a):
    return ceildiv(a.num, a.den) if isinstance(a, Ratio) else a


def _round(a):
    if not isinstance(a, Ratio):
        return a
    if isinstance(a.num, int) and isinstance(a.den, int):
        return round(Fraction(a.num, a.den))
    return UNKNOWN


def _mod(a, b):
    return UNKNOWN if isinstance(a, Ratio) or isinstance(b, Ratio) or (isinstance(b, int) and b == 0) else mod(a, b)


def _ge(a, b):
    (n1, d1), (n2, d2) = _parts(a), _parts(b)
    known = is_ge(n1 * d2, n2 * d1)
    return UNKNOWN if known is None else int(known)


def _not(a):
    return 1 - a if isinstance(a, int) else UNKNOWN


def _eq(a, b):
    if _add(a, _neg(b)) == 0:
        return 1
    less, greater = _ge(a, b), _ge(b, a)
    if less == 0 or greater == 0:
        return 0
    return 1 if less == 1 and greater == 1 else UNKNOWN


def _max(a, b):
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        known = _ge(a, b)
        return UNKNOWN if known is UNKNOWN else a if known else b
    return max_dim(a, b)


def _min(a, b):
    if isinstance(a, Ratio) or isinstance(b, Ratio):
        known = _ge(a, b)
        return UNKNOWN if known is UNKNOWN else b if known else a
    return min_dim(a, b)


def _trunc(a):
    if isinstance(a, Ratio):
        return floordiv(a.num, a.den) if is_ge(a.num, 0) is not False else ceildiv(a.num, a.den)
    return a


def _pow(a, b):
    if isinstance(b, int) and 0 <= b <= 4:
        out: object = 1
        for _ in range(b):
            out = _mul(out, a)
        return out
    return UNKNOWN


def _where(c, a, b):
    if c is UNKNOWN:
        return a if a is not UNKNOWN and b is not UNKNOWN and _eq(a, b) == 1 else UNKNOWN
    return a if c else b


def _known(f: Callable) -> Callable:
    return lambda *args: UNKNOWN if any(a is UNKNOWN for a in args) else f(*args)


def _logic(a, b, stop: int):
    """and (stop 0), or (stop 1): one side may decide."""
    if stop in (a if isinstance(a, int) else None, b if isinstance(b, int) else None):
        return stop
    return UNKNOWN if a is UNKNOWN or b is UNKNOWN else 1 - stop


_POINTWISE: dict[str, Callable] = {
    "add": _known(_add),
    "sub": _known(lambda a, b: _add(a, _neg(b))),
    "mul": lambda a, b: 0 if (a is not UNKNOWN and isinstance(a, int) and a == 0) else _known(_mul)(a, b),
    "mod": _known(_mod),
    "neg": _known(_neg),
    "floor": _known(_floor),
    "ceil": _known(_ceil),
    "round": _known(_round),
    "max": _known(_max),
    "min": _known(_min),
    "relu": _known(lambda a: _max(a, 0)),
    "abs": _known(lambda a: _max(a, _neg(a))),
    "pow": _known(_pow),
    "reciprocal": _known(lambda a: _true_div(1, a)),
    "ge": _known(_ge),
    "le": _known(lambda a, b: _ge(b, a)),
    "lt": _known(lambda a, b: _not(_ge(a, b))),
    "gt": _known(lambda a, b: _not(_ge(b, a))),
    "eq": _known(_eq),
    "ne": _known(lambda a, b: _not(_eq(a, b))),
    "not": _known(_not),
    "and": lambda a, b: _logic(a, b, 0),
    "or": lambda a, b: _logic(a, b, 1),
    "where": _where,
}
_FOLDS = {"reduce_sum": (_add, 0), "reduce_prod": (_mul, 1), "reduce_max": (_max, None), "reduce_min": (_min, None)}
_memo: weakref.WeakKeyDictionary[Node, np.ndarray | None] = weakref.WeakKeyDictionary()


def count(start, limit, step):
    """ceil((limit - start) / step): the number of steps from start to limit."""
    return _ceil(_true_div(_add(limit, _neg(start)), step))


def objects(values, shape=None) -> np.ndarray:
    values = list(values)
    out = np.empty(len(values), dtype=object)
    for i, v in enumerate(values):
        out[i] = v
    return out if shape is None else out.reshape(shape)


def content(node: Node) -> np.ndarray | None:
    """What is known of the node's elements (object array of its shape), or None."""
    if node in _memo:
        return _memo[node]
    type = node.type
    out = None
    if isinstance(type, TensorType) and all(isinstance(d, int) for d in type.shape):
        if int(np.prod(type.shape, dtype=np.int64)) <= LIMIT and type.encoding is None:
            out = _compute(node)
    if out is not None and all(v is UNKNOWN for v in out.flat) and out.size:
        out = None
    _memo[node] = out
    return out


def _compute(node: Node) -> np.ndarray | None:
    op, attrs = node.op, node.attrs
    if op == "constant":
        array = node["data"].array()
        return objects((of_number(v) for v in array.reshape(-1)), array.shape)
    if op == "dim_value":
        return objects([attrs["value"]], ())
    if op == "iota":
        return objects(range(attrs["size"]))
    if op == "input" or not node.inputs or any(i is None for i in node.inputs):
        return None
    known = [content(i) if isinstance(i.type, TensorType) else None for i in node.operands()]
    if op in ("concat", "where", "and", "or") and any(k is not None for k in known):
        for i, k in enumerate(known):
            operand = node.inputs[i]
            if k is None and operand is not None and all(isinstance(d, int) for d in operand.shape):
                if int(np.prod(operand.shape, dtype=np.int64)) <= LIMIT:
                    known[i] = np.full(operand.shape, UNKNOWN, dtype=object)
    if any(k is None for k in known):
        return None
    args: list[np.ndarray] = [k for k in known if k is not None]
    if op in _POINTWISE:
        return _map(_POINTWISE[op], *args)
    if op == "div":
        return _map(_known(_true_div if node.dtype in FLOATS else _int_div), *args)
    if op == "cast":
        if attrs["dtype"] == "bool":
            return _map(_known(lambda a: _not(_eq(a, 0))), *args)
        return _map(_known(_trunc), *args) if attrs["dtype"] not in FLOATS else args[0]
    if op in _FOLDS:
        return _reduce(args[0], attrs["axes"], attrs["keepdims"], *_FOLDS[op])
    return _move(op, args, attrs)


def _move(op: str, args: list[np.ndarray], attrs) -> np.ndarray | None:
    x = args[0]
    if op == "reshape":
        return x.reshape(attrs["shape"])
    if op == "transpose":
        return x.transpose(attrs["perm"])
    if op == "expand":
        return np.broadcast_to(x, attrs["shape"])
    if op == "concat":
        return np.concatenate(args, axis=attrs["axis"])
    if op == "slice":
        if not all(isinstance(s, int) for s in (*attrs["starts"], *attrs["sizes"])):
            return None
        for axis, (start, size, step) in enumerate(zip(attrs["starts"], attrs["sizes"], attrs["steps"])):
            x = np.take(x, [start + step * i for i in range(size)], axis=axis)
        return x
    if op == "gather":
        at = args[1]
        n = x.shape[attrs["axis"]]
        if all(isinstance(i, int) and -n <= i < n for i in at.flat):
            out = np.take(x, at.astype(np.int64), axis=attrs["axis"])
            return out if isinstance(out, np.ndarray) else objects([out], ())
    return None


def _map(f: Callable, *args: np.ndarray) -> np.ndarray:
    wide = np.broadcast_arrays(*args)
    return objects((f(*vs) for vs in zip(*(w.flat for w in wide))), wide[0].shape)


def _reduce(x: np.ndarray, axes, keepdims, f, start) -> np.ndarray | None:
    for axis in sorted(axes, reverse=True):
        moved = np.moveaxis(x, axis, 0)
        if not len(moved) and start is None:
            return None
        total = np.full(moved.shape[1:], start, dtype=object) if start is not None else moved[0]
        for row in moved if start is not None else moved[1:]:
            total = _map(_known(f), np.asarray(total, dtype=object), np.asarray(row, dtype=object))
        x = np.asarray(total, dtype=object)
        if keepdims:
            x = np.expand_dims(x, axis)
    return x


def to_array(entries: np.ndarray, dtype) -> np.ndarray | None:
    """The numbers as an array, or None if an entry is symbolic or unknown."""
    out = np.empty(entries.shape, dtype=np.float64)
    exact = []
    for v in entries.flat:
        if isinstance(v, Ratio) and isinstance(v.num, int) and isinstance(v.den, int):
            exact.append(v.num / v.den)
        elif isinstance(v, int):
            exact.append(v)
        else:
            return None
    if np.dtype(dtype).kind in "iub":
        return np.array(exact, dtype=object).astype(dtype).reshape(out.shape)
    out.flat = exact
    return out.astype(dtype)


def is_symbolic(v) -> bool:
    return isinstance(v, Expr)
