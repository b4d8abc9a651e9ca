"""What legalize makes is what kernels compute, with the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.ir import Graph, TensorType, constant, make
from edgec.ir.evaluate import run
from edgec.ir.ops.nn import ACTIVATIONS, GATED
from edgec.lower.legalize import LINEAR_ACTIVATIONS, legalize

RNG = np.random.default_rng(0)


def check(node, **feeds):
    inputs = tuple(n for n in Graph((), (("y", node),)).nodes() if n.op == "input")
    graph = Graph(inputs, (("y", node),))
    legal = legalize(graph, lambda w, op: f"{op}-format")
    want, got = run(graph, feeds)["y"], run(legal, feeds)["y"]
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-2 if want.itemsize == 2 else 1e-5,
                               atol=1e-2 if want.itemsize == 2 else 1e-5)  # fmt: skip
    return legal


def floats(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_each_activation_of_linear(act):
    x = make("input", name="x", type=TensorType("f32", (3, 8)))
    residual = make("input", name="r", type=TensorType("f32", (3, 5)))
    node = make("linear", x, constant(floats(5, 8)), constant(floats(5)), residual, act=act)
    legal = check(node, x=floats(3, 8) * 4, r=floats(3, 5))
    (linear,) = [n for n in legal.nodes() if n.op == "linear"]
    assert linear.inputs[1].op == "pack" and linear["act"] in LINEAR_ACTIVATIONS


@pytest.mark.parametrize("act", GATED)
def test_gated_products_of_computed_weights(act):
    x = make("input", name="x", type=TensorType("f32", (3, 8)))
    w = make("input", name="w", type=TensorType("f32", (32, 8)))
    node = make("linear", x, w, None, None, constant(floats(8)), None, act=act, norm="rms", eps=1e-5)
    assert node.shape == (3, 16)
    check(node, x=floats(3, 8), w=floats(32, 8))


def _norm(op, x, bias=True):
    gain, shift = constant(floats(x.shape[-1])), constant(floats(x.shape[-1]))
    parameters = (gain, shift) if op == "layer_norm" and bias else (gain,)
    return make(op, x, *parameters, axis=x.rank - 1, eps=1e-5)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
def test_a_norm_that_only_products_read_goes_into_them(op, dtype):
    x = make("input", name="x", type=TensorType(dtype, (2, 3, 8)))
    numpy = {"f32": np.float32, "f16": np.float16}[dtype]
    w, parameters = (lambda n: constant(floats(n, 8, dtype=numpy))), [constant(floats(8, dtype=numpy))]
    normed = make(op, x, *parameters, axis=2, eps=1e-5)
    flat = make("reshape", normed, shape=(6, 8))
    y = make("add", make("linear", normed, w(5)), make("reshape", make("linear", flat, w(5)), shape=(2, 3, 5)))
    legal = check(y, x=floats(2, 3, 8).astype(numpy))
    linears = [n for n in legal.nodes() if n.op == "linear"]
    assert [n["norm"] for n in linears] == [op.split("_")[0]] * 2 and all(n.inputs[4] is not None for n in linears)
    assert op not in [n.op for n in legal.nodes()]


def test_a_norm_that_anything_else_reads_stays():
    x = make("input", name="x", type=TensorType("f32", (3, 8)))
    normed = _norm("layer_norm", x)
    for y in (
        make("linear", normed, constant(floats(8, 8)), None, normed),
        make("add", make("linear", normed, constant(floats(8, 8))), normed),
        make("matmul", normed, make("transpose", normed, perm=(1, 0))),
        make("linear", make("layer_norm", x, axis=0, eps=1e-5), constant(floats(8, 8))),
    ):
        legal = check(y, x=floats(3, 8))
        assert "layer_norm" in [n.op for n in legal.nodes()]


def test_a_linear_of_a_computed_weight_becomes_a_product():
    x = make("input", name="x", type=TensorType("f32", (3, 8)))
    w = make("input", name="w", type=TensorType("f32", (5, 8)))
    legal = check(make("linear", x, w, constant(floats(5)), act="silu"), x=floats(3, 8), w=floats(5, 8))
    assert not [n for n in legal.nodes() if n.op == "linear"]


@pytest.mark.parametrize("dtype", ["f16", "f64", "i32", "i64"])
@pytest.mark.parametrize("trans", [(False, False), (True, True)])
def test_products_of_other_dtypes(dtype, trans):
    numpy = {"f16": np.float16, "f64": np.float64, "i32": np.int32, "i64": np.int64}[dtype]
    shapes = ((2, 4, 3) if trans[0] else (2, 3, 4)), ((5, 4) if trans[1] else (4, 5))
    a, b = (make("input", name=n, type=TensorType(dtype, s)) for n, s in zip("ab", shapes))
    values = {n: (RNG.integers(-9, 9, s)).astype(numpy) for n, s in zip("ab", shapes)}
    legal = check(make("matmul", a, b, trans_a=trans[0], trans_b=trans[1]), **values)
    assert all(n.dtype == "f32" for n in legal.nodes() if n.op == "matmul")
