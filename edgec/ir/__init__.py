"""The intermediate representation: dims, types, nodes, ops, text form, verifier, and the numpy evaluator."""

from edgec.ir.node import Data, Graph, Node, constant, make, topological
from edgec.ir.ops import OPS, IrError, Op
from edgec.ir.types import Quantized, TensorType, TupleType

__all__ = [
    "OPS",
    "Data",
    "Graph",
    "IrError",
    "Node",
    "Op",
    "Quantized",
    "TensorType",
    "TupleType",
    "constant",
    "make",
    "topological",
]
