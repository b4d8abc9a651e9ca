"""Models to train: initializers that gradients may change stay inputs of the graph, and go back into the file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from edgec.errors import EdgecError
from edgec.frontend import model as onnx_model

TYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
MOVES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Cast", "Identity")
# op -> operands that are weights of it; None: any
WEIGHTS: dict[str, tuple[int, ...] | None] = {
    "MatMul": None, "Gemm": None, "FusedMatMul": None, "Add": None, "Sub": None, "Mul": None, "Div": None,
    "Gather": (0,), "Conv": (1, 2), "ConvTranspose": (1, 2), "LayerNormalization": (1, 2), "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,), "SkipLayerNormalization": (2, 3, 4), "SkipSimplifiedLayerNormalization": (2, 3),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2), "PRelu": (1,),
    "BiasGelu": (1,), "FastGelu": (1,), "Attention": (1, 2),
}  # fmt: skip
PROTO_LIMIT = 1 << 30  # bytes of tensors that a file holds itself; more go into a file beside it


def is_learned(value: ir.Value, freeze: Iterable[str] = ()) -> bool:
    """Whether an initializer is a weight: floats, more than one of them, read by products, norms and the like alone."""
    tensor = value.const_value
    if tensor is None or tensor.dtype.name not in TYPES or tensor.size < 2 or not tensor.shape.rank():
        return False
    if value.is_graph_output() or any(fnmatchcase(value.name or "", pattern) for pattern in freeze):
        return False
    return _is_weight(value, 0)


def _is_weight(value: ir.Value, depth: int) -> bool:
    uses = list(value.uses())
    return bool(uses) and depth < 8 and all(_is_weight_of(node, index, depth) for node, index in uses)


def _is_weight_of(node: ir.Node, index: int, depth: int) -> bool:
    if node.op_type in MOVES:
        return index == 0 and not node.outputs[0].is_graph_output() and _is_weight(node.outputs[0], depth + 1)
    if node.op_type not in WEIGHTS:
        return False
    places = WEIGHTS[node.op_type]
    return places is None or index in places


def replace(source: str | os.PathLike, out: str | os.PathLike, values: Mapping[str, np.ndarray]) -> None:
    """Writes the model of `source` with these values of its initializers, which keep their dtypes, as `out`; tensors of
    more than 1 GB in all go into `out`.data. Nothing but whole files appears under these names.

    Raises EdgecError EC1003 (a file cannot be read or written), EC1103 (the model has no such initializer, or of another
    shape)."""
    proto = onnx_model.parse(source)
    folder, out = Path(source).parent, Path(out)
    left = dict(values)
    for tensor in proto.graph.initializer:
        if tensor.name in left:
            value = left.pop(tensor.name)
            if tuple(tensor.dims) != value.shape:
                raise onnx_model.invalid(f"its shape is {list(tensor.dims)}, not {list(value.shape)}", tensor.name)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value).astype(dtype), tensor.name))
    if left:
        raise onnx_model.invalid("the model has no such initializer", sorted(left)[0])
    save(proto, out, folder)


def save(proto: onnx.ModelProto, out: Path, folder: Path) -> None:
    """Writes a model whose external data lies in `folder`. Raises EdgecError EC1003."""
    try:
        onnx.load_external_data_for_model(proto, str(folder))
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
            temporary, data = Path(work) / out.name, f"{out.name}.data"
            large = sum(len(t.raw_data) for t in proto.graph.initializer) > PROTO_LIMIT
            onnx.save_model(proto, temporary, save_as_external_data=large, location=data if large else None)
            if large:
                os.replace(Path(work) / data, out.with_name(data))
            os.replace(temporary, out)
            if not large:
                with contextlib.suppress(FileNotFoundError):
                    out.with_name(data).unlink()
    except OSError as error:
        raise EdgecError(
            "EC1003", error.strerror or str(error), str(out), "Check the path and the space left"
        ) from None
