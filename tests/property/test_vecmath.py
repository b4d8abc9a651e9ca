"""The accuracy that vecmath states: units in the last place over the whole range of f32, and the extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("tvm")
from edgec.ir.dims import symbol
from edgec.ir.node import make
from edgec.ir.types import TensorType
from edgec.testing.groups import CompiledGroups, group_of

ERF = np.vectorize(math.erf, otypes=[np.float64])
# name: (reference in f64, bound in ulp, absolute error below which there is no bound)
FUNCTIONS = {
    "exp": (np.exp, 1.5, 2.0**-126),
    "log": (np.log, 2.0, 0),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 4.0, 2.0**-126),
    "tanh": (np.tanh, 7.0, 2.0**-126),
    "erf": (ERF, 7.0, 2.0**-126),
}


def inputs() -> np.ndarray:
    """Every exponent of either sign, dense where the functions bend, and the extremes."""
    bits = np.arange(0, 2**31, 40009, dtype=np.int64).astype(np.uint32)
    positive = bits.view(np.float32)
    dense = np.linspace(-110, 110, 150_001).astype(np.float32)
    near = np.linspace(0.5, 2, 30_001).astype(np.float32)
    special = np.array([0, np.inf, 3.4e38, 1e-45, 1.17549435e-38, 88.72283, 88.72284, 87.3365, 103.97], np.float32)
    x = np.concatenate([positive[np.isfinite(positive)], dense, near, special])
    return np.concatenate([x, -x, np.array([np.nan], np.float32)])


@pytest.fixture(scope="module")
def compiled():
    x = make("input", name="x", type=TensorType("f32", (symbol("n"),)))
    groups = CompiledGroups()
    return x, groups, {name: groups.add(group_of("map", [make(name, x)])) for name in FUNCTIONS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy(compiled, name):
    x, groups, places = compiled
    f, bound, tiny = FUNCTIONS[name]
    at = inputs()
    actual = groups.call(places[name], {x: at}, {"n": len(at)})[0]
    with np.errstate(all="ignore"):
        exact = f(at.astype(np.float64))
        expected = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_array_equal(actual[np.isinf(expected)], expected[np.isinf(expected)])
    finite = np.isfinite(expected)
    error = np.abs(actual[finite].astype(np.float64) - exact[finite])
    ulp = np.spacing(np.abs(expected[finite])).astype(np.float64)
    worst = np.argmax(np.where(error > tiny, error / ulp, 0))
    ratio = error[worst] / ulp[worst] if error[worst] > tiny else 0
    assert ratio <= bound, f"{ratio:.2f} ulp at {at[finite][worst]!r}"
