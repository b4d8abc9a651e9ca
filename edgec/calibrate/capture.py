"""Values inside of a graph on real inputs: the graph runs in stages through the compiler's own kernels.

    capture(graph, nodes, feeds, visit)      # visit(node, value, number of the feed)

    stream = Stream(graph, feeds)            # for those that go from layer to layer and change weights on the way
    for number, values in stream.run(nodes): # node -> array; what is behind the nodes is never computed again
        ...

A stage is what lies between values that are known and those that are asked for. All feeds go through a stage before the
next one is compiled, so that only its weights are in memory, and beside them the values that later stages read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgec import _core, targets
from edgec.errors import EdgecError
from edgec.ir.dims import Dim, Expr, evaluate, substitute
from edgec.ir.evaluate import FeedError, bind_symbols
from edgec.ir.node import Data, Graph, Node, constant, make, topological
from edgec.ir.types import TensorType, TupleType, dtype_size

STAGE = 192 << 20  # bytes of weights that a stage of capture() may have
Feeds = Mapping[str, np.ndarray]
Visit = Callable[[Node, np.ndarray, int], None]


def capture(
    graph: Graph,
    nodes: Iterable[Node],
    feeds: Sequence[Feeds],
    visit: Visit,
    *,
    threads: int = 0,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Calls visit(node, value, i) for each of the nodes and each feed i: node by node within a feed, stage by stage.

    graph: any graph of the rewrite phases, a language model's with states too: each feed starts with empty caches, and
    logits are those of all positions. nodes: tensors of the graph. feeds: complete inputs (`data.load`). value: an array
    of its own. tick: called with (runs done, of how many). Raises EdgecError EC1302 where a feed does not fit the graph,
    EC14xx where it cannot be compiled.
    """
    stream, stages = Stream(graph, feeds, threads=threads), list(stages_of(graph, nodes))
    wanted = [n for stage in stages for n in stage]
    stream.expect(wanted)
    for at, stage in enumerate(stages):
        for number, values in stream.run(stage):
            for node, value in values.items():
                visit(node, value, number)
            tick(at * len(feeds) + number + 1, len(stages) * len(feeds))


def stages_of(graph: Graph, nodes: Iterable[Node], nbytes: int = STAGE) -> Iterator[list[Node]]:
    """The nodes in the graph's order, cut where the constants between would exceed `nbytes`."""
    wanted, stage, size = set(nodes), [], 0
    for node in graph.nodes():
        if node.op == "constant" and node.type.encoding is None:
            size += int(np.prod(node["data"].shape, dtype=np.int64)) * dtype_size(node.dtype)
        if node not in wanted:
            continue
        if size > nbytes and stage:
            yield stage
            stage, size = [], 0
        stage.append(node)
    if stage:
        yield stage
    if missing := wanted - set(graph.nodes()):
        raise ValueError(f"{next(iter(missing))} is not of the graph")


@dataclass
class _Compiled:
    """A stage for one shape of feeds."""

    session: Any
    inputs: dict[str, Node]  # port's name -> the value that it takes
    outputs: list[Node]


class Stream:
    """The values of a graph for each feed, from the inputs onwards.

    weights: key of a constant weight of the graph -> what stands for it (an encoded one makes its `linear` one of int8
    activations); entries may be added until the stage that reads the weight runs. A stream holds the values that nodes
    still to come read: of a transformer, the residual and some masks, for each feed.
    """

    def __init__(
        self, graph: Graph, feeds: Sequence[Feeds], weights: Mapping[Any, Data] | None = None, threads: int = 0
    ) -> None:
        """Raises EdgecError EC1302 where a feed does not fit the graph."""
        self.graph, self.weights, self.threads = graph, {} if weights is None else weights, threads
        self._target = targets.load("host")
        self._order = graph.nodes()
        self._users = graph.users()
        kept = {present for _, present in graph.states}
        self._needed = set(topological([n for name, n in graph.outputs if name not in kept]))
        self._env = [self._bind(feed) for feed in feeds]
        self._done: set[Node] = set(graph.inputs)
        self._values: list[dict[Node, np.ndarray]] = []
        for feed in feeds:
            self._values.append({n: np.asarray(feed[n["name"]]) for n in graph.inputs})

    def _bind(self, feed: Feeds) -> dict[str, int]:
        try:
            env = bind_symbols(self.graph.inputs, feed)
        except FeedError as error:
            raise EdgecError(
                "EC1302", str(error), "calibration data", "Give the inputs that the model has, with its shapes"
            ) from None
        for node in self.graph.inputs:
            if dtype_size(node.dtype) != feed[node["name"]].dtype.itemsize:
                found = feed[node["name"]].dtype
                raise EdgecError(
                    "EC1302",
                    f"input {node['name']!r} is {found}, expected {node.dtype}",
                    "calibration data",
                    "Store the array in that dtype",
                )
        return env | {k: evaluate(d, env) for k, d in self.graph.parameters.items()}

    def expect(self, nodes: Iterable[Node]) -> None:
        """Only these nodes will be asked for, so that what they do not need is not kept. Default: the graph's outputs."""
        self._needed = set(topological(list(nodes)))

    def shape(self, node: Node, number: int) -> tuple[int, ...]:
        """The sizes that a value of the graph has for a feed."""
        return tuple(evaluate(d, self._env[number]) for d in node.shape)

    def run(self, nodes: Sequence[Node]) -> Iterator[tuple[int, dict[Node, np.ndarray]]]:
        """(number of the feed, value of each node) for each feed. Iterate to the end before the next run().

        nodes: ones that no earlier run() went past, or whose values are still read later. Raises KeyError for others.
        """
        new = self._reached(nodes)
        after = self._done | new
        keep = self._frontier(after)
        outputs = list(dict.fromkeys(n for n in (*nodes, *keep) if n in new))
        compiled: dict[tuple, _Compiled] = {}
        for number, values in enumerate(self._values):
            found: dict[Node, np.ndarray] = {}
            if outputs:
                env = self._env[number]
                key = tuple(sorted(env.items()))
                if key not in compiled:
                    compiled[key] = self._compile(outputs, env)
                stage = compiled[key]
                feed = {name: values[n] for name, n in stage.inputs.items()}
                found = dict(zip(stage.outputs, stage.session.run(feed, None, None), strict=True))
            asked = {n: found[n] if n in found else values[n] for n in nodes}
            self._values[number] = {n: found[n] if n in found else values[n] for n in keep}
            yield number, asked
        self._done = after

    def call(self, nodes: Sequence[Node]) -> Callable[[Feeds], list[np.ndarray]]:
        """A function from inputs of the first feed's shapes to the nodes' values: what runs many times, compiled once."""
        outputs = list(dict.fromkeys(nodes))
        stage = self._compile(outputs, self._env[0])

        def run(feed: Feeds) -> list[np.ndarray]:
            found = stage.session.run(
                {name: np.asarray(feed[n["name"]]) for name, n in stage.inputs.items()}, None, None
            )
            values = dict(zip(stage.outputs, found, strict=True))
            return [values[n] for n in nodes]

        return run

    def _reached(self, nodes: Sequence[Node]) -> set[Node]:
        """The nodes to compute for those asked for."""
        found: set[Node] = set()
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node in self._done or node in found or node.op == "constant":
                continue
            found.add(node)
            stack.extend(node.operands())
            if isinstance(node.type, TupleType):  # a tuple cannot be kept, what is read of it can
                stack.extend(u for u in self._users.get(node, ()) if u in self._needed)
        return found

    def _frontier(self, done: set[Node]) -> list[Node]:
        """The values that nodes beyond `done` read."""
        plain = (n for n in self._order if n in done and isinstance(n.type, TensorType))
        return [n for n in plain if any(u not in done and u in self._needed for u in self._users.get(n, ()))]

    def _compile(self, outputs: list[Node], env: Mapping[str, int]) -> _Compiled:
        from edgec.lower.lowering import lower

        image: dict[Node, Node] = {}
        inputs: dict[str, Node] = {}
        bound: list[Node] = []
        for node in self._above(outputs):
            if node in self._done:
                name = f"v{len(inputs)}"
                type = TensorType(node.dtype, tuple(_bound(node.shape, env)))
                image[node] = make("input", name=name, type=type)
                inputs[name] = node
                bound.append(image[node])
            else:
                image[node] = self._image(node, [None if i is None else image[i] for i in node.inputs], env)
            if node in self.graph.origins:
                self.graph.origins.setdefault(image[node], self.graph.origins[node])
        named = tuple((f"o{i}", image[n]) for i, n in enumerate(outputs))
        part = replace(self.graph, inputs=tuple(bound), outputs=named, symbols={}, states=(), parameters={})
        lowered = lower(part, self._target)
        session = _core.Session(lowered.plan.encode(), lowered.code or None, _weights(lowered.blobs), self.threads)
        return _Compiled(session, inputs, outputs)

    def _above(self, outputs: list[Node]) -> list[Node]:
        """The nodes of a stage and the known values that it starts from, operands first."""
        found, stack = set(), list(outputs)
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(() if node in self._done else node.operands())
        return [n for n in self._order if n in found]

    def _image(self, node: Node, inputs: list[Node | None], env: Mapping[str, int]) -> Node:
        attrs = {k: _bound(v, env) for k, v in node.attrs.items()}
        if node.op == "constant" and node["data"].key in self.weights:
            return constant(self.weights[node["data"].key])
        if node.op == "linear" and inputs[1] is not None and inputs[1].type.encoding is not None:
            attrs["activations"] = "int8"
        if node.op == "cache_append":  # of 8 bits, only a state can be
            attrs["dtype"] = "f32"
        return make(node.op, *inputs, **attrs)


def _bound(value: Any, env: Mapping[str, Dim]) -> Any:
    if isinstance(value, Expr):
        return substitute(value, env)
    if isinstance(value, TensorType):
        return replace(value, shape=_bound(value.shape, env))
    return tuple(_bound(v, env) for v in value) if isinstance(value, tuple) else value


def _weights(blobs: Sequence[Any]) -> np.ndarray:
    """What weights.bin would hold."""
    out = np.zeros(max((b.offset + b.nbytes for b in blobs), default=0), np.uint8)
    for blob in blobs:
        at = blob.offset
        for piece in blob.pieces():
            out[at : at + piece.nbytes] = piece
            at += piece.nbytes
    return out


__all__ = ["Stream", "capture", "stages_of"]
