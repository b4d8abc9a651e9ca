"""What a build lost, against slow oracles: divergence, stages, what each weight alone does, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec import loss
from edgec.artifact.writer import replace_manifest, write_artifact
from edgec.cli import compare
from edgec.cli.loss import blamed, measured, parse_limits
from edgec.errors import EdgecError
from edgec.ir import evaluate
from edgec.ir.dims import symbol
from edgec.ir.node import Graph, constant, make
from edgec.ir.types import TensorType
from edgec.rewrites.quantize import Options, products, quantize, readers

RNG = np.random.default_rng(0)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(2, 9), st.floats(0, 3), st.integers(0, 2**31))
def test_divergence_is_what_its_definition_says(batch, tokens, vocab, noise, seed):
    rng = np.random.default_rng(seed)
    want = rng.standard_normal((batch, tokens, vocab)) * 4
    got = want + noise * rng.standard_normal(want.shape)
    ids = rng.integers(0, vocab, (batch, tokens))
    sums = loss.Divergence()
    sums.add(got.astype(np.float32), want.astype(np.float32), ids)
    found = sums.result()
    kl, same, nll = [], [], []
    for b in range(batch):
        for t in range(tokens):
            p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (want[b, t], got[b, t]))
            kl.append(sum(pi * math.log(pi / qi) for pi, qi in zip(p, q) if pi > 0))
            same.append(p.argmax() == q.argmax())
            if t + 1 < tokens:
                nll.append(-math.log(q[ids[b, t + 1]]))
    assert found["tokens"] == batch * tokens
    assert found["kl"] == pytest.approx(np.mean(kl), abs=1e-4) and found["kl"] >= -1e-9
    assert found["top1"] == pytest.approx(np.mean(same), abs=0.34 if noise == 0 else 1 / (batch * tokens))
    assert found["ppl"] == pytest.approx(math.exp(np.mean(nll)) if nll else 1.0, rel=1e-3)
    if noise == 0:
        assert found["kl"] == found["ppl_increase"] == 0 and found["top1"] == 1


def network() -> Graph:
    """Two products with a gelu between, f32[n, 64] -> f32[n, 96]."""
    x = make("input", name="x", type=TensorType("f32", (symbol("n"), 64)))
    a, b = (constant((RNG.standard_normal(s) / 8).astype(np.float32)) for s in ((512, 64), (96, 512)))
    h = make("linear", x, a, None, None, None, None, act="gelu")
    y = make("linear", h, b, None, None, None, None)
    graph = Graph((x,), (("y", y),), {"n": (1, None)})
    graph.origins[h], graph.origins[y] = ("first",), ("second",)
    return graph


def test_stages_give_the_outputs():
    graph = network()
    feeds = [{"x": RNG.standard_normal((n, 64)).astype(np.float32)} for n in (3, 5, 3)]
    for feed, found in zip(feeds, loss.outputs_in_stages(graph, feeds), strict=True):
        np.testing.assert_allclose(found["y"], evaluate.run(graph, feed)["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_what_each_weight_alone_does(weights):
    graph = network()
    lossy, report = quantize(graph, weights=weights)
    plain = products(graph, Options(weights=weights))
    assert {w["name"] for w in report} == {"first", "second"}
    feed = {"x": RNG.standard_normal((7, 64)).astype(np.float32)}
    found = {readers(lossy)[key]: value for key, value in loss.sensitivities(plain, lossy, feed)}
    assert set(found) == {"first", "second"}
    base = evaluate.run(plain, feed)["y"]
    for name, (new, old) in {readers(lossy)[k]: v for k, v in loss.pairs(plain, lossy).items()}.items():
        image = {old[0]: constant(new.array().astype(np.float32))}
        for node in plain.nodes():
            image.setdefault(node, node if node.op in ("input", "constant") else make(
                node.op, *(i and image[i] for i in node.inputs), **node.attrs))  # fmt: skip
        changed = evaluate.run(plain.with_outputs([image[plain.outputs[0][1]]]), feed)["y"]
        expected = np.linalg.norm(changed - base) / np.linalg.norm(base)
        assert found[name] == pytest.approx(expected, rel=0.02) and expected > 1e-4
    assert loss.cost(plain, lossy, feed) == 7 * 3 * (512 * 64 + 96 * 512)


def test_nothing_is_paired_where_graphs_differ():
    graph = network()
    assert loss.pairs(graph, graph) == {}
    lossy, _ = quantize(graph, weights="int4")
    other = Graph(graph.inputs, (("z", graph.outputs[0][1]),), graph.symbols)
    assert loss.pairs(other, lossy) == {}
    assert list(loss.sensitivities(other, lossy, {"x": np.zeros((1, 64), np.float32)})) == []


def test_a_manifest_that_is_replaced_is_one_that_was_written(tmp_path):
    given = {"edgec": "0", "target": {}, "inputs": [], "outputs": [], "report": {"a": 1}}
    parts = {"plan": b"plan" * 999, "code": b"code", "weights": [(64, np.arange(70_000))], "files": {"t.json": b"{}"}}
    for long in (0, 300_000):  # beyond one page of alignment
        changed = given | {"report": {"a": 1, "loss": "x" * long}}
        write_artifact(tmp_path / "want", manifest=changed, **parts)
        write_artifact(tmp_path / "got", manifest=given, **parts)
        replace_manifest(tmp_path / "got", lambda m, r=changed["report"]: m | {"report": r})
        assert (tmp_path / "got").read_bytes() == (tmp_path / "want").read_bytes()
        replace_manifest(tmp_path / "got", lambda m: m | {"report": {"a": 1}})
        write_artifact(tmp_path / "want", manifest=given, **parts)
        assert (tmp_path / "got").read_bytes() == (tmp_path / "want").read_bytes()
    with pytest.raises(EdgecError, match="EC1509"):
        replace_manifest(tmp_path / "none", lambda m: m)


def test_limits():
    assert parse_limits(None) == {}
    assert parse_limits("cosine=0.99") == {"cosine": 0.99}
    assert parse_limits(" kl = 5e-2 , ppl=3%,top1=90%,snr=-3,max=.5".replace(".5", "0.5")) == {
        "kl": 0.05, "ppl": 0.03, "top1": 0.9, "snr": -3.0, "max": 0.5}  # fmt: skip
    for wrong in (
        "cosine",
        "cos=1",
        "cosine=",
        "cosine=a",
        "=1",
        "cosine=0.9,",
        "cosine=nan",
        "kl=1;ppl=2",
        "cosine>0.9",
    ):
        with pytest.raises(EdgecError, match="EC1001 --max-loss"):
            parse_limits(wrong)


def test_errors_have_a_signal_to_noise_ratio():
    b = RNG.standard_normal(1000).astype(np.float32)
    assert compare.errors(b * np.float32(1.1), b)["snr_db"] == pytest.approx(20, abs=0.01)
    assert compare.errors(b, b)["snr_db"] is None
    assert compare.errors(b[:3], b)["snr_db"] == -math.inf
    both = compare.errors_of_all([(b, b), (b * 2, b)], [None, None])
    assert both["snr_db"] == pytest.approx(10 * math.log10(2), abs=1e-3)
    mask = np.array([[True, False]])
    masked = compare.errors_of_all([(np.array([[[1.0], [9.0]]]), np.array([[[1.0], [2.0]]]))], [mask])
    assert masked["max_abs"] == 0
    assert "reason" in compare.errors_of_all([(b, b), (b[:3], b)], [None, None])


def test_the_worst_output_counts_and_the_worst_weight_is_blamed():
    found = {"outputs": {"a": {"cosine": 0.9, "snr_db": 3.0, "relative": 0.2},
                         "b": {"cosine": 0.99, "snr_db": None, "relative": 0.1}}}  # fmt: skip
    assert measured(found, "cosine") == (0.9, " of a") and measured(found, "max") == (0.2, " of a")
    assert measured(found, "snr") == (3.0, " of a") and measured(found, "kl") == (None, "")
    weights = [
        {"name": "x", "bits": 4, "snr_db": 20.0},
        {"name": "y", "bits": 4, "snr_db": 30.0},
        {"name": "z", "bits": 32},
    ]
    assert [w["name"] for w in blamed(weights)] == ["x", "y"]
    weights[1]["sensitivity"] = 0.1
    assert [w["name"] for w in blamed(weights)] == ["y", "x"]
