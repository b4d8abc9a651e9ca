"""The order of the steps: operands first, and what a branch guards between its jumps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from edgec.ir.node import Node
from edgec.lower.groups import Group
from edgec.lower.guards import Guard


@dataclass
class Unit:
    """What one step computes: a compiled group, a built-in kernel, or the alias of a value.

    what: a Group (Compiled once its code is made), a Builtin, or "alias". needs: the nodes that must be in memory
    before. outputs: those that are in memory afterwards.
    """

    what: Any
    needs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    group: Group | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes that it computes."""
        return self.outputs if self.group is None else self.group.nodes


@dataclass
class Branch:
    """Branch nodes of one condition; each side holds what only that side needs."""

    pred: Node
    nodes: list[Node]
    then: list = field(default_factory=list)
    orelse: list = field(default_factory=list)


def order(units: Iterable[Unit], branches: Iterable[Node], guard: Callable[[Node], Guard]) -> list[Unit | Branch]:
    """Units and branches in an order that can run, deterministic: as early in the given order as operands allow.

    Branch nodes of one condition share their jumps unless one needs another's result.
    """
    units, branches = list(units), list(branches)
    maker: dict[Node, int] = {}
    items: list[tuple[tuple[Node, ...], Guard, object]] = []
    for u in units:
        items.append((u.needs, guard(u.outputs[0]), u))
    for b in branches:
        items.append((b.operands(), guard(b), b))
    for index, (_, _, what) in enumerate(items):
        for node in what.outputs if isinstance(what, Unit) else (what,):
            maker[node] = index
    return _level(items, maker, (), set(range(len(items))))


def _level(items, maker, level: Guard, members: set[int]) -> list:
    """Orders the items whose guard starts with `level`; deeper ones go into their branch."""
    depth = len(level)
    here = [i for i in sorted(members) if items[i][1] == level]
    inner: dict[tuple[Node, bool], set[int]] = {}
    for i in members:
        guard = items[i][1]
        if len(guard) > depth:
            inner.setdefault(guard[depth], set()).add(i)

    # A bundle is one item, or the branches of one condition with all that they alone need.
    bundles: list[list[int]] = []
    by_pred: dict[Node, list[int]] = {}
    for i in here:
        what = items[i][2]
        if isinstance(what, Unit):
            bundles.append([i])
        else:
            by_pred.setdefault(what.inputs[0], []).append(i)
    bundles.extend(by_pred.values())

    def emit(bundles: list[list[int]]) -> list | None:
        owner: dict[int, int] = {}
        inside: list[set[int]] = []
        for b, bundle in enumerate(bundles):
            contents = set(bundle)
            if not isinstance(items[bundle[0]][2], Unit):
                pred = items[bundle[0]][2].inputs[0]
                for taken in (True, False):
                    contents |= inner.get((pred, taken), set())
            inside.append(contents)
            for i in contents:
                owner[i] = b
        wants = []
        for b, contents in enumerate(inside):
            makers = {maker[n] for i in contents for n in items[i][0] if n in maker}
            wants.append({owner[m] for m in makers if m in owner} - {b})
        done: set[int] = set()
        out: list = []
        rank = sorted(range(len(bundles)), key=lambda b: min(bundles[b]))
        while len(done) < len(bundles):
            ready = [b for b in rank if b not in done and wants[b] <= done]
            if not ready:
                return None
            for b in ready:
                done.add(b)
                bundle = bundles[b]
                first = items[bundle[0]][2]
                if isinstance(first, Unit):
                    out.append(first)
                    continue
                pred = first.inputs[0]
                branch = Branch(pred, [items[i][2] for i in bundle])
                branch.then = _level(items, maker, (*level, (pred, True)), inner.get((pred, True), set()))
                branch.orelse = _level(items, maker, (*level, (pred, False)), inner.get((pred, False), set()))
                out.append(branch)
        return out

    result = emit(bundles)
    if result is None:
        raise AssertionError("branches of one condition need each other's results")
    return result
