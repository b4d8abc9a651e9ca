"""The op table: what each canonical op takes, the type it yields, and its numpy reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from edgec.ir.dims import Dim, bcast, is_ge
from edgec.ir.types import TensorType, Type

REQUIRED = object()
Assumption = tuple[str, Dim, Dim]  # ("equal" | "at_least" | "broadcast", a, b)
_assumptions: list[Assumption] | None = None


class IrError(ValueError):
    """An op that does not exist, or inputs or attributes that do not fit it."""


@dataclass(frozen=True)
class Op:
    """A canonical op.

    operands: their names; a trailing "?" marks one that may be absent, a trailing "*" takes any number (at least one).
    attrs: name -> default (REQUIRED: none).
    infer: (operand types..., **attrs) -> type; raises IrError.
    reference: (operand arrays..., **attrs) -> array, or a tuple of arrays; attributes arrive with dims bound to ints.
    kind: "leaf", "unary", "binary", "elementwise" (more operands), "reduce", "movement", "nn", "recurrent", "control".
    """

    name: str
    operands: tuple[str, ...]
    attrs: Mapping[str, Any]
    infer: Callable[..., Type]
    reference: Callable[..., Any]
    kind: str

    def complete(self, attrs: dict) -> dict:
        unknown = set(attrs) - set(self.attrs)
        if unknown:
            raise IrError(f"{self.name} has no attribute {sorted(unknown)[0]!r}")
        full = {k: attrs.get(k, default) for k, default in self.attrs.items()}
        for k, v in full.items():
            if v is REQUIRED:
                raise IrError(f"{self.name} needs the attribute {k!r}")
        return full

    def check_inputs(self, inputs: tuple) -> tuple:
        if self.operands and self.operands[-1].endswith("*"):
            if len(inputs) < len(self.operands) or any(i is None for i in inputs):
                raise IrError(f"{self.name} needs {len(self.operands)} operands or more")
            return inputs
        if len(inputs) > len(self.operands):
            raise IrError(f"{self.name} takes {len(self.operands)} operands, got {len(inputs)}")
        inputs = inputs + (None,) * (len(self.operands) - len(inputs))
        for name, i in zip(self.operands, inputs):
            if i is None and not name.endswith("?"):
                raise IrError(f"{self.name} needs the operand {name!r}")
        return inputs


OPS: dict[str, Op] = {}


def define(
    name: str, operands: str, infer: Callable[..., Type], reference: Callable[..., Any], kind: str, /, **attrs
) -> None:
    """Adds an op to the table. ValueError if it is there already."""
    if name in OPS:
        raise ValueError(f"op {name!r} is defined twice")
    OPS[name] = Op(name, tuple(operands.split()), attrs, infer, reference, kind)


def need(condition: bool, message: str) -> None:
    if not condition:
        raise IrError(message)


def need_same_dtype(op: str, *types: TensorType | None) -> str:
    dtypes = [t.dtype for t in types if t is not None]
    need(len(set(dtypes)) == 1, f"{op} needs operands of one dtype, got {', '.join(dtypes)}")
    return dtypes[0]


def axis_in(axis: int, rank: int, op: str) -> int:
    need(-rank <= axis < rank, f"{op}: axis {axis} is outside of rank {rank}")
    return axis % rank


def broadcast_dims(a: Dim, b: Dim, op: str) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        need(a == b or a == 1 or b == 1, f"{op}: sizes {a} and {b} do not broadcast")
    elif a != b and a != 1 and b != 1:
        _assume("broadcast", a, b)
    return bcast(a, b)


def broadcast_shapes(op: str, *shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of numpy broadcasting, where symbolic dims that differ give bcast(a, b)."""
    out: list[Dim] = []
    for s in shapes:
        s = (*(1,) * (len(out) - len(s)), *s)
        out = [*(1,) * (len(s) - len(out)), *out]
        out = [broadcast_dims(a, b, op) for a, b in zip(out, s)]
    return tuple(out)


@contextmanager
def collect_assumptions() -> Iterator[list[Assumption]]:
    """What inference takes for granted about symbolic dims inside the block: the run-time checks a node needs."""
    global _assumptions
    outer, _assumptions = _assumptions, []
    try:
        yield _assumptions
    finally:
        _assumptions = outer


def _assume(kind: str, a: Dim, b: Dim) -> None:
    if _assumptions is not None:
        _assumptions.append((kind, a, b))


def same_dims(a: Dim, b: Dim) -> bool:
    """Whether two dims may be equal: False only where they are known to differ."""
    if a == b:
        return True
    d = a - b
    if isinstance(d, int):
        return d == 0
    _assume("equal", a, b)
    return True


def at_least(a: Dim, b: Dim) -> bool:
    """Whether a >= b may hold: False only where it is known not to."""
    known = is_ge(a, b)
    if known is None:
        _assume("at_least", a, b)
    return known is not False
