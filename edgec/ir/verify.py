"""Checks what the constructors cannot: that a graph as a whole holds together."""

from __future__ import annotations

from edgec.ir.dims import Expr, symbols_of
from edgec.ir.node import Graph, infer
from edgec.ir.ops import OPS, IrError
from edgec.ir.types import TensorType, TupleType

# ops that read an encoded or packed operand, and at which position
ENCODED = {"linear": (1,), "gather": (0,), "pack": (0,), "conv": (1,)}


def _symbols(value) -> set[str]:
    if isinstance(value, Expr):
        return symbols_of(value)
    if isinstance(value, TensorType):
        return _symbols(value.shape)
    return set().union(*map(_symbols, value)) if isinstance(value, tuple) else set()


def verify(graph: Graph) -> None:
    """Raises IrError with the node's origin at the first thing that is wrong."""
    names = [n["name"] for n in graph.inputs]
    if len(set(names)) != len(names):
        raise IrError(f"two inputs have one name: {sorted(names)}")
    outputs = [name for name, _ in graph.outputs]
    if len(set(outputs)) != len(outputs):
        raise IrError(f"two outputs have one name: {sorted(outputs)}")
    for past, present in graph.states:
        if past not in names or present not in outputs:
            raise IrError(f"the state {past!r} -> {present!r} is no input and output of the graph")
    inputs = set(graph.inputs)
    for node in graph.nodes():
        where = f"{node.op} ({graph.origin(node)})"
        if node.op not in OPS:
            raise IrError(f"{where}: no such op")
        if node.op == "input" and node not in inputs:
            raise IrError(f"{where}: {node['name']!r} is not among the graph's inputs")
        if infer(node) != node.type:
            raise IrError(f"{where}: the type is {node.type}, its op gives {infer(node)}")
        unknown = _symbols(tuple(v for v in node.attrs.values())) - set(graph.symbols)
        if unknown:
            raise IrError(f"{where}: the symbol {sorted(unknown)[0]!r} is not declared")
        for position, i in enumerate(node.inputs):
            if i is None:
                continue
            if isinstance(i.type, TupleType):
                if node.op != "item":
                    raise IrError(f"{where}: operand {position} is a tuple; only item reads one")
            elif (i.type.encoding or i.type.layout != "row") and position not in ENCODED.get(node.op, ()):
                raise IrError(f"{where}: operand {position} is {i.type}, which this op cannot read")
    for name, node in graph.outputs:
        if not isinstance(node.type, TensorType) or node.type.encoding or node.type.layout != "row":
            raise IrError(f"the output {name!r} is {node.type}, not a plain tensor")
