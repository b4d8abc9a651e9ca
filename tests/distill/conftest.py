"""Small teachers and students as ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def write_mlp(path: Path, hidden: int, seed: int, *, out="logits", classes=8, dtype=np.float32, bias=None) -> Path:
    """x f32[batch, 48] -> x W1 + b1, gelu by parts, W2 (tied shapes differ), softmax-free logits."""
    rng = np.random.default_rng(seed)
    arrays = {
        "w1": rng.standard_normal((48, hidden)) / 7,
        "b1": np.zeros(hidden) if bias is None else bias,
        "gain": np.ones(hidden),
        "shift": np.zeros(hidden),
        "w2": rng.standard_normal((classes, hidden)) / 4,
        "b2": np.zeros(classes),
    }
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w1"], ["a"], name="first"),
        node("Add", ["a", "b1"], ["b"], name="bias"),
        node("LayerNormalization", ["b", "gain", "shift"], ["c"], name="norm"),
        node("Tanh", ["c"], ["d"], name="act"),
        node("Gemm", ["d", "w2", "b2"], [out], name="head", transB=1),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", kind, ["batch", 48])],
        [helper.make_tensor_value_info(out, kind, ["batch", classes])],
        [numpy_helper.from_array(a.astype(dtype), n) for n, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save_model(model, path)
    return path


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path, Path]:
    """(teacher, student, data.npz)"""
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(9).standard_normal((96, 48)).astype(np.float32))
    teacher, student = write_mlp(tmp_path / "teacher.onnx", 64, 0), write_mlp(tmp_path / "student.onnx", 96, 1)
    return teacher, student, tmp_path / "data.npz"


__all__ = ["TensorProto", "write_mlp"]
