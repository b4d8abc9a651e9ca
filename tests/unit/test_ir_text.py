"""Nodes, the text form, the verifier and the evaluator."""

import gc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from edgec.ir import Data, Graph, IrError, Quantized, TensorType, TupleType, constant, make
from edgec.ir.dims import symbol
from edgec.ir.evaluate import FeedError, run
from edgec.ir.ops import OPS
from edgec.ir.text import TextError, constants, parse_graph, print_graph
from edgec.ir.types import DTYPES, parse_type
from edgec.ir.verify import verify
from edgec.rewrites.examples import f32, graph_of, i64, num, value, weights
from edgec.testing.feeds import random_feeds
from edgec.testing.graphs import graphs


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_text_round_trip(graph):
    for i, node in enumerate(graph.nodes()):
        graph.origins[node] = (f'a "name", {i}', "é {x}")
    text = print_graph(graph)
    back = parse_graph(text, constants(graph))
    assert back.inputs == graph.inputs and back.outputs == graph.outputs  # interned: the very same nodes
    assert back.symbols == graph.symbols and back.name == graph.name
    assert print_graph(back) == text
    verify(back)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_types_are_what_the_evaluator_yields(graph):
    from edgec.ir.dims import evaluate

    feeds = random_feeds(graph, np.random.default_rng(0))
    env = {s: feeds["sizes"].shape[i] for i, s in enumerate("ab")}

    def watch(node, array):
        assert array.shape == tuple(evaluate(d, env) for d in node.shape)
        assert array.dtype.name == {"f32": "float32", "bool": "bool", "i64": "int64"}[node.dtype]

    run(graph, feeds, watch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_constants_stand_in_the_text(dtype):
    numbers = [True, False] if dtype == "bool" else [0, 1, 100]
    if dtype in ("f16", "bf16", "f32", "f64"):
        numbers += [float("nan"), float("inf"), -float("inf"), 0.1, -0.0, 1e-40 if dtype == "f32" else 0.5]
    node = constant(numbers, dtype)
    graph = Graph((), (("y", node),))
    back = parse_graph(print_graph(graph))
    array, again = node["data"].array(), back.outputs[0][1]["data"].array()
    assert again.dtype == array.dtype
    if dtype in ("f16", "bf16", "f32", "f64"):
        array, again = array.astype(np.float64), again.astype(np.float64)
        np.testing.assert_array_equal(np.signbit(again), np.signbit(array))
    np.testing.assert_array_equal(again, array)


def test_quantized_and_packed_constants_in_the_text():
    data = Data.quantized(
        TensorType("f32", (2, 64), Quantized(4, 32, True)),
        np.arange(128, dtype=np.uint8).reshape(2, 64) % 16,
        np.ones((2, 2), np.float16),
        np.full((2, 2), 8, np.uint8),
    )
    graph = graph_of(make("linear", f32("x", "s", 64), make("pack", constant(data), format="u4g32n16k4")))
    verify(graph)
    text = print_graph(graph)
    assert "f32[2, 64]:q4g32z" in text and "@u4g32n16k4" in text
    assert parse_graph(text, constants(graph)).outputs == graph.outputs
    with pytest.raises(TextError, match="line 3"):
        parse_graph(text)


@pytest.mark.parametrize(
    "text", ["f32[2, 4*s + 1]:q4g32z@u4g32", "(f32[2]; i64[a, 3])", "bool[]", "f32[floordiv(a + 1, 2)]"]
)
def test_types_round_trip(text):
    assert str(parse_type(text)) == text


@pytest.mark.parametrize("text", ["f33[2]", "f32", "f32[2", "f32[2]:q4", ""])
def test_types_that_cannot_be_read(text):
    with pytest.raises(ValueError):
        parse_type(text)


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda t: t.replace("= relu", "= rela"), "line 3.*rela"),
        (lambda t: t.replace("f32[3] = relu", "f32[4] = relu"), "line 3.*type"),
        (lambda t: t.replace("relu(%0)", "relu(%7)"), "line 3"),
        (lambda t: t.replace("relu(%0)", "relu(%0"), "line 3"),
        (lambda t: t.replace("return", "retur"), "line 4"),
        (lambda t: t.rsplit("return")[0], "return"),
        (lambda t: "", "return"),
    ],
)
def test_text_that_does_not_parse(broken, message):
    text = broken(print_graph(graph_of(make("relu", f32("x", 3)))))
    with pytest.raises(TextError, match=message):
        parse_graph(text)


def test_nodes_are_interned():
    x, y = f32("x", 3), f32("y", 3)
    assert make("add", x, y) is make("add", x, y) is not make("add", y, x)
    assert constant(np.float32([1, 2])) is constant(np.float32([1, 2]))
    assert constant(0.0, "f32") is not constant(-0.0, "f32")
    assert make("layer_norm", x, axis=0, eps=0.0) is not make("layer_norm", x, axis=0, eps=-0.0)
    before = id(make("mul", x, y))
    gc.collect()
    assert make("mul", x, y).type == TensorType("f32", (3,)) and before


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: make("nope", f32("x", 3)), "nope"),
        (lambda: make("add", f32("x", 3)), "'b'"),
        (lambda: make("add", f32("x", 3), i64("i", 3)), "dtype"),
        (lambda: make("add", f32("x", 3), f32("y", 4)), "broadcast"),
        (lambda: make("relu", f32("x", 3), f32("y", 3)), "takes 1"),
        (lambda: make("transpose", f32("x", 3)), "perm"),
        (lambda: make("transpose", f32("x", 3), perm=(0,), other=1), "other"),
        (lambda: make("reshape", f32("x", 3), shape=(4,)), "reshape"),
        (lambda: make("slice", f32("x", 3), starts=(2,), sizes=(2,), steps=(1,)), "slice"),
        (lambda: make("linear", f32("x", 2, 3), f32("w", 4, 5)), "inner"),
        (lambda: make("branch", f32("x"), f32("y"), f32("z")), "bool"),
        (lambda: make("item", make("topk", f32("x", 3), k=2, axis=0), index=2), "item"),
    ],
)
def test_what_cannot_be_made(build, message):
    with pytest.raises(IrError, match=message):
        build()


def test_an_attribute_that_no_node_can_hold():
    with pytest.raises(TypeError):
        make("reshape", f32("x", 3), shape=({},))


def test_verify():
    x = f32("x", "s")
    y = make("relu", x)
    good = graph_of(y)
    verify(good)
    quantized = constant(
        Data.quantized(
            TensorType("f32", (4, 32), Quantized(8, 32)), np.zeros((4, 32), np.int8), np.ones((4, 1), np.float16)
        )
    )
    cases = {
        "is not among": Graph((), (("y", y),), {"s": (1, None)}),
        "not declared": Graph((x,), (("y", y),)),
        "one name": Graph((x, f32("x", 3)), (("y", y),), {"s": (1, None)}),
        "outputs have one name": Graph((x,), (("y", y), ("y", x)), {"s": (1, None)}),
        "cannot read": graph_of(make("relu", quantized)),
        "not a plain tensor": graph_of(quantized),
    }
    for message, graph in cases.items():
        with pytest.raises(IrError, match=message):
            verify(graph)


def test_evaluator_runs_only_the_branch_it_takes():
    index = make("gather", constant(np.float32([1, 2])), i64("i"), axis=0)
    graph = graph_of(make("branch", make("lt", i64("i"), constant(np.int64(2))), index, num(-1)))
    assert run(graph, {"i": np.int64(1)})["y0"] == 2
    assert run(graph, {"i": np.int64(7)})["y0"] == -1


def test_evaluator_checks_its_feeds():
    s = symbol("s")
    two = make("add", f32("x", "s"), value("f32", "y", s * 2 - s))
    graph = graph_of(two)
    x = np.ones(3, np.float32)
    assert run(graph, {"x": x, "y": x})["y0"].shape == (3,)
    for feeds, message in (
        ({"x": x}, "missing"),
        ({"x": x, "y": np.ones(4)}, "axis 0"),
        ({"x": x, "y": np.ones((3, 1))}, "rank"),
    ):
        with pytest.raises(FeedError, match=message):
            run(graph, feeds)


def test_evaluator_needs_no_recursion():
    node = f32("x", 1)
    for _ in range(5000):
        node = make("neg", make("abs", node))
    graph = graph_of(node)
    verify(graph)
    assert run(graph, {"x": np.float32([2])})["y0"] == -2
    assert len(parse_graph(print_graph(graph)).nodes()) == 10001


def test_every_op_says_what_it_is():
    kinds = {"leaf", "unary", "binary", "elementwise", "reduce", "movement", "nn", "recurrent", "control"}
    assert {op.kind for op in OPS.values()} <= kinds
    assert all(name == op.name and callable(op.infer) and callable(op.reference) for name, op in OPS.items())


def test_tuple_types():
    node = make("topk", f32("x", 5), k=2, axis=0)
    assert isinstance(node.type, TupleType)
    values = make("item", node, index=0)
    assert run(graph_of(values), {"x": np.float32([3, 1, 4, 1, 5])})["y0"].tolist() == [5, 4]


def test_dequantized_value():
    w = weights(3, 40)["data"].array()
    q = np.clip(np.rint(w * 4), -8, 7).astype(np.int8)
    data = Data.quantized(TensorType("f32", (3, 40), Quantized(4, 32)), q, np.full((3, 2), 0.25, np.float16))
    np.testing.assert_array_equal(data.array(), q * np.float32(0.25))
