"""Quantization: the search against its oracle, the policy, the report."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec import EdgecError
from edgec.ir import Quantized, constant, make
from edgec.ir.data import Data
from edgec.ir.evaluate import run as evaluate
from edgec.ir.verify import verify
from edgec.rewrites import PHASES, run
from edgec.rewrites.encode import encoded, in_channels, nbytes, quantize_reference
from edgec.rewrites.examples import f32, graph_of, i64, weights
from edgec.rewrites.quantize import Options, quantize
from edgec.testing.feeds import random_feeds


def error(w, q, scale, zero, group):
    index = np.arange(w.shape[1]) // (group or w.shape[1])
    value = q.astype(np.float64) - (0 if zero is None else zero.astype(np.float64)[:, index])
    return np.square(value * scale.astype(np.float64)[:, index] - w).sum()


def plain(w, bits, group):
    """Round to nearest with the scale absmax / top."""
    top = 2 ** (bits - 1) - 1
    out = np.zeros_like(w)
    for start in range(0, w.shape[1], group):
        part = w[:, start : start + group]
        scale = (np.abs(part).max(1, keepdims=True) / top).astype(np.float16).astype(np.float64)
        safe = np.where(scale > 0, scale, 1)
        out[:, start : start + group] = np.clip(np.rint(part / safe), -top, top) * scale
    return np.square(out.astype(np.float64) - w).sum()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 20),
    st.integers(1, 130),
    st.sampled_from([32, 64, 0]),
    st.sampled_from([(4, True), (4, False), (8, True)]),
    st.sampled_from(["normal", "skew", "outlier", "zero", "tiny"]),
    st.integers(0, 99),
)
def test_reference_is_no_worse_than_rounding(n, k, group, kind, shape, seed):
    bits, symmetric = kind
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((n, k)).astype(np.float32)
    w = {"normal": w, "skew": w + 2, "outlier": w * (1 + 30 * (rng.random((n, k)) < 0.02)), "zero": w * 0,
         "tiny": w * 1e-3}[shape].astype(np.float32)  # fmt: skip
    q, scale, zero = quantize_reference(w, bits, group, symmetric)
    groups = -(-k // (group or k))
    assert q.shape == w.shape and scale.shape == (n, groups) and scale.dtype == np.float16
    assert q.dtype == (np.int8 if symmetric else np.uint8) and (zero is None) == symmetric
    limits = (-8, 7) if symmetric and bits == 4 else (-127, 127) if symmetric else (0, 15)
    assert limits[0] <= q.min() and q.max() <= limits[1]
    found = error(w, q, scale, zero, group)
    if symmetric:
        assert found <= plain(w, bits, group or k) * 1.001 + 1e-12
    from edgec import kernels

    mine = error(w, *kernels.quantize(w, bits, group, symmetric), group)
    # The extension searches groups of up to 128 (csrc/kernels/quantize.h); whole long rows take their largest value.
    bound = found * 1.05 if (group or k) <= 128 else plain(w, bits, group or k) * 1.001
    subnormal = w.size * (8 * 2.0**-24) ** 2  # what the spacing of f16 scales costs where they are subnormal
    assert mine <= bound + 1e-6 * np.square(w, dtype=np.float64).sum() + subnormal


def test_importance_moves_the_error_to_other_columns():
    w = weights(16, 64)["data"].array()
    importance = np.where(np.arange(64) % 2, 100.0, 1.0).astype(np.float32)
    for symmetric in (True, False):
        errors = []
        for weight in (None, importance):
            q, scale, zero = quantize_reference(w, 4, 32, symmetric, weight)
            index = np.arange(64) // 32
            value = q - (0 if zero is None else zero.astype(np.float32)[:, index])
            errors.append(np.square(value * scale.astype(np.float32)[:, index] - w)[:, 1::2].sum())
        assert errors[1] < errors[0]


@pytest.mark.parametrize("encoding", [Quantized(4, 32), Quantized(4, 64, True), Quantized(8, 32), Quantized(8, 0)])
def test_encoded_constant_is_what_its_ratio_says(encoding):
    w = weights(24, 96)["data"].array()
    new, snr = encoded(Data.of(w), encoding)
    noise = np.square(new.array().astype(np.float64) - w).sum()
    assert snr == pytest.approx(10 * np.log10(np.square(w, dtype=np.float64).sum() / noise), rel=1e-3)
    assert snr > (35 if encoding.bits == 8 else 17)
    assert new.type.encoding == encoding and new.type.shape == w.shape


def net(x_columns=96, n=704, table=None):
    w = weights(n, x_columns, scale=0.1)
    return graph_of(make("linear", f32("x", "s", x_columns), w, weights(n), act="relu"))


def test_linear_becomes_int4_and_stays_close():
    graph = net()
    after, report = quantize(graph)
    verify(after)
    (node,) = [n for n in after.nodes() if n.op == "linear"]
    assert node["activations"] == "int8" and node.inputs[1].type.encoding.bits == 4
    feeds = random_feeds(graph, np.random.default_rng(0))
    before, values = evaluate(graph, feeds)["y0"], evaluate(after, feeds)["y0"]
    assert np.linalg.norm(values - before) < 0.15 * np.linalg.norm(before)
    (row,) = report
    assert (row["bits"], row["group"], row["shape"], row["role"]) == (4, 32, [704, 96], "linear")
    assert row["bytes"] == nbytes((704, 96), node.inputs[1].type.encoding) < 704 * 96 * 5 / 8 and row["snr_db"] > 17


def test_scheme_best_takes_zero_points_where_they_pay():
    w = weights(704, 96)["data"].array()
    for values, zero in ((w, False), (np.abs(w), True)):
        graph = graph_of(make("linear", f32("x", "s", 96), constant(values)))
        _, report = quantize(graph, worthwhile_db=1.0)
        assert report[0]["zero"] is zero
    assert quantize(graph, scheme="symmetric")[1][0]["zero"] is False


@pytest.mark.parametrize("shape", [(8, 1024), (1024, 8), (32, 64)])
def test_what_is_too_small_stays(shape):
    after, report = quantize(net(shape[1], shape[0]))
    assert [(r["bits"], r["reason"]) for r in report] == [(32, "too small to gain")]
    assert all(not n.type.encoding for n in after.nodes())


def test_modes():
    after, report = quantize(net(), weights="int8", activations="fp32")
    (node,) = [n for n in after.nodes() if n.op == "linear"]
    assert node["activations"] == "fp32" and report[0]["bits"] == 8
    graph = net()
    after, report = quantize(graph, weights="fp32")
    assert after.outputs == graph.outputs and report[0]["reason"] == "fp32 is asked for"
    assert quantize(net(128), group=64)[1][0]["group"] == 64
    assert quantize(net(128), weights="int8")[1][0]["group"] == 128


def test_weights_that_int4_would_ruin_become_int8():
    """One large number of each sign a group: all others are about half a step."""
    spiky = weights(704, 96)["data"].array().copy()
    spiky[:, ::32], spiky[:, 16::32] = 16, -16
    row = quantize(graph_of(make("linear", f32("x", "s", 96), constant(spiky))))[1][0]
    assert row["bits"] == 8 and row["reason"].startswith("int4 would leave 16.") and row["snr_db"] > 35


def test_a_scale_beyond_f16_stays_float():
    huge = constant(weights(704, 96)["data"].array() * np.float32(1e9))
    row = quantize(graph_of(make("linear", f32("x", "s", 96), huge)))[1][0]
    assert row["bits"] == 32 and "int8 would leave" in row["reason"] and row["snr_db"] is None


def test_numbers_that_are_not_finite_stay():
    w = weights(704, 96)["data"].array().copy()
    w[3, 5] = np.nan
    _, report = quantize(graph_of(make("linear", f32("x", "s", 96), constant(w))))
    assert report[0]["bits"] == 32 and "finite" in report[0]["reason"]
    w[3, 5] = np.inf
    assert quantize(graph_of(make("linear", f32("x", "s", 96), constant(w))))[1][0]["bits"] == 32


def test_tables_and_tied_tables_are_read_in_8_bits_or_6():
    table = weights(1024, 128)
    x = make("gather", table, i64("i", 1, "s"), axis=0)
    after, report = quantize(graph_of(x))
    assert (report[0]["role"], report[0]["bits"], report[0]["group"]) == ("embedding", 8, 128)
    tied = graph_of(make("linear", make("rms_norm", x, axis=2, eps=1e-5), table))
    after, report = quantize(tied)
    assert [(r["role"], r["bits"]) for r in report] == [("tied", 8)]
    report = quantize(tied, embedding=6)[1]
    assert [(r["role"], r["bits"], r["group"]) for r in report] == [("tied", 6, 64)] and 30 < report[0]["snr_db"] < 36
    for options in ({}, {"weights": "int8"}, {"embedding": 6}, {"embedding": 4}):
        after, report = quantize(tied, **options)
        assert len({n for n in after.nodes() if n.op == "constant" and n.type.encoding}) == 1
    assert report[0]["bits"] == 4
    copied = constant(Data.of(table["data"].array()))
    again = graph_of(make("linear", make("rms_norm", x, axis=2, eps=1e-5), copied))
    assert [(r["role"], r["bits"]) for r in quantize(again)[1]] == [("tied", 8)]
    small = graph_of(make("gather", weights(64, 128), i64("i", 1, "s"), axis=0))
    assert quantize(small)[1][0]["reason"] == "the table is small"


def test_pointwise_convolution_becomes_a_product():
    x = f32("x", 1, 264, "h", 4)
    w = weights(264, 264, 1, 1, scale=0.05)
    y = make("conv", x, w, weights(264), strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), act="relu")
    y = make("conv", y, w, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1))
    graph = graph_of(y)
    after, report = quantize(graph)
    verify(after)
    ops = [n.op for n in after.nodes()]
    assert ops.count("linear") == 2 and ops.count("transpose") == 2  # those between the two have cancelled
    assert [r["bits"] for r in report] == [4]
    feeds = random_feeds(graph, np.random.default_rng(0))
    before, values = evaluate(graph, feeds)["y0"], evaluate(after, feeds)["y0"]
    assert np.linalg.norm(values - before) < 0.25 * np.linalg.norm(before)
    kept, _ = quantize(graph, conv=False)
    assert kept.outputs == graph.outputs


@pytest.mark.parametrize("group8", [32, 64, 128])
def test_groups_of_8_bits(group8):
    table = weights(1 << 13, 128)
    x = make("gather", table, i64("i", 1, "s"), axis=0)
    graph = graph_of(make("linear", x, weights(96, 128)))
    rows = quantize(graph, weights="int8", group8=group8)[1]
    assert {w["role"]: w["group"] for w in rows} == {"linear": group8, "embedding": 128}


@pytest.mark.parametrize(
    "options", [{"weights": "int3"}, {"group": 48}, {"activations": "int4"}, {"scheme": "other"}, {"table_group": 0}]
)
def test_wrong_options(options):
    with pytest.raises(EdgecError) as caught:
        quantize(net(), **options)
    assert caught.value.code == "EC1001" and str(next(iter(options.values()))) in str(caught.value)


def test_already_quantized_weights_are_left_alone():
    graph, _ = quantize(net())
    after, report = quantize(graph, weights="int8")
    assert after.outputs == graph.outputs and report == []


def test_gains_of_a_norm_weigh_the_columns():
    gain = np.where(np.arange(128) % 2, 10.0, 0.01).astype(np.float32)
    w = weights(64, 128)
    normed = make("rms_norm", f32("x", "s", 128), constant(gain), axis=1, eps=1e-5)
    plainly, _ = quantize(graph_of(make("linear", f32("x", "s", 128), w)), scheme="symmetric")
    weighed, _ = quantize(graph_of(make("linear", normed, w)), scheme="symmetric")
    exact = w["data"].array()
    errors = [
        np.square(next(n for n in g.nodes() if n.op == "linear").inputs[1]["data"].array() - exact)[:, 1::2].sum()
        for g in (weighed, plainly)
    ]
    assert errors[0] < errors[1]


def test_phases_then_quantize_on_a_small_network():
    """matmul, bias, gelu as an exporter writes them: one int4 linear."""
    x = f32("x", 2, "s", 96)
    y = make("add", make("matmul", x, weights(96, 128, scale=0.1)), weights(128))
    half = make("mul", y, constant(np.float32(np.sqrt(0.5))))
    y = make("mul", make("mul", y, make("add", make("erf", half), constant(np.float32(1)))), constant(np.float32(0.5)))
    graph, report = quantize(run(graph_of(y), PHASES))
    assert [n.op for n in graph.nodes() if n.op not in ("constant", "input")] == ["linear"]
    assert len(report) == 1
    assert dataclasses.is_dataclass(Options)


def test_the_table_has_less_error_in_fewer_bits():
    graph = graph_of(make("linear", f32("x", "s", 256), weights(704, 256)))
    chosen = {scheme: quantize(graph, scheme=scheme)[1][0] for scheme in ("symmetric", "table")}
    assert chosen["table"]["snr_db"] > chosen["symmetric"]["snr_db"] + 0.3
    assert chosen["table"]["bytes"] < 0.96 * chosen["symmetric"]["bytes"]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from(["normal", "zero", "outlier", "denormal", "large"]),
    st.integers(0, 9),
)
def test_channels_in_8_bits_are_no_worse_than_rounding(m, k, kind, seed):
    w = np.random.default_rng(seed).standard_normal((m, k, 1)).astype(np.float32)
    if kind == "zero":
        w[0] = 0
    w *= np.float32({"denormal": 1e-41, "large": 1e30}.get(kind, 1))
    if kind == "outlier":
        w[-1, -1] = 300
    new, snr = in_channels(Data.of(w))
    q, scale = new.channels()
    assert q.dtype == np.int8 and q.shape == w.shape and scale.dtype == np.float32 and scale.shape == (m,)
    np.testing.assert_array_equal(new.array(), q * scale[:, None, None])
    step = np.abs(w).max((1, 2)).astype(np.float64) / 127
    safe = np.where(step > 1e-30, step, 1)[:, None, None]
    rounded = np.square(np.rint(w / safe) * safe - w).sum()
    if kind != "denormal":
        assert np.square(new.array().astype(np.float64) - w).sum() <= rounded * 1.001 + 1e-30
        assert snr > 20


@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_convolutions_that_are_no_products_have_weights_in_8_bits(bits):
    x = f32("x", "n", 16, 9, 9)
    wide = make("conv", x, weights(40, 16, 3, 3), weights(40), None, strides=(1, 1), pads=(1,) * 4, dilations=(1, 1),
                group=1, act="relu")  # fmt: skip
    small = make("conv", wide, weights(4, 40, 3, 3), None, None, strides=(1, 1), pads=(1,) * 4, dilations=(1, 1), group=1,
                 act="none")  # fmt: skip
    graph = graph_of(small)
    new, report = quantize(graph, weights=bits)
    rows = {tuple(r["shape"]): r for r in report}
    assert rows[40, 16, 3, 3]["bits"] == 8 and rows[40, 16, 3, 3]["role"] == "conv"
    assert rows[40, 16, 3, 3]["bytes"] == 40 * 144 + 4 * 40 and rows[40, 16, 3, 3]["snr_db"] > 40
    assert rows[4, 40, 3, 3]["bits"] == 32 and rows[4, 40, 3, 3]["reason"] == "too small to gain"
    feeds = random_feeds(graph, np.random.default_rng(0))
    got, want = evaluate(new, feeds)["y0"], evaluate(graph, feeds)["y0"]
    assert 0 < np.abs(got - want).max() < 0.02 * np.abs(want).max()
    again, _ = quantize(new, weights=bits)
    assert np.array_equal(evaluate(again, feeds)["y0"], got)


def test_weights_of_convolutions_that_are_not_finite_stay():
    w = np.array(weights(40, 16, 3, 3)["data"].array())
    w[0, 0, 0, 0] = np.nan
    x = f32("x", "n", 16, 9, 9)
    node = make(
        "conv", x, constant(w), None, None, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), group=1, act="none"
    )
    assert quantize(graph_of(node))[1][0]["reason"] == "it holds numbers that are not finite"
