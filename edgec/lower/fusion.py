"""Which template computes an op, and what may join a group."""

from __future__ import annotations

from edgec.ir.node import Node
from edgec.lower.groups import Group
from edgec.lower.templates import SUPPORTS, TEMPLATES
from edgec.lower.templates import fusion as mapped

# ops with a template of their own; all others go to map and rows
KINDS = {"conv": "conv", "conv_transpose": "conv_transpose", "max_pool": "pool", "avg_pool": "pool", "resize": "resize"}
ALONE = ("concat", "pad")  # they read operands in pieces: from memory


def supports(node: Node) -> str | None:
    """None, or the reason why no template computes the node."""
    kind = KINDS.get(node.op)
    if kind is None:
        return mapped.supports(node)
    if kind not in TEMPLATES:
        return f"the template {kind!r} is not there"
    return SUPPORTS[kind](node) if kind in SUPPORTS else None


def kind(nodes: list[Node]) -> str:
    """The template of a group."""
    found = {KINDS.get(n.op) or mapped.kind_of(n) for n in nodes if n.op != "constant"}
    return next((k for k in found if k not in ("map", "rows")), "rows" if "rows" in found else "map")


def can_join(members: list[Node], producer: Node) -> bool:
    """Whether `producer`, used only by `members` (root first), may be computed with them."""
    if producer.op in KINDS or any(m.op in KINDS for m in members):
        return False
    users = [m for m in members if producer in m.operands()]
    if any(u.op in ALONE for u in users) and producer.operands():
        return False
    if not all(mapped.can_fuse(producer, u) for u in users):
        return False
    return mapped.refuse(make_group([*members, producer], members[0])) is None


def make_group(nodes: list[Node], root: Node) -> Group:
    """The group of these nodes, in topological order; scalar constants that they read belong to it."""
    inside = set(nodes)
    order: dict[Node, None] = {}
    inputs: dict[Node, None] = {}
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order[node] = None
        elif node in order or node in inputs:
            continue
        elif node in inside or is_scalar_constant(node):
            stack.append((node, True))
            stack.extend((i, False) for i in reversed(node.operands()))
        else:
            inputs[node] = None
    return Group(kind(nodes), tuple(order), tuple(inputs), (root,))


def is_scalar_constant(node: Node) -> bool:
    """Whether the code can hold the constant's one number."""
    return node.op == "constant" and node.type.encoding is None and all(d == 1 for d in node.shape)
