"""--prune and --speedup through a whole build."""

import json

import numpy as np
import pytest

import edgec
from edgec.calibrate.data import Calibration
from edgec.calibrate.prune import latency, parse, prune_model
from edgec.errors import EdgecError
from edgec.rewrites.examples import f32, graph_of, weights
from edgec.rewrites.pattern import b


def mlp(width=64, hidden=256):
    x = f32("x", "s", width)
    for i in range(2):
        h = b.linear(x, weights(hidden, width, seed=2 * i, scale=1 / 8), weights(hidden, seed=20 + i), act="gelu")
        x = b.linear(h, weights(width, hidden, seed=2 * i + 1, scale=1 / 16), None, x)
    return graph_of(x)


@pytest.fixture(autouse=True)
def shapes_take(monkeypatch):
    """Not what this machine takes while other tests run on it."""
    monkeypatch.setattr(latency, "_measured", lambda unit, m, n, k, threads: 20 + m * n * k / 1e3)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((400, 64)).astype(np.float32))
    return path


def test_the_artifact_is_smaller_and_says_what_went(samples, tmp_path):
    out = tmp_path / "a.edgec"
    report = edgec.build(mlp(), weights="fp32", prune="ffn=50%", calib=samples, out=out)
    whole = edgec.build(mlp(), weights="fp32", out=tmp_path / "b.edgec")
    assert report.macs == whole.macs // 2
    assert whole.artifact_bytes - report.artifact_bytes > 0.95 * 256 * 2 * 64 * 4
    assert sum(r["before"] - r["after"] for r in report.pruning["removed"]) == 256
    session = edgec.load(out)
    assert session.manifest["report"]["pruning"] == json.loads(json.dumps(report.pruning))
    assert session.manifest["options"]["prune"] == "ffn=50%"
    x = np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32)
    want, got = edgec.load(tmp_path / "b.edgec")(x=x)["y0"], session(x=x)["y0"]
    assert np.linalg.norm(got - want) < 0.5 * np.linalg.norm(want)


@pytest.mark.parametrize("act", ["none", "relu"])
def test_several_products_may_read_what_loses_channels(act, samples, tmp_path):
    """As heads of a detector do: nothing that comes later reads the value that they share."""
    x = f32("x", "s", 64)
    h = b.linear(x, weights(256, 64, scale=1 / 8), act="gelu")
    graph = graph_of(*(b.linear(h, weights(n, 256, seed=n, scale=1 / 16), weights(n), act=act) for n in (32, 64, 48)))
    report = edgec.build(graph, weights="fp32", prune="ffn=25%", calib=samples, out=tmp_path / "a.edgec")
    edgec.build(graph, weights="fp32", out=tmp_path / "b.edgec")
    assert [(r["before"], r["after"]) for r in report.pruning["removed"]] == [(256, 192)]
    x = np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32)
    got, want = (edgec.load(tmp_path / f"{n}.edgec")(x=x) for n in "ab")
    for name in want:
        assert np.linalg.norm(got[name] - want[name]) < 0.5 * np.linalg.norm(want[name])


def test_without_data_it_goes_by_size_and_says_so(tmp_path):
    report = edgec.build(mlp(), prune="25%", out=tmp_path / "a.edgec")
    assert report.pruning["method"] == "magnitude" and report.pruning["work"] <= 0.75
    assert any("--calib" in note for note in report.notes)


@pytest.mark.parametrize("target", ["host", "raspberry-pi-4"])
def test_a_speedup_is_met_by_what_shapes_cost_on_the_target(target, tmp_path):
    report = edgec.build(mlp(), speedup="1.5x", target=target, out=tmp_path / "a.edgec", stop_after="rewrite")
    assert report.pruning["cost"] <= 1 / 1.5 + 1e-6
    assert report.pruning["cost"] > 0.4


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [({"prune": "rows=3%"}, "EC1001", "'rows' is none of"), ({"speedup": "0.5x"}, "EC1001", "no factor above 1"),
     ({"prune": "heads=20%"}, "EC1305", "no heads that can be removed. It has ffn"),
     ({"prune": "layers=1"}, "EC1305", "--calib"), ({"speedup": "50x"}, "EC1305", r"50x cannot be reached .* at most"),
     ({"prune": "20%", "speedup": "2x"}, "EC1001", "one of the two")],
)  # fmt: skip
def test_what_cannot_be_had_is_said_and_nothing_is_written(options, code, reason, tmp_path):
    with pytest.raises(EdgecError, match=reason) as found:
        edgec.build(mlp(), **options, out=tmp_path / "a.edgec")
    assert found.value.code == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"prune": "20%"}, {"speedup": "1.5x"}, {"prune": "20%,allocation=uniform"}])
@pytest.mark.parametrize("products", [0, 1])
def test_a_model_without_channels_to_remove(options, products, tmp_path):
    x = b.relu(f32("x", "s", 64))
    graph = graph_of(b.linear(x, weights(64, 64)) if products else x)
    with pytest.raises(EdgecError, match=r"EC1305 --(prune|speedup): the model has no channels or heads"):
        edgec.build(graph, **options, out=tmp_path / "a.edgec")
    assert not list(tmp_path.iterdir())


def test_pruning_is_the_same_each_time():
    graph = mlp()
    feeds = [{"x": np.random.default_rng(i).standard_normal((64, 64)).astype(np.float32)} for i in range(4)]
    data = Calibration(feeds, [None] * 4, 4, "test")
    a, c = (prune_model(graph, parse("ffn=25%", None), lambda: data) for _ in range(2))
    assert a.as_dict() == c.as_dict()
    for m, n in zip(a.graph.nodes(), c.graph.nodes()):
        if m.op == "constant":
            np.testing.assert_array_equal(m["data"].array(), n["data"].array())


@pytest.mark.parametrize(
    ("spec", "kinds", "dropped"), [("heads=50%,ffn=25%,layers=1", {"heads", "ffn"}, 2), ("attention=1", set(), 1)]
)
def test_a_pruned_decoder_keeps_its_cache_in_the_session(spec, kinds, dropped, lm_folder, tmp_path):
    """Heads, channels and a layer less: tokens one by one give what all at once give, and the same as the evaluator."""
    text = tmp_path / "texts.txt"
    text.write_text("\n".join("one two three four five six seven " * 8 for _ in range(20)))
    out = tmp_path / "lm.edgec"
    report = edgec.build(lm_folder, weights="fp32", prune=spec, calib=text, kv_cache="fp32", out=out)
    assert {r["kind"] for r in report.pruning["removed"]} == kinds and len(report.pruning["dropped"]) == dropped
    session = edgec.load(out)
    lm = session.manifest["lm"]
    ids = np.array([[5, 9, 2, 7]])

    def feeds(begin, end):
        found = {lm["ids"]: ids[:, begin:end]}
        found |= {lm["mask"]: np.ones((1, end), np.int64)} if lm["mask"] else {}
        return found | ({lm["positions"]: np.arange(begin, end)[None]} if lm["positions"] else {})

    whole = session.run([lm["logits"]], feeds(0, 4))[0]
    session.reserve(1, 16)
    steps = [session.run([lm["logits"]], feeds(i, i + 1), slots=[0])[0] for i in range(4)]
    np.testing.assert_allclose(np.concatenate(steps, axis=1), whole, rtol=1e-3, atol=1e-4)
    with pytest.raises(EdgecError, match=r"EC1305.*no heads"):
        edgec.build(lm_folder, prune="heads=50%", kv_cache="exposed", out=tmp_path / "no.edgec")
