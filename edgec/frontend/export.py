"""IR to ONNX: a rewritten, pruned or healed graph as a model that any runtime of ONNX takes, in ops of opset 20 alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgec.errors import EdgecError
from edgec.frontend.export_ops import ATTRS, FORMS, PLAIN, REDUCTIONS
from edgec.frontend.learned import save
from edgec.ir.dims import Dim, Expr, format_dim, symbol_name
from edgec.ir.node import Graph, Node
from edgec.ir.types import numpy_dtype

OPSET, IR_VERSION = 20, 10


def write(graph: Graph, out: str | os.PathLike) -> None:
    """Writes the graph as an ONNX file; more than 1 GB of weights go into `out`.data. Names of inputs and outputs stay, and
    quantized weights are written dequantized, in f32.

    Raises EdgecError EC1307 (a node that has no form in ONNX, or that is not written here), EC1003.
    """
    out = Path(out)
    save(model_of(graph), out, out.parent)


def model_of(graph: Graph) -> onnx.ModelProto:
    """The same in memory. Raises EdgecError EC1307."""
    check(graph)
    return Writer(graph).model()


def check(graph: Graph) -> None:
    """Raises EdgecError EC1307 for the ops that have no form here, all of them listed."""
    known = {*PLAIN, *ATTRS, *REDUCTIONS, *FORMS, "input", "constant", "item"}
    missing = {n.op: graph.origin(n) for n in graph.nodes() if n.op not in known}
    if missing:
        listed = ", ".join(f"{op} ({origin})" for op, origin in sorted(missing.items()))
        raise EdgecError("EC1307", f"not written as ONNX: {listed}", graph.name, "Leave out --onnx")


class Writer:
    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.known: dict[object, str] = {}
        self.values: dict[Node, str | tuple[str, ...]] = {}
        self.taken = {n["name"] for n in graph.inputs} | {name for name, _ in graph.outputs}

    def model(self) -> onnx.ModelProto:
        for node in self.graph.nodes():
            self.values[node] = self._value(node)
        for name, node in self.graph.outputs:
            self.nodes.append(helper.make_node("Identity", [self.of(node)], [name], name=name))
        inputs = [_port(n["name"], n) for n in self.graph.inputs]
        outputs = [_port(name, n) for name, n in self.graph.outputs]
        made = helper.make_graph(self.nodes, self.graph.name or "graph", inputs, outputs, self.weights)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION, producer_name="edgec")

    def of(self, node: Node) -> str:
        found = self.values[node]
        assert isinstance(found, str)
        return found

    def _value(self, node: Node) -> str | tuple[str, ...]:
        if node.op == "input":
            return node["name"]
        if node.op == "constant":
            return self.array(node["data"].array())
        if node.op == "item":
            return self.values[node.inputs[0]][node["index"]]
        args = [None if i is None else self.of(i) for i in node.inputs]
        if node.op in PLAIN:
            return self.emit(PLAIN[node.op], *args)
        if node.op in ATTRS:
            op, names = ATTRS[node.op]
            return self.emit(op, *args, **{there: node[here] for here, there in names.items()})
        if node.op in REDUCTIONS:
            return self.reduce(REDUCTIONS[node.op], args[0], node["axes"], node["keepdims"])
        return FORMS[node.op](self, node, args)

    def fresh(self, what: str) -> str:
        name = what
        while name in self.taken:
            name = f"{what}_{len(self.taken)}"
        self.taken.add(name)
        return name

    def emit(self, op: str, *inputs: str | None, outputs: int = 1, **attrs):
        """The name of its output, or of its outputs."""
        names = [self.fresh(op.lower()) for _ in range(outputs)]
        given = ["" if i is None else i for i in inputs]
        while given and not given[-1]:
            given.pop()
        self.nodes.append(helper.make_node(op, given, names, name=names[0], **attrs))
        return names[0] if outputs == 1 else tuple(names)

    def array(self, value: np.ndarray) -> str:
        name = self.fresh("w" if value.size > 64 else "c")
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name))
        return name

    def number(self, value: float, dtype: str = "f32", shape: tuple = ()) -> str:
        key = (value, dtype, shape)
        if key not in self.known:
            self.known[key] = self.array(np.full(shape, value, numpy_dtype(dtype)))
        return self.known[key]

    # --- sizes ---------------------------------------------------------------------------------------------------------

    def dims(self, dims: Sequence[Dim]) -> str:
        """i64[n] of sizes."""
        if all(isinstance(d, int) for d in dims):
            key = ("dims", tuple(dims))
            if key not in self.known:
                self.known[key] = self.array(np.array(dims, np.int64))
            return self.known[key]
        return self.emit("Concat", *(self.dim(d) for d in dims), axis=0)

    def dim(self, d: Dim) -> str:
        """i64[1] of a size."""
        if not isinstance(d, Expr):
            return self.number(int(d), "i64", (1,))
        if d not in self.known:
            total = None
            for atoms, factor in d.terms:
                part = None if factor == 1 and atoms else self.number(factor, "i64", (1,))
                for atom in atoms:
                    value = self._atom(atom)
                    part = value if part is None else self.emit("Mul", part, value)
                total = part if total is None else self.emit("Add", total, part)
            assert total is not None
            self.known[d] = total
        return self.known[d]

    def _atom(self, atom) -> str:
        if atom.op == "sym":
            for node in self.graph.inputs:
                for axis, d in enumerate(node.shape):
                    if symbol_name(d) == atom.args[0]:
                        return self.emit("Shape", node["name"], start=axis, end=axis + 1)
            raise EdgecError("EC1307", f"no input has the size {atom.args[0]!r}", self.graph.name, "Leave out --onnx")
        a, *rest = (self.dim(x) for x in atom.args)
        if atom.op == "max0":
            return self.emit("Max", a, self.number(0, "i64", (1,)))
        b = rest[0]
        if atom.op == "bcast":
            return self.emit("Where", self.emit("Equal", a, self.number(1, "i64", (1,))), b, a)
        rest_of = self.emit("Mod", a, b)
        return rest_of if atom.op == "mod" else self.emit("Div", self.emit("Sub", a, rest_of), b)

    # --- parts of several ops ------------------------------------------------------------------------------------------

    def reduce(self, op: str, x: str, axes: Sequence[int], keepdims: bool) -> str:
        if not axes:
            return self.emit("Identity", x)
        return self.emit(op, x, self.dims(axes), keepdims=int(keepdims))

    def norm(
        self, node: Node, x: str, gain: Node | None, bias: Node | None, axis: int, eps: float, centred: bool
    ) -> str:
        """node: whose last axes, from `axis` on, are normalized."""
        value = lambda n: None if n is None else self.of(n)  # noqa: E731
        sizes, dtype = node.shape[axis:], node.dtype
        if centred and gain is not None and gain.shape == sizes and (bias is None or bias.shape == sizes):
            return self.emit("LayerNormalization", x, value(gain), value(bias), axis=axis, epsilon=float(eps))
        axes = tuple(range(axis, node.rank))
        x = self.emit("Sub", x, self.reduce("ReduceMean", x, axes, True)) if centred else x
        square = self.reduce("ReduceMean", self.emit("Mul", x, x), axes, True)
        x = self.emit("Div", x, self.emit("Sqrt", self.emit("Add", square, self.number(eps, dtype))))
        for op, p in (("Mul", gain), ("Add", bias)):
            x = x if p is None else self.emit(op, x, self.of(p))
        return x

    def act(self, x: str, act: str, dtype: str) -> str:
        if act == "none":
            return x
        if act == "relu6":
            return self.emit("Clip", x, self.number(0, dtype), self.number(6, dtype))
        if act in ("gelu", "gelu_tanh"):
            return self.emit("Gelu", x, approximate="tanh" if act == "gelu_tanh" else "none")
        if act == "silu":
            return self.emit("Mul", x, self.emit("Sigmoid", x))
        if act == "hard_sigmoid":
            return self.emit("HardSigmoid", x, alpha=1 / 6, beta=0.5)
        return self.emit({"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "hard_swish": "HardSwish"}[act], x)

    def swapped(self, x: str, rank: int, a: int = -1, b: int = -2) -> str:
        perm = list(range(rank))
        perm[a], perm[b] = perm[b], perm[a]
        return self.emit("Transpose", x, perm=perm)

    def sliced(
        self, x: str, starts: Sequence[Dim], ends: Sequence[Dim], axes: Sequence[int], steps: Sequence[int]
    ) -> str:
        return self.emit("Slice", x, self.dims(starts), self.dims(ends), self.dims(axes), self.dims(steps))

    def wide(self, node: Node) -> str:
        """Indices in i64."""
        return self.of(node) if node.dtype == "i64" else self.emit("Cast", self.of(node), to=TensorProto.INT64)


def _port(name: str, node: Node) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(numpy_dtype(node.dtype)))
    return helper.make_tensor_value_info(
        name, kind, [d if isinstance(d, int) else symbol_name(d) or format_dim(d) for d in node.shape]
    )
