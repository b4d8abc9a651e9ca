"""The table of importers: (domain, op) -> function of a Call, and what a Call offers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from edgec.frontend import symbolic
from edgec.frontend.emit import array_of
from edgec.frontend.model import DTYPES, WIDER
from edgec.ir.dims import Dim, Expr
from edgec.ir.node import Node, topological

if TYPE_CHECKING:
    from edgec.frontend.importer import Importer

MICROSOFT = "com.microsoft"


class Unsupported(Exception):
    """A node that edgec cannot import: the reason, and the next step."""

    def __init__(self, reason: str, hint: str = ""):
        super().__init__(reason)
        self.reason, self.hint = reason, hint


class ValueNeeded(Exception):
    """A node needs these inputs' values when compiling."""

    def __init__(self, what: str, inputs: Sequence[str]):
        super().__init__(what)
        self.what, self.inputs = what, list(inputs)


class Sequence_(tuple):
    """A sequence value: its tensors are known one by one at import time."""


Value = Node | Sequence_ | None
Importer_ = Callable[["Call"], Any]
TABLE: dict[tuple[str, str], Importer_] = {}


def onnx_op(*names: str, domain: str = ""):
    """Registers an importer. It returns a node, or a tuple of one node (or None) for each output, or NotImplemented
    where ONNX's own definition of the op shall be expanded."""

    def register(f: Importer_) -> Importer_:
        for name in names:
            assert (domain, name) not in TABLE, name
            TABLE[domain, name] = f
        return f

    return register


class Call:
    """An ONNX node being imported."""

    def __init__(self, importer: Importer, node: ir.Node, inputs: list, attrs: dict[str, Any], version: int):
        self.importer, self.node, self.inputs, self.attrs, self.version = importer, node, inputs, attrs, version
        self.op = node.op_type

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    def __getitem__(self, i: int) -> Node:
        if not self.has(i):
            raise ValueError(f"input {i} is missing")
        value = self.inputs[i]
        if isinstance(value, Sequence_):
            raise Unsupported("an operand is a sequence")
        return value

    def get(self, i: int) -> Node | None:
        return self[i] if self.has(i) else None

    @property
    def x(self) -> Node:
        return self[0]

    def wants(self, i: int) -> bool:
        """Whether output i is used."""
        outputs = self.node.outputs
        return i < len(outputs) and bool(outputs[i].name)

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.attrs.get(name)
        return default if value is None else value

    def need_attr(self, name: str) -> Any:
        if self.attrs.get(name) is None:
            raise ValueError(f"the attribute {name!r} is missing")
        return self.attrs[name]

    def axis(self, default: int | None = None, rank: int | None = None, name: str = "axis") -> int:
        value = self.attr(name, default)
        if value is None:
            raise ValueError(f"the attribute {name!r} is missing")
        return self.in_rank(value, self.x.rank if rank is None else rank)

    @staticmethod
    def in_rank(axis: int, rank: int) -> int:
        axis = int(axis)
        if not -rank <= axis < max(rank, 1):
            raise ValueError(f"axis {axis} is outside of rank {rank}")
        return axis % rank if rank else 0

    def dtype(self, name: str, default: str | None = None) -> str | None:
        """The dtype that an attribute names."""
        value = self.attr(name)
        if value is None:
            return default
        try:
            kind = ir.DataType(int(value)).name
        except ValueError:
            raise ValueError(f"the attribute {name!r} is {value}, which is no dtype") from None
        if kind not in DTYPES:
            raise Unsupported(f"dtype {kind}" + (" other than in constants" if kind in WIDER else ""))
        return DTYPES[kind]

    def known(self, i: int, what: str) -> np.ndarray:
        """Input i's elements as dims (object array). Unsupported or ValueNeeded where they aren't known."""
        node = self[i]
        entries = symbolic.content(node)
        if entries is None:
            array = array_of(node)
            if array is not None:
                entries = symbolic.objects((symbolic.of_number(v) for v in array.reshape(-1)), array.shape)
        if entries is None or any(v is symbolic.UNKNOWN for v in entries.flat):
            raise self.blame(node, what)
        return entries

    def blame(self, node: Node, what: str) -> Exception:
        """The reason why a value isn't known when compiling."""
        inputs = [n for n in topological([node]) if n.op == "input"]
        if not inputs:
            return Unsupported(f"{what} is not decided by the inputs' sizes", "Fix the sizes with --dim")
        if all(_is_small(n) for n in inputs):
            return ValueNeeded(what, [n["name"] for n in inputs])
        names = ", ".join(repr(n["name"]) for n in inputs[:3])
        return Unsupported(f"{what} depends on the values of {names}, so shapes would depend on data")

    def dims(self, i: int, what: str) -> tuple[Dim, ...]:
        """Input i as a tuple of dims (a scalar counts as one)."""
        entries = self.known(i, what).reshape(-1)
        for v in entries:
            if not isinstance(v, (int, Expr)):
                raise Unsupported(f"{what} holds {v}, which is not an integer")
        return tuple(entries)

    def ints(self, i: int, what: str) -> tuple[int, ...]:
        """Input i as integers."""
        values = self.dims(i, what)
        for v in values:
            if not isinstance(v, int):
                raise Unsupported(f"{what} is {v}, which depends on a size", "Fix the size with --dim")
        return values  # type: ignore[return-value]

    def array(self, i: int, what: str) -> np.ndarray:
        """Input i's value, which must be known when compiling."""
        node = self[i]
        array = array_of(node)
        if array is None:
            raise self.blame(node, what)
        return array

    def ints_at(self, name: str, i: int, default: Sequence[int] | None = None) -> tuple[int, ...] | None:
        """Integers that are an attribute in older opsets and input i in newer ones."""
        if self.has(i):
            return self.ints(i, name)
        value = self.attr(name)
        if value is None:
            return None if default is None else tuple(default)
        return tuple(value) if isinstance(value, (list, tuple)) else (int(value),)


def _is_small(n: Node) -> bool:
    return all(isinstance(d, int) for d in n.shape) and int(np.prod(n.shape, dtype=object)) <= 64
