"""ONNX's own node tests, through edgec.onnx_backend (README names the count)."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="the build extra is not installed")
onnx = pytest.importorskip("onnx", reason="the build extra is not installed")
sys.path.insert(0, str(Path(__file__).parent))

RECORDED = 1594  # raise it when more pass


def test_node_tests():
    from coverage import UNSUPPORTED, run_all

    outcomes = run_all()
    failed = [o for o in outcomes if o.error]
    unexpected = [f"{o.name} ({o.op}): {o.error}" for o in failed if o.op not in UNSUPPORTED]
    passed = len(outcomes) - len(failed)
    print(f"{passed} of {len(outcomes)} node tests pass")
    assert passed >= RECORDED, f"{passed} pass\n" + "\n".join(unexpected)


def _node(op: str, inputs: list[str], **attrs):
    return onnx.helper.make_node(op, inputs, ["y"], **attrs)


def test_run_node():
    import edgec.onnx_backend as backend

    x = np.array([[1.0, -2.0]], np.float32)
    (y,) = backend.run_node(_node("Relu", ["x"]), [x])
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_values_that_decide_shapes_are_baked_in_and_may_change():
    import edgec.onnx_backend as backend

    h = onnx.helper
    graph = h.make_graph(
        [_node("Reshape", ["x", "shape"])],
        "g",
        [h.make_tensor_value_info("x", 1, ["n"]), h.make_tensor_value_info("shape", 7, [2])],
        [h.make_tensor_value_info("y", 1, [None, None])],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)])
    rep = backend.prepare(model)
    x = np.arange(12, dtype=np.float32)
    for shape in ([3, 4], [3, 4], [2, -1]):
        (y,) = rep.run([x, np.array(shape)])
        np.testing.assert_array_equal(y, x.reshape(shape))


def test_devices():
    import edgec.onnx_backend as backend
    from edgec.errors import EdgecError

    assert backend.supports_device("CPU") and not backend.supports_device("CUDA")
    graph = onnx.helper.make_graph([_node("Relu", ["x"])], "g", [onnx.helper.make_tensor_value_info("x", 1, [1])],
                                   [onnx.helper.make_tensor_value_info("y", 1, [1])])  # fmt: skip
    with pytest.raises(EdgecError, match="no device 'CUDA'"):
        backend.prepare(onnx.helper.make_model(graph), "CUDA")
