"""How reductions accumulate: neutral values, combinations and results, on vectors in registers."""

from __future__ import annotations

import numpy as np
from tvm import tirx as T

from edgec.ir.dims import Dim
from edgec.lower.templates import scalar
from edgec.lower.templates.builder import Builder, const, is_nan, lanes_of, spread
from edgec.lower.templates.index import ARG, Compute, Reduced


class Reduction:
    """How one reduction accumulates: neutral value, combination, result."""

    def __init__(self, b: Builder, e: Reduced, count: Dim):
        self.b, self.e, self.count = b, e, count
        self.op = e.node.op
        source = e.node.inputs[0].dtype
        self.dtype = {"bool": "uint8"}.get(source, scalar.register_dtype(source))
        if self.op == "reduce_mean" and "int" in self.dtype:
            self.dtype = "float64"

        # NaN wins in a maximum: kept as a mask beside it, since a plain maximum costs one instruction
        self.masked = self.op in ("reduce_max", "reduce_min") and self.dtype.startswith("float") and not e.bounded

    def neutral(self, lanes: int) -> tuple:
        first = const(self._neutral(), self.dtype, lanes)
        if self.masked:
            return first, const(0, self.dtype.replace("float", "int"), lanes)
        return (first, const(0, "int64", lanes)) if self.op in ARG else (first,)

    def _neutral(self):
        if self.op in ("reduce_sum", "reduce_mean", "reduce_prod"):
            return 1 if self.op == "reduce_prod" else 0
        low = self.op in ("reduce_max", "argmax")
        if self.dtype.startswith("float"):
            return float("-inf") if low else float("inf")
        info = np.iinfo(self.dtype)
        return int(info.min if low else info.max)

    def term(self, value, index) -> tuple:
        """What one vector of operands contributes; index: of the elements along the axis."""
        source = self.e.node.inputs[0].dtype
        if self.op in ARG and source in ("f16", "bf16") and isinstance(self.e.value, Compute):  # ties are those of f16
            value = scalar.from_memory(self.b.let(scalar.to_memory(self.b, value, source)), source)
        value = scalar.convert(self.b, value, self.dtype)
        if self.masked:
            value, integer = self.b.let(value), self.dtype.replace("float", "int")
            lanes = lanes_of(value)
            return value, T.Select(is_nan(value), const(-1, integer, lanes), const(0, integer, lanes))
        return (value, index) if self.op in ARG else (value,)

    def combine(self, x: tuple, y: tuple, ordered: bool = False) -> tuple:
        """x with y added; ordered: every index of y is above those of x in the same lane."""
        a, c = x[0], y[0]
        if self.op in ("reduce_sum", "reduce_mean"):
            return (scalar.add(a, c),)
        if self.op == "reduce_prod":
            return (scalar.multiply(a, c),)
        if self.op in ("reduce_max", "reduce_min"):
            best = T.Select(c > a if self.op == "reduce_max" else c < a, c, a)
            return (best, T.bitwise_or(x[1], y[1])) if self.masked else (best,)
        last = self.e.node["last"]
        better = c > a if self.op == "argmax" else c < a
        same = T.EQ(c, a)
        if self.dtype.startswith("float"):
            better = T.Or(better, T.And(is_nan(c), T.EQ(a, a)))
            same = T.Or(same, T.And(is_nan(c), is_nan(a)))
        if not ordered:
            same = T.And(same, y[1] > x[1] if last else y[1] < x[1])
        if last or not ordered:
            better = T.Or(better, same)
        better = self.b.let(better)
        return T.Select(better, c, a), T.Select(better, y[1], x[1])

    def result(self, x: tuple):
        """The register value of the node, from the combined accumulator."""
        value = x[1] if self.op in ARG else x[0]
        if self.masked:
            lanes = lanes_of(value)
            plain = T.EQ(x[1], const(0, self.dtype.replace("float", "int"), lanes))
            value = T.Select(plain, value, const(float("nan"), self.dtype, lanes))
        if self.op == "reduce_mean":
            lanes = lanes_of(value)
            dtype = f"{self.dtype}x{lanes}" if lanes > 1 else self.dtype
            value = value / T.Cast(dtype, spread(self.b.dim(self.count), lanes))
        return scalar.convert(self.b, self.b.let(value), scalar.register_dtype(self.e.node.dtype))
