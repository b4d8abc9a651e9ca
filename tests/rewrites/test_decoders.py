"""Decoders after their rewrites: states, merged products, rope; the numbers of the graph with explicit caches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler import build
from edgec.ir.dims import symbol
from edgec.ir.evaluate import run
from edgec.ir.node import Graph, constant
from edgec.ir.verify import verify
from edgec.rewrites import PHASES, as_decoder, one_length
from edgec.rewrites import run as rewrite
from edgec.rewrites.examples import f32, i64, num, weights
from edgec.rewrites.merge import stacked
from edgec.rewrites.pattern import b

H, HK, D, LAYERS, VOCAB, WIDTH = 4, 2, 8, 2, 19, 32
SWAP = (0, 2, 1, 3)


def decoder(apart: bool = False, read_again: bool = False) -> Graph:
    """A small Llama with past keys and values; apart: a symbol of its own for each cache's length."""
    ids, mask, places = i64("ids", "b", "s"), i64("mask", "b", "total"), i64("position_ids", "b", "s")
    batch, s = ids.shape
    pasts = [[f32(f"past.{i}.{n}", "b", HK, f"p{i}{n}" if apart else "p", D) for n in "kv"] for i in range(LAYERS)]
    p = pasts[0][0].shape[2]
    freq = constant((10.0 ** -np.arange(D // 2)).astype(np.float32))
    angle = b.mul(b.reshape(b.cast(places, dtype="f32"), shape=(batch, s, 1)), freq)
    both = b.concat(angle, angle, axis=2)
    cos, sin = (b.reshape(getattr(b, f)(both), shape=(batch, 1, s, D)) for f in ("cos", "sin"))
    keys, here = b.iota(size=p + s), b.reshape(b.add(b.iota(size=s), b.dim_value(value=p)), shape=(s, 1))
    keep = b.slice(mask, starts=(0, 0), sizes=(batch, p + s), steps=(1, 1))
    keep = b.reshape(b.ne(keep, constant(0)), shape=(batch, 1, 1, p + s))
    hidden = b.where(getattr(b, "and")(b.le(keys, here), keep), num(0), num(-3.4e38))
    table, seed = weights(VOCAB, WIDTH, seed=1), iter(range(2, 99))

    def linear(x, n):
        return b.matmul(x, weights(x.shape[-1], n, seed=next(seed), scale=x.shape[-1] ** -0.5))

    def turned(x, n):
        x = b.transpose(b.reshape(x, shape=(batch, s, n, D)), perm=SWAP)
        low, high = (b.slice(x, starts=(0, 0, 0, i), sizes=(*x.shape[:3], D // 2), steps=(1,) * 4) for i in (0, D // 2))
        return b.add(b.mul(x, cos), b.mul(b.concat(b.neg(high), low, axis=3), sin))

    def repeated(x):
        wide = b.expand(b.reshape(x, shape=(batch, HK, 1, x.shape[2], D)), shape=(batch, HK, H // HK, x.shape[2], D))
        return b.reshape(wide, shape=(batch, H, x.shape[2], D))

    x, presents = b.gather(table, ids, axis=0), []
    for past_k, past_v in pasts:
        y = b.rms_norm(x, weights(WIDTH, seed=next(seed)), axis=2, eps=1e-5)
        q, k = turned(linear(y, H * D), H), turned(linear(y, HK * D), HK)
        v = b.transpose(b.reshape(linear(y, HK * D), shape=(batch, s, HK, D)), perm=SWAP)
        k, v = b.concat(past_k, k, axis=2), b.concat(past_v, v, axis=2)
        presents += [k, v]
        scores = b.mul(b.matmul(q, b.transpose(repeated(k), perm=(0, 1, 3, 2))), num(D**-0.5))
        y = b.matmul(b.softmax(b.add(scores, hidden), axis=3), repeated(v))
        y = b.reshape(b.transpose(y, perm=SWAP), shape=(batch, s, H * D))
        x = b.add(x, linear(y, WIDTH))
        y = b.rms_norm(x, weights(WIDTH, seed=next(seed)), axis=2, eps=1e-5)
        gate, up = linear(y, 48), linear(y, 48)
        x = b.add(x, linear(b.mul(b.mul(gate, b.sigmoid(gate)), up), WIDTH))
    logits = b.matmul(b.rms_norm(x, axis=2, eps=1e-5), b.transpose(table, perm=(1, 0)))
    names = [f"present.{i}.{n}" for i in range(LAYERS) for n in "kv"]
    outputs = [("logits", logits), *zip(names, presents)]
    outputs += [("extra", b.neg(presents[0]))] if read_again else []
    inputs = (ids, mask, places, *(x for pair in pasts for x in pair))
    found = {str(d): (0, None) for n in inputs for d in n.shape if not isinstance(d, int)}
    return Graph(inputs, tuple(outputs), found, "decoder")


def rewritten(graph, **how):
    graph = rewrite(one_length(graph), PHASES)
    out = as_decoder(graph, **how)
    verify(out[0])
    return out


def steps_of(rng, batch, pads, sizes):
    """Feeds of a prompt with padding on the left, and of the steps after it; (feeds, which positions count)."""
    mask, out = np.zeros((batch, 0), np.int64), []
    for i, s in enumerate(sizes):
        new = np.ones((batch, s), np.int64)
        if i == 0:
            new[np.arange(s) < np.asarray(pads)[:, None]] = 0
        mask = np.concatenate([mask, new], 1)
        places = np.maximum(np.cumsum(mask, 1) - 1, 0)[:, -s:]
        ids = rng.integers(0, VOCAB, (batch, s))
        out.append(({"ids": ids, "mask": mask, "position_ids": places}, new == 1))
    return out


def empty(graph, batch):
    return {n["name"]: np.zeros((batch, HK, 0, D), np.float32) for n in graph.inputs if n["name"].startswith("past")}


def next_caches(outputs):
    return {n.replace("present", "past"): v for n, v in outputs.items() if n.startswith("present")}


@pytest.mark.parametrize("apart", (False, True), ids=("one symbol", "a symbol for each cache"))
def test_states_give_the_numbers_of_explicit_caches(apart):
    source = decoder(apart)
    graph, lm, notes = rewritten(source)
    assert lm == {
        "ids": "ids", "mask": "mask", "positions": "position_ids", "logits": "logits", "last": True, "states": True,
        "past": [], "present": [], "ragged": True, "context": None, "vocab": VOCAB,
    }  # fmt: skip
    ops = [n.op for n in graph.nodes()]
    assert not notes and len(graph.states) == 2 * LAYERS
    assert ops.count("attention") == LAYERS and ops.count("rope") == ops.count("cache_append") == 2 * LAYERS
    assert ops.count("linear") == 4 * LAYERS + 1 and not {"matmul", "softmax", "expand"} & set(ops)
    rng = np.random.default_rng(0)
    caches = ours = empty(source, 2)
    for feeds, valid in steps_of(rng, 2, (2, 0), (4, 1, 2)):
        want, got = run(source, feeds | caches), run(graph, feeds | ours)
        last = run(graph, feeds | ours, parameters={"logits": 1})["logits"]
        caches, ours = next_caches(want), next_caches(got)
        np.testing.assert_allclose(got["logits"][valid], want["logits"][valid], atol=1e-4)
        np.testing.assert_allclose(last[:, 0], want["logits"][:, -1], atol=1e-4)


def test_compiled_with_slots(tmp_path):
    """A prompt padded on the left and steps after it, in a session that keeps the cache."""
    import edgec

    source = decoder()
    build(source, weights="fp32", out=tmp_path / "lm.edgec", max_context=16)
    session = edgec.load(tmp_path / "lm.edgec")
    session.reserve(2, 16)
    caches = empty(source, 2)
    for feeds, valid in steps_of(np.random.default_rng(1), 2, (0, 3), (5, 1, 1)):
        want = run(source, feeds | caches)
        caches = next_caches(want)
        (got,) = session.run(["logits"], feeds, slots=[0, 1])
        np.testing.assert_allclose(got[valid], want["logits"][valid], atol=1e-4)


@pytest.mark.parametrize("weights, kept", (("int4", "i8"), ("int8", "i8"), ("fp32", "f32")))
def test_the_cache_is_of_8_bits_beside_quantized_weights(weights, kept, tmp_path):
    import edgec

    for how, dtype in ({}, kept), ({"kv_cache": "fp32"}, "f32"), ({"kv_cache": "int8"}, "i8"):
        build(decoder(), weights=weights, out=tmp_path / "lm.edgec", max_context=16, **how)
        states = edgec.load(tmp_path / "lm.edgec")._core.states
        assert {s[2] for s in states} == {dtype}


def test_a_cache_that_is_read_elsewhere_stays_exposed():
    graph, lm, notes = rewritten(decoder(read_again=True))
    assert not graph.states and lm is not None and not lm["states"] and len(lm["past"]) == 2 * LAYERS
    assert "stays an input and output" in notes[0] and "read by neg" in notes[0]
    graph, lm, notes = rewritten(decoder(), kv_cache="exposed")
    assert not graph.states and not notes and len(lm["present"]) == 2 * LAYERS


@settings(max_examples=30, deadline=None)
@given(st.booleans(), st.integers(1, 3), st.integers(0, 2**31), st.data())
def test_quantized_rows_keep_their_integers(interleaved, count, seed, data):
    from edgec.ir.node import Data
    from edgec.ir.types import Quantized, TensorType

    rng = np.random.default_rng(seed)
    sizes = [16, 16] if interleaved else [8 * i for i in range(1, count + 1)]
    parts = []
    for n in sizes:
        q, scale = rng.integers(-8, 8, (n, 32)).astype(np.int8), rng.random((n, 1)).astype(np.float16)
        parts.append(constant(Data.quantized(TensorType("f32", (n, 32), Quantized(4, 32)), q, scale)))
    whole = stacked(parts, interleaved)
    values = [p["data"].array() for p in parts]
    want = np.concatenate(values)
    if interleaved:
        want = np.stack([v.reshape(2, 8, 32) for v in values], axis=1).reshape(-1, 32)
    np.testing.assert_array_equal(whole["data"].array(), want)
    begin = data.draw(st.integers(0, len(want) - 1))
    end = data.draw(st.integers(begin + 1, len(want)))
    np.testing.assert_array_equal(whole["data"].rows(begin, end)["q"], whole["data"].parts()["q"][begin:end])


@pytest.fixture(scope="module")
def roped(tmp_path_factory):
    import edgec

    sessions = {}
    for interleaved in (False, True):
        x, cos, sin = f32("x", "b", "s", 29), f32("cos", 1, "s", 3), f32("sin", 1, "s", 3)
        y = b.rope(x, cos, sin, heads=3, dim=8, start=4, interleaved=interleaved)
        graph = Graph((x, cos, sin), (("y", y),), {"b": (0, None), "s": (0, None)})
        path = tmp_path_factory.mktemp("rope") / "rope.edgec"
        build(graph, weights="fp32", out=path)
        sessions[interleaved] = (graph, edgec.load(path))
    return sessions


@settings(max_examples=25, deadline=None)
@given(st.booleans(), st.integers(0, 3), st.integers(0, 70), st.integers(0, 2**31))
def test_rope_kernel(roped, interleaved, batch, steps, seed):
    graph, session = roped[interleaved]
    rng = np.random.default_rng(seed)
    shapes = {"x": (batch, steps, 29), "cos": (1, steps, 3), "sin": (1, steps, 3)}
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    np.testing.assert_allclose(session(**feeds)["y"], run(graph, feeds)["y"], atol=1e-5)


def test_symbols_are_what_inputs_have():
    graph, _, _ = rewritten(decoder(apart=True))
    lengths = {str(n.shape[2]) for n in graph.inputs if n["name"].startswith("past")}
    assert lengths == {"p0k"} and graph.parameters == {"logits": symbol("s")}
