"""The rewrite engine: rules over the interned graph, bottom-up, until none fires.

    @rule(p.neg(p.neg(var("x"))), promise="exact", examples=[lambda: b.neg(b.neg(f32("x", 3)))])
    def double_negation(m):
        return m.x

A rule's function gets the match and returns the replacement, or a text: the reason why it refuses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgec.errors import EdgecError
from edgec.ir.node import Graph, Node, make
from edgec.ir.ops.registry import same_dims
from edgec.ir.types import TensorType, TupleType
from edgec.rewrites.pattern import Pattern, match

SWEEPS = 100
PER_NODE = 50


class Match:
    """What the pattern bound, by attribute; `root` is the node to replace, `nodes` the ops inside of the pattern."""

    def __init__(self, root: Node, bound: dict, uses: Counter, readers: dict[Node, set[str]]):
        self.root, self._uses, self._readers = root, uses, readers
        self.nodes: tuple[Node, ...] = bound.pop("", (root,))
        self._bound = bound

    def single(self, node: Node) -> bool:
        """Whether the node is read once."""
        return self._uses[node] <= 1

    def read_by(self, op: str) -> bool:
        """Whether a node of that op reads the root."""
        return op in self._readers.get(self.root, ())

    def closed(self) -> bool:
        """Whether nothing but the pattern reads the ops inside of it, so that they die with the root."""
        inside = set(self.nodes)
        reads = Counter(i for n in inside for i in n.operands() if i in inside)
        return all(self._uses[n] <= reads[n] for n in inside if n is not self.root)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._bound[name]
        except KeyError:
            raise AttributeError(name) from None

    def get(self, name: str) -> Node | None:
        """The node of that name, None where the pattern took a branch that does not bind it."""
        return self._bound.get(name)


@dataclass(frozen=True)
class Rule:
    """A rewrite.

    build: match -> the replacement, or the reason for which the rule refuses.
    promise: "exact" (equal numbers; the sign of a zero may change), "ulp:n" (within n units in the last place of the
    result's largest element), or "lossy" (the number of bits changes, as quantization does).
    examples: functions that build a node on which it fires; misses: near misses, on which it must not.
    """

    name: str
    pattern: Pattern
    build: Callable[[Match], Node | str]
    promise: str = "exact"
    examples: tuple[Callable[[], Node], ...] = ()
    misses: tuple[Callable[[], Node], ...] = ()


def rule(pattern: Pattern, *, promise: str = "exact", examples=(), misses=(), into: list[Rule] | None = None):
    """Makes the function a Rule of its name (and appends it to the list `into`)."""

    def wrap(build: Callable[[Match], Node | str]) -> Rule:
        made = Rule(build.__name__.strip("_"), pattern, build, promise, tuple(examples), tuple(misses))
        if into is not None:
            into.append(made)
        return made

    return wrap


@dataclass(frozen=True)
class Phase:
    """A name and rules, or a function that gives the rules for a graph (which looks at it as a whole first)."""

    name: str
    rules: Sequence[Rule] | Callable[[Graph], Sequence[Rule]]


@dataclass
class Fired:
    phase: str
    rule: str
    before: str
    after: str
    origins: tuple[str, ...]


@dataclass
class Record:
    """What the rules did: each firing, and how often a rule refused, by its reason."""

    fired: list[Fired] = field(default_factory=list)
    refused: Counter = field(default_factory=Counter)  # (phase, rule, reason) -> count

    def counts(self) -> dict[str, int]:
        return dict(Counter(f.rule for f in self.fired).most_common())


def may_replace(new, old) -> bool:
    """Whether the types agree: equal but for dims that are not known to differ."""
    if isinstance(new, TupleType) or isinstance(old, TupleType):
        return (
            isinstance(new, TupleType)
            and isinstance(old, TupleType)
            and len(new.items) == len(old.items)
            and all(map(may_replace, new.items, old.items))
        )
    assert isinstance(new, TensorType) and isinstance(old, TensorType)
    return (
        new.dtype == old.dtype
        and new.encoding == old.encoding
        and new.layout == old.layout
        and new.rank == old.rank
        and all(map(same_dims, new.shape, old.shape))
    )


class _Sweep:
    """One bottom-up pass. `uses` counts the edges that read a node in the graph as it is at that moment."""

    def __init__(self, graph: Graph, index: dict[str | None, list[Rule]], phase: str, record: Record):
        self.graph, self.index, self.phase, self.record = graph, index, phase, record
        self.order = graph.nodes()
        self.into: dict[Node, Node] = {}
        self.uses: Counter = Counter(i for n in self.order for i in n.operands())
        self.uses.update(n for _, n in graph.outputs)
        self.readers: dict[Node, set[str]] = {}
        for n in self.order:
            for i in n.operands():
                self.readers.setdefault(i, set()).add(n.op)
        self.live: set[Node] = set(self.order)
        self.changed = False

    def run(self) -> Graph:
        for node in self.order:
            new = self._rebuilt(node)
            for _ in range(PER_NODE):
                replacement = self._fire(new)
                if replacement is None:
                    break
                self._redirect(new, replacement)
                new, self.changed = replacement, True
            else:
                raise EdgecError(
                    "EC1901",
                    f"the phase {self.phase} does not come to an end",
                    where=self.graph.origin(node),
                    hint=f"It ended with {self.record.fired[-1].rule}",
                )
            self.into[node] = new
        return self.graph.with_outputs([self.into[n] for _, n in self.graph.outputs])

    def _rebuilt(self, node: Node) -> Node:
        inputs = tuple(None if i is None else self.into[i] for i in node.inputs)
        if all(a is b for a, b in zip(inputs, node.inputs)):
            return node
        new = make(node.op, *inputs, **node.attrs)
        self._name([new], self.graph.origins.get(node, ()))
        self._redirect(node, new)
        return new

    def _single(self, node: Node) -> bool:
        return self.uses[node] <= 1

    def _fire(self, node: Node) -> Node | None:
        for rule in (*self.index.get(node.op, ()), *self.index.get(None, ())):
            for bound in match(rule.pattern, node, self._single, {}):
                m = Match(node, bound, self.uses, self.readers)
                new = rule.build(m)
                if isinstance(new, str):
                    self.record.refused[self.phase, rule.name, new] += 1
                    continue
                if new is node:
                    continue
                if not may_replace(new.type, node.type):
                    raise EdgecError(
                        "EC1901", f"the rule {rule.name} made {new.type} of {node.type}", where=self.graph.origin(node)
                    )
                origins = tuple(dict.fromkeys(o for n in m.nodes for o in self.graph.origins.get(n, ())))
                self._name(self._fresh(new), origins)
                self.record.fired.append(Fired(self.phase, rule.name, node.op, new.op, origins))
                return new
        return None

    def _fresh(self, root: Node) -> list[Node]:
        """The nodes under the root that are not of the graph yet."""
        fresh, stack, seen = [], [root], set()
        while stack:
            node = stack.pop()
            if node in self.live or node in seen:
                continue
            seen.add(node)
            fresh.append(node)
            stack.extend(node.operands())
        return fresh

    def _name(self, nodes: Iterable[Node], origins: tuple[str, ...]) -> None:
        for node in nodes:
            if origins and node.op != "constant" and node not in self.graph.origins:
                self.graph.origins[node] = origins

    def _redirect(self, old: Node, new: Node) -> None:
        """All that read `old` read `new` from here on."""
        for node in self._fresh(new):
            self.live.add(node)
            for i in node.operands():
                self.uses[i] += 1
        self.uses[new] += self.uses.pop(old, 0)
        if old in self.readers:
            self.readers.setdefault(new, set()).update(self.readers[old])
        stack = [old]
        while stack:
            dead = stack.pop()
            if dead not in self.live or self.uses[dead] > 0:
                continue
            self.live.discard(dead)
            for i in dead.operands():
                i = self.into.get(i, i)
                self.uses[i] -= 1
                if self.uses[i] <= 0:
                    stack.append(i)


def apply(graph: Graph, rules: Iterable[Rule], phase: str = "rules", record: Record | None = None) -> Graph:
    """The graph after the rules have been applied until none fires. EdgecError where they never come to an end."""
    index: dict[str | None, list[Rule]] = {}
    for r in rules:
        roots = r.pattern.roots()
        for op in [None] if roots is None else sorted(roots):
            index.setdefault(op, []).append(r)
    record = Record() if record is None else record
    for _ in range(SWEEPS):
        sweep = _Sweep(graph, index, phase, record)
        graph = sweep.run()
        if not sweep.changed:
            return graph
    raise EdgecError(
        "EC1901",
        f"the phase {phase} does not come to an end",
        where=graph.name,
        hint=f"It ended with {record.fired[-1].rule}",
    )


def run(
    graph: Graph,
    phases: Iterable[Phase],
    dump: Callable[[str, Graph], None] | None = None,
    record: Record | None = None,
) -> Graph:
    """Applies the phases in order; dump(phase's name, graph) is called after each."""
    for phase in phases:
        rules = phase.rules(graph) if callable(phase.rules) else phase.rules
        graph = apply(graph, rules, phase.name, record)
        if dump:
            dump(phase.name, graph)
    return graph
