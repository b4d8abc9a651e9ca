"""Which elements of which axes go together: the channels of a graph that can be removed.

Every index of every axis of fixed size has a label. An op ties the labels of its result to those of its operands
(`ties.py`), so what is connected is removed together or not at all: one *unit*. A unit that reaches a place where its
removal would change something else (an input or output of the model, a norm's or softmax's axis) is frozen, with the
reason. The same idea, for modules of torch instead of an IR: DepGraph, https://arxiv.org/abs/2301.12900
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgec.ir.node import Graph, Node
from edgec.ir.ops.nn import GATED, PANEL
from edgec.ir.types import TensorType
from edgec.rewrites.prune.ties import TIES, Axes, Labels

KINDS = ("ffn", "heads", "conv")


@dataclass(frozen=True)
class Group:
    """Units that the same axes of the same constants hold: the channels of one hidden layer.

    kind: "heads" (of an attention; with grouped queries a key head and all that read it), "conv" or "ffn".
    units: their ids. readers: (linear, conv or matmul, index of its constant operand): the products that sum over them.
    step: how many units must stay is a multiple of it.
    """

    name: str
    kind: str
    units: tuple[int, ...]
    axes: tuple[tuple[Node, int], ...]
    readers: tuple[tuple[Node, int], ...]
    step: int = 1


class Channels:
    """The units of a graph. `unit[label]` is the unit of a label, `reason(unit)` why it cannot go, None if it can."""

    def __init__(self, graph: Graph, axes: dict[Node, Axes], labels: Labels):
        self.graph, self.axes, self.contracts = graph, axes, labels.contracts
        self.unit, self._why = labels.units()
        self._reasons = labels.reasons
        self.groups = self._groups(labels.heads)

    def units(self, node: Node, axis: int) -> np.ndarray | None:
        """The unit of each element along an axis; None where its size is symbolic."""
        labels = self.axes[node][axis]
        return None if labels is None else self.unit[labels]

    def reason(self, unit: int) -> str | None:
        why = int(self._why[unit])
        return None if why < 0 else self._reasons[why]

    def frozen(self, node: Node, axis: int) -> str | None:
        """Why no element along the axis can be removed; None where some can."""
        units = self.units(node, axis)
        if units is None:
            return "its size is symbolic"
        why = self._why[units]
        return self._reasons[int(why[0])] if len(why) and (why >= 0).all() else None

    def _groups(self, heads: list[np.ndarray]) -> list[Group]:
        constants = [n for n in self.axes if n.op == "constant"]
        places = [(n, a) for n in constants for a in range(n.rank)]
        pairs = []
        for i, (n, a) in enumerate(places):
            found = self.units(n, a)
            assert found is not None
            free = np.unique(found[self._why[found] < 0])
            pairs.append(np.stack([free, np.full(len(free), i)]))
        units, ids = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), int)
        order = np.lexsort((ids, units))
        units, ids = units[order], ids[order]
        starts = np.flatnonzero(np.r_[True, units[1:] != units[:-1]]) if len(units) else np.zeros(0, int)
        members: dict[tuple, list[int]] = {}
        for begin, end in zip(starts, [*starts[1:], len(units)]):
            members.setdefault(tuple(ids[begin:end].tolist()), []).append(int(units[begin]))
        in_heads = set(np.concatenate([self.unit[h] for h in heads]).tolist()) if heads else set()
        found_groups = [self._group(members[key], [places[i] for i in key], in_heads) for key in members]
        return [g for g in found_groups if len(g.units) > 1 and g.readers]

    def _group(self, units: list[int], axes: list[tuple[Node, int]], in_heads: set[int]) -> Group:
        held = set(axes)
        readers = [(n, i) for n, i, axis in self.contracts if (n.inputs[i], axis) in held]
        weights = {c for c, _ in axes}
        users = [n for n in self.axes if any(i in weights for i in n.operands())]
        kind = "heads" if units[0] in in_heads else "conv" if any(n.op.startswith("conv") for n in users) else "ffn"
        gated = [n for n in users if n.op == "linear" and n["act"] in GATED and (n.inputs[1], 0) in held]
        name = self.graph.origin(readers[0][0]).split(", ")[0] if readers else ""
        return Group(name, kind, tuple(units), tuple(axes), tuple(readers), PANEL // 2 if gated else 1)


def analyse(graph: Graph, free: Iterable[str] = ()) -> Channels:
    """The units of the graph. free: inputs and outputs whose shapes may change: caches, which only the model reads."""
    free = set(free)
    labels = Labels()
    axes: dict[Node, Axes] = {}
    for node in graph.nodes():
        axes[node] = _axes(labels, node, [None if i is None else axes[i] for i in node.inputs], free)
    for node in graph.inputs:  # unused ones
        if node not in axes:
            axes[node] = _axes(labels, node, [], set())
    for name, node in graph.outputs:
        if name not in free:
            labels.freeze(axes[node], f"the output {name!r} has it")
    return Channels(graph, axes, labels)


def _axes(labels: Labels, node: Node, operands: Sequence[Axes | None], free: set[str]) -> Axes:
    tie = TIES.get(node.op)
    if tie is not None and isinstance(node.type, TensorType):
        found = tie(labels, node, *operands)
        assert len(found) == node.rank and all(f is None or len(f) == d for f, d in zip(found, node.shape)), (
            f"{node}: its ties do not fit"
        )
        return found
    for axes in operands:
        labels.freeze(axes, f"{node.op} reads it")
    if not isinstance(node.type, TensorType):
        return ()
    made = labels.of(node.shape)
    if node.op not in ("constant", "input"):
        labels.freeze(made, f"{node.op} makes it")
    elif node.op == "input" and node["name"] not in free:
        labels.freeze(made, f"the input {node['name']!r} has it")
    elif node.type.encoding is not None or node.type.layout != "row":
        labels.freeze(made, "its weights are stored quantized")
    return made
