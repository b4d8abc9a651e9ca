"""How each op ties the axes of its operands to those of its result; see channels.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgec.ir.dims import Dim, product
from edgec.ir.node import Node
from edgec.ir.ops import OPS
from edgec.ir.ops.nn import GATED, PANEL

Axis = np.ndarray | None  # the labels along an axis; None: its size is symbolic
Axes = tuple[Axis, ...]


class Labels:
    """Hands out labels and collects what is tied or frozen.

    contracts: (node, operand, axis): a product that sums over that axis of a constant. heads: labels along which values
    are multiplied with each other one by one: attentions' heads.
    """

    def __init__(self) -> None:
        self.count = 0
        self._edges: list[tuple[np.ndarray, np.ndarray]] = []
        self._frozen: list[tuple[np.ndarray, int]] = []
        self.reasons: list[str] = []
        self.contracts: list[tuple[Node, int, int]] = []
        self.heads: list[np.ndarray] = []

    def new(self, size: int) -> np.ndarray:
        self.count += size
        return np.arange(self.count - size, self.count)

    def of(self, shape: Sequence[Dim]) -> Axes:
        return tuple(self.new(d) if isinstance(d, int) else None for d in shape)

    def tie(self, a: Axis, b: Axis) -> None:
        """Element by element; an axis of symbolic size freezes the other."""
        if a is None or b is None:
            self.freeze((a, b), "it meets an axis of symbolic size")
        elif a is not b:
            left, right = np.broadcast_arrays(a, b)
            self._edges.append((left.ravel(), right.ravel()))

    def freeze(self, axes: Sequence[Axis] | None, reason: str) -> None:
        for labels in axes or ():
            if labels is not None and len(labels):
                if not self.reasons or self.reasons[-1] != reason:
                    self.reasons.append(reason)
                self._frozen.append((labels, len(self.reasons) - 1))

    def made(self, shape: Sequence[Dim], reason: str) -> Axes:
        """Frozen axes."""
        axes = self.of(shape)
        self.freeze(axes, reason)
        return axes

    def units(self) -> tuple[np.ndarray, np.ndarray]:
        """(label -> unit, unit -> the number of the reason why it is frozen, or -1)."""
        root = _components(self.count, self._edges)
        why = np.full(self.count, -1)
        for labels, reason in self._frozen:
            units = root[labels]
            units = units[why[units] < 0]
            why[units] = reason
        return root, why


def _components(count: int, edges: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """label -> the smallest label connected with it."""
    root = np.arange(count)
    if not edges:
        return root
    a, b = (np.concatenate(side) for side in zip(*edges))
    while True:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        apart = low != high
        if not apart.any():
            return root
        a, b = a[apart], b[apart]
        np.minimum.at(root, high[apart], low[apart])
        while (root != (further := root[root])).any():
            root = further


TIES: dict[str, Callable[..., Axes]] = {}


def ties(*ops: str):
    def wrap(function: Callable[..., Axes]) -> Callable[..., Axes]:
        TIES.update(dict.fromkeys(ops, function))
        return function

    return wrap


def _joined(labels: Labels, shape: Sequence[Dim], operands: Sequence[tuple[tuple[Dim, ...], Axes]]) -> Axes:
    """Axes of numpy broadcasting."""
    out: list[Axis] = []
    for i, size in enumerate(shape):
        at = i - len(shape)
        here = [(s[at], a[at]) for s, a in operands if len(s) >= -at]
        wide = [a for d, a in here if d != 1] if size != 1 else [a for _, a in here]
        for other in wide[1:]:
            labels.tie(wide[0], other)
        # an axis that a symbolic one may broadcast to its own size keeps no labels
        first = wide[0] if wide else labels.made((size,), "it is broadcast")[0]
        fits = first is not None and isinstance(size, int) and len(first) == size
        if not fits and first is not None:
            labels.freeze((first,), "it meets an axis of symbolic size")
        out.append(first if fits else labels.made((size,), "it meets an axis of symbolic size")[0])
    return tuple(out)


@ties(*(name for name, op in OPS.items() if op.kind in ("unary", "binary", "elementwise")))
def _elementwise(labels: Labels, node: Node, *operands: Axes | None) -> Axes:
    there = [(i.shape, a) for i, a in zip(node.inputs, operands) if i is not None and a is not None]
    return _joined(labels, node.shape, there)


@ties("branch")
def _branch(labels: Labels, node: Node, pred: Axes, a: Axes, b: Axes) -> Axes:
    for x, y in zip(a, b):
        labels.tie(x, y)
    return a


# --- movement --------------------------------------------------------------------------------------------------------


@ties("transpose")
def _transpose(labels: Labels, node: Node, x: Axes) -> Axes:
    return tuple(x[i] for i in node["perm"])


@ties("reshape")
def _reshape(labels: Labels, node: Node, x: Axes) -> Axes:
    out: list[Axis] = []
    for before, after in _reshape_parts(node.inputs[0].shape, node.shape):
        out += _regrouped(labels, x[before], node.inputs[0].shape[before], node.shape[after])
    return tuple(out)


def _reshape_parts(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[slice, slice]]:
    """The shortest runs of axes on both sides that hold the same number of elements."""
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        steps = [(m, n) for m in range(i, len(old) + 1) for n in range(j, len(new) + 1)
                 if (m, n) != (i, j) and product(old[i:m]) == product(new[j:n])]  # fmt: skip
        m, n = min(steps, key=lambda step: (sum(step), step)) if steps else (len(old), len(new))
        found.append((slice(i, m), slice(j, n)))
        i, j = m, n
    return found


def _regrouped(labels: Labels, x: Axes, old: Sequence[Dim], new: Sequence[Dim]) -> Axes:
    """Of a reshape from one run of axes to another: the outermost axes stay free, in whole blocks of the inner ones."""
    if len(old) == len(new) == 1 and old == new:
        return x
    outer = next((i for i, d in enumerate(old) if d != 1), None)
    inner = next((i for i, d in enumerate(new) if d != 1), None)
    why = "a reshape splits or merges it"
    if outer is None or inner is None or not all(isinstance(d, int) for d in (*old, *new)):
        labels.freeze(x, why)
        return labels.made(new, why)
    a, made = old[outer], list(labels.of(new))
    b = new[inner]
    head, first = x[outer], made[inner]
    assert isinstance(a, int) and isinstance(b, int) and head is not None and first is not None
    rest_old, rest_new = list(x[outer + 1 :]), made[inner + 1 :]
    if a == b:
        labels.tie(first, head)
        tail = _regrouped(labels, tuple(rest_old), old[outer + 1 :], new[inner + 1 :]) if old[outer + 1 :] else ()
        if len(tail) == len(rest_new):
            made[inner + 1 :] = tail
            rest_old, rest_new = [], []
    elif b and a % b == 0:
        labels.tie(head.reshape(b, a // b), first[:, None])
    elif a and b % a == 0:
        labels.tie(first.reshape(a, b // a), head[:, None])
    else:
        rest_old, rest_new = [head, *rest_old], [first, *rest_new]
    labels.freeze([*x[:outer], *rest_old], why)
    labels.freeze([*made[:inner], *rest_new], why)
    return tuple(made)


@ties("expand")
def _expand(labels: Labels, node: Node, x: Axes) -> Axes:
    out = list(labels.of(node.shape))
    start = node.rank - len(x)
    for i, labels_in in enumerate(x):
        if node.inputs[0].shape[i] == node.shape[start + i]:
            out[start + i] = labels_in
        else:
            labels.freeze((labels_in,), "it is broadcast")
    return tuple(out)


@ties("slice")
def _slice(labels: Labels, node: Node, x: Axes) -> Axes:
    out: list[Axis] = []
    for axis, (labels_in, start, size, step) in enumerate(zip(x, node["starts"], node["sizes"], node["steps"])):
        known = labels_in is not None and isinstance(start, int) and isinstance(size, int)
        if known and labels_in is not None and abs(step) == 1:
            out.append(labels_in[start + step * np.arange(size)])
        else:
            labels.freeze((labels_in,), "a slice takes steps or a symbolic part of it")
            out += labels.made(node.shape[axis : axis + 1], "a slice takes steps or a symbolic part of it")
    return tuple(out)


@ties("concat")
def _concat(labels: Labels, node: Node, *xs: Axes) -> Axes:
    axis = node["axis"]
    out = list(xs[0])
    for other in xs[1:]:
        for i, (a, b) in enumerate(zip(xs[0], other)):
            if i != axis:
                labels.tie(a, b)
                out[i] = b if a is None else out[i]
    parts = [x[axis] for x in xs]
    whole = [p for p in parts if p is not None]
    if len(whole) < len(parts):
        labels.freeze(whole, "it is joined with a part of symbolic size")
    out[axis] = np.concatenate(whole) if len(whole) == len(parts) else None
    return tuple(out)


@ties("pad")
def _pad(labels: Labels, node: Node, x: Axes, value: Axes | None) -> Axes:
    out: list[Axis] = []
    for i, labels_in in enumerate(x):
        if node["before"][i] == node["after"][i] == 0:
            out.append(labels_in)
        else:
            labels.freeze((labels_in,), "it is padded")
            out += labels.made(node.shape[i : i + 1], "it is padded")
    return tuple(out)


@ties("gather")
def _gather(labels: Labels, node: Node, x: Axes, indices: Axes) -> Axes:
    axis, by = node["axis"], node.inputs[1]
    middle = indices
    source = x[axis]
    if by.op == "constant" and by.rank == 1 and source is not None:
        picked = source[by["data"].array()]
        labels.tie(indices[0], picked)
        middle = (picked,)
    else:
        labels.freeze((source,), "it is read by index")
        labels.freeze(indices, "it chooses by index")
    return (*x[:axis], *middle, *x[axis + 1 :])


# --- reductions ------------------------------------------------------------------------------------------------------


@ties("reduce_sum", "reduce_mean", "reduce_prod", "reduce_max", "reduce_min")
def _reduce(labels: Labels, node: Node, x: Axes) -> Axes:
    labels.freeze([x[i] for i in node["axes"]], f"{node.op} runs over it")
    kept = [labels.made((1,), "it is reduced")[0] if i in node["axes"] else a for i, a in enumerate(x)]
    return tuple(a for i, a in enumerate(kept) if node["keepdims"] or i not in node["axes"])


@ties("softmax", "log_softmax", "cumsum")
def _along(labels: Labels, node: Node, x: Axes) -> Axes:
    labels.freeze((x[node["axis"]],), f"{node.op} runs over it")
    return x


@ties("argmax", "argmin")
def _chosen(labels: Labels, node: Node, x: Axes) -> Axes:
    labels.freeze((x[node["axis"]],), f"{node.op} runs over it")
    return (*x[: node["axis"]], *x[node["axis"] + 1 :])


@ties("layer_norm", "rms_norm")
def _norm(labels: Labels, node: Node, x: Axes, *parameters: Axes | None) -> Axes:
    labels.freeze(x[node["axis"] :], f"{node.op} runs over it")
    for p in parameters:
        labels.freeze(p, f"{node.op} runs over it")
    return x


# --- products --------------------------------------------------------------------------------------------------------


def _rows(labels: Labels, node: Node, w: Axis) -> Axis:
    """The labels of a linear's columns, from those of its weight's rows; of a gated one a gate and the row it multiplies
    have one."""
    if node["act"] not in GATED or w is None:
        return w
    panels = w.reshape(-1, 2, PANEL // 2)
    labels.tie(panels[:, 0], panels[:, 1])
    return np.ascontiguousarray(panels[:, 0]).reshape(-1)


@ties("linear")
def _linear(labels: Labels, node: Node, x: Axes, w: Axes, bias, residual, gain, norm_bias) -> Axes:
    _contracted(labels, node, x[-1], 1, w[1], 1)
    if node["norm"] != "none":
        for axes in (x[-1:], gain, norm_bias):
            labels.freeze(axes, "a norm runs over it")
    rows = _rows(labels, node, w[0])
    if bias is not None:
        labels.tie(rows, _rows(labels, node, bias[0]))
    out = (*x[:-1], rows)
    for a, b in zip(out, residual or ()):
        labels.tie(a, b)
    return out


def _contracted(labels: Labels, node: Node, x: Axis, operand: int, w: Axis, axis: int) -> None:
    """A sum over x's axis and that axis of operand w."""
    labels.tie(x, w)
    if node.inputs[operand].op == "constant":
        labels.contracts.append((node, operand, axis))
    else:
        labels.freeze((x, w), f"{node.op} sums over it with what is no constant")


@ties("matmul")
def _matmul(labels: Labels, node: Node, a: Axes, b: Axes) -> Axes:
    left, right = node.inputs
    ka, m = (-2, -1) if node["trans_a"] else (-1, -2)
    kb, n = (-1, -2) if node["trans_b"] else (-2, -1)
    if right.op == "constant":
        _contracted(labels, node, a[ka], 1, b[kb], right.rank + kb)
    else:
        _contracted(labels, node, b[kb], 0, a[ka], left.rank + ka)
    batch = _joined(labels, node.shape[:-2], [(left.shape[:-2], a[:-2]), (right.shape[:-2], b[:-2])])
    if left.op != "constant" != right.op and batch and batch[-1] is not None:
        labels.heads.append(batch[-1])
    return (*batch, a[m], b[n])


@ties("conv")
def _conv(labels: Labels, node: Node, x: Axes, w: Axes, bias, residual, grid) -> Axes:
    groups, channels, rows = node["group"], x[1], w[0]
    if groups == 1:
        _contracted(labels, node, channels, 1, w[1], 1)
    else:  # a whole group goes, with what it reads and makes; of a depthwise one that is a channel
        labels.freeze(w[1:2], "the channels of a group stay together")
        if channels is None or rows is None or node.inputs[1].op != "constant":
            labels.freeze((channels, rows), "a convolution in groups by what is no constant")
        else:
            inner, outer = channels.reshape(groups, -1), rows.reshape(groups, -1)
            for block in (inner, outer):
                labels.tie(block, inner[:, :1])
    if node.inputs[1].op != "constant":
        labels.freeze(w, "a convolution by what is no constant")
    labels.freeze((*x[2:], *w[2:]), "a window slides over it")
    if bias is not None:
        labels.tie(rows, bias[0])
    out = (x[0], rows, *labels.made(node.shape[2:], "a window slides over it"))
    for a, b in zip(out, residual or ()):
        labels.tie(a, b)
    return out


@ties("conv_transpose")
def _conv_transpose(labels: Labels, node: Node, x: Axes, w: Axes, bias) -> Axes:
    if node["group"] != 1:
        for axes in (x, w, bias):
            labels.freeze(axes, "conv_transpose in groups reads it")
        return labels.made(node.shape, "conv_transpose in groups makes it")
    _contracted(labels, node, x[1], 1, w[0], 0)
    labels.freeze((*x[2:], *w[2:]), "a window slides over it")
    if bias is not None:
        labels.tie(w[1], bias[0])
    return (x[0], w[1], *labels.made(node.shape[2:], "a window slides over it"))


@ties("max_pool", "avg_pool")
def _pool(labels: Labels, node: Node, x: Axes) -> Axes:
    labels.freeze(x[2:], "a window slides over it")
    return (*x[:2], *labels.made(node.shape[2:], "a window slides over it"))


@ties("resize")
def _resize(labels: Labels, node: Node, x: Axes) -> Axes:
    out: list[Axis] = []
    for i, labels_in in enumerate(x):
        same = node.shape[i] == node.inputs[0].shape[i] and node["scales"][i] in (0.0, 1.0) and not node["roi"]
        if not same:
            labels.freeze((labels_in,), "it is resized")
        out += (labels_in,) if same else labels.made(node.shape[i : i + 1], "it is resized")
    return tuple(out)


# --- attention -------------------------------------------------------------------------------------------------------


def _bhsd(axes: Axes, layout: str) -> Axes:
    return axes if layout == "bhsd" else (axes[0], axes[2], axes[1], axes[3])


@ties("attention")
def _attention(labels: Labels, node: Node, q: Axes, k: Axes, v: Axes, mask: Axes | None) -> Axes:
    q, k, v = (_bhsd(x, node[f"{name}_layout"]) for name, x in (("q", q), ("k", k), ("v", v)))
    labels.freeze((*q[2:], *k[2:], *v[2:]), "attention sums over it")
    for x in (k, v):
        if x[0] is not None or q[0] is not None:
            labels.tie(q[0], x[0])
        if q[1] is not None and x[1] is not None:
            labels.tie(q[1].reshape(len(x[1]), -1), x[1][:, None])
    if q[1] is not None:
        labels.heads.append(q[1])
    if mask is not None:
        labels.freeze(mask[-2:], "attention sums over it")
        for at in (-3, -4):
            if len(mask) >= -at and node.inputs[3].shape[at] != 1:
                labels.tie(mask[at], q[at])
    out = (q[0], q[1], *_bhsd(labels.made(node.shape, "attention makes it"), node["out_layout"])[2:])
    return _bhsd(out, node["out_layout"])


@ties("cache_append")
def _cache_append(labels: Labels, node: Node, past: Axes, new: Axes) -> Axes:
    axis = node["axis"]
    new = new if node["layout"] == ("bhsd" if axis == 2 else "bshd") else (new[0], new[2], new[1], new[3])
    for i, (a, b) in enumerate(zip(past, new)):
        if i != axis:
            labels.tie(a, b)
    labels.freeze((past[axis], new[axis]), "tokens are appended to it")
    return (*past[:axis], *labels.made(node.shape[axis : axis + 1], "tokens are appended to it"), *past[axis + 1 :])


@ties("rope")
def _rope(labels: Labels, node: Node, x: Axes, cos: Axes, sin: Axes) -> Axes:
    heads, dim, start = node["heads"], node["dim"], node["start"]
    labels.freeze((*cos, *sin), "rotations are given along it")
    made, columns = labels.new(heads), x[2]
    assert columns is not None
    labels.tie(columns[start : start + heads * dim].reshape(heads, dim), made[:, None])
    return (x[0], x[1], made, *labels.made((dim,), "rotations turn pairs of it"))
