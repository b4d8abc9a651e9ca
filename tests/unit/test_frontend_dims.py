"""Open sizes: names, fixing and bounding them, and shape arithmetic followed through a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx", reason="the build extra is not installed")
from onnx.reference import ReferenceEvaluator  # noqa: E402

from edgec.errors import EdgecError  # noqa: E402
from edgec.frontend import load, symbolic  # noqa: E402
from edgec.frontend.emit import clamp_slice  # noqa: E402
from edgec.ir.dims import evaluate, format_dim, symbol  # noqa: E402
from edgec.ir.evaluate import run  # noqa: E402
from edgec.ir.verify import verify  # noqa: E402

h = onnx.helper


def model_of(nodes, inputs, constants=None, outputs=("y",), opset=18):
    infos = [h.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()]
    initializers = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    graph = h.make_graph(nodes, "g", infos, [h.make_empty_tensor_value_info(o) for o in outputs], initializers)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=10)


node = h.make_node
RELU = [node("Relu", ["x"], ["y"])]


def shape_of(graph, i=0):
    return [format_dim(d) for d in graph.outputs[i][1].shape]


def test_unnamed_dims_are_called_after_their_place():
    model = model_of(RELU, {"x": (1, ["n", None, "?", 3])})
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -1
    graph = load(model)
    assert shape_of(graph) == ["n", "x.1", "x.2", "3"]
    assert graph.symbols == {"n": (0, None), "x.1": (0, None), "x.2": (0, None)}


def test_dims_are_fixed_bounded_and_equated():
    model = model_of([node("Add", ["x", "z"], ["y"])], {"x": (1, ["a", "b"]), "z": (1, ["c", "b"])})
    assert shape_of(load(model)) == ["bcast(a, c)", "b"]
    graph = load(model, dims={"a": "c", "b": (1, 512)})
    assert shape_of(graph) == ["c", "b"] and graph.symbols == {"c": (0, None), "b": (1, 512)}
    assert shape_of(load(model, dims={"a": "c", "c": 7, "b": 2})) == ["7", "2"]


@pytest.mark.parametrize(
    ("dims", "reason"),
    [
        ({"q": 3}, "no dim 'q'; it has: a, b"),
        ({"a": -1}, "no size"),
        ({"a": "q"}, "no dim 'q'"),
        ({"a": "b", "b": "a"}, "equal to itself"),
        ({"a": (5, 2)}, "empty or negative"),
        ({"a": (1, 2, 3)}, "no size, range"),
        ({"a": 1.5}, "no size, range"),
    ],
)
def test_dims_that_do_not_fit(dims, reason):
    with pytest.raises(EdgecError, match=reason) as error:
        load(model_of(RELU, {"x": (1, ["a", "b"])}), dims=dims)
    assert error.value.code == "EC1001"


# name -> (nodes, constants): each computes sizes from x [n, m, 4] and uses them
PATTERNS = {
    "flatten by the batch": ([node("Shape", ["x"], ["s"], end=1), node("Concat", ["s", "rest"], ["t"], axis=0),
                              node("Reshape", ["x", "t"], ["y"])], {"rest": [-1]}),
    "split heads": ([node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["b"]),
                     node("Gather", ["s", "one"], ["t"]),
                     node("Unsqueeze", ["b", "zeros"], ["b1"]), node("Unsqueeze", ["t", "zeros"], ["t1"]),
                     node("Concat", ["b1", "t1", "heads"], ["u"], axis=0), node("Reshape", ["x", "u"], ["y"])],
                    {"zero": 0, "one": 1, "zeros": [0], "heads": [2, 2]}),
    "expand where -1": ([node("Shape", ["x"], ["s"]), node("Equal", ["s", "minus"], ["e"]),
                         node("ConstantOfShape", ["three"], ["o"], value=onnx.numpy_helper.from_array(np.array([1]))),
                         node("Where", ["e", "o", "s"], ["w"]), node("Expand", ["v", "w"], ["y"])],
                        {"minus": [-1, -1, -1], "three": [3], "v": np.float32([1, 2, 3, 4])}),
    "positions": ([node("Shape", ["x"], ["s"], start=1, end=2), node("Squeeze", ["s"], ["n"]),
                   node("Range", ["zero", "n", "two"], ["y"])], {"zero": 1, "two": 2}),
    "half of it": ([node("Shape", ["x"], ["s"], start=1, end=2), node("Div", ["s", "two"], ["k"]),
                    node("Slice", ["x", "k", "end", "axes"], ["y"])], {"two": [2], "end": [10**9], "axes": [1]}),
    "in floats": ([node("Shape", ["x"], ["s"], start=1, end=2), node("Cast", ["s"], ["f"], to=1),
                   node("Mul", ["f", "scale"], ["g"]), node("Floor", ["g"], ["k"]), node("Cast", ["k"], ["i"], to=7),
                   node("ConstantOfShape", ["i"], ["y"])], {"scale": np.float32([1.5])}),
    "all but the last": ([node("Slice", ["x", "zero", "last", "axes"], ["y"])],
                         {"zero": [0], "last": [-1], "axes": [1]}),
    "the last": ([node("Slice", ["x", "last", "end", "axes"], ["y"])], {"last": [-1], "end": [10**9], "axes": [1]}),
    "backwards": ([node("Slice", ["x", "last", "end", "axes", "step"], ["y"])],
                  {"last": [-1], "end": [-(10**9)], "axes": [1], "step": [-2]}),
    "pad to even": ([node("Shape", ["x"], ["s"], start=1, end=2), node("Mod", ["s", "two"], ["r"]),
                     node("Concat", ["z3", "z1", "r", "z1"], ["p"], axis=0), node("Pad", ["x", "p"], ["y"])],
                    {"two": [2], "z1": [0], "z3": [0, 0, 0]}),
    "tile": ([node("Shape", ["x"], ["s"], start=1, end=2), node("Concat", ["one", "s", "one"], ["r"], axis=0),
              node("Tile", ["x", "r"], ["y"])], {"one": [1]}),
    "size as a value": ([node("Shape", ["x"], ["s"]), node("ReduceProd", ["s"], ["k"], keepdims=0),
                         node("Cast", ["k"], ["f"], to=1), node("Mul", ["x", "f"], ["y"])], {}),
    "split": ([node("Split", ["x"], ["a", "b"], axis=2, num_outputs=2), node("Concat", ["b", "a"], ["y"], axis=1)], {}),
    "max pool": ([node("Unsqueeze", ["x", "zeros"], ["u"]), node("MaxPool", ["u"], ["y"], kernel_shape=[2, 2],
                  strides=[2, 2], auto_pad="SAME_UPPER")], {"zeros": [0]}),
    "resize": ([node("Unsqueeze", ["x", "zeros"], ["u"]), node("Resize", ["u", "", "scales"], ["y"], mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
               {"zeros": [0], "scales": np.float32([1, 1, 2, 2])}),
    "mask": ([node("Shape", ["x"], ["s"], start=1, end=2), node("Concat", ["s", "s"], ["t"], axis=0),
              node("ConstantOfShape", ["t"], ["o"], value=onnx.numpy_helper.from_array(np.float32([1]))),
              node("Trilu", ["o"], ["y"], upper=0)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_shape_arithmetic_at_several_sizes(name):
    nodes, constants = PATTERNS[name]
    model = model_of(nodes, {"x": (1, ["n", "m", 4])}, constants)
    graph = load(model)
    verify(graph)
    reference = ReferenceEvaluator(model)
    for n, m in ((1, 1), (2, 5), (3, 8)):
        x = np.random.default_rng(m).standard_normal((n, m, 4)).astype(np.float32)
        (want,) = reference.run(None, {"x": x})
        got = run(graph, {"x": x})["y"]
        declared = tuple(evaluate(d, {"n": n, "m": m}) for d in graph.outputs[0][1].shape)
        assert got.shape == want.shape == declared and got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(-12, 12), st.integers(-12, 12), st.sampled_from([-3, -2, -1, 1, 2, 3]))
def test_slices_are_python_s(size, start, end, step):
    first, count = clamp_slice(size, start, end, step)
    assert [first + i * step for i in range(count)] == list(range(size))[start:end:step]
    # the same with an open size
    first, count = (evaluate(v, {"n": size}) for v in clamp_slice(symbol("n"), start, end, step))
    assert [first + i * step for i in range(count)] == list(range(size))[start:end:step]


NUMBERS = st.integers(0, 40)


@given(
    NUMBERS, NUMBERS, st.integers(1, 9), st.sampled_from(["add", "sub", "mul", "div", "mod", "min", "max", "ge", "eq"])
)
def test_symbolic_entries_agree_with_numbers(n, a, b, name):
    s = symbol("n") + a
    f = symbolic._POINTWISE.get(name) or symbolic._known(symbolic._int_div)
    known = f(s, b)
    if known is symbolic.UNKNOWN:
        return
    want = {"add": n + a + b, "sub": n + a - b, "mul": (n + a) * b, "div": (n + a) // b, "mod": (n + a) % b,
            "min": min(n + a, b), "max": max(n + a, b), "ge": int(n + a >= b), "eq": int(n + a == b)}[name]  # fmt: skip
    assert evaluate(known, {"n": n}) == want


@given(st.floats(0.125, 8, width=16), st.integers(0, 500))
def test_scales_round_as_floats_do(scale, size):
    entry = symbolic._floor(symbolic._mul(symbol("n"), symbolic.of_number(np.float32(scale))))
    assert evaluate(entry, {"n": size}) == int(np.floor(np.float64(scale) * size))
