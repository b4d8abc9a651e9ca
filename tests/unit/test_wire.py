"""Large tensors inside an ONNX file are read from it, wherever they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgec.frontend import load, source_files, wire
from edgec.ir.evaluate import run

N = wire.LARGE // 4 + 5


def numbers(seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def model(n: int = N) -> onnx.ModelProto:
    """Large and small tensors as initializers, raw and typed, in attributes and in a subgraph."""
    inner = helper.make_graph(
        [helper.make_node("Add", ["b", "c"], ["t"], name="inner")], "then",
        [], [helper.make_tensor_value_info("t", 1, [n])], [numpy_helper.from_array(numbers(1, n), "c")],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Identity", ["b"], ["e"])], "else", [],
                              [helper.make_tensor_value_info("e", 1, [n])])  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(numbers(2, n))),
        helper.make_node("Mul", ["x", "k"], ["xk"]),
        helper.make_node("Add", ["xk", "a"], ["xa"]),
        helper.make_node("Add", ["xa", "small"], ["b"]),
        helper.make_node("If", ["p"], ["y"], then_branch=inner, else_branch=other),
    ]
    typed = helper.make_tensor("a", TensorProto.FLOAT, [n], numbers(3, n).tolist())
    assert typed.float_data and not typed.raw_data
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, [n]), helper.make_tensor_value_info("p", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, [n])],
        [typed, numpy_helper.from_array(np.float32([0.5]), "small")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_large_tensors_are_references(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    slim = wire.without_tensors(path, "m.onnx")
    assert len(slim) < 3000 and path.stat().st_size > 3 * 4 * N
    feeds = {"x": numbers(9), "p": np.array(True)}
    graph = load(path)
    (y,) = run(graph, feeds).values()
    np.testing.assert_array_equal(y, numbers(9) * numbers(2) + numbers(3) + np.float32(0.5) + numbers(1))
    onnx_again = onnx.load_model_from_string(slim)
    onnx.load_external_data_for_model(onnx_again, str(tmp_path))
    assert [i.name for i in onnx_again.graph.initializer] == ["a", "small"]
    assert source_files(path) == [path]


def test_small_and_external_tensors_stay_as_they_are(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model(100), path)
    assert wire.without_tensors(path, "m.onnx") == path.read_bytes()
    outside = model()
    onnx.convert_model_to_external_data(outside, location="w.bin", size_threshold=1024, convert_attribute=True)
    onnx.save(outside, path)
    (y,) = run(load(path), {"x": numbers(9), "p": np.array(False)}).values()
    np.testing.assert_array_equal(y, numbers(9) * numbers(2) + numbers(3) + np.float32(0.5))
    assert source_files(path) == [path, tmp_path / "w.bin"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), max_size=4), st.floats(0, 1))
def test_whatever_the_bytes_are(tmp_path_factory, edits, cut):
    """Damaged files are refused or read, never more."""
    content = bytearray(model().SerializeToString())
    for where, new in edits:
        at = int(where * len(content))
        content[at : at + len(new)] = new
    path = tmp_path_factory.mktemp("damaged") / "m.onnx"
    path.write_bytes(content[: int((0.2 + cut) * len(content))])
    try:
        slim = wire.without_tensors(path, "m.onnx")
    except wire.Malformed:
        return
    assert len(slim) <= path.stat().st_size + 200


def test_nesting_without_end_is_refused(tmp_path):
    inner = bytes(wire.LARGE)
    for _ in range(wire.DEPTH):  # a graph in an attribute of a node of a graph ...
        for field in (6, 5, 1):
            inner = b"".join(wire._field(field, [inner]))
    (tmp_path / "m.onnx").write_bytes(b"".join(wire._field(7, [inner])))
    with pytest.raises(wire.Malformed):
        wire.without_tensors(tmp_path / "m.onnx", "m.onnx")
