"""Builds IR nodes: numbers become constants, what is known at import time is folded, no-ops vanish.

op.mul(x, op.sigmoid(x)); op.add(x, 1.0); op.reshape(x, shape=(2, n))
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np

from edgec.frontend import symbolic
from edgec.ir.dims import Dim, Expr, is_ge, max_dim, min_dim, product
from edgec.ir.evaluate import Evaluator
from edgec.ir.node import Node, constant, make
from edgec.ir.ops import OPS
from edgec.ir.ops.registry import broadcast_shapes
from edgec.ir.types import FLOATS, INTS, TensorType, TupleType, numpy_dtype

HUGE = 10**9  # a bound of a slice from here on means the end
STATIC = 1 << 26  # elements up to which a value is computed at import time because an attribute needs it
FOLD = 4096  # elements up to which a value known at import time becomes a constant at once


def emit(name: str, *inputs, **attrs) -> Node:
    """The node, or a simpler one of the same value. Numbers among the inputs take the first node's dtype."""
    dtype = next((i.dtype for i in inputs if isinstance(i, Node) and isinstance(i.type, TensorType)
                  and not (name == "where" and i.dtype == "bool")), None)  # fmt: skip
    operands = [constant(i, dtype) if isinstance(i, (bool, int, float, np.generic)) else i for i in inputs]
    if same := _no_op(name, operands, attrs):
        return same
    node = make(name, *operands, **attrs)
    type = node.type
    if not isinstance(type, TensorType) or name in ("constant", "input", "pack", "branch"):
        return node
    if not all(isinstance(d, int) for d in type.shape) or int(product(type.shape)) > FOLD:
        return node
    return _folded(node)


def _folded(node: Node) -> Node:
    args = [i for i in node.inputs if i is not None]
    if args and all(i.op == "constant" and i.type.encoding is None for i in args):
        if sum(int(product(i.shape)) for i in args) <= 16 * FOLD:
            arrays = [None if i is None else i["data"].array() for i in node.inputs]
            return constant(np.asarray(OPS[node.op].reference(*arrays, **node.attrs)).astype(numpy_dtype(node.dtype)))
    known = symbolic.content(node)
    if known is None:
        return node
    numbers = symbolic.to_array(known, numpy_dtype(node.dtype))
    if numbers is not None:
        return constant(numbers)
    if known.shape == () and isinstance(known[()], Expr) and node.dtype in INTS + FLOATS:
        return make("dim_value", value=known[()], dtype=node.dtype)
    return node


def _no_op(name: str, operands: list, attrs: dict) -> Node | None:
    x = operands[0] if operands else None
    if not isinstance(x, Node) or not isinstance(x.type, TensorType) or x.type.encoding:
        return None
    none = (
        (name in ("reshape", "expand") and tuple(attrs["shape"]) == x.shape)
        or (name == "cast" and attrs["dtype"] == x.dtype)
        or (name == "transpose" and tuple(attrs["perm"]) == tuple(range(x.rank)))
        or (name == "concat" and len(operands) == 1)
        or (name == "slice" and tuple(attrs["sizes"]) == x.shape and set(attrs["steps"]) <= {1})
        or (name.startswith("reduce_") and not tuple(attrs["axes"]))
    )
    if name == "reshape" and x.op == "reshape":
        return emit("reshape", x.inputs[0], **attrs)
    return x if none else None


class _Ops:
    def __getattr__(self, name: str):
        name = name.rstrip("_")
        if name not in OPS:
            raise AttributeError(name)

        def call(*inputs, **attrs) -> Node:
            return emit(name, *inputs, **attrs)

        setattr(self, name, call)
        return call


op = _Ops()
_static: weakref.WeakKeyDictionary[Node, bool] = weakref.WeakKeyDictionary()


def is_static(node: Node) -> bool:
    """Whether the value depends on no input and no symbolic dim, and is small enough to compute."""
    stack = [node]
    while stack:
        n = stack[-1]
        if n in _static:
            stack.pop()
            continue
        missing = [i for i in n.operands() if i not in _static]
        if missing:
            stack.extend(missing)
            continue
        fixed = n.op != "input" and all(_static[i] for i in n.operands())
        _static[n] = fixed and not any(_symbolic(v) for v in n.attrs.values()) and _fits(n)
        stack.pop()
    return _static[node]


def _fits(n: Node) -> bool:
    """A hostile model must not make the importer fill the memory."""
    types = n.type.items if isinstance(n.type, TupleType) else (n.type,)
    return all(isinstance(d, int) for t in types for d in t.shape) and all(product(t.shape) <= STATIC for t in types)


def _symbolic(value) -> bool:
    return isinstance(value, Expr) or (isinstance(value, tuple) and any(map(_symbolic, value)))


def array_of(node: Node) -> np.ndarray | None:
    """The value if it is known at import time."""
    if node.op == "constant":
        return node["data"].array()
    if isinstance(node.type, TensorType) and (known := symbolic.content(node)) is not None:
        numbers = symbolic.to_array(known, numpy_dtype(node.dtype))
        if numbers is not None and node.dtype not in FLOATS:
            return numbers
    return np.asarray(Evaluator({}, {})(node)) if is_static(node) else None


def dims_tensor(dims: Sequence[Dim], dtype: str = "i64") -> Node:
    """A vector of dims as a value."""
    if all(isinstance(d, int) for d in dims):
        return constant(np.array(dims, dtype=numpy_dtype(dtype)).reshape(-1))
    parts = [op.reshape(dim(d, dtype), shape=(1,)) for d in dims]
    return op.concat(*parts, axis=0)


def dim(d: Dim, dtype: str = "i64") -> Node:
    return constant(d, dtype) if isinstance(d, int) else make("dim_value", value=d, dtype=dtype)


def full(shape: Sequence[Dim], value, dtype: str) -> Node:
    return op.expand(constant(value, dtype), shape=tuple(shape))


def transpose(x: Node, perm: Sequence[int]) -> Node:
    return op.transpose(x, perm=tuple(perm))


def reshape(x: Node, shape: Sequence[Dim]) -> Node:
    return op.reshape(x, shape=tuple(shape))


def unsqueeze(x: Node, *axes: int) -> Node:
    """New axes at these positions of the result."""
    rank = x.rank + len(axes)
    at = {a % rank for a in axes}
    rest = iter(x.shape)
    return reshape(x, [1 if i in at else next(rest) for i in range(rank)])


def squeeze(x: Node, *axes: int) -> Node:
    at = {a % x.rank for a in axes}
    return reshape(x, [d for i, d in enumerate(x.shape) if i not in at])


def cast(x: Node, dtype: str) -> Node:
    return op.cast(x, dtype=dtype)


def take(x: Node, axis: int, start: Dim, size: Dim, step: int = 1) -> Node:
    """`size` elements along one axis from `start` on."""
    axis %= x.rank
    starts, sizes, steps = [0] * x.rank, list(x.shape), [1] * x.rank
    starts[axis], sizes[axis], steps[axis] = start, size, step
    return op.slice(x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))


def index(x: Node, axis: int, at: Dim) -> Node:
    """One element of an axis, which vanishes."""
    return squeeze(take(x, axis, at, 1), axis)


def split(x: Node, axis: int, sizes: Sequence[Dim]) -> list[Node]:
    parts, start = [], 0
    for size in sizes:
        parts.append(take(x, axis, start, size))
        start = start + size
    return parts


def reduce(kind: str, x: Node, axes: Sequence[int], keepdims: bool = False) -> Node:
    axes = tuple(sorted({a % x.rank for a in axes})) if x.rank else ()
    return emit("reduce_" + kind, x, axes=axes, keepdims=bool(keepdims))


def iota_along(shape: Sequence[Dim], axis: int, dtype: str = "i64") -> Node:
    """0, 1, ... along `axis` as a tensor of rank len(shape) that broadcasts to it."""
    line = emit("iota", size=shape[axis], dtype=dtype)
    return reshape(line, [shape[axis] if i == axis % len(shape) else 1 for i in range(len(shape))])


def broadcast(x: Node, shape: Sequence[Dim]) -> Node:
    """Two-way, as ONNX Expand."""
    out = broadcast_shapes("expand", x.shape, tuple(shape))
    return op.expand(x, shape=out) if x.shape != out else x


def clamp_slice(d: Dim, start, end, step: int) -> tuple[Dim, Dim]:
    """(start, size) of Python's x[start:end:step] on an axis of d elements; start and end may be huge."""
    if step < 0:
        return _clamp_backwards(d, start, end, step)
    if isinstance(start, int) and start < 0:
        if start == -1 and not isinstance(d, int):
            start = d - 1  # the last element of an axis that is not empty
        else:
            start = max_dim(d + start, 0)
    elif isinstance(start, Expr) and is_ge(0, start):
        start = max_dim(d + start, 0)
    if (isinstance(end, int) and end < 0) or (isinstance(end, Expr) and is_ge(0, end)):
        end = d + end
    if isinstance(end, int) and end >= HUGE:
        end = d
    elif isinstance(end, int) or isinstance(d, Expr):
        end = min_dim(end, d)  # else: a table cut to an open size, which must not be larger than the table
    span = end - start
    size = max_dim(span, 0)
    if step != 1:
        size = -((-size) // step)
    if isinstance(start, int) and isinstance(size, int) and size == 0:
        start = 0
    return start, size


def _clamp_backwards(d: Dim, start, end, step: int) -> tuple[Dim, Dim]:
    if isinstance(start, int) and start < 0:
        start = d - 1 if start == -1 else max_dim(d + start, -1)
    elif isinstance(start, int) and start >= HUGE:
        start = d - 1
    else:
        start = min_dim(start, d - 1)
    if isinstance(end, int) and end < 0:
        end = -1 if end <= -(2**31) + 1 or is_ge(-1, d + end) else max_dim(d + end, -1)
    else:
        end = min_dim(end, d - 1)
    size = -((-max_dim(start - end, 0)) // -step)
    return (0, 0) if isinstance(size, int) and size == 0 else (start, size)
