"""The C interface, through the C example: same numbers as Python, and every fault a status and a message."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

import edgec
from edgec import compiler

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / os.environ.get("BUILD", "build/dev")


@pytest.fixture(scope="module")
def program():
    if not (BUILD / "CMakeCache.txt").exists() or shutil.which("cmake") is None:
        pytest.skip("the tree is not built with CMake (make dev)")
    command = ["cmake", "--build", str(BUILD), "--target", "edgec_run"]
    with open(BUILD / "edgec_run.lock", "w") as lock:  # ninja in one tree at a time, however many workers test
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return BUILD / "csrc/capi/edgec_run"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    from onnx import TensorProto, helper, numpy_helper

    w = np.random.default_rng(3).standard_normal((24, 8)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 24])
    i = helper.make_tensor_value_info("index", TensorProto.INT64, ["rows"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 8])
    n = helper.make_tensor_value_info("n", TensorProto.INT64, ["rows"])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"]),
             helper.make_node("Add", ["index", "index"], ["n"])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [x, i], [y, n], [numpy_helper.from_array(w, "w")])
    path = tmp_path_factory.mktemp("capi") / "model.edgec"
    compiler.build(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), out=path, weights="fp32")
    return path


def run(program, *arguments):
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("rows", [1, 5])
def test_numbers_are_those_of_python(program, artifact, rows):
    done = run(program, artifact, rows)
    assert done.returncode == 0, done.stderr
    x = (np.arange(rows * 24, dtype=np.float32) % 7 + 1).reshape(rows, 24) / 8
    y = edgec.load(artifact)(x=x, index=np.arange(rows) % 2)["y"]
    first, second = done.stdout.splitlines()
    assert first.startswith(f"y [{rows}, 8] sum ") and second.startswith(f"n [{rows}]")
    total, numbers = first.split("sum ")[1].split(":")
    assert float(total) == pytest.approx(y.sum(), rel=1e-5)
    assert list(map(float, numbers.split())) == pytest.approx(y.ravel()[:4].tolist(), rel=1e-5)


def damaged(artifact, tmp_path, member: str) -> Path:
    """The artifact with one byte of a member changed."""
    from edgec.artifact.reader import ArtifactFile

    data = bytearray(artifact.read_bytes())
    piece = bytes(ArtifactFile(artifact).members[member])
    at = data.index(piece)
    data[at + len(piece) // 2] ^= 0x40
    path = tmp_path / "damaged.edgec"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("member", ["plan.bin", "code.so", "manifest.json"])
def test_damage_is_found(program, artifact, tmp_path, member):
    done = run(program, damaged(artifact, tmp_path, member))
    assert done.returncode == 1 and "EC1504" in done.stderr and member in done.stderr


def test_faults(program, artifact, tmp_path):
    assert "EC1501" in run(program, tmp_path / "none.edgec").stderr
    assert "EC1502" in run(program, ROOT / "README.md").stderr
    other = tmp_path / "other.edgec"
    target = "apple-m1" if edgec.load(artifact).manifest["target"]["triple"].startswith("x86_64") else "x86-64-v2"
    from onnx import TensorProto, helper

    v = helper.make_tensor_value_info("v", TensorProto.FLOAT, [2])
    u = helper.make_tensor_value_info("u", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Neg", ["v"], ["u"])], "g", [v], [u])
    compiler.build(helper.make_model(graph), target=target, out=other)
    done = run(program, other)
    assert done.returncode == 1 and "EC1506" in done.stderr
    assert run(program, artifact, -3).returncode == 2
