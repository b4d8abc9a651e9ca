"""Models that are broken: each gives one EdgecError, none a crash."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="the build extra is not installed")

from edgec.errors import EdgecError  # noqa: E402
from edgec.frontend import ConstantsNeeded, load  # noqa: E402

h = onnx.helper
FLOAT = onnx.TensorProto.FLOAT
LIMITED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def value(name: str, shape=(2, 3), dtype=FLOAT):
    return h.make_tensor_value_info(name, dtype, shape)


def model_of(nodes, inputs=(), initializers=(), outputs=("y",), **fields):
    graph = h.make_graph(list(nodes), "g", list(inputs), [h.make_empty_tensor_value_info(o) for o in outputs],
                         list(initializers))  # fmt: skip
    return h.make_model(graph, opset_imports=fields.pop("opsets", [h.make_opsetid("", 18)]), **fields)


def small() -> onnx.ModelProto:
    w = onnx.numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    shape = onnx.numpy_helper.from_array(np.array([-1]), "shape")
    nodes = [h.make_node("MatMul", ["x", "w"], ["a"], "product"), h.make_node("Relu", ["a"], ["b"]),
             h.make_node("Reshape", ["b", "shape"], ["y"])]  # fmt: skip
    return model_of(nodes, [value("x", ["n", 3])], [w, shape])


BYTES = small().SerializeToString()


def check(path) -> None:
    """Loads or gives an EdgecError of the frontend."""
    try:
        load(path)
    except EdgecError as error:
        assert error.code.startswith("EC11") or error.code == "EC1003", error
        assert str(error).endswith(".")


@LIMITED
@given(st.binary(max_size=300))
def test_random_bytes(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(EdgecError):
        load(path)


@pytest.mark.parametrize("cut", range(0, len(BYTES), 3))
def test_truncated(tmp_path, cut):
    path = tmp_path / "m.onnx"
    path.write_bytes(BYTES[:cut])
    check(path)


@LIMITED
@given(st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes(tmp_path, changes):
    content = bytearray(BYTES)
    for at, to in changes:
        content[at] = to
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(content))
    check(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(EdgecError, match="EC1003"):
        load(tmp_path / "none.onnx")
    with pytest.raises(EdgecError, match=r"EC1003.*folder"):
        load(tmp_path)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(EdgecError, match=r"EC1101.*empty"):
        load(tmp_path / "empty.onnx")


def bad(nodes, inputs=None, **kwargs):
    return model_of(nodes, [value("x")] if inputs is None else inputs, **kwargs)


node = h.make_node
WEIGHT = onnx.numpy_helper.from_array(np.ones((5, 4), np.float32), "w")
SHORT = onnx.TensorProto(name="w", data_type=FLOAT, dims=[3, 4], raw_data=b"1234")
NEGATIVE = onnx.TensorProto(name="w", data_type=FLOAT, dims=[-3, 4], raw_data=b"")
HUGE = onnx.TensorProto(name="w", data_type=FLOAT, dims=[1 << 40, 1 << 40], raw_data=b"")
NO_TYPE = onnx.TensorProto(name="w", data_type=99, dims=[1], raw_data=b"1234")
INVALID = {
    "cycle": (bad([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"])], outputs=["b"]), "cycle"),
    "dangling": (bad([node("Add", ["x", "nowhere"], ["y"])]), "'nowhere' is defined nowhere"),
    "no output": (bad([node("Relu", ["x"], ["z"])]), "'y' is defined nowhere"),
    "shapes": (bad([node("MatMul", ["x", "w"], ["y"])], initializers=[WEIGHT]), "inner sizes 3 and 5 differ"),
    "dtypes": (bad([node("Add", ["x", "i"], ["y"])], [value("x"), value("i", dtype=7)]), "one dtype"),
    "missing input": (bad([node("Add", ["x"], ["y"])]), "operand 'b'"),
    "missing attribute": (bad([node("Concat", ["x", "x"], ["y"])]), "'axis' is missing"),
    "wrong attribute": (bad([node("Softmax", ["x"], ["y"], axis=7)]), "axis 7 is outside of rank 2"),
    "attribute's type": (bad([node("Softmax", ["x"], ["y"], axis="one")]), "Softmax"),
    "short tensor": (bad([node("MatMul", ["x", "w"], ["y"])], initializers=[SHORT]), "does not fit its shape"),
    "negative tensor": (bad([node("MatMul", ["x", "w"], ["y"])], initializers=[NEGATIVE]), "negative"),
    "huge tensor": (bad([node("MatMul", ["x", "w"], ["y"])], initializers=[HUGE]), "fit"),
    "unknown dtype": (bad([node("MatMul", ["x", "w"], ["y"])], initializers=[NO_TYPE]), ""),
    "reshape": (bad([node("Constant", [], ["s"], value_ints=[4, -1]), node("Reshape", ["x", "s"], ["y"])]), "divide"),
    "two names": (bad([node("Relu", ["x"], ["y"])], [value("x"), value("x")]), "one name"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_models(name):
    model, reason = INVALID[name]
    with pytest.raises(EdgecError) as error:
        load(model)
    assert error.value.code in ("EC1103", "EC1102") and reason in str(error.value), str(error.value)


def test_a_function_that_calls_itself():
    body = h.make_function("f", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="f")], [h.make_opsetid("f", 1)])
    model = bad([node("F", ["x"], ["y"], domain="f")], functions=[body],
                opsets=[h.make_opsetid("", 18), h.make_opsetid("f", 1)])  # fmt: skip
    with pytest.raises(EdgecError, match="nest deeper"):
        load(model)


def external(location: str, offset: int = 0, length: int = 48) -> onnx.ModelProto:
    w = onnx.TensorProto(name="w", data_type=FLOAT, dims=[3, 4], data_location=onnx.TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        w.external_data.add(key=key, value=text)
    return bad([node("MatMul", ["x", "w"], ["y"])], initializers=[w])


@pytest.mark.parametrize(
    ("location", "offset", "length", "code", "reason"),
    [
        ("none.bin", 0, 48, "EC1003", "cannot be read"),
        ("../w.bin", 0, 48, "EC1103", "outside of the model's folder"),
        ("/etc/passwd", 0, 48, "EC1103", "outside of the model's folder"),
        ("a/../../w.bin", 0, 48, "EC1103", "outside of the model's folder"),
        ("C:\\w.bin", 0, 48, "EC1103", "outside of the model's folder"),
        ("", 0, 48, "EC1103", ""),
        ("w.bin", 8, 48, "EC1103", "outside of"),
        ("w.bin", 1 << 62, 48, "EC1103", "outside of"),
        ("w.bin", -8, 48, "EC1103", ""),
        ("w.bin", 0, 20, "EC1103", "too few"),
    ],
)
def test_external_data(tmp_path, location, offset, length, code, reason):
    (tmp_path / "w.bin").write_bytes(np.arange(12, dtype=np.float32).tobytes())
    (tmp_path.parent / "w.bin").write_bytes(bytes(48))
    path = tmp_path / "m.onnx"
    onnx.save(external(location, offset, length), path)
    with pytest.raises(EdgecError) as error:
        load(path)
    assert error.value.code == code and reason in str(error.value)


def test_external_data_is_read_when_it_is_needed(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(16) + np.arange(12, dtype=np.float32).tobytes())
    onnx.save(external("w.bin", 16), tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx")
    (data,) = [n["data"] for n in graph.nodes() if n.op == "constant"]
    np.testing.assert_array_equal(data.array(), np.arange(12, dtype=np.float32).reshape(3, 4))
    np.testing.assert_array_equal(data.part((slice(1, 3), slice(2, 3))), [[6], [10]])
    os.truncate(tmp_path / "w.bin", 40)
    with pytest.raises(EdgecError, match=r"EC1003.*became shorter"):
        data.array()


def test_all_unsupported_nodes_are_listed_at_once():
    nodes = [node("NonZero", ["x"], ["a"], "first"), node("Unique", ["x"], ["b"], "second"),
             node("Mystery", ["x"], ["c"], "third", domain="my.ops"), node("Relu", ["c"], ["y"])]  # fmt: skip
    with pytest.raises(EdgecError) as error:
        load(bad(nodes, outputs=["y", "a", "b"], opsets=[h.make_opsetid("", 18), h.make_opsetid("my.ops", 3)]))
    text = str(error.value)
    assert error.value.code == "EC1102" and "3 unsupported nodes" in text
    for part in ("first (NonZero, opset 18)", "second (Unique", "third (my.ops.Mystery, opset 3)"):
        assert part in text


def test_opsets_that_are_too_old():
    with pytest.raises(EdgecError, match=r"its form of opset 1; edgec reads 7 and newer"):
        load(bad([node("Add", ["x", "x"], ["y"])], opsets=[h.make_opsetid("", 1)]))
    assert load(bad([node("Neg", ["x"], ["y"])], opsets=[h.make_opsetid("", 6)])).outputs  # unchanged since


def test_values_that_must_be_known():
    nodes = [node("Reshape", ["x", "shape"], ["y"], "r")]
    model = bad(nodes, [value("x"), value("shape", (2,), 7)])
    with pytest.raises(ConstantsNeeded) as error:
        load(model)
    assert error.value.needs_constants == ["shape"] and "r (Reshape" in str(error.value)
    assert load(model, constants={"shape": np.array([3, -1])}).outputs[0][1].shape == (3, 2)
    for wrong in (np.array([3.5, 1]), np.array([1, 2, 3])):
        with pytest.raises(EdgecError, match="EC1001"):
            load(model, constants={"shape": wrong})
    with pytest.raises(EdgecError, match=r"no input 'other'.*shape"):
        load(model, constants={"other": np.array([1]), "shape": np.array([3, -1])})


def _ones(*shape: int):
    return onnx.numpy_helper.from_array(np.array(shape), "s")


GREEDY = {
    "a shape that takes 8 TB to compute": [node("ConstantOfShape", ["s"], ["big"]), node("Cast", ["big"], ["b"], to=7),
                                           node("Reshape", ["x", "b"], ["y"])],
    "a window over a billion channels": [node("LRN", ["x"], ["y"], size=10**9)],
    "an endless loop": [node("Loop", ["", ""], ["y"], body=h.make_graph(
        [node("Constant", [], ["on"], value=h.make_tensor("t", 9, [], [True])), node("Identity", ["x"], ["row"])], "b",
        [value("i", (), 7), value("go", (), 9)], [h.make_empty_tensor_value_info("on"), value("row")]))],
    "a window's indices": [node("MaxPool", ["x4"], ["y", "i"], kernel_shape=[10**6, 10**6], pads=[10**6] * 4)],
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_models_that_would_take_all_time_or_memory(name):
    model = bad(GREEDY[name], [value("x"), value("x4", (1, 1, 4, 4))], initializers=[_ones(1 << 20, 1 << 20)])
    with pytest.raises(EdgecError):
        load(model)
