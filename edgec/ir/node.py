"""Nodes and graphs: small, immutable and interned, so that equal nodes are one object."""

from __future__ import annotations

import struct
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from edgec.ir.data import SMALL, Data, dequantize
from edgec.ir.dims import Dim, Expr
from edgec.ir.types import TensorType, Type

__all__ = ["SMALL", "Data", "Graph", "Node", "constant", "dequantize", "infer", "make", "topological"]


class Node:
    """One operation: op's name, input nodes (None: an absent optional one), attributes, and the type they imply."""

    __slots__ = ("__weakref__", "attrs", "inputs", "op", "type")
    op: str
    inputs: tuple[Any, ...]  # Node, or None for an absent operand: the op's table says which may be
    attrs: Mapping[str, Any]
    type: Any

    def __getitem__(self, name: str):
        return self.attrs[name]

    @property
    def shape(self) -> tuple:
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    def operands(self) -> tuple[Node, ...]:
        """The inputs that are there."""
        return tuple(i for i in self.inputs if i is not None)

    def __repr__(self):
        return f"<{self.op} {self.type}>"


def _hashable(value):
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    if isinstance(value, (bool, int, str, Expr, Data, TensorType)) or value is None:
        return (type(value).__name__, value)
    if isinstance(value, tuple):
        return tuple(_hashable(v) for v in value)
    raise TypeError(f"an attribute cannot hold {value!r}")


def _frozen(value):
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, np.generic):
        return value.item()
    return value


_interned: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def make(op: str, /, *inputs: Node | None, **attrs) -> Node:
    """The node of this op, inputs and attributes; its type is inferred.

    Raises IrError where the op does not exist or its inputs or attributes do not fit.
    """
    from edgec.ir.ops import OPS, IrError

    spec = OPS.get(op)
    if spec is None:
        raise IrError(f"no op is called {op!r}")
    full = {k: _frozen(v) for k, v in spec.complete(attrs).items()}
    inputs = spec.check_inputs(inputs)
    key = (op, tuple(map(id, inputs)), tuple((k, _hashable(v)) for k, v in sorted(full.items())))
    node = _interned.get(key)
    if node is None:
        node = Node.__new__(Node)
        node.op, node.inputs, node.attrs = op, inputs, MappingProxyType(full)
        node.type = infer(node)
        _interned[key] = node
    return node


def infer(node: Node) -> Type:
    from edgec.ir.ops import OPS

    return OPS[node.op].infer(*[i.type if i is not None else None for i in node.inputs], **node.attrs)


def constant(value, dtype: str | None = None) -> Node:
    """A constant node of an array, a number or a Data handle."""
    if not isinstance(value, Data):
        from edgec.ir.types import numpy_dtype

        value = Data.of(np.asarray(value) if dtype is None else np.asarray(value, dtype=numpy_dtype(dtype)))
    return make("constant", data=value)


@dataclass(frozen=True)
class Graph:
    """Inputs in the source's order (unused ones too), named outputs, the bounds of symbols, and where nodes come from.

    symbols: name -> (low, high or None), inclusive. origins: node -> names of source nodes; a side table for reports
    and errors that no rewrite depends on. states: (input, output) that a session keeps: what the output gives is the
    input of the next run. parameters: symbols that no input has, set for each run; the Dim is what they are otherwise.
    """

    inputs: tuple[Node, ...]
    outputs: tuple[tuple[str, Node], ...]
    symbols: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    name: str = "graph"
    origins: weakref.WeakKeyDictionary = field(default_factory=weakref.WeakKeyDictionary, compare=False, repr=False)
    states: tuple[tuple[str, str], ...] = ()
    parameters: Mapping[str, Dim] = field(default_factory=dict)

    def nodes(self) -> list[Node]:
        """All nodes that an output needs, operands before users."""
        return topological([n for _, n in self.outputs])

    def users(self) -> dict[Node, list[Node]]:
        users: dict[Node, list[Node]] = {}
        for n in self.nodes():
            for i in n.operands():
                users.setdefault(i, []).append(n)
        return users

    def with_outputs(self, outputs: Iterable[Node]) -> Graph:
        names = [name for name, _ in self.outputs]
        return replace(self, outputs=tuple(zip(names, outputs, strict=True)))

    def origin(self, node: Node) -> str:
        return ", ".join(self.origins.get(node, ())) or node.op


def topological(roots: Iterable[Node]) -> list[Node]:
    """The nodes under the roots, operands first; the same order each time."""
    order: list[Node] = []
    state: dict[Node, bool] = {}
    stack: list[tuple[Node, Iterator]] = []
    for root in roots:
        if root in state:
            continue
        state[root] = False
        stack.append((root, iter(root.operands())))
        while stack:
            node, rest = stack[-1]
            for i in rest:
                if i not in state:
                    state[i] = False
                    stack.append((i, iter(i.operands())))
                    break
            else:
                stack.pop()
                state[node] = True
                order.append(node)
    return order
