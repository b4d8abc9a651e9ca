"""The graph without some of its units: constants are sliced when they are read, shapes derived anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from edgec.errors import EdgecError
from edgec.ir.node import Graph, Node, constant, make
from edgec.ir.ops import IrError
from edgec.ir.ops.nn import GATED, PANEL
from edgec.rewrites.parts import taken
from edgec.rewrites.prune.channels import Channels

Kept = np.ndarray | None  # positions along an axis that stay; None: all of them


def prune(channels: Channels, units: Iterable[int]) -> tuple[Graph, dict[Node, Node]]:
    """The analysed graph without these units, and old node -> new node of all but constants.

    What is left computes what it did, had the products that read the units nothing but zeros in their place. EdgecError
    EC1305 where a unit is frozen, or where an axis would be left with nothing or with a width that its op cannot have.
    """
    gone = np.zeros(len(channels.unit), bool)
    ids = np.asarray(sorted(set(units)), int)
    for unit in ids:
        why = channels.reason(unit)
        if why is not None:
            raise EdgecError("EC1305", f"a channel cannot be removed: {why}")
    gone[ids] = True
    slicer = _Slicer(channels, gone)
    graph = channels.graph
    inputs = tuple(slicer.into.get(n) or slicer.add(n) for n in graph.inputs)
    outputs = [n if n.op == "constant" else slicer.into[n] for _, n in graph.outputs]
    return dataclasses.replace(graph.with_outputs(outputs), inputs=inputs), slicer.into


class _Slicer:
    def __init__(self, channels: Channels, gone: np.ndarray):
        self.channels, self.gone = channels, gone
        self.into: dict[Node, Node] = {}
        for node in channels.graph.nodes():
            if node.op != "constant":
                self.add(node)

    def add(self, node: Node) -> Node:
        build = BUILDERS.get(node.op, _same)
        try:
            new = build(self, node)
        except IrError as error:
            origin = self.channels.graph.origin(node)
            raise EdgecError("EC1305", f"its channels cannot be removed: {error}", where=origin) from None
        origins = self.channels.graph.origins
        if node in origins:
            origins.setdefault(new, origins[node])
        self.into[node] = new
        return new

    def kept(self, node: Node, axis: int) -> Kept:
        units = self.channels.units(node, axis)
        if units is None or not self.gone[units].any():
            return None
        found = np.flatnonzero(~self.gone[units])
        if not len(found):
            where = self.channels.graph.origin(node)
            raise EdgecError("EC1305", f"nothing would be left of an axis of {len(units)}", where=where)
        return found

    def size(self, node: Node, axis: int):
        kept = self.kept(node, axis)
        return node.shape[axis] if kept is None else len(kept)

    def shape(self, node: Node) -> tuple:
        return tuple(self.size(node, axis) for axis in range(node.rank))

    def before(self, node: Node, axis: int, end: int) -> int:
        """How many of the first elements stay."""
        kept = self.kept(node, axis)
        return end if kept is None else int(np.searchsorted(kept, end))

    def whole(self, node: Node | None, rows: Kept = None) -> Node | None:
        """The new node of an operand. rows: of a constant, those that stay instead of the ones that its labels say."""
        if node is None or node.op != "constant":
            return None if node is None else self.into[node]
        picks = [self.kept(node, axis) for axis in range(node.rank)]
        if rows is not None:
            picks[0] = rows
        return node if all(p is None for p in picks) else constant(taken(node["data"], picks))

    def operands(self, node: Node) -> list[Node | None]:
        return [self.whole(i) for i in node.inputs]


def _same(s: _Slicer, node: Node) -> Node:
    inputs = s.operands(node)
    return node if all(a is b for a, b in zip(inputs, node.inputs)) else make(node.op, *inputs, **node.attrs)


def _with(node: Node, inputs: Iterable[Node | None], **changes: Any) -> Node:
    return make(node.op, *inputs, **(dict(node.attrs) | changes))


def _input(s: _Slicer, node: Node) -> Node:
    return make("input", name=node["name"], type=dataclasses.replace(node.type, shape=s.shape(node)))


def _shaped(s: _Slicer, node: Node) -> Node:
    return _with(node, s.operands(node), shape=s.shape(node))


def _slice(s: _Slicer, node: Node) -> Node:
    x, starts = node.inputs[0], list(node["starts"])
    for axis, (start, size, step) in enumerate(zip(node["starts"], node["sizes"], node["steps"])):
        if s.kept(x, axis) is not None:
            low = start if step > 0 else start - size + 1
            first = s.before(x, axis, low)
            starts[axis] = first if step > 0 else first + s.size(node, axis) - 1
    return _with(node, s.operands(node), starts=tuple(starts), sizes=s.shape(node))


def _gather(s: _Slicer, node: Node) -> Node:
    x, indices = node.inputs
    axis = node["axis"]
    kept = s.kept(x, axis)
    if kept is None:
        return _same(s, node)
    old = indices["data"].array()[s.kept(node, axis) if s.kept(node, axis) is not None else slice(None)]
    new = np.searchsorted(kept, np.where(old < 0, old + x.shape[axis], old))
    return _with(node, (s.whole(x), constant(new.astype(np.int64))))


def _linear(s: _Slicer, node: Node) -> Node:
    kept = s.kept(node, node.rank - 1)
    if node["act"] not in GATED or kept is None:
        return _same(s, node)
    half = PANEL // 2
    if len(kept) % half:
        raise IrError(f"{len(kept)} gated columns, not a multiple of {half}")
    gates = (kept // half * PANEL + kept % half).reshape(-1, 1, half)
    rows = np.concatenate([gates, gates + half], axis=1).reshape(-1)
    x, w, bias, *rest = node.inputs
    return _with(node, (s.whole(x), s.whole(w, rows), s.whole(bias, rows), *map(s.whole, rest)))


def _conv(s: _Slicer, node: Node) -> Node:
    if node["group"] == 1:
        return _same(s, node)
    inner = node.inputs[1].shape[1]
    return _with(node, s.operands(node), group=s.size(node.inputs[0], 1) // inner)


def _resize(s: _Slicer, node: Node) -> Node:
    return _with(node, s.operands(node), sizes=s.shape(node))


def _rope(s: _Slicer, node: Node) -> Node:
    start = s.before(node.inputs[0], 2, node["start"])
    return _with(node, s.operands(node), heads=s.size(node, 2), start=start)


BUILDERS: dict[str, Callable[[_Slicer, Node], Node]] = {
    "input": _input,
    "reshape": _shaped,
    "expand": _shaped,
    "slice": _slice,
    "gather": _gather,
    "linear": _linear,
    "conv": _conv,
    "resize": _resize,
    "rope": _rope,
}


def with_weights(graph: Graph, weights: Mapping[Node, tuple[Node, Node | None]]) -> tuple[Graph, dict[Node, Node]]:
    """The graph with other constants in its products: linear or conv -> (weight, bias); and old node -> new node."""
    new: dict[Node, Node] = {}
    into: dict[Node, Node] = {}
    for node in graph.nodes():
        inputs = [None if i is None else into[i] for i in node.inputs]
        if node in weights:
            inputs[1:3] = weights[node]
        same = all(a is b for a, b in zip(inputs, node.inputs))
        into[node] = node if same else make(node.op, *inputs, **node.attrs)
        if not same:
            new[node] = into[node]
            if node in graph.origins:
                graph.origins.setdefault(into[node], graph.origins[node])
    return graph.with_outputs([into[n] for _, n in graph.outputs]), new
