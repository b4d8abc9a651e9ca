"""Which nodes run only when a branch is taken."""

from __future__ import annotations

from edgec.ir.node import Graph, Node

Guard = tuple[tuple[Node, bool], ...]  # the conditions under which a node runs, outermost first


def guards(graph: Graph) -> dict[Node, Guard]:
    """For each node the conditions that all of its uses share; () runs always."""
    found: dict[Node, Guard] = {}

    def need(node: Node, guard: Guard) -> None:
        old = found.get(node)
        if old is None:
            found[node] = guard
            return
        common = 0
        while common < min(len(old), len(guard)) and old[common] == guard[common]:
            common += 1
        found[node] = old[:common]

    for _, output in graph.outputs:
        need(output, ())
    for node in reversed(graph.nodes()):
        guard = found[node]
        if node.op == "branch":
            pred, a, b = node.operands()
            need(pred, guard)
            for side, taken in ((a, True), (b, False)):
                # What both sides of the same condition need is needed anyway: need() finds that by itself.
                need(side, (*guard, (pred, taken)))
        else:
            for i in node.operands():
                need(i, guard)
    return found
