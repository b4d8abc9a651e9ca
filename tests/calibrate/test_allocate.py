"""Bits go where they count: the choice against brute force, the measure against the whole graph."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_calibrated_weights import calibration, chain

from edgec.calibrate import allocate
from edgec.errors import EdgecError
from edgec.ir.node import Graph
from edgec.loss import sensitivities
from edgec.rewrites.examples import f32, weights
from edgec.rewrites.pattern import b
from edgec.rewrites.quantize import Options, quantize


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0, 9))
@settings(deadline=None, max_examples=60)
def test_choice_is_the_best_where_all_cost_the_same(losses, room):
    taken = allocate.choose({i: [(loss, 1.0)] for i, loss in enumerate(losses)}, room)
    count = min(int(room * (1 + 1e-9)), len(losses))
    best = max(sum(c) for c in itertools.combinations(losses, count))
    assert sum(taken.values()) == count and sum(losses[i] * n for i, n in taken.items()) == pytest.approx(best)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=6), st.integers(0, 12))
@settings(deadline=None, max_examples=60)
def test_steps_of_equal_cost_are_taken_in_order_and_gain_most(gains, room):
    """Each weight has two steps, the second of no more gain."""
    steps = {i: [(first, 1.0), (first * share, 1.0)] for i, (first, share) in enumerate(gains)}
    taken = allocate.choose(steps, room)
    counts = [c for c in itertools.product(range(3), repeat=len(gains)) if sum(c) <= room]
    best = max(sum(sum(g for g, _ in steps[i][:n]) for i, n in enumerate(c)) for c in counts)
    assert sum(taken.values()) <= room
    assert sum(sum(g for g, _ in steps[i][:n]) for i, n in taken.items()) == pytest.approx(best)


def allocated(graph: Graph, found, bits: float) -> Options:
    feed = allocate.window(graph, found.feeds[0])
    return allocate.allocate(graph, Options(), bits, lambda a, c: sensitivities(a, c, feed))


@pytest.mark.parametrize("bits", [4.25, 5.75, 8.5])
def test_average_is_kept_and_the_sensitive_get_more(tmp_path, bits):
    x = f32("x", "n", 16, 64)
    loud, quiet = weights(256, 64, seed=1), weights(256, 64, seed=2, scale=1e-3)
    both = b.add(b.linear(x, loud), b.linear(x, quiet))
    graph = Graph((x,), (("y", b.linear(both, weights(64, 256, seed=3, scale=1e-2))),), {"n": (1, None)})
    found = calibration(graph, tmp_path, 8)
    options = allocated(graph, found, bits)
    report = quantize(graph, options)[1]
    sizes = [np.prod(c["shape"]) for c in report]
    plan = [options.plan[n.inputs[1]["data"].key] for n in graph.nodes() if n.op == "linear"]
    average = sum(allocate.bits_of(p) * s for p, s in zip(plan, sizes)) / sum(sizes)
    assert average <= bits or bits == 8.5
    quiet_bits = options.plan[quiet["data"].key].bits
    assert quiet_bits == (8 if bits == 8.5 else 4)
    assert sorted(c["bits"] for c in report) == {4.25: [4, 4, 4], 5.75: [4, 6, 6], 8.5: [8, 8, 8]}[bits]
    assert all((c["reason"] != "") == (c["bits"] > 4) for c in report)


@pytest.mark.parametrize(("bits", "want"), [(4.25, 4), (6.25, 6), (8.0, 6), (8.5, 8)])
def test_without_a_measure_all_are_alike(bits, want):
    x = f32("x", "n", 64)
    graph = Graph((x,), (("y", b.linear(b.linear(x, weights(256, 64)), weights(64, 256, seed=1))),), {"n": (1, None)})
    options = allocate.allocate(graph, Options(), bits, None)
    assert {p.bits for p in options.plan.values()} == {want}
    assert [c["bits"] for c in quantize(graph, options)[1]] == [want, want]


def test_decoder_is_measured_by_its_next_token(lm, tmp_path):
    from edgec.calibrate import data

    graph, files = lm
    (tmp_path / "t.txt").write_text("\n".join(f"{i * i}: language models continue naïve cafés {i}." for i in range(99)))
    found = data.load(tmp_path / "t.txt", graph, files, length=32, limit=4)
    options = allocated(graph, found, 6.0)
    assert {4, 6} <= {p.bits for p in options.plan.values()}


def test_too_large_to_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(allocate, "LARGE", 10)
    graph = chain(64, 1)
    with pytest.raises(EdgecError, match=r"EC1301 --bits.*whole model in fp32"):
        allocated(graph, calibration(graph, tmp_path, 8), 7.0)
