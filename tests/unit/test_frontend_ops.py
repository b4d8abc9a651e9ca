"""Forms of ops that changed over the opsets, and integer ops, beside onnxruntime's."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the build extra is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from edgec.frontend import ConstantsNeeded, load  # noqa: E402
from edgec.ir.evaluate import run  # noqa: E402
from edgec.ir.verify import verify  # noqa: E402

RNG = np.random.default_rng(2)
h = onnx.helper


def f(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def u8(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def i8(*shape):
    return RNG.integers(-60, 60, shape).astype(np.int8)


class Known:
    """An input that is an initializer."""

    def __init__(self, array):
        self.array = np.asarray(array)


X = f(2, 3, 4, 5)
S, ZERO = np.float32(0.05), np.uint8(120)
ROWS = np.float32([0.02, 0.03, 0.01])

# op, opset, inputs (None: absent), attributes, outputs
CASES = [
    ("Upsample", 7, [X], {"scales": [1.0, 1.0, 2.0, 3.0]}, 1),
    ("Upsample", 9, [X, Known(np.float32([1, 1, 2, 2]))], {"mode": "linear"}, 1),
    ("Resize", 10, [X, Known(np.float32([1, 1, 1.5, 0.6]))], {}, 1),
    ("Resize", 11, [X, Known(np.float32([])), Known(np.float32([])), Known([2, 3, 7, 3])],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, 1),
    ("Resize", 13, [X, None, None, Known([2, 3, 9, 4])], {"mode": "cubic"}, 1),
    ("Resize", 18, [X, None, None, Known([8, 3])], {"mode": "linear", "axes": [2, 3], "antialias": 1}, 1),
    ("Clip", 7, [X], {"min": -0.5, "max": 0.4}, 1),
    ("Clip", 7, [X], {"max": 0.4}, 1),
    ("Clip", 13, [X, None, Known(np.float32(0.3))], {}, 1),
    ("Pad", 7, [X], {"pads": [0, 0, 1, 2, 0, 1, -1, 0], "value": 2.0}, 1),
    ("Pad", 7, [X], {"pads": [0, 0, 1, 2, 0, 0, 1, 3], "mode": "reflect"}, 1),
    ("Pad", 18, [X, Known([1, 2]), Known(np.float32(1)), Known([3])], {}, 1),
    ("Slice", 7, [X], {"starts": [1, -3], "ends": [2, 100], "axes": [0, 3]}, 1),
    ("Slice", 10, [X, Known([-1]), Known([-100]), Known([2]), Known([-2])], {}, 1),
    ("Split", 7, [X], {"axis": 3, "split": [2, 3]}, 2),
    ("Split", 13, [X, Known([1, 2])], {"axis": 1}, 2),
    ("Split", 18, [X], {"axis": 3, "num_outputs": 3}, 3),
    ("Squeeze", 7, [f(1, 3, 1)], {"axes": [0]}, 1),
    ("Unsqueeze", 7, [f(3, 2)], {"axes": [0, 3]}, 1),
    ("ReduceSum", 7, [X], {"axes": [1, -1], "keepdims": 0}, 1),
    ("ReduceSum", 13, [X, Known([1, -1])], {}, 1),
    ("ReduceMean", 18, [X], {"noop_with_empty_axes": 1}, 1),
    ("ReduceLogSumExp", 13, [X], {"axes": [2]}, 1),
    ("Softmax", 7, [X], {"axis": 2}, 1),
    ("Softmax", 13, [X], {"axis": 2}, 1),
    ("LogSoftmax", 11, [X], {}, 1),
    ("Hardmax", 11, [X], {}, 1),
    ("TopK", 7, [X], {"k": 2}, 2),
    ("TopK", 11, [X, Known([2])], {"largest": 0, "axis": 1}, 2),
    ("Dropout", 7, [X], {}, 1),
    ("Dropout", 10, [X], {}, 2),
    ("BatchNormalization", 7, [X, f(3), f(3), f(3), abs(f(3))], {}, 1),
    ("BatchNormalization", 15, [f(4, 3), f(3), f(3), f(3), abs(f(3))], {"epsilon": 0.01}, 1),
    ("InstanceNormalization", 7, [X, f(3), f(3)], {}, 1),
    ("LRN", 13, [f(1, 7, 3, 3)], {"size": 3, "alpha": 0.5, "bias": 2.0}, 1),
    ("Gemm", 7, [f(3, 2), f(4, 3), f(2, 1)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}, 1),
    ("Gemm", 11, [f(2, 3), f(3, 4)], {}, 1),
    ("MaxPool", 8, [X], {"kernel_shape": [2, 3], "pads": [1, 0, 0, 1], "strides": [1, 2]}, 2),
    ("MaxPool", 12, [X], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, 1),
    ("MaxPool", 12, [X], {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}, 1),
    ("AveragePool", 19, [X], {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 1),
    ("AveragePool", 10, [X], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 1, 1, 0]}, 1),
    ("LpPool", 18, [X], {"kernel_shape": [2, 2], "p": 3, "pads": [1, 0, 0, 1]}, 1),
    ("Conv", 11, [f(1, 4, 7), f(6, 2, 3), f(6)], {"group": 2, "dilations": [2], "pads": [1, 2], "strides": [2]}, 1),
    ("Conv", 11, [X, f(2, 3, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 1),
    ("ConvTranspose", 11, [X, f(3, 2, 3, 3), f(2)], {"strides": [2, 3], "output_padding": [1, 2]}, 1),
    ("ConvTranspose", 11, [X, f(3, 2, 3, 3)], {"strides": [2, 2], "output_shape": [9, 10]}, 1),
    ("ConvTranspose", 11, [X, f(3, 2, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, 1),
    ("ConvTranspose", 11, [f(1, 4, 3, 3), f(4, 2, 2, 2)], {"group": 2, "pads": [0, 1, 1, 0]}, 1),
    ("Scatter", 9, [f(3, 3), Known([[0, 2, 1]]), f(1, 3)], {"axis": 1}, 1),
    ("OneHot", 11, [np.array([0, -1, 5, 2]), Known(3), Known(np.float32([0.5, 2]))], {"axis": 0}, 1),
    ("CumSum", 14, [X, Known(1)], {"exclusive": 1, "reverse": 1}, 1),
    ("Mod", 13, [np.array([-7, 7, 5]), np.array([3, -3, 5])], {}, 1),
    ("Pow", 13, [np.array([2, 3]), np.float32([0.5, 2])], {}, 1),
    ("Einsum", 12, [f(2, 3, 4), f(2, 4, 5)], {"equation": "bij,bjk->bik"}, 1),
    ("Einsum", 12, [f(2, 3, 3), f(3)], {"equation": "...ii,i->...i"}, 1),
    ("Einsum", 12, [f(2, 3), f(3, 4), f(4, 2)], {"equation": "ab,bc,ca"}, 1),
    ("GridSample", 16, [f(1, 2, 4, 5), f(1, 3, 3, 2)], {"padding_mode": "reflection", "align_corners": 1}, 1),
    ("GridSample", 16, [f(1, 2, 4, 5), f(1, 3, 3, 2)], {"mode": "bicubic"}, 1),
    ("QuantizeLinear", 13, [X, ROWS, u8(3)], {"axis": 1}, 1),
    ("DequantizeLinear", 13, [u8(2, 3, 4), ROWS, u8(3)], {"axis": 1}, 1),
    ("DequantizeLinear", 21, [i8(4, 6), f(2, 6), i8(2, 6)], {"axis": 0, "block_size": 2}, 1),
    ("DynamicQuantizeLinear", 11, [X], {}, 3),
    ("MatMulInteger", 10, [u8(2, 4), i8(4, 3), np.uint8(7), np.int8(3)], {}, 1),
    ("MatMulInteger", 10, [u8(2, 4), Known(i8(4, 3)), np.uint8(7), Known(i8(3))], {}, 1),
    ("QLinearMatMul", 10, [u8(2, 4), S, ZERO, Known(i8(4, 3)), Known(ROWS), Known(i8(3)), S, ZERO], {}, 1),
    ("ConvInteger", 10, [u8(1, 2, 5, 5), u8(3, 2, 3, 3), np.uint8(9), np.uint8(4)], {"pads": [1, 0, 0, 1]}, 1),
    ("QLinearConv", 10, [u8(1, 2, 5, 5), S, ZERO, Known(i8(3, 2, 3, 3)), Known(ROWS), Known(i8(3) * 0), np.float32(0.2),
                         ZERO, Known(RNG.integers(-90, 90, 3).astype(np.int32))], {}, 1),
    ("LSTM", 7, [f(4, 2, 3), f(2, 20, 3), f(2, 20, 5), f(2, 40), np.int32([4, 2])],
     {"hidden_size": 5, "direction": "bidirectional"}, 3),
    ("GRU", 14, [f(4, 2, 3), f(1, 15, 3), f(1, 15, 5)], {"hidden_size": 5, "linear_before_reset": 1}, 2),
    ("RNN", 7, [f(4, 2, 3), f(1, 5, 3), f(1, 5, 5)], {"hidden_size": 5, "direction": "reverse", "clip": 0.4}, 2),
    ("STFT", 17, [f(1, 32, 1), Known(8), Known(np.hanning(16).astype("f"))], {}, 1),
    ("ReverseSequence", 10, [f(4, 3, 2), Known([1, 4, 2])], {}, 1),
    ("RoiAlign", 16, [f(1, 2, 6, 6), np.float32([[0, 0, 4, 4], [1, 2, 9, 5]]), np.array([0, 0])],
     {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "spatial_scale": 0.7}, 1),
]  # fmt: skip


def model_of(name, opset, inputs, attrs, count):
    feeds, infos, known, names = {}, [], [], []
    for i, value in enumerate(inputs):
        names.append("" if value is None else f"x{i}")
        if isinstance(value, Known):
            known.append(onnx.numpy_helper.from_array(value.array, f"x{i}"))
        elif value is not None:
            feeds[f"x{i}"] = value = np.asarray(value)
            infos.append(h.make_tensor_value_info(f"x{i}", h.np_dtype_to_tensor_dtype(value.dtype), value.shape))
    outputs = [f"y{i}" for i in range(count)]
    graph = h.make_graph([h.make_node(name, names, outputs, "n", **attrs)], "g", infos,
                         [h.make_empty_tensor_value_info(o) for o in outputs], known)  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", opset)])
    model.ir_version = 10
    return model, feeds


@pytest.mark.parametrize(("name", "opset", "inputs", "attrs", "count"), CASES,
                         ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)])  # fmt: skip
def test_beside_onnxruntime(name, opset, inputs, attrs, count):
    model, feeds = model_of(name, opset, inputs, attrs, count)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = load(model)
    verify(graph)
    got = run(graph, feeds)
    for output, want in zip(session.get_outputs(), session.run(None, feeds)):
        y = got[output.name]
        assert y.shape == want.shape and y.dtype == want.dtype
        if want.dtype.kind in "iu" and "Linear" in name:  # a half may round either way
            assert np.abs(y.astype(int) - want).max() <= 1
        else:
            np.testing.assert_allclose(y, want, rtol=1e-4, atol=2e-5)


def _if(shape_of_else):
    one = h.make_graph([h.make_node("Relu", ["x"], ["a"])], "then", [], [h.make_empty_tensor_value_info("a")])
    two = h.make_graph([h.make_node("ReduceSum", ["x"], ["b"], keepdims=shape_of_else)], "else", [],
                       [h.make_empty_tensor_value_info("b")])  # fmt: skip
    node = h.make_node("If", ["c"], ["y"], then_branch=one, else_branch=two)
    graph = h.make_graph([node], "g", [h.make_tensor_value_info("x", 1, [1, 1]), h.make_tensor_value_info("c", 9, [])],
                         [h.make_empty_tensor_value_info("y")])  # fmt: skip
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)])


def test_if_runs_one_side():
    graph = load(_if(1))
    x = np.float32([[-2]])
    assert [n.op for n in graph.nodes()].count("branch") == 1
    assert run(graph, {"x": x, "c": np.array(True)})["y"] == 0 and run(graph, {"x": x, "c": np.array(False)})["y"] == -2


def test_if_of_two_shapes_needs_its_condition():
    with pytest.raises(ConstantsNeeded, match="--const c"):
        load(_if(0))
    assert load(_if(0), constants={"c": np.array(False)}).outputs[0][1].shape == ()


def test_loops_are_unrolled():
    info = h.make_tensor_value_info
    body = h.make_graph(
        [h.make_node("Add", ["s", "x"], ["t"]), h.make_node("Identity", ["go"], ["on"]),
         h.make_node("Identity", ["t"], ["row"])],
        "body",
        [info("i", 7, []), info("go", 9, []), info("s", 1, [2])],
        [h.make_empty_tensor_value_info(n) for n in ("on", "t", "row")],
    )  # fmt: skip
    trips = onnx.numpy_helper.from_array(np.array(3), "n")
    start = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "zero")
    graph = h.make_graph([h.make_node("Loop", ["n", "", "zero"], ["last", "rows"], body=body)], "g",
                         [h.make_tensor_value_info("x", 1, [2])],
                         [h.make_empty_tensor_value_info(n) for n in ("last", "rows")], [trips, start])  # fmt: skip
    got = run(load(h.make_model(graph, opset_imports=[h.make_opsetid("", 18)])), {"x": np.float32([1, 2])})
    np.testing.assert_array_equal(got["last"], [3, 6])
    np.testing.assert_array_equal(got["rows"], [[1, 2], [2, 4], [3, 6]])


def test_functions_of_the_model_are_expanded():
    body = h.make_function(
        "my", "Twice", ["a"], ["b"], [h.make_node("Mul", ["a", "k"], ["b"])], [h.make_opsetid("", 18)]
    )
    body.node.insert(0, h.make_node("Constant", [], ["k"]))
    body.node[0].attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="by", type="FLOAT"))
    body.attribute.append("by")
    graph = h.make_graph([h.make_node("Twice", ["x"], ["y"], "call", domain="my", by=2.5)], "g",
                         [h.make_tensor_value_info("x", 1, [2])], [h.make_empty_tensor_value_info("y")])  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18), h.make_opsetid("my", 1)], functions=[body])
    graph = load(model)
    np.testing.assert_array_equal(run(graph, {"x": np.float32([1, 2])})["y"], [2.5, 5])
    assert "call/" in graph.origin(graph.outputs[0][1])
