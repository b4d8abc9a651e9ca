"""Ops without operands, and control."""

from __future__ import annotations

import numpy as np

from edgec.ir.ops.registry import REQUIRED, define, need
from edgec.ir.types import TensorType, TupleType, numpy_dtype


def _no_reference(*_, **__):
    raise AssertionError("the evaluator computes this op itself")


define("input", "", lambda name, type: type, _no_reference, "leaf", name=REQUIRED, type=REQUIRED)
define("constant", "", lambda data: data.type, lambda data: data.array(), "leaf", data=REQUIRED)
# iota: 0, 1, ..., size - 1
define("iota", "", lambda size, dtype: TensorType(dtype, (size,)),
       lambda size, dtype: np.arange(size, dtype=numpy_dtype(dtype)), "leaf", size=REQUIRED, dtype="i64")  # fmt: skip
# dim_value: a symbolic size as a scalar
define("dim_value", "", lambda value, dtype: TensorType(dtype, ()),
       lambda value, dtype: np.asarray(value, numpy_dtype(dtype)), "leaf", value=REQUIRED, dtype="i64")  # fmt: skip


def _item(t, index):
    need(isinstance(t, TupleType) and 0 <= index < len(t.items), f"item: there is no output {index}")
    return t.items[index]


define("item", "x", _item, lambda x, index: x[index], "control", index=REQUIRED)


def _branch(pred, a, b):
    need(pred.dtype == "bool" and pred.shape == (), "branch: the condition is a bool scalar")
    need(a == b, f"branch: both sides have one type, got {a} and {b}")
    return a


# branch: a where the condition holds, else b; only the side it takes is evaluated
define("branch", "pred a b", _branch, _no_reference, "control")


def _pack(w, format):
    need(w.layout == "row" and w.rank == 2, "pack: takes a row-major matrix")
    return TensorType(w.dtype, w.shape, w.encoding, format)


# pack: the same values in the packed format of that name (csrc/kernels); folded when the artifact is written
define("pack", "w", _pack, lambda w, format: w, "movement", format=REQUIRED)
