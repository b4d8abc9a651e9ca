"""Rotations by Hadamard matrices: they leave the function, and what follows finds them where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_decoders import D, decoder, empty, next_caches, rewritten, steps_of

import edgec
from edgec.errors import EdgecError
from edgec.ir import evaluate
from edgec.ir.node import Graph, constant, make
from edgec.ir.ops.hadamard import matrix, rotated, spans
from edgec.ir.verify import verify
from edgec.lower.legalize import legalize
from edgec.options import Options as BuildOptions
from edgec.rewrites.examples import f32, graph_of, i64, weights
from edgec.rewrites.fold import folded
from edgec.rewrites.pattern import b
from edgec.rewrites.quantize import Options, quantize
from edgec.rewrites.rotate import rotate
from edgec.testing.feeds import random_feeds
from edgec.testing.networks import networks

INT8 = Options(weights="int8")
PARTS = ("keys", "down", "inputs")


def agrees(graph: Graph, other: Graph, seed: int = 0, bound: float = 2e-5) -> None:
    """Of an output's largest value."""
    feeds = random_feeds(graph, np.random.default_rng(seed))
    with np.errstate(all="ignore"):
        want, got = evaluate.run(graph, feeds), evaluate.run(other, feeds)
    for name, w in want.items():
        if w.dtype.kind == "f" and np.isfinite(w).all():
            np.testing.assert_allclose(got[name], w, rtol=0, atol=bound * max(1.0, np.abs(w).max(initial=0)))


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes()]


@given(st.integers(1, 200), st.integers(0, 8))
def test_spans_are_powers_of_two_that_cover_a_row(size, power):
    found = list(spans(size, 2**power))
    assert [a for a, _ in found] == [0, *(e for _, e in found[:-1])] and found[-1][1] == size
    sizes = [e - a for a, e in found]
    assert all(s & (s - 1) == 0 and s <= 2**power for s in sizes) and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("power", range(8))
def test_the_matrix_is_orthonormal_symmetric_and_of_equal_magnitudes(power):
    h = matrix(2**power)
    np.testing.assert_allclose(h @ h.T, np.eye(2**power), atol=1e-12)
    assert (h == h.T).all() and np.allclose(np.abs(h), 2 ** (-power / 2))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 150), st.sampled_from([1, 2, 8, 32, 128]), st.integers(0, 99))
def test_products_of_rotated_rows_are_those_of_the_rows(rows, k, block, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((rows, k)), rng.standard_normal((7, k))
    np.testing.assert_allclose(rotated(x, block) @ rotated(w, block).T, x @ w.T, atol=1e-9)
    np.testing.assert_allclose(rotated(rotated(x, block), block), x, atol=1e-9)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.sets(st.sampled_from(PARTS), min_size=1), st.integers(0, 99))
def test_a_rotated_graph_is_the_graph(graph, parts, seed):
    with pytest.MonkeyPatch.context() as patch:  # random networks are tiny
        patch.setattr("edgec.rewrites.quantize.TINY", 0)
        patch.setattr("edgec.rewrites.quantize.NARROW", 0)
        new, counts = rotate(graph, parts, INT8)
    verify(new)
    agrees(graph, new, seed)
    assert set(counts) == set(parts) and sum(counts.values()) == ops(new).count("hadamard")
    if "inputs" in parts:
        assert all(n.inputs[0].op == "hadamard" for n in new.nodes() if n.op == "linear")


def feed_forward(k: int = 96, n: int = 160, tied: bool = False) -> Graph:
    table = weights(1 << 13, k)
    x = make("rms_norm", b.gather(table, i64("i", 2, "s"), axis=0), weights(k, seed=1), axis=2, eps=1e-5)
    y = b.linear(x, weights(2 * n, k, seed=2), act="swiglu")
    y = b.linear(y, weights(k, n, seed=3))
    return graph_of(b.linear(y, table if tied else weights(1 << 13, k, seed=4)))


@pytest.mark.parametrize(
    ("parts", "turned"), [(("down",), 1), (("inputs",), 3), (("keys",), 0), (("down", "inputs"), 3)]
)
def test_parts_are_what_their_names_say(parts, turned):
    graph = feed_forward()
    new, counts = rotate(graph, parts, INT8)
    assert sum(counts.values()) == turned == ops(new).count("hadamard")
    agrees(graph, new)
    if parts == ("down",):
        (node,) = [n for n in new.nodes() if n.op == "linear" and n.inputs[0].op == "hadamard"]
        assert node.inputs[1].shape == (96, 160)


def test_a_table_that_a_product_reads_is_stored_once():
    graph = feed_forward(tied=True)
    new, _ = rotate(graph, ("inputs",), INT8)
    agrees(graph, new)
    lookup = next(n for n in new.nodes() if n.op == "gather")
    head = new.outputs[0][1]
    assert lookup.inputs[0]["data"].key == head.inputs[1]["data"].key
    done, report = quantize(new, INT8)
    assert [w["role"] for w in report].count("tied") == 1 and all(w["bits"] == 8 for w in report)
    packed = legalize(done, lambda node, op: "s8g32n16k4")
    assert ops(packed).count("hadamard") == 1  # behind the look-up; products do their own
    assert all(n["rotate"] for n in packed.nodes() if n.op == "linear")


def test_what_stays_in_fp32_is_not_rotated():
    small = graph_of(b.linear(f32("x", 2, 8), weights(8, 8)))
    assert rotate(small, PARTS, INT8)[1] == dict.fromkeys(PARTS, 0)
    assert "hadamard" not in ops(rotate(feed_forward(), PARTS, Options(weights="fp32"))[0])


def test_outliers_cost_less():
    rng = np.random.default_rng(0)
    graph = graph_of(b.linear(f32("x", 64, 256), weights(128, 256)))
    x = (rng.standard_normal((64, 256)) * np.where(np.arange(256) % 32 == 5, 50, 1)).astype(np.float32)
    (want,) = evaluate.run(graph, {"x": x}).values()

    def error(g: Graph) -> float:
        (y,) = evaluate.run(quantize(g, INT8)[0], {"x": x}).values()
        return float(np.square(y - want).mean())

    assert error(rotate(graph, ("inputs",), INT8)[0]) < error(graph) / 4


@pytest.mark.parametrize("apart", [False, True])
def test_cached_keys_are_rotated_as_queries_are(apart):
    source = decoder(apart=apart)
    assert rotate(rewritten(source)[0], ("keys",), INT8)[1] == {"keys": 0}  # of floats
    graph = rewritten(source, kv_cache="int8")[0]
    new, counts = rotate(graph, ("keys",), INT8)
    attentions = [n for n in new.nodes() if n.op == "attention"]
    assert counts["keys"] == 2 * len(attentions) > 0
    for n in attentions:
        assert n.inputs[0].op == n.inputs[1].inputs[1].op == "hadamard" and n.inputs[2].inputs[1].op != "hadamard"
    packed = legalize(new, lambda node, op: "s8g32n16k4")
    assert "hadamard" not in ops(packed) and all(n["rotate"] == D for n in packed.nodes() if n.op == "rope")
    floats = in_floats(new)
    caches = ours = empty(source, 2)
    for feeds, valid in steps_of(np.random.default_rng(0), 2, (2, 0), (4, 1, 2)):
        want, got = evaluate.run(source, feeds | caches), evaluate.run(floats, feeds | ours)
        caches, ours = next_caches(want), next_caches(got)
        np.testing.assert_allclose(got["logits"][valid], want["logits"][valid], atol=1e-4)


def in_floats(graph: Graph) -> Graph:
    """The graph with caches that round nothing."""
    found: dict = {}
    for n in graph.nodes():
        inputs = [None if i is None else found[i] for i in n.inputs]
        found[n] = make(n.op, *inputs, **(dict(n.attrs) | ({"dtype": "f32"} if n.op == "cache_append" else {})))
    return graph.with_outputs([found[n] for _, n in graph.outputs])


def test_a_compiled_decoder_keeps_rotated_keys(tmp_path):
    graph, outputs = decoder(), {}
    for how in ("none", "keys"):
        path = tmp_path / f"{how}.edgec"
        edgec.build(graph, weights="fp32", kv_cache="int8", rotate=how, out=path, max_context=16)
        session = edgec.load(path)
        session.reserve(2, 16)
        steps = steps_of(np.random.default_rng(1), 2, (0, 3), (5, 1, 1))
        outputs[how] = [session.run(["logits"], feeds, slots=[0, 1])[0][valid] for feeds, valid in steps]
    caches = empty(graph, 2)
    for (feeds, valid), *found in zip(steps, *outputs.values()):
        want = evaluate.run(graph, feeds | caches)
        caches = next_caches(want)
        for got in found:
            np.testing.assert_allclose(got, want["logits"][valid], atol=0.2)
    assert (outputs["none"][1] != outputs["keys"][1]).any()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_compiled(weights, tmp_path):
    """What the kernels give is what the reference gives, integers and all."""
    graph = feed_forward(tied=True)
    plain, turned = tmp_path / "plain.edgec", tmp_path / "turned.edgec"
    edgec.build(graph, weights=weights, rotate="none", out=plain)
    report = edgec.build(graph, weights=weights, rotate="inputs", out=turned)
    assert report.rotated == {"inputs": 3} and report.options["rotate"] == "inputs"
    feeds = {"i": np.random.default_rng(0).integers(0, 1 << 13, (2, 5))}
    ((name, want),) = evaluate.run(graph, feeds).items()
    errors = [float(np.square(edgec.load(p)(**feeds)[name] - want).mean()) for p in (plain, turned)]
    scale = float(np.square(want).mean())
    assert errors[1] < (1e-3 if weights == "int8" else 4e-2) * scale
    assert errors[1] < 1.2 * errors[0]


def test_the_default_is_by_weights():
    assert BuildOptions(weights="int8").rotations == ("keys", "inputs")
    assert BuildOptions(weights="int8", kv_cache="fp32").rotations == ("inputs",)
    assert (
        BuildOptions().rotations == BuildOptions(bits=4.25).rotations == BuildOptions(bits=5.0).rotations == ("keys",)
    )
    assert BuildOptions(bits=6.25).rotations == BuildOptions(bits=8.5).rotations == ("keys", "inputs")
    assert BuildOptions(weights="fp32").rotations == BuildOptions(rotate="none").rotations == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rotate": "values"}, "'values' is nothing that is rotated.*keys, down, inputs"),
        ({"rotate": "keys,,down"}, "'' is nothing"),
        ({"rotate": "down", "weights": "fp32"}, "fp32 weights round no inputs"),
        ({"rotate": "keys", "kv_cache": "fp32"}, "keys gain from it in int8.*--kv-cache int8"),
        ({"rotate": "keys", "kv_cache": "exposed"}, "the cache is exposed"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(EdgecError, match=f"(?s)EC1001.*{words}"):
        BuildOptions(**options).check()


def test_a_request_that_finds_nothing_is_noted(tmp_path):
    report = edgec.build(feed_forward(), rotate="keys", out=tmp_path / "a.edgec")
    assert report.rotated == {} and any("--rotate keys changes nothing" in n for n in report.notes)
    report = edgec.build(feed_forward(), rotate="inputs,down", out=tmp_path / "a.edgec")
    assert report.rotated["inputs"] and report.notes == [
        "--rotate down changes nothing: inputs takes all that it would"
    ]


def test_a_rotation_of_constants_is_read_in_parts():
    w = weights(300, 70)
    found = folded(make("hadamard", w, block=32))["data"]
    np.testing.assert_allclose(found.array(), rotated(w["data"].array(), 32), atol=1e-6)
    np.testing.assert_array_equal(found.part((slice(7, 90), slice(3, 40))), found.array()[7:90, 3:40])
    assert constant(found).shape == (300, 70)
