"""Which op which template computes, and what may join a group."""

from __future__ import annotations

from edgec.ir.dims import is_ge, product
from edgec.ir.node import Node
from edgec.ir.ops import OPS
from edgec.ir.ops.reduce import REDUCE
from edgec.lower.templates import SUPPORTS, TEMPLATES

ELEMENTWISE = ("unary", "binary", "elementwise")
MOVEMENT = ("expand", "transpose", "slice", "concat", "pad", "iota", "dim_value")
ROWS = (*REDUCE, "softmax", "log_softmax", "layer_norm", "rms_norm")
# op -> the template that computes it
KINDS: dict[str, str] = {name: "map" for name, op in OPS.items() if op.kind in ELEMENTWISE}
KINDS |= {name: "map" for name in MOVEMENT} | {name: "rows" for name in ROWS}
KINDS |= {
    "conv": "conv",
    "conv_transpose": "conv_transpose",
    "max_pool": "pool",
    "avg_pool": "pool",
    "resize": "resize",
}


def supports(node: Node) -> str | None:
    """None, or the reason why no template computes the node."""
    kind = KINDS.get(node.op)
    if kind is None:
        return "no template or kernel computes this op"
    if kind not in TEMPLATES:
        return f"the template {kind!r} is not there"
    return SUPPORTS[kind](node) if kind in SUPPORTS else None


def kind(nodes: list[Node]) -> str:
    """The template of a group: that of the node that is not just mapped."""
    return next((KINDS[n.op] for n in nodes if KINDS.get(n.op, "map") != "map"), "map")


def can_join(members: list[Node], producer: Node) -> bool:
    """Whether `producer`, used only by `members` (root first), may be computed with them.

    Nothing is computed more often than it would be alone: a producer does not join behind a broadcast, and what reads an
    operand in pieces (concat, pad) reads it from memory.
    """
    if KINDS[producer.op] != "map" or kind(members) != "map":
        return False
    users = [m for m in members if producer in m.operands()]
    if any(u.op in ("concat", "pad") for u in users):
        return False
    if producer.op in ("concat", "pad"):
        return all(u.op not in MOVEMENT for u in users)
    return all(is_ge(product(producer.shape), product(u.shape)) is True for u in users) or not producer.operands()
