"""Key-value caches as states: a session that keeps them against the reference with explicit caches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec import EdgecError, _core
from edgec.ir import evaluate, make
from edgec.ir.dims import symbol
from edgec.ir.node import Graph
from edgec.ir.types import parse_type
from edgec.lower.lowering import lower
from edgec.targets import host

TARGET = host()


def cached_graph(heads=4, kv_heads=2, dim=8, v_dim=None, kv="f32", mask=False, layout="bshd", layers=1, **attrs):
    """y = attention over two states; inputs q, k, v of the new tokens in `layout`."""
    v_dim = v_dim or dim

    def node(name, type):
        return make("input", name=name, type=parse_type(type))

    def new(name, h, d):
        return node(name, f"f32[b, s, {h}, {d}]" if layout == "bshd" else f"f32[b, {h}, s, {d}]")

    q, k, v = new("q", heads, dim), new("k", kv_heads, dim), new("v", kv_heads, v_dim)
    inputs = [q, k, v] + ([node("mask", "f32[b, 1, 1, t]")] if mask else [])
    outputs, states = [], []
    for layer in range(layers):
        pasts = [node(f"past{layer}.{n}", f"f32[b, {kv_heads}, p, {d}]") for n, d in (("k", dim), ("v", v_dim))]
        presents = [
            make("cache_append", past, x, axis=2, layout=layout, dtype=kv)
            for past, x in zip(pasts, (k, v), strict=True)
        ]
        y = make("attention", q, *presents, inputs[3] if mask else None,
                 **({"scale": 0.3, "causal": True, "q_layout": layout, "out_layout": "bshd"} | attrs))  # fmt: skip
        outputs += [(f"y{layer}", y), *((f"present{layer}.{n}", p) for n, p in zip("kv", presents, strict=True))]
        inputs += pasts
        states += [(f"past{layer}.{n}", f"present{layer}.{n}") for n in "kv"]
    symbols = {"b": (1, None), "s": (1, None), "p": (0, None)} | ({"t": (1, None)} if mask else {})
    return Graph(tuple(inputs), tuple(outputs), symbols, states=tuple(states))


def core(graph, threads=1):
    lowered = lower(graph, TARGET)
    return _core.Session(lowered.plan.encode(), lowered.code or None, None, threads)


class Oracle:
    """The same sequences by the reference, a row at a time with caches of its own."""

    def __init__(self, graph):
        self.graph, self.caches = graph, {}
        self.layout = dict(graph.outputs)["y0"]["q_layout"]

    def run(self, feeds, slots):
        rows = []
        s = feeds["q"].shape[1 if self.layout == "bshd" else 2]
        for row, slot in enumerate(slots):
            cache = self.caches.get(slot) or {
                n["name"]: np.zeros((1, n.shape[1], 0, n.shape[3]), "f")
                for n in self.graph.inputs
                if n["name"].startswith("past")
            }
            mine = {name: x[row : row + 1] for name, x in feeds.items()}
            if "mask" in mine:
                kept = cache["past0.k"].shape[2]
                mine["mask"] = mine["mask"][..., : kept + s]
            out = evaluate.run(self.graph, mine | cache)
            self.caches[slot] = {past: out[present] for past, present in self.graph.states}
            rows.append({n: v for n, v in out.items() if n.startswith("y")})
        return {n: np.concatenate([r[n] for r in rows]) for n in rows[0]}


def tokens(rng, b, s, heads, kv_heads, dim, v_dim, layout="bshd"):
    feeds = {}
    for name, h, d in (("q", heads, dim), ("k", kv_heads, dim), ("v", kv_heads, v_dim)):
        feeds[name] = rng.standard_normal((b, s, h, d) if layout == "bshd" else (b, h, s, d)).astype("f")
    return feeds


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_sequences_of_any_lengths(data):
    """Slots in any order, rows of unequal length, roll-backs and copies give what each sequence alone gives."""
    draw = data.draw
    kv_heads, shared = draw(st.sampled_from(((1, 1), (2, 2), (1, 5), (3, 1), (2, 4), (1, 7), (1, 3))))
    dim, v_dim = draw(st.integers(1, 70)), draw(st.integers(1, 140))
    heads, layout = kv_heads * shared, draw(st.sampled_from(("bshd", "bhsd")))
    attrs = {"window": draw(st.sampled_from((0, 0, 1, 7))), "softcap": draw(st.sampled_from((0.0, 0.7)))}
    kv = draw(st.sampled_from(("f32", "i8")))
    graph = cached_graph(heads, kv_heads, dim, v_dim, kv, layout=layout, mask=draw(st.booleans()), **attrs)
    session, oracle = core(graph, draw(st.integers(1, 2))), Oracle(graph)
    capacity = draw(st.sampled_from((48, 200, 600)))
    session.reserve(3, capacity)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    length = [0, 0, 0]
    for _ in range(draw(st.integers(1, 6))):
        slots = draw(st.lists(st.sampled_from((0, 1, 2)), min_size=1, max_size=3, unique=True))
        longest = max(length[i] for i in slots)
        s = min(draw(st.sampled_from((1, 1, 2, 5, 48, 300))), capacity - longest)
        if s < 1:
            continue
        feeds = tokens(rng, len(slots), s, heads, kv_heads, dim, v_dim, layout)
        if any(n["name"] == "mask" for n in graph.inputs):
            feeds["mask"] = np.where(
                rng.random((len(slots), 1, 1, longest + s)) < 0.2, np.float32(-30), np.float32(0.5)
            )
        got = session.call(feeds, slots)
        want = oracle.run(feeds, slots)
        tolerance = 2e-5 if kv == "f32" else 1e-3
        np.testing.assert_allclose(got["y0"], want["y0"], rtol=tolerance, atol=tolerance)
        for i in slots:
            length[i] += s
        if draw(st.booleans()):
            i = draw(st.sampled_from(slots))
            length[i] = draw(st.integers(0, length[i]))
            session.set_length(i, length[i])
            oracle.caches[i] = {k: v[:, :, : length[i]] for k, v in oracle.caches[i].items()}
        if draw(st.booleans()):
            i, j = draw(st.sampled_from(slots)), draw(st.sampled_from((0, 1, 2)))
            length[j] = draw(st.integers(0, length[i]))
            session.copy_slot(i, j, length[j])
            oracle.caches[j] = {k: v[:, :, : length[j]] for k, v in oracle.caches[i].items()}
        assert [session.length(i) for i in range(3)] == length
    for i, cache in oracle.caches.items():
        for name, want in cache.items():
            # a tie that falls the other way is a step of 1 / 127 of the token's largest
            step = np.abs(want[0]).max(-1, keepdims=True, initial=0) / 127
            assert (np.abs(session.state(name, i) - want[0]) <= (1.01 * step if kv == "i8" else 0)).all()


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_how_many_come_at_once_changes_no_number(data):
    """A sequence of up to 120 tokens gets bit for bit the same in pieces, and beside a longer one, as at once and alone."""
    draw = data.draw
    kv_heads, shared = draw(st.sampled_from(((1, 1), (3, 3), (2, 4))))
    dim, v_dim = draw(st.sampled_from(((8, 8), (64, 64), (70, 37))))
    graph = cached_graph(kv_heads * shared, kv_heads, dim, v_dim, draw(st.sampled_from(("f32", "i8"))))
    session = core(graph, draw(st.integers(1, 2)))
    session.reserve(3, 160)
    total = draw(st.integers(2, 120))
    feeds = tokens(np.random.default_rng(draw(st.integers(0, 99))), 2, total, kv_heads * shared, kv_heads, dim, v_dim)
    want = session.call({n: x[:1] for n, x in feeds.items()}, [0])["y0"][0]
    beside = session.call(feeds, [1, 2])["y0"][0]
    np.testing.assert_array_equal(beside, want)
    session.set_length(1, 0)
    at = 0
    while at < total:
        end = min(total, at + draw(st.sampled_from((1, 2, 7, 40))))
        piece = session.call({n: x[:1, at:end] for n, x in feeds.items()}, [1])["y0"][0]
        np.testing.assert_array_equal(piece, want[at:end])
        at = end


def test_runs_without_slots_start_empty_and_leave_slots_alone():
    graph = cached_graph(layers=2)
    session, oracle, rng = core(graph), Oracle(graph), np.random.default_rng(0)
    session.reserve(1, 64)
    first, more, other = (tokens(rng, b, s, 4, 2, 8, 8) for b, s in ((1, 5), (1, 1), (3, 4)))
    session.call(first, [0])
    oracle.run(first, ["a"])
    for _ in range(2):
        got, want = session.call(other), Oracle(graph).run(other, [0, 1, 2])
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)
    assert session.length(0) == 5 and session.slots == 1
    np.testing.assert_allclose(session.call(more, [0])["y1"], oracle.run(more, ["a"])["y1"], rtol=1e-5, atol=1e-5)


def test_ports_hide_states():
    session = core(cached_graph(kv="f32"))
    assert [p[0] for p in session.inputs] == ["q", "k", "v"]
    assert [p[0] for p in session.outputs] == ["y0"]
    assert session.symbols == [("b", 1, -1), ("s", 1, -1)]
    assert session.states == [("past0.k", "present0.k", "f32", 2, 8), ("past0.v", "present0.v", "f32", 2, 8)]
    with pytest.raises(EdgecError, match=r"EC1601.*past0\.k"):
        session.call(tokens(np.random.default_rng(0), 1, 1, 4, 2, 8, 8) | {"past0.k": np.zeros((1, 2, 0, 8), "f")})


def test_errors_leave_the_lengths():
    rng = np.random.default_rng(0)
    session = core(cached_graph())
    session.reserve(2, 10)

    def run(b, s, slots):
        return session.call(tokens(rng, b, s, 4, 2, 8, 8), slots)

    run(1, 7, [0])
    run(1, 2, [1])
    for b, s, slots, code, words in (
        (1, 4, [0], "EC1608", "4 tokens after 7.*holds 10"),
        (2, 4, [1, 0], "EC1608", "4 tokens after 7"),
        (1, 11, None, "EC1608", "11 tokens"),
        (1, 1, [2], "EC1001", "slot 2 of 2"),
        (1, 1, [-1], "EC1001", "slot -1"),
        (2, 1, [0], "EC1001", "1 of them for 2 rows"),
        (2, 1, [0, 0], "EC1001", "same slot"),
        (1, 0, [0], "EC1603", "is 0"),
    ):
        with pytest.raises(EdgecError, match=words) as error:
            run(b, s, slots)
        assert error.value.code == code
        assert [session.length(i) for i in (0, 1)] == [7, 2]
    for call, code in (
        (lambda: session.set_length(0, 8), "EC1001"),
        (lambda: session.set_length(0, -1), "EC1001"),
        (lambda: session.copy_slot(0, 1, 8), "EC1001"),
        (lambda: session.copy_slot(0, 2, 1), "EC1001"),
        (lambda: session.reserve(0, 10), "EC1001"),
        (lambda: session.reserve(1, 0), "EC1001"),
        (lambda: session.reserve(1, 1 << 40), "EC1001"),
        (lambda: session.reserve(1 << 40, 10), "EC1001"),
        (lambda: session.state("q", 0), "EC1001"),
    ):
        with pytest.raises(EdgecError) as error:
            call()
        assert error.value.code == code
    run(1, 3, [0])  # up to the last token of the context
    assert session.length(0) == session.capacity == 10


def test_reserve_keeps_sequences_unless_the_capacity_changes():
    rng = np.random.default_rng(0)
    session = core(cached_graph())
    session.reserve(2, 32)
    session.call(tokens(rng, 2, 3, 4, 2, 8, 8), [0, 1])
    kept = session.state("past0.k", 1)
    session.reserve(5, 32)
    np.testing.assert_array_equal(session.state("past0.k", 1), kept)
    session.reserve(1, 32)
    assert (session.slots, session.length(0)) == (1, 3)
    session.reserve(1, 33)
    assert (session.capacity, session.length(0)) == (33, 0)
    feeds = tokens(rng, 1, 3, 4, 2, 8, 8)
    want = Oracle(cached_graph()).run(feeds, [0])["y0"]
    np.testing.assert_allclose(session.call(feeds, [0])["y0"], want, rtol=1e-5, atol=1e-5)


def test_memory_is_used_as_it_grows():
    def resident():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    session = core(cached_graph(heads=8, kv_heads=8, dim=128))
    before = resident()
    session.reserve(16, 100_000)  # 13 GB
    session.call(tokens(np.random.default_rng(0), 1, 16, 8, 8, 128, 128), [3])
    assert resident() - before < 20 << 20


def test_parameters_choose_sizes():
    x = make("input", name="x", type=parse_type("f32[b, s, 4]"))
    k = symbol("k")
    last = make("slice", x, starts=(0, symbol("s") - k, 0), sizes=(symbol("b"), k, 4), steps=(1, 1, 1))
    graph = Graph((x,), (("y", last),), {"b": (1, None), "s": (1, None), "k": (1, None)}, parameters={"k": symbol("s")})
    session = core(graph)
    x = np.arange(24, dtype="f").reshape(2, 3, 4)
    assert session.parameters == ["k"] and [s[0] for s in session.symbols] == ["b", "s"]
    np.testing.assert_array_equal(session.call({"x": x})["y"], x)
    np.testing.assert_array_equal(session.call({"x": x}, parameters={"k": 1})["y"], x[:, 2:])
    for parameters, words in (({"k": 4}, "EC1604"), ({"k": 0}, "EC1001.*'k'.*0"), ({"q": 1}, "EC1001.*'q'")):
        with pytest.raises(EdgecError, match=words):
            session.call({"x": x}, parameters=parameters)
