"""Runs command lines in this process, and small models to run them on."""

from __future__ import annotations

import json
import pathlib
from typing import NamedTuple

import numpy as np
import pytest


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


@pytest.fixture
def edgec(capsys, monkeypatch, tmp_path):
    """edgec("run", path, "x=1") runs the command in a folder of its own and gives status, stdout and stderr."""
    from edgec.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*argv) -> Result:
        capsys.readouterr()
        try:
            status = main([str(a) for a in argv])
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(status, captured.out, captured.err)

    return call


def mlp(path: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """y = softmax(relu(x @ a + b) @ c), x f32[batch, 64]: an ONNX file with a symbolic batch."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    rng = np.random.default_rng(seed)
    weights = {"a": (64, 128), "b": (128,), "c": (128, 32)}
    tensors = [
        numpy_helper.from_array((rng.standard_normal(s) / 8).astype(np.float32), name) for name, s in weights.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"], name="first"),
        helper.make_node("Add", ["xa", "b"], ["xab"], name="bias"),
        helper.make_node("Relu", ["xab"], ["h"], name="relu"),
        helper.make_node("MatMul", ["h", "c"], ["hc"], name="second"),
        helper.make_node("Softmax", ["hc"], ["y"], name="softmax", axis=-1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])
    graph = helper.make_graph(nodes, "mlp", [x], [y], tensors)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def make_mlp():
    return mlp


@pytest.fixture(scope="session")
def mlp_onnx(tmp_path_factory) -> pathlib.Path:
    return mlp(tmp_path_factory.mktemp("mlp") / "mlp.onnx")


@pytest.fixture(scope="session")
def mlp_artifact(mlp_onnx) -> pathlib.Path:
    """The model above in int4, beside its source."""
    import edgec as package

    out = mlp_onnx.with_suffix(".edgec")
    package.build(mlp_onnx, out=out)
    return out
