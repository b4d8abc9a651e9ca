"""Residual branches: what a graph computes beside a value and adds to it, and the graph without some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgec.errors import EdgecError
from edgec.ir.node import Graph, Node, topological
from edgec.ir.types import TensorType
from edgec.rewrites.states import rebuilt

NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class Branch:
    """target = source + f(source); where norms stand on the stream itself, target = norm(source) + f(norm(source)).

    inside: what is between the two. attends: whether tokens meet in it.
    """

    name: str
    source: Node
    target: Node
    inside: frozenset[Node]
    attends: bool


def branches(graph: Graph) -> list[Branch]:
    """All residual branches, in the order of the graph."""
    users, order = graph.users(), graph.nodes()
    outputs = {n for _, n in graph.outputs}
    below: dict[Node, int] = {}  # node -> bit set of the nodes under it
    number = {n: i for i, n in enumerate(order)}
    for n in order:
        bits = 1 << number[n]
        for i in n.operands():
            bits |= below[i]
        below[n] = bits
    found = []
    for node in order:
        for source, others in _sums(node):
            if source.op == "constant" or source.type != node.type or not isinstance(node.type, TensorType):
                continue
            if not any(below[o] >> number[source] & 1 for o in others):
                continue
            readers = users.get(node, [])
            if source.op in NORMS and [u.op for u in readers] == [source.op] and node not in outputs:
                source = source.inputs[0]
            above, at = below[node], number[source]
            inside = {n for n in order if n not in (source, node) and above >> number[n] & 1 and below[n] >> at & 1}
            attends = any(n.op in ("attention", "softmax") for n in inside)
            found.append(Branch(graph.origin(node), source, node, frozenset(inside), attends))
            break
    return found


def _sums(node: Node):
    """(the operand that goes through, the others) of a node that adds one."""
    if node.op in ("linear", "conv") and node.inputs[3] is not None:
        yield node.inputs[3], node.inputs[:1]
    elif node.op == "add":
        a, b = node.inputs
        yield a, [b]
        yield b, [a]


def layers(found: Sequence[Branch]) -> list[list[Branch]]:
    """Branches that follow each other as layers: an attention and what comes before the next one; without any
    attention, and in other chains, each branch is one. What nests in another branch is no layer."""
    nested = {b for b in found for other in found if b is not other and b.target in other.inside}
    chain = [b for b in found if b not in nested]
    out: list[list[Branch]] = []
    for branch in chain:
        joins = out and out[-1][-1].target is branch.source and out[-1][0].attends and not branch.attends
        if joins:
            out[-1].append(branch)
        else:
            out.append([branch])
    return out


def drop(graph: Graph, gone: Sequence[Branch], caches: Mapping[str, str] = {}) -> Graph:
    """The graph without these branches. caches: past -> present; those that only a dropped branch reads go with it.

    EdgecError EC1305 where something outside reads what is inside of a branch.
    """
    into = {b.target: b.source for b in gone}
    kept = topological([n for _, n in graph.outputs])
    inside = frozenset().union(*(b.inside for b in gone))
    ports = {present: past for past, present in caches.items()}
    outputs = [(name, n) for name, n in graph.outputs if not (name in ports and n in inside)]
    lost = {name for name, _ in graph.outputs} - {name for name, _ in outputs}
    smaller = rebuilt(dataclasses.replace(graph, outputs=tuple(outputs)), into)
    used = set(topological([n for _, n in smaller.outputs]))
    for name in lost:
        past = ports[name]
        if any(n.op == "input" and n["name"] == past for n in used):
            raise EdgecError(
                "EC1305",
                f"the cache {past!r} is read outside of the branch too",
                where=graph.name,
                hint="Prune something else: --prune 20%",
            )
    alive = {id(n) for n in kept} & {id(n) for n in used}
    for b in gone:
        stays = [n for n in b.inside if id(n) in alive and n.op in ("linear", "conv", "attention", "matmul")]
        if stays:
            reason = "something outside of the branch reads what it computes"
            raise EdgecError("EC1305", reason, where=graph.origin(stays[0]))
    inputs = tuple(n for n in smaller.inputs if n["name"] not in {ports[name] for name in lost})
    return dataclasses.replace(smaller, inputs=inputs)
