"""The ops of a key-value cache in the IR: what their references say, and what inference refuses."""

from dataclasses import replace

import numpy as np
import pytest

from edgec.ir import evaluate, make
from edgec.ir.dims import symbol
from edgec.ir.node import Graph
from edgec.ir.ops import OPS, IrError
from edgec.ir.text import parse_graph, print_graph
from edgec.ir.types import parse_type
from edgec.ir.verify import verify


def node(name, type):
    return make("input", name=name, type=parse_type(type))


def run(out, **feeds):
    inputs = tuple(i for i in out.inputs if i is not None)
    return evaluate.run(Graph(inputs, (("y", out),)), feeds)["y"]


@pytest.mark.parametrize(("axis", "layout"), [(2, "bhsd"), (2, "bshd"), (1, "bshd"), (1, "bhsd")])
def test_cache_append_is_a_concat_in_the_layout_of_past(axis, layout):
    rng = np.random.default_rng(0)
    past = node("past", "f32[b, 2, p, 4]" if axis == 2 else "f32[b, p, 2, 4]")
    new = node("new", "f32[b, 2, s, 4]" if layout == "bhsd" else "f32[b, s, 2, 4]")
    y = make("cache_append", past, new, axis=axis, layout=layout)
    assert str(y.shape[axis]) == "p + s"
    a, b = rng.standard_normal((2, 3, 2, 5, 4)).astype("f")
    b = b[:, :, :2]

    def laid(x, heads_first):
        return x if heads_first else np.swapaxes(x, 1, 2)

    got = run(y, past=laid(a, axis == 2), new=laid(b, layout == "bhsd"))
    np.testing.assert_array_equal(got, laid(np.concatenate([a, b], 2), axis == 2))


def test_cache_append_rounds_what_is_new_only():
    rng = np.random.default_rng(1)
    past, new = rng.standard_normal((2, 1, 1, 3, 40)).astype("f")
    new[0, 0, 1] = 0  # no scale
    y = make("cache_append", node("past", "f32[1, 1, p, 40]"), node("new", "f32[1, 1, s, 40]"), dtype="i8")
    got = run(y, past=past, new=new)
    np.testing.assert_array_equal(got[:, :, :3], past)
    step = np.abs(new).max(-1, keepdims=True) / 127
    assert (np.abs(got[:, :, 3:] - new) <= 0.5001 * step).all()
    levels = np.divide(got[:, :, 3:], step, out=np.zeros_like(new), where=step > 0)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)


@pytest.mark.parametrize(
    ("past", "new", "attrs"),
    [
        ("f32[1, 2, p, 4]", "f32[1, 3, s, 4]", {}),
        ("f32[1, 2, p, 4]", "f32[1, 2, s, 5]", {}),
        ("f32[1, 2, p, 4]", "f16[1, 2, s, 4]", {}),
        ("f32[1, 2, p, 4]", "f32[1, 2, s, 4]", {"axis": 3}),
        ("f32[1, 2, p, 4]", "f32[1, 2, s, 4]", {"dtype": "i4"}),
        ("i32[1, 2, p, 4]", "i32[1, 2, s, 4]", {}),
        ("f32[2, p, 4]", "f32[2, s, 4]", {}),
    ],
)
def test_cache_append_refuses(past, new, attrs):
    with pytest.raises(IrError, match="cache_append"):
        make("cache_append", node("past", past), node("new", new), **attrs)


def test_attention_window_and_softcap():
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((1, 1, n, 4)).astype("f") for n in (3, 5, 5))
    attrs = OPS["attention"].complete({"scale": 1.0, "causal": True, "window": 2})
    got = OPS["attention"].reference(q, k, v, None, **attrs)
    for i in range(3):  # at position i + 2 of 5 it sees two keys: its own and the one before
        seen = slice(i + 1, i + 3)
        s = q[0, 0, i] @ k[0, 0, seen].T
        e = np.exp(s - s.max())
        np.testing.assert_allclose(got[0, 0, i], e / e.sum() @ v[0, 0, seen], rtol=1e-5)
    capped = OPS["attention"].reference(1e3 * q, k, v, None, **(attrs | {"softcap": 1e-6}))
    for i in range(3):  # all scores nearly equal
        np.testing.assert_allclose(capped[0, 0, i], v[0, 0, i + 1 : i + 3].mean(0), rtol=1e-4, atol=1e-5)
    for attrs in ({"window": -1}, {"softcap": -1.0}):
        with pytest.raises(IrError, match="attention"):
            make("attention", *(node(n, "f32[1, 1, 2, 4]") for n in "qkv"), scale=1.0, **attrs)


def test_states_and_parameters_of_a_graph():
    past, new = node("past", "f32[1, 2, p, 4]"), node("new", "f32[1, 2, s, 4]")
    present = make("cache_append", past, new)
    last = make("slice", new, starts=(0, 0, symbol("s") - symbol("k"), 0), sizes=(1, 2, symbol("k"), 4), steps=(1,) * 4)
    graph = Graph(
        (past, new),
        (("present", present), ("last", last)),
        {"p": (0, None), "s": (1, None), "k": (1, None)},
        states=(("past", "present"),),
        parameters={"k": symbol("s")},
    )
    verify(graph)
    again = parse_graph(print_graph(graph))
    assert (again.states, again.parameters) == (graph.states, graph.parameters)
    assert graph.with_outputs([present, last]) == graph
    feeds = {"past": np.zeros((1, 2, 0, 4), "f"), "new": np.ones((1, 2, 3, 4), "f")}
    assert evaluate.run(graph, feeds)["last"].shape == (1, 2, 3, 4)
    assert evaluate.run(graph, feeds, parameters={"k": 1})["last"].shape == (1, 2, 1, 4)
    with pytest.raises(IrError, match="state"):
        verify(replace(graph, states=(("past", "missing"),)))
