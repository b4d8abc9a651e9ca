"""A branch runs only the side it takes, with the checks of that side."""

from __future__ import annotations

import numpy as np
import pytest

import edgec
from edgec.ir import Graph, TensorType, make
from edgec.ir.dims import symbol


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    n = symbol("n")
    x = make("input", name="x", type=TensorType("f32", (n, 4)))
    pred = make("input", name="pred", type=TensorType("bool", ()))
    head = make("slice", make("tanh", x), starts=(0, 0), sizes=(2, 4), steps=(1, 1))
    tail = make("slice", make("exp", x), starts=(n - 5, 0), sizes=(2, 4), steps=(1, 1))
    outputs = (("y", make("branch", pred, head, tail)), ("z", make("branch", pred, make("neg", head), tail)),
               ("flat", make("reshape", x, shape=(4 * n,))))  # fmt: skip
    path = tmp_path_factory.mktemp("branch") / "model.edgec"
    edgec.build(Graph((x, pred), outputs, {"n": (0, None)}), weights="fp32", out=path)
    return edgec.load(path)


@pytest.mark.parametrize("taken", [True, False])
def test_the_side_that_is_taken(session, taken):
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    got = session(x=x, pred=np.array(taken))
    want = np.tanh(x)[:2] if taken else np.exp(x)[1:3]
    np.testing.assert_allclose(got["y"], want, rtol=1e-5)
    np.testing.assert_allclose(got["z"], -want if taken else want, rtol=1e-5)
    np.testing.assert_array_equal(got["flat"], x.ravel())


def test_sizes_that_only_the_other_side_refuses(session):
    x = np.ones((2, 4), np.float32)
    assert session(x=x, pred=np.array(True))["y"].shape == (2, 4)
    with pytest.raises(edgec.EdgecError) as e:
        session(x=x, pred=np.array(False))
    assert e.value.code == "EC1604" and "n - 5 must be at least 0" in str(e.value)
