"""Cuts a graph into units: compiled groups, built-in kernels and aliases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edgec.errors import EdgecError
from edgec.ir.dims import product
from edgec.ir.node import Graph, Node
from edgec.lower.builtins import BUILTINS
from edgec.lower.fusion import make_group
from edgec.lower.guards import Guard, guards
from edgec.lower.schedule import Branch, Unit, order

MAX_NODES = 40
IN_PLACE = ("input", "constant", "pack", "item", "branch")  # no unit of their own
FREE = ("iota", "dim_value", "expand")  # so cheap that each user computes them


class Fusion(Protocol):
    """What edgec.lower.fusion offers."""

    def supports(self, node: Node) -> str | None: ...
    def can_join(self, members: list[Node], producer: Node) -> bool: ...


@dataclass
class Parts:
    items: list[Unit | Branch]
    guard: Callable[[Node], Guard]


def partition(graph: Graph, fusion: Fusion) -> Parts:
    """Units in an order that can run. Raises EdgecError EC1401 with every node that nothing computes."""
    nodes, users = graph.nodes(), graph.users()
    outputs = {n for _, n in graph.outputs}
    guard = guards(graph)
    groups: list[list[Node]] = []  # each: its root first, then producers that joined
    of: dict[Node, list[int]] = {}
    units: list[Unit] = []
    refused: list[str] = []

    for node in reversed(nodes):
        if node.op in IN_PLACE:
            continue
        if node.op == "reshape":
            units.append(Unit("alias", node.operands(), (node,)))
            continue
        if node.op in BUILTINS:
            items = tuple(u for u in users.get(node, ()) if u.op == "item")
            units.append(Unit(BUILTINS[node.op](node), node.operands(), (node, *items)))
            continue
        reason = fusion.supports(node)
        if reason is not None:
            refused.append(f"{graph.origin(node)} ({node.op} {node.type}): {reason}")
            continue
        homes = sorted({g for u in users.get(node, ()) for g in of.get(u, ())})
        fused = node not in outputs and all(u in of for u in users.get(node, ()))
        fused = fused and (len(homes) == 1 or _cheap(node))
        fused = fused and all(guard[groups[g][0]] == guard[node] or _cheap(node) for g in homes)
        if fused and homes and all(len(groups[g]) < MAX_NODES and fusion.can_join(groups[g], node) for g in homes):
            for g in homes:
                groups[g].append(node)
            of[node] = homes
        else:
            of[node] = [len(groups)]
            groups.append([node])
    if refused:
        listed = "".join(f"\n  - {line}" for line in sorted(refused))
        raise EdgecError(
            "EC1401",
            f"ops that cannot be lowered: {len(refused)}{listed}\n",
            hint="Report this model, or take these out",
        )

    for members in groups:
        group = make_group(members, members[0])
        units.append(Unit(group, group.inputs, group.outputs, group))
    position = {n: i for i, n in enumerate(nodes)}
    units.sort(key=lambda u: position[u.outputs[0]])
    branches = [n for n in nodes if n.op == "branch"]
    return Parts(order(units, branches, lambda n: guard[n]), lambda n: guard.get(n, ()))


def _cheap(node: Node) -> bool:
    """Whether computing it again costs less than keeping it: no data of its own, or a broadcast."""
    if node.op in FREE:
        return True
    sizes = [product(i.shape) for i in node.operands()]
    return node.op in ("cast", "neg", "transpose") and all(s == 1 for s in sizes)
