"""Graphs written as ONNX: onnxruntime gives what the evaluator gives, and edgec reads its own files."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_tools import write_folder

import edgec
from edgec import frontend, rewrites
from edgec.calibrate.prune import parse, prune_model
from edgec.errors import EdgecError
from edgec.frontend import export
from edgec.ir import evaluate
from edgec.ir.dims import symbol
from edgec.ir.node import Graph, constant, make
from edgec.rewrites.examples import f32, graph_of, i64, weights
from edgec.rewrites.pattern import b
from edgec.testing.feeds import random_feeds
from edgec.testing.graphs import graphs
from edgec.testing.networks import networks

SETTINGS = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def run(model: onnx.ModelProto, feeds: dict) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {i.name: feeds[i.name] for i in session.get_inputs()}
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, given)))


def agrees(graph: Graph, seed: int = 0, feeds: dict | None = None) -> None:
    feeds = random_feeds(graph, np.random.default_rng(seed)) if feeds is None else feeds
    want, got = evaluate.run(graph, feeds), run(export.model_of(graph), feeds)
    assert want.keys() == got.keys()
    for name, w in want.items():
        assert got[name].shape == w.shape and got[name].dtype == w.dtype
        np.testing.assert_allclose(got[name], w, rtol=2e-4, atol=2e-5 * max(1.0, _largest(w)), equal_nan=True)


def _largest(x: np.ndarray) -> float:
    finite = np.abs(x[np.isfinite(x)]) if x.dtype.kind == "f" else np.zeros(0)
    return float(finite.max(initial=0.0))


@given(networks(), st.integers(0, 99))
@settings(max_examples=25, **SETTINGS)
def test_networks_give_the_same_in_onnxruntime(graph, seed):
    agrees(graph, seed)


@given(networks(), st.integers(0, 99))
@settings(max_examples=10, **SETTINGS)
def test_fused_and_pruned_networks_do_too(graph, seed):
    graph = rewrites.run(graph, rewrites.PHASES)
    agrees(graph, seed)
    try:
        pruned = prune_model(graph, parse("30%", None)).graph
    except EdgecError:
        return
    agrees(rewrites.run(pruned, rewrites.PHASES), seed)


@given(graphs(max_nodes=6), st.integers(0, 99))
@settings(max_examples=60, **SETTINGS)
def test_ops_give_the_same_in_onnxruntime(graph, seed):
    try:
        model = export.model_of(graph)
    except EdgecError as error:
        assert error.code == "EC1307"
        return
    feeds = random_feeds(graph, np.random.default_rng(seed))
    want = evaluate.run(graph, feeds)
    try:
        got = run(model, feeds)
    except Exception as error:  # onnxruntime lacks kernels of some types
        if "NOT_IMPLEMENTED" in str(error) or "Could not find an implementation" in str(error):
            return
        raise
    for name, w in want.items():
        assert got[name].shape == w.shape and got[name].dtype == w.dtype
        if w.dtype.kind == "f" and np.isfinite(w).all() and _largest(w) < 1e4:
            np.testing.assert_allclose(got[name], w, rtol=2e-3, atol=1e-3 * max(1.0, _largest(w)))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("kind", [{}, {"causal": True}, {"causal": True, "window": 2}, {"softcap": 2.0}])
@pytest.mark.parametrize("layouts", ["bhsd", "bshd"])
def test_attention(heads, kind, layouts):
    h, hk = heads
    of = lambda name, n, s: f32(name, *(("b", s, n, 8) if layouts == "bshd" else ("b", n, s, 8)))  # noqa: E731
    layout = {f"{n}_layout": layouts for n in ("q", "k", "v", "out")}
    mask = None if kind.get("window") else f32("mask", "b", 1, 1, "t")
    graph = graph_of(
        b.attention(of("q", h, "s"), of("k", hk, "t"), of("v", hk, "t"), mask, scale=0.3, **kind, **layout)
    )
    rng = np.random.default_rng(0)
    sizes = {"b": 2, "s": 3, "t": 5}
    agrees(graph, feeds=random_feeds(graph, rng, sizes))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half", [2, 4])
def test_rope(interleaved, half):
    x, cos, sin = f32("x", "b", "s", 40), f32("cos", 1, "s", half), f32("sin", 1, "s", half)
    agrees(graph_of(b.rope(x, cos, sin, heads=3, dim=8, start=8, interleaved=interleaved)))


@pytest.mark.parametrize("act", ["none", "relu", "relu6", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "hard_swish",
                                 "hard_sigmoid", "swiglu", "geglu", "geglu_tanh"])  # fmt: skip
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_linear(act, norm):
    n = 32
    out = n // 2 if act in ("swiglu", "geglu", "geglu_tanh") else n
    gain = None if norm == "none" else weights(12, seed=3)
    shift = weights(12, seed=4) if norm == "layer" else None
    x, residual = f32("x", "a", 12), f32("r", "a", out)
    node = b.linear(x, weights(n, 12, seed=1), weights(n, seed=2), residual, gain, shift, act=act, norm=norm, eps=1e-5)
    agrees(graph_of(node))


def test_sizes_are_computed_from_the_inputs():
    s = symbol("s")
    x = f32("x", "s", 6)
    y = make("reshape", x, shape=(s * 2, 3))
    y = make("slice", y, starts=(s // 2, 0), sizes=(s, 2), steps=(1, 1))
    z = make("expand", make("dim_value", value=s * s + 1, dtype="f32"), shape=(s, 2))
    odd = make("slice", make("iota", size=s + 3, dtype="i64"), starts=(s % 2,), sizes=(2,), steps=(1,))
    graph = graph_of(make("add", y, z), odd)
    for n in (1, 2, 5):
        agrees(graph, feeds=random_feeds(graph, np.random.default_rng(n), {"s": n}))


def test_other_ops():
    x, ids = f32("x", 4, 6), i64("ids", 4, 1)
    top = make("topk", x, k=3, axis=1)
    pads = {"strides": (1,), "pads": (1, 1), "dilations": (1,)}
    row = make("reshape", x, shape=(1, 4, 6))
    outputs = [
        make("item", top, index=0), make("item", top, index=1), make("cumsum", x, axis=1, exclusive=True, reverse=True),
        make("argmax", x, axis=0, last=True), make("gather_elements", x, ids, axis=1), make("mod", x, constant(np.float32(0.7))),
        make("slice", x, starts=(3, 5), sizes=(4, 3), steps=(-1, -2)), make("pad", x, None, before=(-1, 2), after=(1, -1)),
        make("scatter_nd", x, constant(np.array([[1], [3]], np.int64)), weights(2, 6), reduction="add"),
        make("rsqrt", make("abs", x)), make("log_softmax", x, axis=0), make("ne", ids, ids), make("fmod", x, x),
        make("max_pool", row, kernel=(2,), ceil=True, **pads), make("avg_pool", row, kernel=(3,), count_pads=True, **pads),
        make("conv_transpose", row, weights(4, 2, 3), weights(2), output_padding=(0,), act="relu", **pads),
    ]  # fmt: skip
    agrees(graph_of(*outputs))


def test_what_it_refuses(tmp_path):
    x = f32("x", 3, 1, 4)
    graph = graph_of(make("atan2", x, x), make("exp", make("resize", x, sizes=(3, 1, 8), scales=(0.0,) * 3)))
    with pytest.raises(EdgecError, match=r"EC1307 .*not written as ONNX: atan2 .*, resize"):
        export.write(graph, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("lm"))


# --- in a build -----------------------------------------------------------------------------------------------------------


def test_a_pruned_decoder_comes_out_as_onnx(lm_folder, tmp_path, capsys):
    from edgec.cli import main

    text = tmp_path / "texts.txt"
    text.write_text("\n".join("one two three four five six seven " * 8 for _ in range(20)))
    out, file = tmp_path / "lm.edgec", tmp_path / "small.onnx"
    call = ["build", str(lm_folder), "--weights", "fp32", "--prune", "ffn=25%,attention=1", "--calib", str(text)]
    assert main([*call, "--kv-cache", "fp32", "-o", str(out), "--onnx", str(file), "--no-check"]) == 0
    session = edgec.load(out)
    lm = session.manifest["lm"]
    graph = frontend.load(file)
    assert sum(n["name"].startswith("past") for n in graph.inputs) == 2
    ids = np.array([[5, 9, 2, 7]])
    feeds = {lm["ids"]: ids}
    feeds |= {lm["mask"]: np.ones_like(ids)} if lm["mask"] else {}
    feeds |= {lm["positions"]: np.arange(4)[None]} if lm["positions"] else {}
    want = session.run([lm["logits"]], feeds)[0]
    empty = {n["name"]: np.zeros((1, n.shape[1], 0, n.shape[3]), np.float32) for n in graph.inputs if n.rank == 4}
    got = run(onnx.load(file), feeds | empty)[lm["logits"]]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)
    again = edgec.build(file, weights="fp32", kv_cache="fp32", out=tmp_path / "again.edgec")
    np.testing.assert_allclose(edgec.load(again.path).run([lm["logits"]], feeds)[0], want, rtol=1e-3, atol=1e-4)


def test_a_folder_that_does_not_exist_is_told_first(lm_folder, tmp_path):
    with pytest.raises(EdgecError, match="EC1003"):
        edgec.build(lm_folder, out=tmp_path / "a.edgec", onnx=tmp_path / "no" / "m.onnx")
    assert not list(tmp_path.iterdir())
