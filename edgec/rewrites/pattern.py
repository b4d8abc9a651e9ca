"""Patterns over nodes, written with the same names as graphs are built with.

p.mul(var("x"), p.sigmoid(var("x")))          x * sigmoid(x), in either order: the same name is the same node
p.add(p.linear(name="l").single(), var("r"))  a linear with any operands that nothing else reads
p.pow(var("x"), number(2.0))                  a constant all of whose elements are 2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from edgec.ir.node import Node, make

COMMUTATIVE = frozenset(
    ("add", "mul", "max", "min", "and", "or", "xor", "bitwise_and", "bitwise_or", "bitwise_xor", "eq", "ne")
)
SMALL_NUMBERS = 1 << 16  # larger constants are not read to see whether they are all one number


class Pattern:
    """What a node must be: one of `ops` (None: any), operands that match `inputs` (None: any), attributes that equal
    `attrs` (or satisfy them, where callable), and `where(node)`. The node is bound to `name`."""

    __slots__ = ("attrs", "choices", "inputs", "name", "one_user", "ops", "where")

    def __init__(self, ops=None, inputs=None, attrs=None, name=None, where=None, one_user=False, choices=()):
        self.ops: tuple[str, ...] | None = ops
        self.inputs: tuple[Pattern | None, ...] | None = inputs
        self.attrs: dict[str, Any] = attrs or {}
        self.name: str | None = name
        self.where: Callable[[Node], bool] | None = where
        self.one_user = one_user
        self.choices: tuple[Pattern, ...] = choices

    def single(self) -> Pattern:
        """The same, of a node with one user only: replacing the user then leaves nothing computed twice."""
        return Pattern(self.ops, self.inputs, self.attrs, self.name, self.where, True, self.choices)

    def roots(self) -> set[str] | None:
        """The ops that a matching node may have; None: any."""
        if not self.choices:
            return None if self.ops is None else set(self.ops)
        each = [c.roots() for c in self.choices]
        return None if any(e is None for e in each) else set().union(*[e for e in each if e])


def var(name: str, where: Callable[[Node], bool] | None = None) -> Pattern:
    """Any node."""
    return Pattern(name=name, where=where)


def const(name: str, where: Callable[[Node], bool] | None = None) -> Pattern:
    """A plain constant (not quantized, not packed)."""

    def plain(node: Node) -> bool:
        return node.type.encoding is None and node.type.layout == "row" and (where is None or where(node))

    return Pattern(ops=("constant",), name=name, where=plain)


def optional(name: str) -> Pattern:
    """Any operand, or an absent one (then bound to None)."""
    return Pattern(name=name, where=None, attrs={"": True})


def either(*choices: Pattern) -> Pattern:
    """The first of the patterns that leads to a match."""
    return Pattern(choices=choices)


def maybe(op: str, inner: Pattern, **attrs) -> Pattern:
    """`inner`, or the unary op over it."""
    return either(Pattern(ops=(op,), inputs=(inner,), attrs=attrs), inner)


def scalar_value(node: Node) -> Any:
    """The number that all elements of a constant are, or None."""
    if node.op != "constant" or node.type.encoding is not None or node.type.layout != "row":
        return None
    size = int(np.prod(node.shape, dtype=np.int64))
    if not 0 < size <= SMALL_NUMBERS:
        return None
    array = node["data"].array().reshape(-1)
    first = array[0]
    if size > 1 and not (array == first).all():
        return None
    return float(first) if array.dtype.kind not in "iub" else int(first)


def number(
    value=None, name: str | None = None, rtol: float = 0.0, where: Callable[[Any], bool] | None = None
) -> Pattern:
    """A constant all of whose elements are one number: `value` (to within rtol), or one that satisfies `where`."""

    def check(node: Node) -> bool:
        found = scalar_value(node)
        if found is None:
            return False
        if value is not None and not (found == value or abs(found - value) <= rtol * abs(value)):
            return False
        return where is None or where(found)

    return Pattern(ops=("constant",), name=name, where=check)


class _Builder:
    """p.add(a, b, name=..., where=..., axis=...) is a pattern; without operands, any operands match."""

    def __getattr__(self, op: str):
        def build(*inputs: Pattern | None, name=None, where=None, **attrs) -> Pattern:
            return Pattern(ops=(op,), inputs=inputs or None, attrs=attrs, name=name, where=where)

        return build

    def op(self, ops: str, *inputs: Pattern | None, name=None, where=None, **attrs) -> Pattern:
        """One of several ops (names with blanks between)."""
        return Pattern(ops=tuple(ops.split()), inputs=inputs or None, attrs=attrs, name=name, where=where)


class _Nodes:
    """b.add(x, y, ...) makes the node; the same names as patterns."""

    def __getattr__(self, op: str):
        return lambda *inputs, **attrs: make(op, *inputs, **attrs)


p = _Builder()
b = _Nodes()

Bound = Mapping[str, Any]


def match(pattern: Pattern, node: Node | None, single: Callable[[Node], bool], bound: dict) -> Iterator[dict]:
    """All ways in which the node matches, as bindings; "" lists the op nodes inside of the pattern, root first."""
    if pattern.choices:
        for choice in pattern.choices:
            yield from match(choice, node, single, bound)
        return
    if node is None:
        if "" in pattern.attrs and bound.get(pattern.name, node) is None:  # optional
            yield {**bound, pattern.name: None}
        return
    if pattern.ops is not None and node.op not in pattern.ops:
        return
    if pattern.name is not None and bound.get(pattern.name, node) is not node:
        return
    for key, want in pattern.attrs.items():
        if key and not (want(node.attrs[key]) if callable(want) else node.attrs[key] == want):
            return
    if pattern.one_user and not single(node):
        return
    if pattern.where is not None and not pattern.where(node):
        return
    if pattern.name is not None:
        bound = {**bound, pattern.name: node}
    if pattern.ops is not None and node.op != "constant":
        bound = {**bound, "": (*bound.get("", ()), node)}
    if pattern.inputs is None:
        yield bound
        return
    operands = node.inputs
    if len(pattern.inputs) > len(operands):
        return
    if any(i is not None for i in operands[len(pattern.inputs) :]):
        return
    operands = operands[: len(pattern.inputs)]
    yield from _operands(pattern.inputs, operands, single, bound)
    if node.op in COMMUTATIVE and len(pattern.inputs) == 2 and operands[0] is not operands[1]:
        yield from _operands(pattern.inputs, operands[::-1], single, bound)


def _operands(patterns, nodes, single, bound) -> Iterator[dict]:
    if not patterns:
        yield bound
        return
    first, rest = patterns[0], patterns[1:]
    if first is None:
        if nodes[0] is None:
            yield from _operands(rest, nodes[1:], single, bound)
        return
    for found in match(first, nodes[0], single, bound):
        yield from _operands(rest, nodes[1:], single, found)
