"""Elements of nodes as formulas over indices, sizes and small inputs (formulas.py): what masks.py takes apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from edgec.ir.dims import Dim, Expr, product, substitute, symbol, symbols_of
from edgec.ir.node import Node
from edgec.ir.types import FLOATS, INTS
from edgec.rewrites import formulas as fm
from edgec.rewrites.gathers import as_range
from edgec.rewrites.pattern import scalar_value

CASES = 16
STEPS = 20_000  # elements traced for one mask: expressions that share nodes are traced once per path
TABLE = 1 << 26  # elements of a constant that is read to see its pattern


class Opaque(Exception):
    """The elements do not come apart: why."""


Cases = list[tuple[fm.Formula, Any]]  # disjoint conditions that cover everything; the Dim or infinity under each


def _known_under(f: fm.Formula, v: Any) -> Any:
    """The value where the condition says what it is: 1 - m where 1 - m == 0."""
    if isinstance(v, Expr) and not isinstance(f, bool):
        for kind, e in f[1] if f[0] == "and" else [f]:
            for known in (v - e, v + e) if kind == "eq" else ():
                if isinstance(known, int):
                    return known
    return v


class Tracer:
    """The elements of nodes as formulas.

    bounds: index symbol -> how many values it has. known: nodes of integers that are taken to be this number.
    stops: nodes that are not looked into.
    """

    def __init__(self, bounds: dict[str, Dim], known: Mapping[Node, Dim] | None = None, stops: Iterable[Node] = ()):
        self.bounds, self.known, self.stops = bounds, known or {}, frozenset(stops)
        self.leaves: dict[str, tuple[Node, tuple[Dim, ...]]] = {}
        self.memo: dict = {}

    # comparisons, with what the bounds tell

    def _extreme(self, e: Dim, low: bool) -> Dim:
        """The least (or greatest) value over the indices, of an expression linear in them."""
        for name, count in self.bounds.items():
            if name not in symbols_of(e):
                continue
            step = substitute(e, {name: 1}) - substitute(e, {name: 0})
            if not isinstance(step, int):
                return e
            at = 0 if (step >= 0) == low else count - 1
            e = substitute(e, {name: at})
        return e

    def ge(self, e: Dim | float) -> fm.Formula:
        if isinstance(e, float):
            return e >= 0
        if fm.sure(self._extreme(e, True)):
            return True
        return False if fm.sure(-self._extreme(e, False) - 1) else fm.at_least_zero(e)

    def eq(self, e: Dim | float) -> fm.Formula:
        if isinstance(e, float):
            return e == 0
        if self.ge(e - 1) is True or self.ge(-e - 1) is True:
            return False
        if isinstance(e, Expr) and abs(dict(e.terms).get((), 0)) > 1 << 53:
            if any(self.leaves[n][0].dtype in FLOATS for n in symbols_of(e) if n in self.leaves):
                raise Opaque("a comparison of floats")
            return False  # no index or integer input is that large
        return fm.zero(e)

    # values

    def formula(self, node: Node, index: tuple[Dim, ...]) -> fm.Formula:
        """Of a bool node."""
        return self._at(node, index, self._formula)

    def cases(self, node: Node, index: tuple[Dim, ...]) -> Cases:
        """Of a number."""
        return self._at(node, index, self._cases)

    def _at(self, node: Node, index, trace: Callable):
        key = (node, index)
        if key not in self.memo:
            if len(self.memo) >= STEPS:
                raise Opaque("the mask is too large an expression")
            index = tuple(0 if d == 1 else i for i, d in zip(index, node.shape))
            self.memo[key] = trace(node, index)
        return self.memo[key]

    def _formula(self, node: Node, index) -> fm.Formula:
        op = node.op
        if op in ("and", "or", "xor", "not"):
            sides = [self.formula(i, self._narrow(i, node, index)) for i in node.inputs]
            if op == "not":
                return fm.negated(sides[0])
            if op == "xor":
                x, y = sides
                return fm.any_of([fm.all_of([x, fm.negated(y)]), fm.all_of([fm.negated(x), y])])
            return (fm.all_of if op == "and" else fm.any_of)(sides)
        if op in ("eq", "ne", "lt", "le", "gt", "ge"):
            x, y = (i for i in node.inputs)
            if x.dtype == "bool":
                same = [self.formula(i, self._narrow(i, node, index)) for i in (x, y)]
                f = fm.any_of([fm.all_of(same), fm.all_of(map(fm.negated, same))])
                return f if op == "eq" else fm.negated(f)
            pairs = self._combined([self.cases(i, self._narrow(i, node, index)) for i in (x, y)])
            return fm.any_of(fm.all_of([f, self._compare(op, *values)]) for f, values in pairs)
        if op == "cast":
            if node.inputs[0].dtype == "bool":
                return self.formula(node.inputs[0], index)
            found = self.cases(node.inputs[0], index)
            return fm.any_of(fm.all_of([f, fm.negated(self.eq(v))]) for f, v in found)
        if op == "where":
            c, x, y = (self.formula(i, self._narrow(i, node, index)) for i in node.inputs)
            return fm.any_of([fm.all_of([c, x]), fm.all_of([fm.negated(c), y])])
        moved = self._moved(node, index)
        if moved is None:
            known = self._constant(node, index)
            if known is None:
                return ("leaf", self.leaf(node, index))
            return fm.any_of(fm.all_of([f, bool(v)]) for f, v in known)
        return fm.any_of(fm.all_of([f, self.formula(n, i)]) for f, n, i in moved)

    def _compare(self, op: str, x: Any, y: Any) -> fm.Formula:
        if isinstance(x, float) and isinstance(y, float):
            return bool({"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[op])
        if isinstance(x, float) or isinstance(y, float):  # infinite beside a number
            less = x < 0 if isinstance(x, float) else y > 0
            return {"eq": False, "ne": True, "lt": less, "le": less, "gt": not less, "ge": not less}[op]
        if op in ("eq", "ne"):
            f = self.eq(x - y)
            return f if op == "eq" else fm.negated(f)
        if any(n.startswith(fm.LEAF) and self.leaves[n][0].dtype in FLOATS for n in symbols_of(x - y)):
            raise Opaque("a comparison of floats")
        return self.ge({"ge": x - y, "gt": x - y - 1, "le": y - x, "lt": y - x - 1}[op])

    def _cases(self, node: Node, index) -> Cases:
        op = node.op
        if node in self.known:
            return [(True, self.known[node])]
        if node in self.stops:
            return [(True, symbol(self.leaf(node, index)))]
        if op == "iota":
            return [(True, index[0])]
        if op == "dim_value":
            return [(True, node["value"])]
        if op == "cast":
            x = node.inputs[0]
            if x.dtype == "bool":
                f = self.formula(x, index)
                return self.merged([(f, 1), (fm.negated(f), 0)])
            if x.dtype in FLOATS and node.dtype in INTS and self._has_float_leaf(self.cases(x, index)):
                raise Opaque("a rounded float")
            return self.cases(x, index)
        if op == "where":
            c, x, y = node.inputs
            f = self.formula(c, self._narrow(c, node, index))
            sides = ((f, x), (fm.negated(f), y))
            # a side that is never taken may hold anything
            return self.merged(
                [(fm.all_of([g, h]), v) for g, n in sides if g is not False
                 for h, v in self.cases(n, self._narrow(n, node, index))]
            )  # fmt: skip
        if op in ("add", "sub", "mul", "neg", "max", "min", "relu"):
            operands = [self.cases(i, self._narrow(i, node, index)) for i in node.inputs]
            return self.merged([c for f, values in self._combined(operands) for c in self._arithmetic(op, f, values)])
        known = self._constant(node, index)
        if known is not None:
            return known
        moved = self._moved(node, index)
        if moved is None:
            return [(True, symbol(self.leaf(node, index)))]
        return self.merged([(fm.all_of([f, g]), v) for f, n, i in moved for g, v in self.cases(n, i)])

    def _has_float_leaf(self, cases: Cases) -> bool:
        return any(n.startswith(fm.LEAF) and self.leaves[n][0].dtype in FLOATS for _, v in cases
                   if not isinstance(v, float) for n in symbols_of(v))  # fmt: skip

    def _arithmetic(self, op: str, f: fm.Formula, values: list) -> Cases:
        if any(isinstance(v, float) for v in values):
            value = self._infinite(op, values)
        elif op in ("max", "min", "relu"):
            x, y = values if op != "relu" else (values[0], 0)
            above = False if self.ge(y - x) is True else self.ge(x - y)  # where they are equal, either
            sides = (x, y) if op != "min" else (y, x)
            return [(fm.all_of([f, above]), sides[0]), (fm.all_of([f, fm.negated(above)]), sides[1])]
        else:
            x = values[0]
            value = {"add": lambda y: x + y, "sub": lambda y: x - y, "mul": lambda y: x * y, "neg": lambda y: -x}[op](
                values[-1]
            )
        return [(f, value)]

    @staticmethod
    def _infinite(op: str, values: list) -> float:
        """Arithmetic with an infinity; only where each other operand is a number or cannot matter."""
        if op == "neg":
            return -values[0]
        x, y = values if op != "relu" else (values[0], 0.0)
        if op == "mul" and (isinstance(x, Expr) or isinstance(y, Expr)):
            raise Opaque("an infinity times a value that is not known")
        if op in ("max", "min", "relu") and (isinstance(x, Expr) or isinstance(y, Expr)):
            raise Opaque("the larger of an infinity and a value that is not known")
        x, y = (0.0 if isinstance(v, Expr) else float(v) for v in (x, y))
        value = {"add": x + y, "sub": x - y, "mul": x * y}.get(op, min(x, y) if op == "min" else max(x, y))
        if not math.isinf(value):
            raise Opaque("arithmetic that loses an infinity")
        return value

    @staticmethod
    def merged(cases: Cases) -> Cases:
        """One case for each value; an infinity or number as what it is, integers exactly."""
        by_value: dict = {}
        for f, v in cases:
            if f is not False:
                v = _known_under(f, v)
                by_value[v] = fm.any_of([by_value.get(v, False), f])
        if len(by_value) > CASES:
            raise Opaque("its elements have many values")
        return [(f, v) for v, f in by_value.items()]

    @staticmethod
    def _combined(operands: list[Cases]) -> list[tuple[fm.Formula, list]]:
        out: list[tuple[fm.Formula, list]] = [(True, [])]
        for cases in operands:
            out = [(fm.all_of([f, g]), [*vs, v]) for f, vs in out for g, v in cases]
            out = [(f, vs) for f, vs in out if f is not False]
        return out

    def _constant(self, node: Node, index) -> Cases | None:
        """An element of a constant: one number, counting, or one number on and below the diagonal and another above."""
        if node.op != "constant":
            return None
        value = scalar_value(node)
        if value is not None:
            return [(True, self._number(value))]
        if node.type.encoding or node.type.layout != "row" or math.prod(node.shape) > TABLE:
            raise Opaque("a table")
        if (line := as_range(node)) is not None:
            return [(True, index[[d != 1 for d in node.shape].index(True)] + line[0])]
        array = node["data"].array()
        if all(isinstance(i, int) for i in index):
            return [(True, self._number(array[index].item()))]
        return self._triangle(array.reshape([d for d in node.shape if d != 1]),
                              [i for i, d in zip(index, node.shape) if d != 1])  # fmt: skip

    def _triangle(self, array: np.ndarray, index: list) -> Cases:
        if array.ndim != 2 or min(array.shape) < 2:
            raise Opaque("a table")
        row, column = index
        for k in (0, 1):  # whether the diagonal belongs to what is above
            above = np.triu(np.ones(array.shape, bool), 1 - k)
            low, high = array[-1, 0], array[0, -1]
            if (array == np.where(above, high, low)).all():
                f = self.ge(row - column - k)
                return [(f, self._number(low.item())), (fm.negated(f), self._number(high.item()))]
        raise Opaque("a table")

    @staticmethod
    def _number(value) -> Dim | float:
        if isinstance(value, float):
            if math.isnan(value) or (math.isfinite(value) and value != int(value)):
                raise Opaque(f"the number {value}")
            return value if math.isinf(value) else int(value)
        return int(value)

    def leaf(self, node: Node, index) -> str:
        name = f"{fm.LEAF}{len(self.leaves)}"
        for known, leaf in self.leaves.items():
            if leaf == (node, index):
                return known
        self.leaves[name] = (node, index)
        return name

    # movement

    @staticmethod
    def _narrow(operand: Node, node: Node, index) -> tuple[Dim, ...]:
        """The index into an operand that broadcasts to the node."""
        return tuple(0 if d == 1 else i for d, i in zip(operand.shape, index[node.rank - operand.rank :]))

    def _moved(self, node: Node, index) -> list[tuple[fm.Formula, Node, tuple[Dim, ...]]] | None:
        """Where the element comes from, by condition; None of what computes or reads."""
        if not node.inputs:
            return None
        op, x = node.op, node.inputs[0]
        if op == "reshape":
            return [(True, x, self._reshaped(x.shape, node.shape, index))]
        if op == "transpose":
            return [(True, x, tuple(index[node["perm"].index(i)] for i in range(node.rank)))]
        if op == "expand":
            return [(True, x, self._narrow(x, node, index))]
        if op == "slice":
            starts, steps = node["starts"], node["steps"]
            return [(True, x, tuple(a + i * step for a, i, step in zip(starts, index, steps)))]
        if op == "concat":
            return self._of_concat(node, index)
        if op == "gather" and x.type.encoding is None:
            axis, inner = node["axis"], node.inputs[1]
            at = self.cases(inner, index[axis : axis + inner.rank])
            places = [(f, v if isinstance(v, int) and v >= 0 else self._place(v)) for f, v in at]
            return [(f, x, (*index[:axis], v, *index[axis + inner.rank :])) for f, v in places]
        if op == "gather_nd":
            return self._of_gather_nd(node, index)
        if op == "scatter_nd" and node["reduction"] == "none":
            return self._of_scatter(node, index)
        return None

    def _of_gather_nd(self, node: Node, index):
        x, places = node.inputs
        lead, depth = index[: places.rank - 1], places.shape[-1]
        pairs = self._combined([self.cases(places, (*lead, i)) for i in range(depth)])
        start, rest = index[: node["batch_dims"]], index[places.rank - 1 :]
        return [(f, x, (*start, *map(self._place, vs), *rest)) for f, vs in pairs]

    def _place(self, v: Dim | float) -> Dim:
        if isinstance(v, float) or not fm.sure(self._extreme(v, True)):
            raise Opaque("an index that may be negative")
        return v

    def _of_concat(self, node: Node, index):
        axis, rest, out = node["axis"], True, []
        start: Dim = 0
        for x in node.inputs:
            at = (*index[:axis], index[axis] - start, *index[axis + 1 :])
            start = start + x.shape[axis]
            inside = self.ge(start - 1 - index[axis])
            out.append((fm.all_of([rest, inside]), x, at))
            rest = fm.all_of([rest, fm.negated(inside)])
        return [part for part in out if part[0] is not False]

    def _of_scatter(self, node: Node, index):
        """Updates that stand at the indices they are written to: x[0:n0, 0:n1, ...] = updates."""
        x, places, updates = node.inputs
        if places.shape[-1] != x.rank or updates.rank != x.rank:
            raise Opaque("a scatter of slices")
        here = tuple(symbol(f"~u{i}") for i in range(x.rank))
        bounds = {f"~u{i}": d for i, d in enumerate(updates.shape) if d != 1}
        outer, self.bounds = self.bounds, self.bounds | bounds
        try:
            for i in range(x.rank):
                at = (*(0 if d == 1 else h for d, h in zip(updates.shape, here)), i)
                if self.cases(places, at) != [(True, at[i])]:
                    raise Opaque("a scatter to other places than a block at the front")
        finally:
            self.bounds = outer
        inside = fm.all_of(self.ge(n - 1 - i) for n, i, d in zip(updates.shape, index, x.shape) if n != d)
        parts = [(inside, updates, index), (fm.negated(inside), x, index)]
        return [part for part in parts if part[0] is not False]

    def _reshaped(self, inner: tuple, outer: tuple, index) -> tuple[Dim, ...]:
        """The index before a reshape."""
        wide = [(i, d) for i, d in zip(index, outer) if d != 1]
        if [d for _, d in wide] == [d for d in inner if d != 1]:
            rest = iter([i for i, _ in wide])
            return tuple(0 if d == 1 else next(rest) for d in inner)
        flat: Dim = 0
        for i, d in wide:
            flat = flat * d + i
        place = []
        for axis in range(len(inner)):
            quotient, flat = self._divided(flat, product(inner[axis + 1 :]))
            place.append(quotient)
        return tuple(place)

    def _divided(self, flat: Dim, stride: Dim) -> tuple[Dim, Dim]:
        """(quotient, remainder) of a place in a row-major block; the terms that have the stride as a factor."""
        if stride == 1:
            return flat, 0
        if isinstance(flat, int):
            if isinstance(stride, int):
                return divmod(flat, stride)
            return 0, flat
        quotient: Dim = 0
        for monomial, c in flat.terms:
            term = Expr(((monomial, c),)) if monomial else c
            part = term // stride
            if part * stride - term == 0:
                quotient = quotient + part
        rest = flat - quotient * stride
        if not fm.sure(self._extreme(rest, True)) or (
            isinstance(stride, int) and not fm.sure(stride - 1 - self._extreme(rest, False))
        ):
            raise Opaque("a reshape that mixes indices")
        return quotient, rest
