"""What the map and rows templates can do, and which nodes are worth having in one function: for the partitioner."""

from __future__ import annotations

from edgec.errors import EdgecError
from edgec.ir.dims import is_ge, product
from edgec.ir.node import Node
from edgec.ir.types import TensorType
from edgec.lower.groups import Group
from edgec.lower.templates import map as map_
from edgec.lower.templates import rows, scalar
from edgec.lower.templates.index import ARG, MOVEMENT, REDUCE, Ix, Pick, Refused, Split, match_groups
from edgec.lower.templates.nest import all_ixs, everything

MAX_COPIES = 12  # of a body's code, for concat and pad
MAX_NODES = 40
CHEAP = 4  # cost up to which computing a value once for each reader is better than memory


def kind_of(node: Node) -> str | None:
    """The template that computes this node alone."""
    if node.op in scalar.ELEMENTWISE or node.op in MOVEMENT:
        return "map"
    return "rows" if node.op in REDUCE or node.op in ARG or node.op in rows.NORMS else None


def supports(node: Node) -> str | None:
    """Why neither template can compute the node; None if one can."""
    if kind_of(node) is None:
        return f"no template computes {node.op}"
    for n in (node, *node.operands()):
        if not isinstance(n.type, TensorType):
            return "a tuple of tensors"
        if n.type.encoding is not None or n.type.layout != "row":
            return f"an operand of type {n.type} is not plain and row-major"
    return None


def can_fuse(producer: Node, consumer: Node) -> bool:
    """Whether the consumer may read the producer's value without it going through memory, in one map or rows function.

    A hint for one edge: `refuse` decides on the whole group.
    """
    a, b = kind_of(producer), kind_of(consumer)
    if a is None or b is None or supports(producer) or supports(consumer):
        return False
    if a == "map" == b:
        return _map_edge(producer, consumer)
    if b == "rows":
        operand = consumer.inputs[0]
        if a == "map":
            plain = producer.op in scalar.ELEMENTWISE or producer.op in ("expand", "gather", "iota", "dim_value")
            return plain and (producer is not operand or _all_larger(operand, producer))
        return producer is operand and rows.axes_of(producer) == rows.axes_of(consumer) and (
            producer.shape == operand.shape and producer.op in rows.NORMS)  # fmt: skip
    if consumer.op not in scalar.ELEMENTWISE:
        return False
    full = producer.inputs[0].shape
    return consumer.shape in (producer.shape, full)


def _all_larger(a: Node, b: Node) -> bool:
    return is_ge(product(a.shape), product(b.shape)) is True


def _map_edge(producer: Node, consumer: Node) -> bool:
    if "reshape" in (producer.op, consumer.op):
        node = producer if producer.op == "reshape" else consumer
        groups = match_groups(node.inputs[0].shape, node.shape)
        if any(len(ins) > 1 and len(outs) > 1 for ins, outs in groups):
            return False
        other = consumer if node is producer else producer
        if other.op in ("slice", "concat", "pad", "gather", "gather_elements", "gather_nd"):
            return False
    costly = scalar.COST.get(producer.op, 1) > CHEAP
    if costly and consumer.op in (*MOVEMENT, *scalar.ELEMENTWISE):
        return is_ge(product(producer.shape), product(consumer.shape)) is True
    return True


def refuse(group: Group) -> str | None:
    """Why a group of kind map or rows should not be one function; None if it should."""
    if len(group.nodes) > MAX_NODES:
        return f"{len(group.nodes)} nodes"
    pointers = len([i for i in group.inputs if i.op != "constant" or product(i.shape) != 1]) + len(group.outputs)
    if pointers > 48:
        return f"{pointers} operands"
    try:
        values, tracer_splits = _trace(group)
    except Refused as e:
        return str(e)
    except EdgecError as e:
        return e.message
    if tracer_splits:
        return "a reshape inside would cost a division for each element"
    picks = [e for e in everything(values) if isinstance(e, Pick)]
    copies = product(len(p.parts) for p in picks)
    if len(picks) > 1 and copies > MAX_COPIES:
        return f"{copies} copies of its code"
    if picks and group.kind == "rows":
        return "a concat or pad inside rows"
    return None


def _trace(group: Group):
    if group.kind == "map":
        shape = group.outputs[0].shape
        if any(o.shape != shape for o in group.outputs):
            raise Refused("outputs of several shapes")

        def root(tracer, ixs):
            return [tracer.value(n, ixs) for n in group.outputs], tracer

        _, _, (values, tracer) = map_.trace(set(group.nodes), shape, root)
        return values, tracer.splits
    small, bounded = rows.decompose(group)
    shape, axes = rows.space(small)
    _, _, (stores, _) = rows.traced(small, small.outputs, shape, axes, bounded)
    values = [s.value for s in stores]
    splits = sum(isinstance(d, Split) for ix in all_ixs(stores) if isinstance(ix, Ix) for _, d in ix.dynamic)
    return values, splits
