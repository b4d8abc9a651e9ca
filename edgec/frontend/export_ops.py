"""What each op of the IR is in ONNX: a table of those that are one op there, a function for each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

from edgec.errors import EdgecError
from edgec.ir.dims import Dim
from edgec.ir.node import Node
from edgec.ir.ops.nn import GATED, PANEL
from edgec.ir.types import INTS, numpy_dtype

if TYPE_CHECKING:
    from edgec.frontend.export import Writer

LAST = np.iinfo(np.int64).min  # where a slice that goes backwards ends, to reach the first element
# op -> ONNX op of the same operands, and attributes by their names here and there
PLAIN = {
    name: name.capitalize()
    for name in ("neg", "abs", "sign", "floor", "ceil", "round", "sqrt", "reciprocal", "exp", "log", "sin", "cos", "tan",
                 "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "relu",
                 "softplus", "not", "add", "sub", "mul", "div", "pow", "max", "min", "and", "or", "xor", "where")
} | {
    "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "isnan": "IsNaN",
    "isinf": "IsInf", "bitwise_not": "BitwiseNot", "bitwise_and": "BitwiseAnd", "bitwise_or": "BitwiseOr",
    "bitwise_xor": "BitwiseXor", "matmul_int": "MatMulInteger",
}  # fmt: skip
ATTRS = {
    "transpose": ("Transpose", {"perm": "perm"}), "concat": ("Concat", {"axis": "axis"}),
    "softmax": ("Softmax", {"axis": "axis"}), "log_softmax": ("LogSoftmax", {"axis": "axis"}),
    "gelu": ("Gelu", {"approximate": "approximate"}),
}  # fmt: skip
REDUCTIONS = {f"reduce_{n}": f"Reduce{n.capitalize()}" for n in ("sum", "mean", "prod", "max", "min")}
FORMS: dict[str, Callable[[Writer, Node, list], str | tuple[str, ...]]] = {}


def form(*ops: str):
    def wrap(f):
        for op in ops:
            FORMS[op] = f
        return f

    return wrap


def refuse(node: Node, w: Writer, reason: str) -> EdgecError:
    return EdgecError("EC1307", f"{node.op}: {reason}", w.graph.origin(node), "Leave out --onnx")


# --- elementwise -------------------------------------------------------------------------------------------------------


@form("rsqrt")
def _rsqrt(w: Writer, node: Node, args: list) -> str:
    return w.emit("Reciprocal", w.emit("Sqrt", args[0]))


@form("silu")
def _silu(w: Writer, node: Node, args: list) -> str:
    return w.act(args[0], "silu", node.dtype)


@form("ne")
def _ne(w: Writer, node: Node, args: list) -> str:
    return w.emit("Not", w.emit("Equal", *args))


@form("mod", "fmod")
def _mod(w: Writer, node: Node, args: list) -> str:
    if node.op == "fmod" or node.dtype in INTS:
        return w.emit("Mod", *args, fmod=int(node.op == "fmod"))
    a, b = args
    return w.emit("Sub", a, w.emit("Mul", w.emit("Floor", w.emit("Div", a, b)), b))


@form("cast")
def _cast(w: Writer, node: Node, args: list) -> str:
    return w.emit("Cast", args[0], to=helper.np_dtype_to_tensor_dtype(np.dtype(numpy_dtype(node.dtype))))


# --- reductions --------------------------------------------------------------------------------------------------------


@form("argmax", "argmin")
def _arg(w: Writer, node: Node, args: list) -> str:
    op = {"argmax": "ArgMax", "argmin": "ArgMin"}[node.op]
    return w.emit(op, args[0], axis=node["axis"], keepdims=0, select_last_index=int(node["last"]))


@form("cumsum")
def _cumsum(w: Writer, node: Node, args: list) -> str:
    axis = w.number(node["axis"], "i64")
    return w.emit("CumSum", args[0], axis, exclusive=int(node["exclusive"]), reverse=int(node["reverse"]))


@form("topk")
def _topk(w: Writer, node: Node, args: list):
    return w.emit("TopK", args[0], w.dim(node["k"]), outputs=2, axis=node["axis"], largest=int(node["largest"]))


@form("layer_norm", "rms_norm")
def _norm(w: Writer, node: Node, args: list) -> str:
    x, gain, *bias = node.inputs
    return w.norm(x, args[0], gain, bias[0] if bias else None, node["axis"], node["eps"], node.op == "layer_norm")


# --- movement ----------------------------------------------------------------------------------------------------------


@form("reshape", "expand")
def _reshape(w: Writer, node: Node, args: list) -> str:
    if node.op == "expand":
        return w.emit("Expand", args[0], w.dims(node["shape"]))
    old, new = ([d for d in shape if d != 1] for shape in (node.inputs[0].shape, node.shape))
    if old != new:
        return w.emit("Reshape", args[0], w.dims(node["shape"]), allowzero=1)
    ones = [[i for i, d in enumerate(shape) if d == 1] for shape in (node.inputs[0].shape, node.shape)]
    x = w.emit("Squeeze", args[0], w.dims(ones[0])) if ones[0] else args[0]
    return w.emit("Unsqueeze", x, w.dims(ones[1])) if ones[1] else w.emit("Identity", x)


@form("slice")
def _slice(w: Writer, node: Node, args: list) -> str:
    cuts = [(i, *c) for i, c in enumerate(zip(node["starts"], node["sizes"], node["steps"]))]
    cuts = [c for c in cuts if c[1:] != (0, node.inputs[0].shape[c[0]], 1)]
    if not cuts:
        return w.emit("Identity", args[0])
    ends: list[Dim] = []
    for _, start, size, step in cuts:
        end = start + size * step
        if step < 0 and not isinstance(end, int):
            raise refuse(node, w, "it goes backwards over a symbolic size")
        ends.append(LAST if step < 0 and isinstance(end, int) and end < 0 else end)
    axes, starts, _, steps = zip(*cuts)
    return w.sliced(args[0], starts, ends, axes, steps)


@form("pad")
def _pad(w: Writer, node: Node, args: list) -> str:
    before, after, x = node["before"], node["after"], args[0]
    low = lambda ns: [min(n, 0) if isinstance(n, int) else 0 for n in ns]  # noqa: E731
    if any(cut := low((*before, *after))):
        axes = range(node.rank)
        ends = [d + a for d, a in zip(node.inputs[0].shape, low(after))]
        x = w.sliced(x, [-n for n in cut[: node.rank]], ends, axes, [1] * node.rank)
    amounts = [max(n, 0) if isinstance(n, int) else n for n in (*before, *after)]
    return w.emit("Pad", x, w.dims(amounts), args[1], mode=node["mode"])


@form("gather", "gather_elements")
def _gather(w: Writer, node: Node, args: list) -> str:
    op = {"gather": "Gather", "gather_elements": "GatherElements"}[node.op]
    return w.emit(op, args[0], w.wide(node.inputs[1]), axis=node["axis"])


@form("gather_nd")
def _gather_nd(w: Writer, node: Node, args: list) -> str:
    return w.emit("GatherND", args[0], w.wide(node.inputs[1]), batch_dims=node["batch_dims"])


@form("scatter_nd", "scatter_elements")
def _scatter(w: Writer, node: Node, args: list) -> str:
    index = w.wide(node.inputs[1])
    if node.op == "scatter_nd":
        return w.emit("ScatterND", args[0], index, args[2], reduction=node["reduction"])
    if node.inputs[1].shape != node.inputs[2].shape:
        raise refuse(node, w, "there are more updates than indices")
    return w.emit("ScatterElements", args[0], index, args[2], axis=node["axis"], reduction=node["reduction"])


@form("iota", "dim_value")
def _iota(w: Writer, node: Node, args: list) -> str:
    size = w.emit("Squeeze", w.dim(node["size" if node.op == "iota" else "value"]), w.dims((0,)))
    x = w.emit("Range", w.number(0, "i64"), size, w.number(1, "i64")) if node.op == "iota" else size
    return _cast(w, node, [x])


# --- products ----------------------------------------------------------------------------------------------------------


@form("matmul")
def _matmul(w: Writer, node: Node, args: list) -> str:
    flips = (node["trans_a"], node["trans_b"])
    a, b = (w.swapped(x, n.rank) if flip else x for x, n, flip in zip(args, node.operands(), flips))
    return w.emit("MatMul", a, b)


@form("linear")
def _linear(w: Writer, node: Node, args: list) -> str:
    x, weight, bias, residual, gain, shift = node.inputs
    assert x is not None and weight is not None
    y = args[0]
    if node["rotate"]:
        raise refuse(node, w, "a product that rotates its input")
    if node["norm"] != "none":
        y = w.norm(x, y, gain, shift, x.rank - 1, node["eps"], node["norm"] == "layer")

    def product(matrix: str, added: str | None, act: str) -> str:
        z = w.emit("MatMul", y, w.swapped(matrix, 2))
        return w.act(z if added is None else w.emit("Add", z, added), act, node.dtype)

    if node["act"] in GATED:
        if weight.op != "constant" or not (bias is None or bias.op == "constant"):
            raise refuse(node, w, "its gated weight is no constant")
        sides = [[None if c is None else w.array(side(c["data"].array())) for c in (weight, bias)] for side in _SIDES]
        out = w.emit("Mul", product(*sides[0], GATED[node["act"]]), product(*sides[1], "none"))  # type: ignore[arg-type]
    else:
        out = product(args[1], args[2], node["act"])
    return out if residual is None else w.emit("Add", out, args[3])


def _side(part: int) -> Callable[[np.ndarray], np.ndarray]:
    """The gates of a panelled weight or bias (0), or what they multiply (1)."""
    return lambda a: a.reshape(-1, 2, PANEL // 2, *a.shape[1:])[:, part].reshape(-1, *a.shape[1:])


_SIDES = (_side(0), _side(1))


def _window(w: Writer, node: Node, x: str) -> tuple[str, dict]:
    """The operand and attributes of sliding windows: padding that ONNX does not take goes before them."""
    pads, n = node["pads"], node.rank - 2
    if not all(isinstance(p, int) and p >= 0 for p in pads):
        if node.op not in ("conv",):
            raise refuse(node, w, "its padding is symbolic or negative")
        x = w.emit("Pad", x, w.dims((0, 0, *pads[:n], 0, 0, *pads[n:])))
        pads = (0,) * 2 * n
    return x, {"strides": node["strides"], "pads": pads, "dilations": node["dilations"]}


@form("conv")
def _conv(w: Writer, node: Node, args: list) -> str:
    if args[4] is not None:
        raise refuse(node, w, "its input is rounded to integers")
    x, attrs = _window(w, node, args[0])
    y = w.act(w.emit("Conv", x, *args[1:3], group=node["group"], **attrs), node["act"], node.dtype)
    return y if args[3] is None else w.emit("Add", y, args[3])


@form("conv_transpose")
def _conv_transpose(w: Writer, node: Node, args: list) -> str:
    x, attrs = _window(w, node, args[0])
    y = w.emit("ConvTranspose", x, *args[1:3], group=node["group"], output_padding=node["output_padding"], **attrs)
    return w.act(y, node["act"], node.dtype)


@form("max_pool", "avg_pool")
def _pool(w: Writer, node: Node, args: list) -> str:
    x, attrs = _window(w, node, args[0])
    attrs |= {"kernel_shape": node["kernel"], "ceil_mode": int(node["ceil"])}
    if node.op == "max_pool":
        return w.emit("MaxPool", x, **attrs)
    return w.emit("AveragePool", x, count_include_pad=int(node["count_pads"]), **attrs)


# --- attention ---------------------------------------------------------------------------------------------------------


@form("attention")
def _attention(w: Writer, node: Node, args: list) -> str:
    q, k, v = (w.swapped(x, 4, 1, 2) if node[f"{n}_layout"] == "bshd" else x for n, x in zip("qkv", args))
    sizes = []
    for n, x in zip("qkv", node.inputs):
        assert x is not None
        b, i, j, d = x.shape
        sizes.append((b, j, i, d) if node[f"{n}_layout"] == "bshd" else (b, i, j, d))
    (b, h, s, _), (_, hk, t, d), (*_, dv) = sizes
    assert isinstance(h, int) and isinstance(hk, int)
    if h != hk:  # each key head for all queries that read it
        k, v = (_repeated(w, x, (b, hk, h // hk, t, n)) for x, n in ((k, d), (v, dv)))
    number = lambda x: w.number(x, node.dtype)  # noqa: E731
    scores = w.emit("Mul", w.emit("MatMul", q, w.swapped(k, 4)), number(node["scale"]))
    if node["softcap"]:
        cap = number(node["softcap"])
        scores = w.emit("Mul", w.emit("Tanh", w.emit("Div", scores, cap)), cap)
    mask = args[3]
    if node["causal"] or node["window"]:
        zero, one, end = w.number(0, "i64"), w.number(1, "i64"), w.dims((0,))
        rows, columns = (w.emit("Range", zero, w.emit("Squeeze", w.dim(n), end), one) for n in (s, t))
        position = w.emit("Add", w.emit("Unsqueeze", rows, w.dims((1,))), w.dim(t - s))
        hidden = [w.emit("Greater", columns, position)] if node["causal"] else []
        if node["window"]:
            hidden.append(w.emit("LessOrEqual", columns, w.emit("Sub", position, w.dim(node["window"]))))
        for where in hidden:
            low = w.emit("Where", where, number(-np.inf), number(0))
            mask = low if mask is None else w.emit("Add", mask, low)
    scores = scores if mask is None else w.emit("Add", scores, mask)
    shares = w.emit("Softmax", scores, axis=-1)
    y = w.emit("MatMul", shares, v)
    return w.swapped(y, 4, 1, 2) if node["out_layout"] == "bshd" else y


def _repeated(w: Writer, x: str, sizes: tuple) -> str:
    """[b, hk, t, d] -> [b, hk * g, t, d]. sizes: (b, hk, g, t, d)."""
    b, hk, g, t, d = sizes
    x = w.emit("Expand", w.emit("Unsqueeze", x, w.dims((2,))), w.dims(sizes))
    return w.emit("Reshape", x, w.dims((b, hk * g, t, d)))


@form("rope")
def _rope(w: Writer, node: Node, args: list) -> str:
    x, cos, sin = args
    if node["rotate"]:
        raise refuse(node, w, "heads that are rotated")
    heads, dim, start, half = node["heads"], node["dim"], node["start"], node.inputs[1].shape[2]  # type: ignore[union-attr]
    x = w.sliced(x, (start,), (start + heads * dim,), (2,), (1,))
    x = w.emit("Reshape", x, w.dims(node.shape))
    part = lambda a, b, step=1: w.sliced(x, (a,), (b,), (3,), (step,))  # noqa: E731
    cos, sin = (w.emit("Unsqueeze", t, w.dims((2,))) for t in (cos, sin))
    if node["interleaved"]:
        a, b = part(0, 2 * half, 2), part(1, 2 * half, 2)
        pair = [w.emit("Sub", w.emit("Mul", a, cos), w.emit("Mul", b, sin)),
                w.emit("Add", w.emit("Mul", b, cos), w.emit("Mul", a, sin))]  # fmt: skip
        pair = [w.emit("Unsqueeze", p, w.dims((4,))) for p in pair]
        y = w.emit("Reshape", w.emit("Concat", *pair, axis=4), w.dims((*node.shape[:3], 2 * half)))
    else:
        turned = w.emit("Concat", w.emit("Neg", part(half, 2 * half)), part(0, half), axis=3)
        cos, sin = (w.emit("Concat", t, t, axis=3) for t in (cos, sin))
        whole = x if dim == 2 * half else part(0, 2 * half)
        y = w.emit("Add", w.emit("Mul", whole, cos), w.emit("Mul", turned, sin))
    return y if dim == 2 * half else w.emit("Concat", y, part(2 * half, dim), axis=3)


@form("cache_append")
def _cache_append(w: Writer, node: Node, args: list) -> str:
    if node["dtype"] != "f32":
        raise refuse(node, w, "a cache of int8")
    flip = (node["layout"] == "bhsd") != (node["axis"] == 2)
    return w.emit("Concat", args[0], w.swapped(args[1], 4, 1, 2) if flip else args[1], axis=node["axis"])
