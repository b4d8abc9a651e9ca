"""Models in 16-bit floats compute in f32: no CPU kernel of ours works in f16, and rounding after each op gains nothing."""

from __future__ import annotations

import dataclasses

from edgec.ir.node import Graph, Node, make
from edgec.ir.types import TensorType, TupleType
from edgec.rewrites.fold import const_node

NARROW = ("f16", "bf16")


def _narrow(node: Node) -> bool:
    types = node.type.items if isinstance(node.type, TupleType) else (node.type,)
    return any(t.dtype in NARROW for t in types)


def widen(graph: Graph) -> Graph:
    """The graph in f32 between its inputs and outputs, which keep their types. Weights are widened when they are read.

    Values differ from the source's by what it rounds away.
    """
    nodes = graph.nodes()
    if not any(map(_narrow, nodes)):
        return graph
    into: dict[Node, Node] = {}
    for node in nodes:
        into[node] = new = _one(node, [None if i is None else into[i] for i in node.inputs])
        origin = graph.origins.get(node)
        if origin and new is not node and new.op not in ("input", "constant"):
            graph.origins.setdefault(new, origin)
    outputs = []
    for name, node in graph.outputs:
        new = into[node]
        outputs.append((name, new if new.dtype == node.dtype else make("cast", new, dtype=node.dtype)))
    return dataclasses.replace(graph, outputs=tuple(outputs))


def _one(node: Node, inputs: list[Node | None]) -> Node:
    if node.op in ("input", "constant"):
        if not isinstance(node.type, TensorType) or node.dtype not in NARROW:
            return node
        return const_node("cast", node, dtype="f32") if node.op == "constant" else make("cast", node, dtype="f32")
    attrs = dict(node.attrs)
    if attrs.get("dtype") in NARROW:
        attrs["dtype"] = "f32"
    if node.op == "cast" and inputs[0] is not None and inputs[0].dtype == attrs["dtype"]:
        return inputs[0]
    return make(node.op, *inputs, **attrs)
