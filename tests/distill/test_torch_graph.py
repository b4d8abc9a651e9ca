"""The ops in torch beside their numpy references: the same values, and gradients that finite differences confirm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgec.distill.ops import TORCH, round_rows
from edgec.distill.torch_graph import TorchGraph
from edgec.errors import EdgecError
from edgec.ir.evaluate import run as evaluate
from edgec.ir.node import constant, make
from edgec.ir.ops import OPS
from edgec.ir.ops.nn import ACTIVATIONS, GATED, quantize_rows
from edgec.ir.ops.registry import IrError
from edgec.rewrites import PHASES, all_rules, run
from edgec.rewrites.examples import f32, graph_of, i64, value, weights
from edgec.rewrites.pattern import b
from edgec.testing.feeds import random_feeds
from edgec.testing.graphs import graphs

few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def agree(graph, feeds, rtol=2e-4):
    """rtol: of an output's largest value."""
    with np.errstate(all="ignore"):
        want = evaluate(graph, feeds)
    with torch.no_grad():
        got, _ = TorchGraph(graph)(feeds)
    assert list(got) == list(want)
    for name, w in want.items():
        g = got[name].numpy()
        assert g.dtype == w.dtype and g.shape == w.shape, name
        scale = np.abs(w[np.isfinite(w)]).max(initial=1.0) if w.dtype.kind == "f" else 0
        np.testing.assert_allclose(g, w, rtol=0 if w.dtype.kind != "f" else rtol, atol=rtol * scale, err_msg=name)


@few
@given(graphs(), st.integers(0, 1000))
def test_random_graphs_give_the_references_numbers(graph, seed):
    feeds = random_feeds(graph, np.random.default_rng(seed))
    with np.errstate(all="ignore"):
        values = evaluate(graph, feeds)
    # compared in f64; where a value is rounded or compared, one unit in the last place decides, so shapes alone count
    if all(np.isfinite(v).all() and np.abs(v).max(initial=0) < 1e4 for v in values.values()):
        got, _ = TorchGraph(graph, double=True)(feeds)
        for name, want in values.items():
            assert got[name].shape == want.shape
            if not _rounds(graph):
                scale = max(1.0, np.abs(want).max(initial=0))
                np.testing.assert_allclose(got[name].numpy(), want, rtol=0, atol=1e-3 * scale)


def _rounds(graph) -> bool:
    return any(n.op in ("floor", "round", "sign", "div") or n.dtype == "bool" for n in graph.nodes())


_C = {"strides": (1, 1), "pads": (1, 0, 1, 2), "dilations": (1, 1)}
_POOL = {"kernel": (2, 3), "strides": (2, 1), "pads": (1, 0, 0, 1), "dilations": (1, 1)}
_HEADS = {"scale": 0.4, "out_layout": "bshd"}
x3, x4 = f32("x", 2, 4, 6), f32("x", 2, 4, 6, 5)
GRID = constant(np.array([[0.125, 0.25, 0.5, 1], [0, 128, 255, 3]], np.float32))
q, k = f32("q", 2, 4, 3, 8), f32("k", 2, 2, 5, 8)
CASES = {
    "pad": [
        b.pad(x3, None, before=(0, 1, -1), after=(0, 2, 3), mode=m) for m in ("constant", "reflect", "edge", "wrap")
    ]
    + [b.pad(x3, constant(np.float32(2)), before=(1, 0, 0), after=(0, 0, 0))],
    "slice": [b.slice(x3, starts=(1, 3, 5), sizes=(1, 2, 3), steps=(1, -2, -2))],
    "cumsum": [b.cumsum(x3, axis=1, exclusive=e, reverse=r) for e in (False, True) for r in (False, True)],
    "topk": [b.item(b.topk(x3, k=2, axis=2, largest=h), index=i) for h in (True, False) for i in (0, 1)],
    "gather": [b.gather(x3, i64("i", 2), axis=a) for a in (1, 2)] + [b.gather(weights(9, 5), i64("i", 3, 2), axis=0)],
    "gather_elements": [b.gather_elements(x3, i64("i", 2, 4, 3), axis=2)],
    "gather_nd": [
        b.gather_nd(f32("y", 4, 4, 3), i64("i", 5, 2)),
        b.gather_nd(f32("y", 2, 4, 3), i64("i", 2, 5, 1), batch_dims=1),
    ],
    "scatter_elements": [
        b.scatter_elements(x3, constant([[[1, 0]]], "i64"), f32("u", 1, 1, 2), axis=2, reduction=r)
        for r in ("none", "add", "mul")
    ],
    "scatter_nd": [
        b.scatter_nd(x3, constant([[1], [0]], "i64"), f32("u", 2, 4, 6), reduction=r) for r in ("none", "add", "max")
    ],
    "matmul": [
        b.matmul(f32("x", 2, 3, 4), f32("y", 5, 4), trans_b=True),
        b.matmul(f32("x", 4, 3), f32("y", 2, 4, 5), trans_a=True),
    ],
    "linear": [b.linear(f32("x", 3, 40), weights(32, 40), weights(32), f32("r", 3, 32), act=a) for a in ACTIVATIONS]
    + [b.linear(f32("x", 3, 40), weights(32, 40), act=a) for a in GATED]
    + [
        b.linear(f32("x", 3, 40), weights(32, 40), None, None, weights(40), c, norm=n, eps=1e-5)
        for n in ("rms", "layer")
        for c in (None, weights(40, seed=2))
    ]
    + [b.linear(f32("x", 3, 40), weights(32, 40), activations="int8", rotate=r) for r in (False, True)],
    "hadamard": [b.hadamard(f32("x", 2, 3, 77), block=n) for n in (1, 4, 32, 128)],
    "conv": [
        b.conv(x4, weights(6, 2, 2, 2), weights(6), f32("r", 2, 6, 7, 6), group=2, act="relu6", **_C),
        b.conv(x3, weights(3, 4, 2), strides=(2,), pads=(0, 1), dilations=(3,)),
        b.conv(x3, weights(3, 4, 2), None, None, GRID, strides=(2,), pads=(0, 1), dilations=(3,)),
    ],
    "conv_transpose": [
        b.conv_transpose(
            x4,
            weights(4, 3, 3, 2),
            weights(6),
            strides=(2, 1),
            pads=(1, 0, 1, 2),
            dilations=(1, 2),
            group=2,
            output_padding=(1, 0),
            act="silu",
        )
    ],
    "max_pool": [b.max_pool(x4, **_POOL, ceil=c) for c in (False, True)],
    "avg_pool": [b.avg_pool(x4, **_POOL, ceil=c, count_pads=p) for c in (False, True) for p in (False, True)],
    "resize": [
        b.resize(x4, sizes=(2, 4, 9, 3), scales=(1.0, 1.0, 0.0, 0.0), mode=m) for m in ("nearest", "linear", "cubic")
    ],
    "layer_norm": [
        b.layer_norm(x3, weights(6), weights(6), axis=2, eps=1e-5),
        b.layer_norm(x3, weights(6), None, axis=1, eps=1e-3),
        b.layer_norm(x3, None, None, axis=3, eps=0.5),
    ],
    "rms_norm": [b.rms_norm(x3, weights(4, 6), axis=1, eps=1e-5), b.rms_norm(x3, None, axis=2, eps=1e-5)],
    "attention": [
        b.attention(q, k, f32("v", 2, 2, 5, 6), m, causal=c, window=w, softcap=s, **_HEADS)
        for m in (None, f32("m", 2, 1, 1, 5))
        for c, w, s in ((False, 0, 0.0), (True, 2, 0.0), (True, 0, 3.0))
    ]
    + [
        b.attention(
            f32("q", 2, 3, 4, 8), k, f32("v", 2, 5, 2, 6), f32("m", 5), scale=1.0, q_layout="bshd", v_layout="bshd"
        )
    ],
    "cache_append": [
        b.cache_append(f32("p", 2, 2, 3, 4), f32("n", 2, 1, 2, 4), axis=2, layout="bshd", dtype=d)
        for d in ("f32", "i8")
    ],
    "rope": [
        b.rope(
            f32("x", 2, 3, 30), f32("c", 1, 3, 2), f32("s", 1, 3, 2), heads=3, dim=6, start=5, interleaved=i, rotate=r
        )
        for i in (False, True)
        for r in (0, 4)
    ],
    "div": [b.div(i64("i", 3, 2), b.sub(i64("j", 2), constant(2, "i64")))],
    "mod": [b.mod(i64("i", 3, 2), b.sub(i64("j", 2), constant(2, "i64"))), b.mod(f32("x", 3), f32("y", 3))],
    "cast": [b.cast(f32("x", 3), dtype=d) for d in ("i64", "bool", "u8", "f64")],
    "reduce_mean": [b.reduce_mean(x3, axes=(0, 2), keepdims=True), b.reduce_mean(i64("i", 3, 2), axes=(1,))],
    "reduce_prod": [b.reduce_prod(x3, axes=(0, 2))],
    "argmax": [b.argmax(x3, axis=1, last=last) for last in (False, True)],
    "pack": [b.linear(f32("x", 3, 8), b.transpose(b.transpose(weights(5, 8), perm=(1, 0)), perm=(1, 0)))],
}
POSITIVE = ("sqrt", "rsqrt", "log", "acosh")  # of |x| + 1.1
UNIT = ("asin", "acos", "atanh")  # of x / (|x| + 1)


def _plain(op: str):
    spec = OPS[op]
    a, c = f32("x", 2, 3, 4), f32("y", 3, 1)
    a = b.add(b.abs(a), constant(np.float32(1.1))) if op in POSITIVE else a
    a = b.div(a, b.add(b.abs(a), constant(np.float32(1)))) if op in UNIT else a
    a, c = (b.abs(a), c) if op == "pow" else (a, c)
    if spec.kind in ("unary", "binary"):
        for operands in ((a, c), (value("bool", "x", 3), value("bool", "y", 2, 3)), (i64("x", 3), i64("y", 2, 3))):
            try:
                return [make(op, *operands[: len(spec.operands)])]
            except IrError:
                continue
    return [make(op, a, axis=1)] if op.endswith("softmax") else [make(op, a, axes=(0, 2))] if "reduce" in op else []


ALL = {op: CASES.get(op) or _plain(op) for op in OPS}
ALL = {op: cases for op, cases in ALL.items() if cases}


def test_every_op_in_torch_has_a_case():
    structural = {"reshape", "transpose", "expand", "concat", "where", "item", "pack"}  # in the graphs above
    assert set(TORCH) - structural <= set(ALL)


@pytest.mark.parametrize(
    "op, case", [pytest.param(op, c, id=f"{op}-{i}") for op, cs in ALL.items() for i, c in enumerate(cs)]
)
def test_an_op_gives_its_references_numbers(op, case):
    graph = graph_of(case)
    for seed in range(3):
        agree(graph, random_feeds(graph, np.random.default_rng(seed)))


@pytest.mark.parametrize("index", range(0, 400, 40))
def test_the_rules_examples_give_the_references_numbers(index):
    for example in [e for r in all_rules() for e in r.examples][index : index + 40]:
        graph = graph_of(example())
        agree(graph, random_feeds(graph, np.random.default_rng(0)), rtol=2e-3)


def test_rounded_activations_are_the_references():
    rng = np.random.default_rng(0)
    for shape in ((3, 40), (2, 5, 32), (1, 7), (0, 32), (2, 64)):
        x = (rng.standard_normal(shape) * 3).astype(np.float32)
        x[..., :3] = 0
        leaf = torch.tensor(x, requires_grad=True)
        y = round_rows(leaf)
        np.testing.assert_array_equal(y.detach().numpy(), quantize_rows(x))
        y.sum().backward()
        assert (leaf.grad == 1).all()


def _gradients(root, learned, seed=0, step=1e-6):
    """Gradients of the sum of y0 times random numbers, by autograd and by central differences, at a few places each."""
    graph = graph_of(root)
    rng = np.random.default_rng(seed)
    feeds = random_feeds(graph, rng)
    params = {n: torch.nn.Parameter(torch.from_numpy(n["data"].array().astype(np.float64))) for n in learned}
    module = TorchGraph(graph, params, double=True)
    with torch.no_grad():
        direction = torch.from_numpy(rng.standard_normal(tuple(module(feeds)[0]["y0"].shape)))

    def loss():
        return (module(feeds)[0]["y0"] * direction).sum()

    loss().backward()
    for node, p in params.items():
        for at in rng.integers(0, p.numel(), 4):
            flat, found = p.data.view(-1), []
            for sign in (1, -1):
                flat[at] += sign * step
                found.append(loss().item())
                flat[at] -= sign * step
            yield node, p.grad.view(-1)[at].item(), (found[0] - found[1]) / (2 * step)


def _encoder():
    """A block as exporters write it: what rewriting makes of it has attention, layer_norm and fused linears."""
    w = {
        n: weights(*s, seed=i, scale=0.3)
        for i, (n, s) in enumerate(
            {
                "table": (11, 8),
                "q": (8, 8),
                "k": (8, 8),
                "v": (8, 8),
                "g": (8,),
                "b": (8,),
                "up": (24, 8),
                "ub": (24,),
                "down": (8, 24),
            }.items()
        )
    }
    x = b.gather(w["table"], i64("ids", 2, 5), axis=0)
    y = b.layer_norm(x, w["g"], w["b"], axis=2, eps=1e-5)
    heads = [b.transpose(b.reshape(b.linear(y, w[n]), shape=(2, 5, 2, 4)), perm=(0, 2, 1, 3)) for n in "qkv"]
    y = b.transpose(b.attention(*heads, scale=0.5, causal=True), perm=(0, 2, 1, 3))
    x = b.add(x, b.reshape(y, shape=(2, 5, 8)))
    y = b.linear(b.rms_norm(x, w["g"], axis=2, eps=1e-5), w["up"], w["ub"], act="gelu")
    return b.linear(y, w["down"], None, x), list(w.values())


def test_gradients_of_an_encoder_are_those_of_finite_differences():
    root, learned = _encoder()
    pairs = list(_gradients(root, learned))
    assert {n for n, _, _ in pairs} == set(learned) and any(abs(g) > 1e-3 for _, g, _ in pairs)
    for node, got, want in pairs:
        assert got == pytest.approx(want, rel=1e-4, abs=1e-7), node


@pytest.mark.parametrize(
    "case", [CASES["conv"][0], CASES["conv_transpose"][0], CASES["resize"][1]], ids=("conv", "transposed", "resize")
)
def test_gradients_of_spatial_ops(case):
    w = weights(*case.shape[1:2], 1, 1, seed=4)
    for _, got, want in _gradients(
        b.mul(b.tanh(case), w), [n for n in graph_of(b.mul(case, w)).nodes() if n.op == "constant" and n.rank]
    ):
        assert got == pytest.approx(want, rel=1e-4, abs=1e-6)


def test_a_rewritten_graph_trains_as_the_source_does():
    root, _ = _encoder()
    graph = graph_of(root)
    after = run(graph, PHASES)
    feeds = {"ids": np.arange(10, dtype=np.int64).reshape(2, 5)}
    a, c = (TorchGraph(g)(feeds)[0]["y0"] for g in (graph, after))
    torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


def test_what_needs_no_gradient_may_be_any_op():
    x = value("u16", "x", 3)
    graph = graph_of(b.mul(b.cast(b.shift_left(b.cast(x, dtype="u32"), constant(1, "u32")), dtype="f32"), weights(3)))
    agree(graph, {"x": np.array([1, 2, 3], np.uint16)})


def test_an_op_without_gradient_is_one_error_that_names_it():
    w = weights(4, seed=1)
    graph = graph_of(b.reduce_sum(b.cast(b.argmax(b.mul(f32("x", 3, 4), w), axis=1), dtype="f32"), axes=(0,)))
    graph.origins[next(n for n in graph.nodes() if n.op == "argmax")] = ("decide",)
    with pytest.raises(EdgecError, match=r"EC1303 decide \(argmax\): it has no gradient here") as error:
        TorchGraph(graph, {w: torch.nn.Parameter(torch.zeros(4))})
    assert error.value.hint


def test_inputs_that_do_not_fit():
    module = TorchGraph(graph_of(b.gather(weights(4, 3), i64("i", 2, "n"), axis=0)))
    with pytest.raises(EdgecError, match="EC1603 input 'i' is missing"):
        module({})
    with pytest.raises(EdgecError, match="EC1603 input 'i' has rank 1"):
        module({"i": np.zeros(3, np.int64)})
    with pytest.raises(EdgecError, match="EC1605 gather: gather: an index is outside of 4 elements"):
        module({"i": np.full((2, 3), 9)})


def test_values_that_are_kept():
    y = b.tanh(f32("x", 3))
    out, kept = TorchGraph(graph_of(b.exp(y)))({"x": np.ones(3, np.float32)}, keep=[y])
    torch.testing.assert_close(kept[y], torch.tanh(torch.ones(3)))
    torch.testing.assert_close(out["y0"], torch.exp(torch.tanh(torch.ones(3))))


@pytest.mark.parametrize("act", sorted(GATED))
def test_gates_in_half_precision_have_nearly_the_gradients_of_f32(act):
    """Rows of gates and of what they multiply change places on the way, and back for the gradient."""
    w, bias = weights(48, 64, seed=1), weights(48, seed=2)
    graph = graph_of(b.linear(f32("x", "n", 64), w, bias, act=act))
    x, found = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32), []
    for half in (False, True):
        learned = {c: torch.nn.Parameter(torch.from_numpy(c["data"].array().copy())) for c in (w, bias)}
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = TorchGraph(graph, learned)({"x": x})[0]["y0"].float()
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append([y.detach(), *(p.grad for p in learned.values())])
    for exact, near in zip(*found):
        assert near.dtype == exact.dtype and near.shape == exact.shape
        torch.testing.assert_close(near, exact, rtol=0, atol=0.02 * float(exact.abs().max()))
