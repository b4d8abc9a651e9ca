"""Convolutions in 8 bits: the steps of their inputs, which of them stay in floats, and whole builds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
import edgec
from edgec.calibrate import convs
from edgec.calibrate.data import Calibration
from edgec.ir.evaluate import run
from edgec.ir.node import Graph, constant, make
from edgec.ir.ops.nn import to_grid
from edgec.ir.types import TensorType
from edgec.rewrites.quantize import Options, quantize

ATTRS = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}


def normal(rng, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def network(rng, batch=2):
    """A stem of three channels, a convolution, one of each channel alone, a pointwise one with a residual."""
    x = make("input", name="x", type=TensorType("f32", (batch, 3, 12, 12)))
    a = make("conv", x, constant(normal(rng, 16, 3, 3, 3, scale=0.2)), act="relu", **ATTRS)
    b = make("conv", a, constant(normal(rng, 16, 16, 3, 3, scale=0.1)), constant(normal(rng, 16)), act="silu", **ATTRS)
    c = make("conv", b, constant(normal(rng, 16, 1, 3, 3, scale=0.3)), group=16, **ATTRS)
    pointwise = ATTRS | {"pads": (0, 0, 0, 0)}
    d = make("conv", c, constant(normal(rng, 16, 16, 1, 1, scale=0.3)), None, a, **pointwise)
    return Graph((x,), (("y", d),), {}), [a, b, c, d]


def calibration(rng, graph, runs=4):
    feeds = [{n["name"]: normal(rng, *n.shape) for n in graph.inputs} for _ in range(runs)]
    return Calibration(feeds, [None] * runs, runs, "test")


def seen(x):
    """x [n, C] as two runs of n / 2 positions."""
    found = convs.Seen()
    for part in np.array_split(x, 2):
        found.add(part.T[None], np.arange(len(part)))
    return found


def noise(w, x, grid):
    """Mean square of what rounding the input [n, C] does to the sums of w [rows, C]."""
    apart = to_grid(x, grid) * grid[0] - x
    return float(np.square(apart @ w.T).mean())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.floats(0, 4), st.booleans(), st.integers(0, 2**32))
def test_steps_are_no_worse_than_one_for_all(channels, unevenness, positive, seed):
    rng = np.random.default_rng(seed)
    ranges = np.exp2(rng.uniform(0, unevenness, channels))
    x = (rng.standard_normal((4000, channels)) * ranges).astype(np.float32)
    x = np.maximum(x, 0) if positive else x
    w = normal(rng, 8, channels, 1)
    found = convs.fit(w, seen(x)).grid
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = max((high - low) / 255, 1e-30)
    plain = np.array([[step] * channels, [np.rint(-low / step)] * channels], np.float32)
    assert found.shape == (2, channels) and (found[0] > 0).all()
    assert ((found[1] >= 0) & (found[1] <= 255) & (found[1] == np.rint(found[1]))).all()
    assert noise(w[..., 0], x, found) <= 1.3 * noise(w[..., 0], x, plain) + 1e-12


def test_one_large_channel_does_not_cost_the_others():
    rng = np.random.default_rng(0)
    x = normal(rng, 4000, 8)
    x[:, 3] *= 100
    w = normal(rng, 8, 8, 1)
    w[:, 3] *= 0.01
    found = convs.fit(w, seen(x)).grid
    step = np.float32((x.max() - x.min()) / 255)
    plain = np.array([[step] * 8, [np.rint(-x.min() / step)] * 8], np.float32)
    assert noise(w[..., 0], x, found) < 0.01 * noise(w[..., 0], x, plain)


def test_inputs_that_are_not_finite_have_no_grid():
    assert convs.fit(np.ones((1, 2, 1), np.float32), seen(np.array([[0, np.inf], [1, 2]], np.float32))) is None


def test_the_mean_of_large_numbers_is_one():
    """Of 4096 numbers whose sum is beyond f32."""
    x = np.full((4096, 2), 1e36, np.float32)
    with np.errstate(over="raise"):
        found = convs.fit(np.ones((3, 2, 1), np.float32), seen(x))
    np.testing.assert_allclose(found.mean, 1e36, rtol=1e-6)


def test_which_convolutions_compute_in_8_bits():
    rng = np.random.default_rng(0)
    graph, (_, b, _, d) = network(rng)
    options = convs.solve(graph, calibration(rng, graph), Options(weights="int8"))
    assert not options.in_floats
    new, report = quantize(graph, options)
    rounded = [n for n in new.nodes() if n.op == "conv" and n.inputs[4] is not None]
    assert [n.inputs[1].shape for n in rounded] == [b.inputs[1].shape, d.inputs[1].shape]
    assert sorted(w["activations"] for w in report) == [8, 8, 32, 32]
    feeds = {"x": normal(rng, 2, 3, 12, 12)}
    got, want = run(new, feeds)["y"], run(graph, feeds)["y"]
    assert np.square(got - want).sum() < 1e-3 * np.square(want).sum()


def test_those_that_would_change_the_outputs_stay_in_floats():
    """The difference of two that are nearly the same is all noise in 8 bits; another output is not."""
    rng = np.random.default_rng(0)
    x = make("input", name="x", type=TensorType("f32", (2, 8, 10, 10)))
    w, other = normal(rng, 16, 8, 3, 3), normal(rng, 16, 8, 3, 3)
    near = w + normal(rng, 16, 8, 3, 3, scale=1e-3)
    a, b, c = (make("conv", x, constant(v), **ATTRS) for v in (w, near, other))
    graph = Graph((x,), (("d", make("sub", a, b)), ("c", c)), {})
    options = convs.solve(graph, calibration(rng, graph), Options(weights="int8"))
    keys = {name: n.inputs[1]["data"].key for name, n in (("a", a), ("b", b), ("c", c))}
    assert options.in_floats.keys() == {keys["a"], keys["b"]} and options.roundings.keys() == set(keys.values())
    _, report = quantize(graph, options)
    reasons = sorted(w["reason"] for w in report if w["activations"] == 32)
    assert len(reasons) == 2 and all("would change an output by" in r for r in reasons)


def build(graph, tmp_path, **options):
    rng = np.random.default_rng(1)
    data = tmp_path / "data.npz"
    np.savez(data, x=normal(rng, 8, 3, 12, 12))
    return edgec.build(graph, out=tmp_path / "m.edgec", calib=data, **options)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_an_artifact_computes_what_the_evaluator_does(tmp_path, weights):
    rng = np.random.default_rng(0)
    graph, _ = network(rng)
    report = build(graph, tmp_path, weights=weights)
    assert sorted(w["activations"] for w in report.weights) == [8, 8, 32, 32]
    feeds = {"x": normal(rng, 2, 3, 12, 12)}
    got, want = edgec.load(tmp_path / "m.edgec")(**feeds)["y"], run(graph, feeds)["y"]
    assert np.square(got - want).sum() < 2e-3 * np.square(want).sum()
    families = {row[0] for case in report.work for row in case["steps"]}
    assert "int8 conv" in families


@pytest.mark.parametrize("rotate", ["auto", "none"])
def test_wide_ones_compute_in_8_bits_as_they_are(tmp_path, rotate):
    """Rotations look for products before there are any: 256 channels of a convolution in 8 bits are none."""
    rng = np.random.default_rng(0)
    x = make("input", name="x", type=TensorType("f32", (1, 256, 5, 5)))
    w = constant(normal(rng, 256, 256, 1, 1, scale=0.05))
    graph = Graph((x,), (("y", make("conv", x, w, **ATTRS | {"pads": (0, 0, 0, 0)})),), {})
    data = tmp_path / "data.npz"
    np.savez(data, x=normal(rng, 8, 256, 5, 5))
    options = {"target": "x86-64-v3", "rotate": rotate, "stop_after": "quantize", "out": tmp_path / "m.edgec"}
    report = edgec.build(graph, weights="int8", calib=data, **options)
    assert [(r["role"], r["activations"]) for r in report.weights] == [("conv", 8)] and not report.rotated


def test_a_build_says_how_many(tmp_path):
    from edgec.cli.build import _convs_text

    graph, _ = network(np.random.default_rng(0))
    rows = build(graph, tmp_path, weights="int8").weights
    assert _convs_text(rows) == "2 of 4 compute in 8 bits"
    rows[0] |= {"activations": 32, "reason": "activations of 8 bits here would change an output by 7.0%"}
    assert _convs_text(rows).endswith("1 would change an output too much, and stay in fp32")
    assert _convs_text([]) is None


def test_a_target_that_multiplies_floats_as_fast_keeps_them(tmp_path):
    graph, _ = network(np.random.default_rng(0))
    report = build(graph, tmp_path, weights="int8", target="aarch64-generic")
    assert {w["activations"] for w in report.weights} == {32}
