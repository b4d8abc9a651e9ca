"""Convolution templates: compiled code against the numpy references, with tails, slices and symbolic sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from edgec.ir.dims import evaluate, symbol
from edgec.ir.node import constant, make
from edgec.ir.ops.nn import ACTIVATIONS
from edgec.ir.types import TensorType, numpy_dtype
from edgec.testing.groups import CompiledGroups, group_of, reference

SETTINGS = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
TOLERANCE = {"f16": 4e-3, "bf16": 3e-2, "f32": 2e-5, "f64": 1e-12}  # of the largest value; integers exactly


def operand(name: str, dtype: str, shape, open_dims: bool, fixed=(1,)):
    """An input whose dims are symbols (but for the axes `fixed`), and what they are bound to."""
    if not open_dims:
        return make("input", name=name, type=TensorType(dtype, tuple(shape))), {}
    dims = tuple(d if k in fixed else symbol(f"{name}{k}") for k, d in enumerate(shape))
    bound = {f"{name}{k}": d for k, d in enumerate(shape) if k not in fixed}
    return make("input", name=name, type=TensorType(dtype, dims)), bound


def values(rng, shape, dtype: str):
    """Numbers of small magnitude, with exact zeros among them; integers over their whole range."""
    if dtype[0] in "iu":
        info = np.iinfo(numpy_dtype(dtype))
        return rng.integers(info.min, info.max, shape, numpy_dtype(dtype), endpoint=True)
    return (rng.integers(-8, 9, shape) / 8 + rng.standard_normal(shape) * 0.1).astype(numpy_dtype(dtype))


def check(kind: str, node, feeds: dict, dims: dict, cuts, groups: CompiledGroups | None = None, index: int = 0):
    if groups is None:
        groups = CompiledGroups()
        index = groups.add(group_of(kind, [node], node.operands()))
    got = groups.call(index, feeds, dims, cuts)[0]
    want = reference([node], feeds, dims)[0]
    scale = max(1.0, float(np.abs(want.astype(np.float64)).max(initial=0)))
    got, want = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=0, atol=scale * TOLERANCE.get(node.dtype, 0))
    return groups


@st.composite
def convolutions(draw):
    rank = draw(st.sampled_from((1, 2, 2, 2, 3)))
    group = draw(st.sampled_from((1, 1, 1, 2, 3)))
    kernel = tuple(draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank))
    strides = tuple(draw(st.sampled_from((1, 1, 2, 3))) for _ in range(rank))
    dilations = tuple(draw(st.sampled_from((1, 1, 2, 3))) for _ in range(rank))
    pads = tuple(draw(st.integers(0, 3)) for _ in range(2 * rank))
    sizes = []
    for k in range(rank):
        least = max(1, dilations[k] * (kernel[k] - 1) + 1 - pads[k] - pads[rank + k])
        sizes.append(draw(st.integers(least, least + (40 if k == rank - 1 else 6))))
    channels, rows = draw(st.integers(1, 9)), draw(st.integers(1, 19))
    if draw(st.booleans()) and rank < 3:
        group, channels, rows = draw(st.integers(2, 5)), 1, draw(st.integers(1, 2))  # depthwise
    return {
        "x": (draw(st.integers(1, 2)), group * channels, *sizes),
        "w": (group * rows, channels, *kernel),
        "attrs": {
            "strides": strides,
            "pads": pads,
            "dilations": dilations,
            "group": group,
            "act": draw(st.sampled_from(("none", "none", *ACTIVATIONS))),
        },
        "dtype": draw(st.sampled_from(("f32", "f32", "f32", "f16", "bf16", "f64"))),
        "open": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "constant": draw(st.integers(0, 3)) > 0,
        "cuts": draw(st.lists(st.floats(0, 1), max_size=3)),
    }


def conv_of(c, rng):
    x, dims = operand("x", c["dtype"], c["x"], c["open"])
    feeds = {x: values(rng, c["x"], c["dtype"])}
    weights = values(rng, c["w"], c["dtype"])
    if c["constant"]:
        w = constant(weights)
        feeds[w] = weights
    else:
        w = make("input", name="w", type=TensorType(c["dtype"], c["w"]))
        feeds[w] = weights
    bias = None
    if c["bias"]:
        bias = make("input", name="b", type=TensorType(c["dtype"], c["w"][:1]))
        feeds[bias] = values(rng, c["w"][:1], c["dtype"])
    node = make("conv", x, w, bias, **c["attrs"])
    if c["residual"]:
        residual = make("input", name="r", type=node.type)
        feeds[residual] = values(rng, [evaluate(d, dims) for d in node.shape], c["dtype"])
        node = make("conv", x, w, bias, residual, **c["attrs"])
    return node, feeds, dims


@SETTINGS
@given(convolutions(), st.integers(0, 2**32))
def test_conv(c, seed):
    node, feeds, dims = conv_of(c, np.random.default_rng(seed))
    check("conv", node, feeds, dims, c["cuts"])


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_one_function_serves_every_size(stride):
    """Open batch, height and width: blocks of many rows, of a part of a row, and no image at all."""
    rng = np.random.default_rng(stride)
    case = {
        "x": (1, 5, 3, 3),
        "w": (7, 5, 3, 3),
        "dtype": "f32",
        "open": True,
        "bias": True,
        "residual": False,
        "constant": True,
        "attrs": {"strides": (stride,) * 2, "pads": (1,) * 4, "dilations": (1, 1)},
    }
    node, feeds, _ = conv_of(case, rng)
    groups, x = None, node.inputs[0]
    for n, h, w in ((1, 1, 1), (2, 37, 41), (3, 2, 700), (1, 300, 1), (1, 8, 16), (0, 5, 5)):
        feeds[x] = values(rng, (n, 5, h, w), "f32")
        groups = check("conv", node, feeds, {"x0": n, "x2": h, "x3": w}, (0.21, 0.5), groups)


@pytest.mark.parametrize("channels", [400, 1000])
def test_conv_sums_channels_in_chunks(channels):
    rng = np.random.default_rng(channels)
    case = {
        "x": (2, channels, 5, 9),
        "w": (13, channels, 1, 1),
        "dtype": "f32",
        "open": False,
        "bias": True,
        "residual": True,
        "constant": True,
        "attrs": {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "act": "relu"},
    }
    node, feeds, dims = conv_of(case, rng)
    check("conv", node, feeds, dims, (0.4,))


def test_conv_equal_layers_share_a_function():
    groups, shape = CompiledGroups(), (1, 4, 6, 6)
    symbols = set()
    for seed in range(2):
        rng = np.random.default_rng(seed)
        x = make("input", name=f"x{seed}", type=TensorType("f32", shape))
        w = constant(rng.standard_normal((3, 4, 3, 3)).astype(np.float32))
        node = make("conv", x, w, strides=(1, 1), pads=(1,) * 4, dilations=(1, 1))
        index = groups.add(group_of("conv", [node], node.operands()))
        symbols.add(groups.groups[index][1].symbol)
        check("conv", node, {x: values(rng, shape, "f32"), w: w["data"].array()}, {}, (), groups, index)
    assert len(symbols) == 1


@st.composite
def pools(draw):
    rank = draw(st.sampled_from((1, 2, 2, 2, 3)))
    kernel = tuple(draw(st.integers(1, 5 if rank < 3 else 3)) for _ in range(rank))
    strides = tuple(draw(st.sampled_from((1, 2, 2, 3))) for _ in range(rank))
    dilations = tuple(draw(st.sampled_from((1, 1, 1, 2))) for _ in range(rank))
    pads = tuple(draw(st.integers(0, k - 1)) for k in kernel * 2)
    sizes = []
    for k in range(rank):
        least = max(1, dilations[k] * (kernel[k] - 1) + 1 - pads[k] - pads[rank + k])
        sizes.append(draw(st.integers(least, least + (40 if k == rank - 1 else 6))))
    average = draw(st.booleans())
    dtypes = ("f32", "f32", "f16", "bf16", "f64") if average else ("f32", "f32", "f16", "f64", "i8", "u8", "i32")
    attrs = {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations, "ceil": draw(st.booleans())}
    if average:
        attrs["count_pads"] = draw(st.booleans())
    return {
        "op": "avg_pool" if average else "max_pool",
        "x": (draw(st.integers(1, 2)), draw(st.integers(1, 3)), *sizes),
        "attrs": attrs,
        "dtype": draw(st.sampled_from(dtypes)),
        "open": draw(st.booleans()),
        "cuts": draw(st.lists(st.floats(0, 1), max_size=2)),
    }


@SETTINGS
@given(pools(), st.integers(0, 2**32))
def test_pool(c, seed):
    x, dims = operand("x", c["dtype"], c["x"], c["open"])
    node = make(c["op"], x, **c["attrs"])
    check("pool", node, {x: values(np.random.default_rng(seed), c["x"], c["dtype"])}, dims, c["cuts"])


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_pool_of_planes_larger_than_a_block(op):
    rng = np.random.default_rng(0)
    x, dims = operand("x", "f32", (1, 2, 70, 130), True)
    node = make(op, x, kernel=(3, 3), strides=(2, 2), pads=(1, 0, 1, 1), dilations=(1, 1), ceil=True)
    check("pool", node, {x: values(rng, (1, 2, 70, 130), "f32")}, dims, (0.3, 0.6))


@st.composite
def transposed(draw):
    rank = draw(st.sampled_from((1, 2, 2, 2, 3)))
    group = draw(st.sampled_from((1, 1, 2)))
    kernel = tuple(draw(st.integers(1, 4 if rank < 3 else 2)) for _ in range(rank))
    strides = tuple(draw(st.sampled_from((1, 2, 2, 3))) for _ in range(rank))
    dilations = tuple(draw(st.sampled_from((1, 1, 2))) for _ in range(rank))
    sizes = tuple(draw(st.integers(1, 25 if k == rank - 1 else 5)) for k in range(rank))
    extra = tuple(draw(st.integers(0, s - 1)) for s in strides)
    pads = [0] * (2 * rank)
    for k in range(rank):
        room = (sizes[k] - 1) * strides[k] + dilations[k] * (kernel[k] - 1) + extra[k]
        pads[k] = draw(st.integers(0, min(2, room)))
        pads[rank + k] = draw(st.integers(0, min(2, room - pads[k])))
    channels, rows = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    attrs = {
        "strides": strides, "pads": tuple(pads), "dilations": dilations, "group": group, "output_padding": extra,
        "act": draw(st.sampled_from(("none", "relu", "sigmoid"))),
    }  # fmt: skip
    return {
        "x": (draw(st.integers(1, 2)), group * channels, *sizes),
        "w": (group * channels, rows, *kernel),
        "attrs": attrs,
        "dtype": draw(st.sampled_from(("f32", "f32", "f16", "f64"))),
        "open": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "constant": draw(st.integers(0, 3)) > 0,
        "cuts": draw(st.lists(st.floats(0, 1), max_size=2)),
    }


@SETTINGS
@given(transposed(), st.integers(0, 2**32))
def test_conv_transpose(c, seed):
    rng = np.random.default_rng(seed)
    x, dims = operand("x", c["dtype"], c["x"], c["open"])
    weights = values(rng, c["w"], c["dtype"])
    w = constant(weights) if c["constant"] else make("input", name="w", type=TensorType(c["dtype"], c["w"]))
    feeds = {x: values(rng, c["x"], c["dtype"]), w: weights}
    bias = None
    if c["bias"]:
        size = (c["w"][1] * c["attrs"]["group"],)
        bias = make("input", name="b", type=TensorType(c["dtype"], size))
        feeds[bias] = values(rng, size, c["dtype"])
    check("conv_transpose", make("conv_transpose", x, w, bias, **c["attrs"]), feeds, dims, c["cuts"])


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(convolutions(), st.integers(0, 2**32))
def test_weights_in_8_bits_are_what_an_artifact_computes_with(c, seed):
    """Stored as int8, expanded when it is loaded: the evaluator's numbers."""
    import tempfile
    from pathlib import Path

    import edgec
    from edgec.artifact.plan import Plan, Storage
    from edgec.ir.data import Data
    from edgec.ir.evaluate import run
    from edgec.ir.node import Graph
    from edgec.rewrites.encode import in_channels

    rng = np.random.default_rng(seed)
    node, feeds, dims = conv_of(c | {"dtype": "f32", "constant": True}, rng)
    x, _, *rest = node.inputs
    data = in_channels(Data.of(values(rng, c["w"], "f32")))[0]
    node = make("conv", x, constant(data), *rest, **node.attrs)
    inputs = tuple(n for n in node.inputs if n is not None and n.op == "input")
    graph = Graph(inputs, (("y", node),), {name: (0, None) for name in dims})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "a.edgec"
        edgec.build(graph, weights="fp32", out=out)
        session = edgec.load(out)
        got = session(**{n["name"]: feeds[n] for n in inputs})["y"]
        stored = [
            v for v in Plan.decode(bytes(session.artifact.members["plan.bin"])).values if v.storage == Storage.EXPANDED
        ]
    want = run(graph, {n["name"]: feeds[n] for n in inputs})["y"]
    assert len(stored) == 1 or not want.size
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * max(1.0, float(np.abs(want).max(initial=0))))


# --- integers ----------------------------------------------------------------------------------------------------------


def unit_targets():
    """Of each way to multiply bytes that this CPU has, a target."""
    from edgec import _core, targets

    names = ("x86-64-v2", "x86-64-v3", "x86-64-vnni") if targets.host().arch == "x86_64" else ("aarch64-generic",)
    found = [t for t in map(targets.load, names) if set(t.requires) <= set(_core.cpu_features())]
    return [*found, targets.host()]


UNITS = unit_targets()


def rounded_conv(c, rng, spiced: bool):
    """The case on a grid: weights of int8, some of the largest that may be, inputs beyond the grid and not finite."""
    from edgec.ir.data import Data
    from edgec.rewrites.encode import in_channels

    node, feeds, dims = conv_of(c | {"dtype": "f32", "constant": True}, rng)
    x, w, bias, residual, _ = node.inputs
    numbers = w["data"].array()
    if spiced:
        numbers = np.where(rng.random(numbers.shape) < 0.5, np.sign(numbers), numbers).astype(np.float32)
        special = [np.inf, -np.inf, np.nan, 1e30, -1e30, 3e8]
        feeds[x] = np.where(rng.random(feeds[x].shape) < 0.1, rng.choice(special, feeds[x].shape), feeds[x])
        feeds[x] = feeds[x].astype(np.float32)
    data = in_channels(Data.of(numbers), True)[0]
    channels = c["x"][1]
    # powers of two, so that what the oracle rounds is what the kernel rounds, to the last tie
    steps = np.exp2(rng.integers(-8, 0, channels)).astype(np.float32)
    grid = constant(np.stack([steps, rng.choice([0, 1, 77, 128, 254, 255], channels)]).astype(np.float32))
    node = make("conv", x, constant(data), bias, residual, grid, **node.attrs)
    return node, feeds, dims


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(convolutions(), st.integers(0, 2**32), st.booleans())
def test_conv_of_integers(c, seed, spiced):
    """Every instruction set against the reference, and the same bits from all (of those that fuse their additions)."""
    node, feeds, dims = rounded_conv(c, np.random.default_rng(seed), spiced)
    want = reference([node], feeds, dims)[0].astype(np.float64)
    scale = max(1.0, float(np.abs(want).max(initial=0)))
    found = {}
    for target in UNITS:
        groups = CompiledGroups(target)
        index = groups.add(group_of("conv", [node], node.operands()))
        found[target.name] = groups.call(index, feeds, dims, c["cuts"])[0]
        np.testing.assert_allclose(found[target.name], want, rtol=0, atol=scale * 2e-5, err_msg=target.name)
    if {"x86-64-v3", "x86-64-vnni"} <= found.keys() and c["attrs"]["act"] in ("none", "relu"):
        np.testing.assert_array_equal(found["x86-64-v3"], found["x86-64-vnni"])


@pytest.mark.parametrize("channels", [70, 515])
def test_conv_of_integers_sums_channels_in_chunks(channels):
    """Largest integers on both sides, and lanes that are not full."""
    rng = np.random.default_rng(channels)
    case = {
        "x": (2, channels, 9, 37),
        "w": (13, channels, 3, 3),
        "open": True,
        "bias": True,
        "residual": True,
        "cuts": (0.4,),
        "attrs": {"strides": (1, 2), "pads": (1,) * 4, "dilations": (1, 1), "act": "relu"},
    }
    node, feeds, dims = rounded_conv(case, rng, True)
    want = reference([node], feeds, dims)[0]
    for target in UNITS:
        groups = CompiledGroups(target)
        got = groups.call(groups.add(group_of("conv", [node], node.operands())), feeds, dims, case["cuts"])[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=float(np.abs(want).max()) * 2e-5, err_msg=target.name)


def test_integers_that_no_sum_holds_are_refused():
    from edgec.ir.data import Data
    from edgec.lower.fusion import supports
    from edgec.rewrites.convs import LONGEST
    from edgec.rewrites.encode import in_channels

    x = make("input", name="x", type=TensorType("f32", (1, LONGEST + 1, 1, 1)))
    w = np.ones((1, LONGEST + 1, 1, 1), np.float32)
    grid = constant(np.ones((2, LONGEST + 1), np.float32))
    attrs = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}
    node = make("conv", x, constant(in_channels(Data.of(w), True)[0]), None, None, grid, **attrs)
    assert "32 bits" in supports(node)
    assert "weights that are none" in supports(make("conv", x, constant(w), None, None, grid, **attrs))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**32))
def test_pairs_of_weights_stay_within_int16(rows, channels, taps, seed):
    from edgec.ir.data import Data
    from edgec.rewrites.encode import in_channels

    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((rows, channels, taps)) * np.exp2(rng.integers(-40, 40, (rows, 1, 1)))).astype(np.float32)
    w[rng.random(w.shape) < 0.3] = np.abs(w).max()
    data, snr_db = in_channels(Data.of(w), True)
    q, scale = data.channels()
    padded = np.pad(q, [(0, 0), (0, channels % 2), (0, 0)]).astype(int).reshape(rows, -1, 2, taps)
    assert np.maximum(padded, 0).sum(2).max(initial=0) * 255 < 1 << 15
    assert np.maximum(-padded, 0).sum(2).max(initial=0) * 255 <= 1 << 15
    assert snr_db > 30 and (np.abs(q * scale[:, None, None] - w) <= scale[:, None, None] * 26).all()
