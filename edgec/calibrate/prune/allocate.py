"""How many units of each group go: where an error that is small buys much work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgec.calibrate.prune.request import Request
from edgec.calibrate.prune.scores import Order
from edgec.errors import EdgecError
from edgec.ir.node import Node
from edgec.rewrites.prune.channels import Channels, Group

TILES = {"ffn": 32, "conv": 8, "heads": 1}  # kernels' columns of 16 and blocks of 32; a head is whole blocks anyway
SPREAD = 2.5  # times the share asked for, at most, that one group loses
PRODUCTS = ("linear", "conv", "conv_transpose", "matmul")
Cost = Callable[[Node, float, float], float]  # (product, share of its rows, share of its columns) -> what it costs


def step_of(group: Group) -> int:
    """Units that go at once: what is left is a multiple of the kernels' tile, unless the group is too narrow for it."""
    step = TILES[group.kind]
    while step > 1 and step > len(group.units) // 4:
        step //= 2
    return int(np.lcm(step, group.step))


@dataclass
class _Use:
    """A product that a group's units are rows or columns of: how large a share of them a unit is."""

    node: Node
    axis: int  # 0: rows, 1: columns
    share: float


@dataclass
class Plan:
    """Numbers of units to remove, group by group."""

    groups: Sequence[Group]
    counts: list[int] = field(default_factory=list)


class Allocator:
    """Groups, what the first i units of each cost in error (`errors`), and what products cost (`cost`)."""

    def __init__(self, channels: Channels, groups: Sequence[Group], cost: Cost):
        self.groups, self.cost = groups, cost
        self.steps = [step_of(g) for g in groups]
        self.kinds = sorted({g.kind for g in channels.groups})
        self.products = [n for n in channels.graph.nodes() if n.op in PRODUCTS]
        by_weight: dict[Node, list[Node]] = {}
        for n in self.products:
            for i in n.inputs[:2]:
                if i is not None and i.op == "constant":
                    by_weight.setdefault(i, []).append(n)
        self.uses: list[list[_Use]] = []
        for g in groups:
            found = []
            for constant, axis in g.axes:
                for n in by_weight.get(constant, ()):
                    units = channels.units(constant, axis)
                    assert units is not None
                    share = float(np.isin(units, g.units).sum()) / len(g.units) / len(units)
                    found.append(_Use(n, _side(n, constant, axis), share))
            self.uses.append(found)
        self.base = sum(cost(n, 1.0, 1.0) for n in self.products)

    def start(self) -> tuple[dict[Node, list[float]], list[int]]:
        return {n: [1.0, 1.0] for n in self.products}, [0] * len(self.groups)

    def most(self, index: int) -> int:
        """The most units of a group that may go: one step stays."""
        return max(0, len(self.groups[index].units) - self.steps[index])

    def next(self, index: int, count: int) -> int:
        """The number of units gone after one more step; the first one makes the rest a multiple of the step."""
        step = self.steps[index]
        return count + ((len(self.groups[index].units) - count) % step or step)

    def possible(self) -> float:
        """What the narrowest model saves."""
        left, _ = self.start()
        for i in range(len(self.groups)):
            self.take(left, i, self.most(i))
        return self.base - sum(self.cost(n, *left[n]) for n in self.products)

    def enough(self, index: int, request: Request) -> int:
        """How many units' order is worth knowing: no group loses more than some times the share that is asked for."""
        share = request.kinds.get(self.groups[index].kind)
        if request.share:
            share = request.share * self.base / max(self.possible(), 1e-30)
        if share is None or request.allocation == "uniform":
            return self.most(index)
        units = len(self.groups[index].units)
        return min(self.most(index), self.next(index, 0) + round(SPREAD * share * units))

    def saving(self, left: Mapping[Node, list[float]], index: int, units: int) -> float:
        """What the removal of so many more units saves."""
        before: dict[Node, list[float]] = {}
        for use in self.uses[index]:
            before.setdefault(use.node, list(left[use.node]))[use.axis] -= use.share * units
        return sum(self.cost(n, *left[n]) - self.cost(n, *after) for n, after in before.items())

    def take(self, left: Mapping[Node, list[float]], index: int, units: int) -> None:
        for use in self.uses[index]:
            left[use.node][use.axis] -= use.share * units

    def check(self, request: Request, budget: float, rest: float = 0.0) -> None:
        """Raises EC1305 where even the narrowest model does too much, before anything is measured. budget: what is to
        be saved of `base` by channels (share and speed-up). rest: what all else costs, that a speed-up counts too."""
        for kind, share in request.kinds.items():
            mine = [i for i, g in enumerate(self.groups) if g.kind == kind]
            if not mine:
                hint = f"It has {', '.join(self.kinds)}" if self.kinds else "No channel of it can be removed"
                raise EdgecError("EC1305", f"the model has no {kind} that can be removed", "--prune", hint)
            total = sum(len(self.groups[i].units) for i in mine)
            possible = sum(self.most(i) for i in mine)
            if round(share * total) > possible:
                reason = f"{share:.0%} of {total} {kind} channels cannot go: {possible} can at most"
                raise EdgecError("EC1305", reason, "--prune", f"Ask for {int(100 * possible / total)}% or less")
        if request.share is None and request.speedup is None:
            return
        where = "--prune" if request.speedup is None else "--speedup"
        saved = self.possible()
        if saved <= 1e-9 * self.base:
            reason = "the model has no channels or heads that can be removed"
            raise EdgecError("EC1305", reason, where, "docs/pruning.md says what cannot go; build without it")
        if saved >= budget:
            return
        if request.speedup is not None:
            most = (self.base + rest) / (self.base + rest - saved)
            reason = f"{request.speedup:g}x cannot be reached by fewer channels: {most:.2f}x can at most"
        else:
            reason = f"{budget / self.base:.0%} of the products' work is to go, {saved / self.base:.0%} can at most"
        raise EdgecError("EC1305", reason, where, "Ask for less, or drop layers too (--prune layers=N)")

    def choose(self, request: Request, budget: float, orders: Sequence[Order], energy: Sequence[float]) -> list[int]:
        """Units to remove of each group. orders, energy: for each group, and the energy that its errors are relative to."""
        left, counts = self.start()
        if request.allocation == "uniform" or (not request.kinds and budget <= 0):
            return self._uniform(request, budget)
        goals: list[tuple[list[int], Callable[[], bool]]] = []
        saved = [0.0]
        for kind, share in request.kinds.items():
            mine = [i for i, g in enumerate(self.groups) if g.kind == kind]
            goal = round(share * sum(len(self.groups[i].units) for i in mine))
            goals.append((mine, lambda mine=mine, goal=goal: sum(counts[i] for i in mine) >= goal))
        if budget > 0:
            goals.append((list(range(len(self.groups))), lambda: saved[0] >= budget))
        for mine, done in goals:
            while not done():
                i, new = self._cheapest(mine, counts, left, orders, energy)
                saved[0] += self.saving(left, i, new - counts[i])
                self.take(left, i, new - counts[i])
                counts[i] = new
        return counts

    def _cheapest(self, mine, counts, left, orders, energy) -> tuple[int, int]:
        best, found = np.inf, None
        for i in mine:
            new = self.next(i, counts[i])
            if new > min(self.most(i), len(orders[i].units)):
                continue
            lost = (orders[i].error[new] - orders[i].error[counts[i]]) / max(energy[i], 1e-30)
            ratio = lost / max(self.saving(left, i, new - counts[i]), 1e-30)
            if ratio < best or found is None:
                best, found = ratio, (i, new)
        assert found is not None, "check() has found room for it"
        return found

    def _uniform(self, request: Request, budget: float) -> list[int]:
        """The same share of each group of a kind, to whole steps."""

        def counts_at(share_of: Callable[[Group], float]) -> list[int]:
            out = []
            for i, g in enumerate(self.groups):
                count, want = 0, share_of(g) * len(g.units)
                while count < want - 1e-9 and self.next(i, count) <= self.most(i):
                    nearer = abs(self.next(i, count) - want) <= abs(count - want)
                    if not nearer:
                        break
                    count = self.next(i, count)
                out.append(count)
            return out

        if budget <= 0:
            return counts_at(lambda g: request.kinds.get(g.kind, 0.0))
        for share in np.linspace(0.01, 1.0, 100):
            counts = counts_at(lambda g, share=share: float(share))
            left, _ = self.start()
            for i, n in enumerate(counts):
                self.take(left, i, n)
            if self.base - sum(self.cost(n, *left[n]) for n in self.products) >= budget:
                break
        return counts


def _side(node: Node, constant: Node, axis: int) -> int:
    """0 where the axis is one of results, 1 where the product sums over it."""
    if node.op in ("linear", "conv"):
        return min(axis, 1)
    if node.op == "conv_transpose":
        return 1 - min(axis, 1)
    summed = constant.rank - (1 if node["trans_b"] else 2) if node.inputs[1] is constant else constant.rank - 1
    return 1 if axis == summed else 0
