"""Building needs memory for a piece of a weight, not for the model; what an interrupted build made is found again."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

ROWS, COLUMNS, LAYERS = 6144, 2048, 12  # 300 MB in fp16
PROGRAM = """
import resource, sys
from edgec import compiler
def progress(phase, seconds, share=None):
    if phase == "import":
        progress.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        import edgec.frontend, edgec.lower.lowering, edgec.rewrites.quantize
        progress.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
compiler.build(sys.argv[1], out=sys.argv[2], progress=progress, weights=sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - progress.before) / 1024)
"""


def write_model(path: pathlib.Path, inline: bool, rows: int, columns: int, layers: int) -> int:
    """A chain of fp16 products, every second weight as MatMul has it ([K, N]); returns the bytes of its weights."""
    rng = np.random.default_rng(0)
    tensors, nodes, x = [], [], "x"
    for i in range(layers):
        shape = (columns, rows) if i % 2 == 0 else (rows, columns)
        values = rng.integers(-127, 128, shape, np.int8).astype(np.float16) * np.float16(0.001)
        tensors.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [f"x{i + 1}"]))
        x = f"x{i + 1}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", columns])]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT16, ["n", columns])]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tensors),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
    options = {} if inline else {"save_as_external_data": True, "location": path.name + ".data"}
    save_model(model, path, **options)
    return rows * columns * 2 * layers


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for name, inline in (("inline", True), ("external", False)):
        write_model(folder / f"{name}.onnx", inline, ROWS, COLUMNS, LAYERS)
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(("name", "weights"), [("inline", "int8"), ("external", "int4"), ("external", "fp32")])
def test_peak_memory_is_far_below_the_model(models, tmp_path, name, weights):
    """300 MB of weights; fp32 writes 600."""
    args = [sys.executable, "-c", PROGRAM, models / f"{name}.onnx", tmp_path / "m.edgec", weights]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 160
    size = (tmp_path / "m.edgec").stat().st_size
    assert size > {"fp32": 580e6, "int8": 150e6, "int4": 80e6}[weights]
    (tmp_path / "m.edgec").unlink()


def build(model, out, cache, stop_at: str = "") -> subprocess.CompletedProcess:
    """`edgec build` in a process of its own, which is killed when its progress says `stop_at`."""
    env = os.environ | {"EDGEC_CACHE_DIR": str(cache)}
    args = [sys.executable, "-m", "edgec.cli", "build", str(model), "-o", str(out), "--no-check"]
    if not stop_at:
        return subprocess.run(args, capture_output=True, text=True, env=env, check=True)
    program = f"""
import os, sys
from edgec import cache
entries = 0
def count(self, meta, before=cache.Writer.done):
    global entries
    entries += self.nbytes >= cache.WORTH
    if entries > {stop_at}:
        os.kill(os.getpid(), 9)
    return before(self, meta)
cache.Writer.done = count
from edgec.cli import main
main({args[3:]!r})
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)


def test_a_build_that_was_killed_goes_on_where_it_was(tmp_path):
    model, cache = tmp_path / "m.onnx", tmp_path / "cache"
    write_model(model, True, 1024, 768, 6)
    killed = build(model, tmp_path / "killed.edgec", cache, stop_at="3")
    assert killed.returncode == -9
    assert len(list(cache.glob("*.weight"))) == 3 and not list(tmp_path.glob("*.edgec"))
    second = build(model, tmp_path / "second.edgec", cache)
    found = float(re.search(r"cache +([\d.]+) MB of encoded weights from an earlier build", second.stdout)[1])
    assert found == pytest.approx(3 * 1024 * 768 * 4.5 / 8 / 1e6, rel=0.05)
    assert len(list(cache.glob("*.weight"))) == 6
    third = build(model, tmp_path / "third.edgec", cache)
    fresh = build(model, tmp_path / "fresh.edgec", tmp_path / "other")
    assert "cache" in third.stdout and "encoded weights" not in fresh.stdout
    contents = {(tmp_path / f"{name}.edgec").read_bytes() for name in ("second", "third", "fresh")}
    assert len(contents) == 1


@pytest.mark.parametrize("options", [{}, {"embedding": 4}, {"embedding": 6}, {"weights": "int8"}, {"weights": "fp32"}])
def test_a_tied_table_is_stored_once(tmp_path, options):
    """Embedding and head, the head's weight an equal copy turned round: one constant, read by rows and by the product."""
    import edgec

    rng = np.random.default_rng(0)
    table = (rng.standard_normal((1003, 160)) / 8).astype(np.float32)
    tensors = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(table.T.copy(), "head")]
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"]), helper.make_node("MatMul", ["x", "head"], ["y"])]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", d]) for n, d in (("x", 160), ("y", 1003))]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, tensors),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
    report = edgec.build(model, out=tmp_path / "m.edgec", **options)
    session = edgec.load(tmp_path / "m.edgec")
    bits = {"int8": 8, "fp32": 32}.get(options.get("weights", ""), options.get("embedding", 8))
    if bits < 32:
        assert [w["role"] for w in report.weights] == ["tied"] and report.weights[0]["bits"] == bits
        size = len(session.artifact.members["weights.bin"])
        assert size < 1.2 * table.size * bits / 8
    ids = np.array([0, 1002, 15, 16, 17, 500])
    x, y = session.run(["x", "y"], {"ids": ids})
    tolerance = {4: 0.2, 6: 0.05, 8: 0.02, 32: 1e-5}[bits]
    for got, want in ((x, table[ids]), (y, table[ids] @ table.T)):
        assert np.abs(got - want).max() < tolerance * np.abs(want).max()
