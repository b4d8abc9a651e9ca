"""What each step of a lowered graph has to do: multiply-accumulates, other arithmetic, bytes; as Dims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgec.estimate import Work
from edgec.ir.dims import Dim, evaluate, product
from edgec.ir.node import Graph, Node
from edgec.ir.types import TensorType, TupleType, dtype_size
from edgec.lower.assemble import Assembled
from edgec.lower.groups import Compiled
from edgec.lower.legalize import macs
from edgec.lower.schedule import Unit

# vector operations that an element of the result costs; any other elementwise op: 1
OPS = {
    **dict.fromkeys(("div", "sqrt", "mod", "fmod", "rsqrt", "reciprocal"), 4),
    **dict.fromkeys(("exp", "log", "softplus"), 12),
    **dict.fromkeys(("erf", "gelu", "tanh", "sigmoid", "silu", "softmax", "sin", "cos", "pow", "mish"), 16),
    **dict.fromkeys(("rms_norm", "layer_norm"), 6),
    **dict.fromkeys(("reshape", "transpose", "expand", "slice", "item", "constant", "iota", "dim_value", "cast"), 0),
}
RECURRENT = ("lstm", "gru", "rnn")
STATE = 20  # vector operations for each element of a recurrent op's state: three sigmoids' worth and more


@dataclass(frozen=True)
class StepCost:
    """A step before its sizes are known; `at` gives numbers. Fields as edgec.estimate.Work has them."""

    origin: str
    kernel: str
    family: str
    macs: Dim
    unpacked: Dim
    operations: Dim
    weights: tuple[tuple[object, int], ...]  # (identity, bytes) of each constant that is read whole
    moved: Dim
    chunks: Dim | None

    def at(self, dims: Mapping[str, int]) -> Work:
        """Raises KeyError for a symbol that has no size."""

        def value(d: Dim) -> int:
            return max(0, evaluate(d, dims))

        chunks = None if self.chunks is None else value(self.chunks)
        return Work(self.family, value(self.macs), value(self.unpacked), value(self.operations),
                    sum(n for _, n in self.weights), value(self.moved), chunks, 1, self.kernel, self.origin)  # fmt: skip


def steps(assembled: Assembled, graph: Graph) -> Iterator[StepCost]:
    """The cost of each step that computes something, in the plan's order; both sides of a branch."""
    for what, origin in assembled.steps:
        if isinstance(what, Unit):
            yield _group(what, origin) if isinstance(what.what, Compiled) else _kernel(what, origin)


def _types(node: Node) -> tuple[TensorType, ...]:
    return node.type.items if isinstance(node.type, TupleType) else (node.type,)


def _bytes(node: Node) -> Dim:
    total: Dim = 0
    for t in _types(node):
        total = total + product(t.shape) * dtype_size(t.dtype)
    return total


def _stored(nodes) -> tuple[tuple[object, int], ...]:
    """Constants among the nodes: (identity, bytes in the artifact)."""
    from edgec import kernels

    found: dict[object, int] = {}
    for n in nodes:
        if n.op == "pack":
            found[n["format"], n.inputs[0]["data"].key] = kernels.packed_nbytes(n["format"], *n.shape)
        elif n.op == "constant":
            found[n["data"].key] = int(_bytes(n))
    return tuple(found.items())


def _operations(nodes) -> Dim:
    total: Dim = 0
    for node in nodes:
        each = OPS.get(node.op, 1)
        inside = [i for i in node.operands() if not isinstance(i.type, TupleType)]
        # a reduction works on what it reads, all else on what it gives
        read = max(inside, key=lambda i: i.rank, default=None)
        if each and read is not None and node.op.startswith(("reduce", "arg", "softmax", "cumsum")):
            total = total + each * product(read.shape)
        elif each:
            total = total + each * sum((product(t.shape) for t in _types(node)), 0)
    return total


def _group(unit: Unit, origin: str) -> StepCost:
    compiled: Compiled = unit.what
    group = unit.group
    assert group is not None
    main = next((n for n in group.nodes if n.op in ("conv", "conv_transpose")), None)
    family, count, operations = group.kind, 0, _operations(n for n in group.nodes if n is not main)
    if main is not None:
        count = macs(main)
        w = main.inputs[1]
        family = "depthwise" if main.op == "conv" and w.shape[1] == 1 and main["group"] > 1 else main.op
        family = "int8 conv" if main.op == "conv" and main.inputs[4] is not None else family
    elif family in ("map", "rows", "pool", "resize"):
        for node in group.nodes:
            if node.op in ("max_pool", "avg_pool"):
                operations = operations + product(node.shape) * product(node["kernel"])
            count = count + macs(node)
    read = [i for i in group.inputs if i.op not in ("constant", "pack")]
    moved = sum((_bytes(n) for n in (*read, *group.outputs)), 0)
    chunks = compiled.extent if compiled.grain == 1 else -(-compiled.extent // compiled.grain)
    return StepCost(origin, compiled.symbol, family, count, 0, operations, _stored(group.inputs), moved, chunks)


def _kernel(unit: Unit, origin: str) -> StepCost:
    node, name = unit.outputs[0], unit.what.name
    read = [i for i in node.operands() if i.op not in ("constant", "pack", "cache_append")]
    moved = sum((_bytes(n) for n in (*read, node)), 0)
    family, unpacked, operations = "move", 0, 0
    weights = _stored(node.operands())
    if node.op == "linear":
        x, w = node.inputs[:2]
        encoding = w.inputs[0].type.encoding
        family = "fp32 product" if encoding is None else "int4 product" if encoding.bits == 4 else "int8 product"
        unpacked = product(w.shape)
        operations = product(x.shape) * (6 if node["norm"] != "none" else 2) + OPS.get(node["act"], 2) * product(
            node.shape
        )
    elif node.op in ("matmul", "matmul_int"):
        family = "matmul"
    elif node.op == "attention":
        family = "attention"
        q, k, v = node.inputs[:3]
        keys = k.shape[1] if node["k_layout"] == "bshd" else k.shape[2]
        heads = q.shape[2] if node["q_layout"] == "bshd" else q.shape[1]
        operations = 12 * product(q.shape[:1]) * heads * _rows(q, node["q_layout"]) * keys
        if k.op == "cache_append":  # the whole cache is read
            for cache in (k, v):
                moved = moved + product(cache.shape) * dtype_size(cache["dtype"])
    elif node.op in RECURRENT:
        family = "recurrent"
        operations = STATE * _bytes(node) // 4
    elif node.op == "cache_append":
        new = node.inputs[1]
        moved = 2 * _bytes(new)
    elif node.op.startswith("gather"):
        moved, weights = 2 * _bytes(node), ()
    elif node.op in ("rope", "hadamard"):
        family, operations = "rows", 4 * product(node.shape)
    elif node.op in ("topk", "cumsum"):
        operations = 16 * sum((product(i.shape) for i in node.operands()), 0)
    return StepCost(origin, name, family, macs(node), unpacked, operations, weights, moved, None)


def _rows(q: Node, layout: str) -> Dim:
    return q.shape[1] if layout == "bshd" else q.shape[2]
