"""Language models: what each input and output is for, and logits of the last positions only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from edgec.ir.dims import Dim, symbol, symbol_name
from edgec.ir.node import Graph, Node, make
from edgec.ir.ops import OPS
from edgec.ir.types import FLOATS, INTS, TensorType
from edgec.rewrites import rope, states
from edgec.rewrites.engine import apply
from edgec.rewrites.merge import merge_siblings
from edgec.rewrites.pattern import b

LOGITS = "logits"  # the symbol: how many of the last positions get logits
_ROWWISE = ("unary", "binary", "elementwise")


@dataclass(frozen=True)
class Roles:
    """Names of a language model's inputs and outputs. past, present: caches that are exposed, pair by pair. vocab: logits of
    a token; width: of its embedding."""

    ids: str
    logits: str
    mask: str | None = None
    positions: str | None = None
    past: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    vocab: int = 0
    width: int = 0


def roles(graph: Graph) -> Roles | str:
    """What the inputs and outputs of a causal language model are, or why the graph is none that text comes out of."""
    nodes = graph.nodes()
    tables = [n for n in nodes if n.op == "gather" and n["axis"] == 0 and n.inputs[0].op == "constant"
              and n.inputs[0].rank == 2 and n.inputs[0].dtype in FLOATS]  # fmt: skip
    found = [(n.inputs[0].shape, i) for n in tables if (i := _input_of(n.inputs[1])) is not None and i.rank == 2]
    if not found:
        return "no input chooses rows of an embedding"
    (_, width), ids = max(found, key=lambda pair: pair[0][0])
    logits = [(name, n) for name, n in graph.outputs if isinstance(n.type, TensorType) and n.dtype in FLOATS
              and n.rank == 3 and n.shape[0] == ids.shape[0] and isinstance(n.shape[2], int)
              and n.shape[1] in (ids.shape[1], *map(symbol, graph.parameters))]  # fmt: skip
    if not logits:
        return "no output has a row of logits for each token"
    name, output = next((pair for pair in logits if pair[0] == "logits"), logits[0])
    attentions = [n for n in nodes if n.op == "attention"]
    kept = {past for past, _ in graph.states}
    pairs = [c for c in states.find(graph) if c.past["name"] not in kept]
    if not kept and not pairs and not (attentions and all(n["causal"] for n in attentions)):
        return "its attention is not causal"
    caches = kept | {c.past["name"] for c in pairs}
    rest = [n for n in graph.inputs if n is not ids and n["name"] not in caches]
    masking = _above(nodes, [n for n in rest if n.rank == 2])
    masked = {i for n in attentions if n.inputs[3] is not None for i in masking.get(n.inputs[3], ())}
    given: dict[str, str] = {}
    for node in rest:
        role = _role(node, ids, node in masked)
        if role is None or role in given:
            return f"nothing is known to feed the input {node['name']!r}"
        given[role] = node["name"]
    return Roles(ids["name"], name, given.get("mask"), given.get("positions"), tuple(c.past["name"] for c in pairs),
                 tuple(c.present for c in pairs), output.shape[2], width)  # fmt: skip


def _role(node: Node, ids: Node, masked: bool) -> str | None:
    if node.rank != 2 or node.dtype not in (*INTS, "bool", *FLOATS):
        return None
    name = node["name"].lower()
    if "mask" in name or ("position" not in name and (masked or node.shape[1] != ids.shape[1])):
        return "mask"
    return "positions" if node.dtype in INTS else None


def _input_of(node: Node) -> Node | None:
    while node.op in ("cast", "reshape"):
        node = node.inputs[0]
    return node if node.op == "input" and node.dtype in INTS else None


def _above(nodes: Iterable[Node], sources: list[Node]) -> dict[Node, set[Node]]:
    """Node -> which of the sources it depends on."""
    out: dict[Node, set[Node]] = {}
    for n in nodes:
        below = {n} if n in sources else set().union(*(out.get(i, set()) for i in n.operands()))
        if below:
            out[n] = below
    return out


# --- the last positions ----------------------------------------------------------------------------------------------


def last_positions(graph: Graph) -> Graph:
    """The logits of the last K positions only, by the parameter `logits` (K; all positions where it is not set).

    What comes before the logits row by row, up to the last attention, is computed for these rows only.
    """
    found = roles(graph)
    if isinstance(found, str) or LOGITS in graph.symbols:
        return graph
    outputs = dict(graph.outputs)
    root = outputs[found.logits]
    steps = root.shape[1]
    if symbol_name(steps) is None:
        return graph
    cut = _Cut(graph, root, steps)
    new = cut(root)
    symbols = {**graph.symbols, LOGITS: (1, None)}
    parameters = {**graph.parameters, LOGITS: steps}
    out = [(name, new if name == found.logits else n) for name, n in graph.outputs]
    return replace(graph, outputs=tuple(out), symbols=symbols, parameters=parameters)


class _Cut:
    """Builds the last rows of nodes [batch, steps, ...], of all nodes that nothing else reads in full."""

    def __init__(self, graph: Graph, root: Node, steps: Dim):
        self.graph, self.steps, self.users = graph, steps, graph.users()
        self.outputs = {n for name, n in graph.outputs if n is not root}
        self.region = self._region(root)
        self.done: dict[Node, Node] = {}

    def varies(self, node: Node) -> bool:
        """Whether the node has a row for each step, on axis 1."""
        return node.rank >= 3 and node.shape[1] == self.steps

    def _through(self, node: Node) -> bool:
        """Whether rows of the node come from the same rows of its operands."""
        if not self.varies(node) or node in self.outputs:
            return False
        if node.op == "linear":
            return node.inputs[1].op == "constant"
        if node.op in ("rms_norm", "layer_norm", "softmax"):
            return node["axis"] >= 2
        if node.op == "reshape":
            return node.inputs[0].rank >= 3 and node.inputs[0].shape[:2] == node.shape[:2]
        aligned = all((self.varies(i) and i.rank == node.rank) or _constant_in(i, node.rank) for i in node.operands())
        return OPS[node.op].kind in _ROWWISE and aligned

    def _region(self, root: Node) -> set[Node]:
        order = self.graph.nodes()
        region: set[Node] = set()
        for node in reversed(order):
            inside = node is root or (all(u in region for u in self.users.get(node, [])) and node in self.users)
            if inside and self._through(node):
                region.add(node)
        return region

    def __call__(self, root: Node) -> Node:
        for node in self.graph.nodes():
            if node in self.region or node is root:
                self.done[node] = self._of(node)
        return self.done[root]

    def _of(self, node: Node) -> Node:
        if node not in self.region:
            return self._rows(node)
        inputs = [None if i is None else self._rows(i) for i in node.inputs]
        attrs: dict[str, Any] = dict(node.attrs)
        if node.op == "reshape":
            attrs["shape"] = (node.shape[0], symbol(LOGITS), *node.shape[2:])
        new = make(node.op, *inputs, **attrs)
        if node in self.graph.origins:
            self.graph.origins.setdefault(new, self.graph.origins[node])
        return new

    def _rows(self, node: Node) -> Node:
        if node in self.done:
            return self.done[node]
        if not self.varies(node):
            return node
        starts: list[Dim] = [0] * node.rank
        sizes = list(node.shape)
        starts[1], sizes[1] = self.steps - symbol(LOGITS), symbol(LOGITS)
        new = self.done[node] = b.slice(node, starts=tuple(starts), sizes=tuple(sizes), steps=(1,) * node.rank)
        if node in self.graph.origins:
            self.graph.origins.setdefault(new, self.graph.origins[node])
        return new


def _constant_in(node: Node, rank: int) -> bool:
    """Whether an operand that broadcasts to this rank is the same for all steps."""
    return node.rank < rank - 1 or node.shape[1 - rank] == 1


def as_decoder(
    graph: Graph, kv_cache: str = "fp32", max_context: int | None = None
) -> tuple[Graph, dict | None, list[str]]:
    """Of a language model: (the graph with caches as states and logits of the last positions by choice, the manifest's
    "lm", notes for the user). Of another model: (the graph, None, [])."""
    graph, reason = states.keep_states(graph, kv_cache)
    found = roles(graph)
    if isinstance(found, str):
        return graph, None, [f"The cache stays an input and output: {reason}."] if reason else []
    notes = []
    if reason and kv_cache != "exposed":
        notes.append(f"The cache stays an input and output: {reason}.")
    if graph.states:
        graph = apply(last_positions(merge_siblings(graph)), rope.RULES, "decoder")
    elif not found.past:
        notes.append("The model has no inputs for past keys and values: each new token computes the whole text again. "
                     "Export it with them (optimum: --task text-generation-with-past).")  # fmt: skip
    lm = {
        "ids": found.ids,
        "mask": found.mask,
        "positions": found.positions,
        "logits": found.logits,
        "last": LOGITS in graph.parameters,
        "states": bool(graph.states),
        "past": list(found.past),
        "present": list(found.present),
        "ragged": states.is_ragged(graph),
        "context": max_context,
        "vocab": found.vocab,
    }
    return graph, lm, notes
