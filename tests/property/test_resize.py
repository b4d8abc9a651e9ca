"""The resize template: every mode against the numpy reference, sizes known and open."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm")
from edgec.ir.dims import symbol
from edgec.ir.node import make
from edgec.ir.types import TensorType, numpy_dtype
from edgec.testing.groups import CompiledGroups, group_of, reference

SETTINGS = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
COORDINATES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners", "half_pixel_symmetric",
               "tf_half_pixel_for_nn", "tf_crop_and_resize")  # fmt: skip
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple")


def check(node, x, data, dims, cuts):
    groups = CompiledGroups()
    got = groups.call(groups.add(group_of("resize", [node], [x])), {x: data}, dims, cuts)[0]
    want = reference([node], {x: data}, dims)[0]
    if node["mode"] == "nearest":
        np.testing.assert_array_equal(got, want)
    elif node.dtype in ("f16", "f32", "f64"):
        atol = {"f16": 8e-3, "f32": 4e-5, "f64": 1e-10}[node.dtype] * max(1.0, float(np.abs(data).max()))
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=0, atol=atol)
    else:  # a tie may round either way
        assert np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0) <= 1


@st.composite
def resizes(draw):
    rank = draw(st.sampled_from((1, 2, 3, 4, 4, 4)))
    shape = tuple(draw(st.integers(1, 12 if k >= rank - 2 else 3)) for k in range(rank))
    mode = draw(st.sampled_from(("nearest", "linear", "cubic")))
    coordinates = draw(st.sampled_from(COORDINATES))
    sizes, scales = [], []
    for k, n in enumerate(shape):
        how = draw(st.sampled_from(("same", "factor", "size", "scale") if k >= rank - 2 else ("same", "same", "size")))
        scale = {"same": 1.0, "factor": float(draw(st.integers(2, 4))), "size": 0.0,
                 "scale": draw(st.sampled_from((0.4, 0.75, 1.7, 2.6)))}[how]  # fmt: skip
        sizes.append(draw(st.integers(1, 20)) if how == "size" else max(1, int(n * scale)))
        scales.append(scale)
    roi = ()
    if coordinates == "tf_crop_and_resize":
        roi = tuple(draw(st.sampled_from((0.0, 0.25, -0.2))) for _ in shape)
        roi += tuple(draw(st.sampled_from((1.0, 0.75, 1.3))) for _ in shape)
    return {
        "shape": shape, "open": draw(st.booleans()),
        "dtype": draw(st.sampled_from(("f32", "f32", "f16", "f64", "u8", "i32"))),
        "cuts": draw(st.lists(st.floats(0, 1), max_size=2)),
        "attrs": {"sizes": tuple(sizes), "scales": tuple(scales), "roi": roi, "mode": mode, "coordinates": coordinates,
                  "nearest": draw(st.sampled_from(NEAREST)), "exclude_outside": mode == "cubic" and draw(st.booleans()),
                  "antialias": mode != "nearest" and draw(st.booleans()),
                  "extrapolation": draw(st.sampled_from((0.0, 7.0)))},
    }  # fmt: skip


@SETTINGS
@given(resizes(), st.integers(0, 2**32))
def test_resize(c, seed):
    rng, attrs, dims = np.random.default_rng(seed), dict(c["attrs"]), {}
    shape, sizes = list(c["shape"]), list(attrs["sizes"])
    if c["open"]:
        for k, n in enumerate(c["shape"]):
            shape[k], dims[f"x{k}"] = symbol(f"x{k}"), n
            scale = attrs["scales"][k]
            if scale in (1.0, 2.0, 3.0, 4.0):
                sizes[k] = shape[k] * int(scale)
            else:
                sizes[k], dims[f"y{k}"] = symbol(f"y{k}"), sizes[k]
    attrs["sizes"] = tuple(sizes)
    x = make("input", name="x", type=TensorType(c["dtype"], tuple(shape)))
    data = (rng.random(c["shape"]) * 100).astype(numpy_dtype(c["dtype"]))
    check(make("resize", x, **attrs), x, data, dims, c["cuts"])


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_nearest_by_a_whole_factor(factor):
    x = make("input", name="x", type=TensorType("f32", (2, 3, symbol("h"), symbol("w"))))
    data = np.random.default_rng(0).random((2, 3, 5, 21), np.float32)
    sizes = (2, 3, symbol("h") * factor, symbol("w") * factor)
    node = make("resize", x, sizes=sizes, scales=(1.0, 1.0, 0.0, 0.0), coordinates="asymmetric", nearest="floor")
    check(node, x, data, {"h": 5, "w": 21}, (0.3,))
