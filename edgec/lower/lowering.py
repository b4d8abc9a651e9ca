"""A rewritten graph to what an artifact holds: plan, code and constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edgec import kernels
from edgec.ir.data import BLOCK
from edgec.ir.dims import Dim
from edgec.ir.node import Data, Graph, Node
from edgec.ir.types import TensorType
from edgec.lower import fusion
from edgec.lower.assemble import Assembled, Assembler, Blob
from edgec.lower.legalize import legalize, macs
from edgec.lower.link import link
from edgec.lower.partition import partition
from edgec.lower.schedule import Branch, Unit
from edgec.lower.tvm_backend import TvmBackend
from edgec.rewrites.encode import floats
from edgec.targets import Target


@dataclass
class Lowered:
    """plan: edgec.artifact.plan.Plan. code: bytes of the shared library (empty: no compiled function)."""

    assembled: Assembled
    code: bytes
    graph: Graph

    @property
    def plan(self):
        return self.assembled.plan

    @property
    def blobs(self) -> list[Blob]:
        return self.assembled.blobs

    def work(self) -> Iterator[tuple[str, str, Node, Dim]]:
        """(kernel or function, "kernel" | "call", node, multiply-accumulates) of each step."""
        for what, _ in self.assembled.steps:
            if isinstance(what, Unit):
                name = getattr(what.what, "name", None) or what.what.symbol
                kind = "kernel" if hasattr(what.what, "name") else "call"
                for node in what.nodes:
                    yield name, kind, node, macs(node)


def pick_format(w: Node, op: str, layouts: tuple[str, ...] = ()) -> str:
    """The packed format of a weight that `op` ("linear" or "gather") reads, in the layouts that the target prefers."""
    e = w.type.encoding
    if e is None:
        return kernels.format_name(32, op=op, layouts=layouts)
    return kernels.format_name(e.bits, e.group, not e.zero, op, e.table, layouts)


def pack(node: Node) -> Data:
    """The bytes of a `pack` node's constant in its format, made when they are asked for."""
    (w,) = node.operands()
    data: Data = w["data"]
    n, k = node.shape
    format, threads = node["format"], kernels.threads()
    size = kernels.packed_nbytes(format, n, k)

    def pieces() -> Iterator[np.ndarray]:
        stored = data.packed
        if stored is not None and stored.format == format:
            for begin in range(0, size, BLOCK):
                yield stored.read(begin, min(size, begin + BLOCK))
            return
        for _, parts in data.blocks(kernels.formats()[format].panel):
            if "value" in parts:
                yield kernels.pack(format, floats(parts["value"], threads), threads=threads)
            else:
                yield kernels.pack(format, parts["q"], parts["scale"], parts.get("zero"), threads)

    def load() -> dict[str, np.ndarray]:
        return {"bytes": np.concatenate([np.empty(0, np.uint8), *pieces()])}

    return Data(TensorType("u8", (size,)), (data.key, format), load, pieces=pieces)


def lower(graph: Graph, target: Target, progress: Callable[[str], None] = lambda phase: None) -> Lowered:
    """Raises EdgecError EC1401 with every op that cannot be lowered, EC1403 where compiling or linking fails."""
    progress("legalize")
    graph = legalize(graph, lambda w, op: pick_format(w, op, target.layouts))
    progress("partition")
    backend = TvmBackend(target)
    parts = partition(graph, fusion)
    _compile(parts.items, backend)
    progress("plan")
    assembled = Assembler(graph, pack).run(parts.items, parts.guard)
    progress("compile")
    code = link(backend.compile(), target) if any(s.kind == 0 for s in assembled.plan.steps) else b""
    return Lowered(assembled, code, graph)


def _compile(items: list, backend: TvmBackend) -> None:
    for item in items:
        if isinstance(item, Branch):
            _compile(item.then, backend)
            _compile(item.orelse, backend)
        elif item.group is not None:
            item.what = backend.add(item.group)
