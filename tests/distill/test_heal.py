"""Quantized graphs healed against their source."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cli.conftest import mlp
from distill.conftest import write_mlp
from hypothesis import given, settings
from hypothesis import strategies as st

import edgec
from edgec import kernels
from edgec.calibrate.data import Calibration
from edgec.cli import main
from edgec.distill.heal import Integers, Options, Scales, Vector, heal, learnable, of_text
from edgec.distill.torch_graph import TorchGraph
from edgec.errors import EdgecError
from edgec.ir import evaluate
from edgec.ir.data import Data
from edgec.ir.node import Graph, constant
from edgec.ir.types import Quantized, TensorType
from edgec.rewrites.examples import f32, graph_of, weights
from edgec.rewrites.pattern import b
from edgec.rewrites.quantize import Options as QuantizeOptions
from edgec.rewrites.quantize import products, quantize

K = 96


def model() -> Graph:
    """Two products that are large enough for 4 bits, a norm before each."""
    x = b.layer_norm(f32("x", "n", K), weights(K, seed=1), weights(K, seed=2), axis=1, eps=1e-5)
    y = b.linear(x, weights(1024, K, seed=3, scale=0.1), weights(1024, seed=4), act="gelu")
    y = b.rms_norm(y, weights(1024, seed=5), axis=1, eps=1e-5)
    return graph_of(b.linear(y, weights(128, 1024, seed=6, scale=0.03), None))


def samples(count: int = 12) -> Calibration:
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((8, K)).astype(np.float32)
    feeds = [{"x": rng.standard_normal((16, 8)).astype(np.float32) @ mix} for _ in range(count)]
    return Calibration(feeds, [None] * count, 16 * count, "key")


def test_healing_closes_half_of_the_gap_on_data_it_has_not_seen():
    source = model()
    graph, _ = quantize(source)
    healed, report = heal(source, graph, samples(), Options(epochs=12, lr=8e-3, batch=16))
    assert report.closed > 0.5 and report.after["y0"] < 0.5 * report.before["y0"]
    assert report.vectors and report.scales
    fresh = samples(13).feeds[12]
    want, old, new = (evaluate.run(g, fresh)["y0"] for g in (source, graph, healed))
    assert np.square(new - want).mean() < 0.8 * np.square(old - want).mean()


def test_integers_and_types_stay_and_scales_are_halves():
    source = model()
    graph, _ = quantize(source)
    healed, _ = heal(source, graph, samples(4), Options(epochs=1, batch=16))
    assert [n.type for n in graph.nodes()] == [n.type for n in healed.nodes()]
    for old, new in zip(graph.nodes(), healed.nodes()):
        if old.op == "constant" and old.type.encoding is not None:
            a, c = old["data"].parts(), new["data"].parts()
            np.testing.assert_array_equal(a["q"], c["q"])
            assert c["scale"].dtype == np.float16 and (a["scale"] != c["scale"]).mean() > 0.5
            assert ("zero" in a) == ("zero" in c) and ("zero" not in a or (a["zero"] == c["zero"]).all())


def test_before_it_learns_the_graph_is_the_quantized_one():
    graph, _ = quantize(model())
    feeds = samples(1).feeds[0]
    with torch.no_grad():
        got = TorchGraph(graph, learnable(graph))(feeds)[0]["y0"].numpy()
    want = evaluate.run(graph, feeds)["y0"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(want).max())


def test_gradients_of_scales_are_those_of_finite_differences():
    graph, _ = quantize(model())
    node = next(n for n in learnable(graph) if n.type.encoding is not None and n.shape == (1024, K))
    module = Scales(node["data"])
    direction = torch.randn(node.shape, generator=torch.Generator().manual_seed(0))
    scale = module.scale.clone().requires_grad_()
    (type(module).forward(module) * direction).sum().backward()
    plain = (
        module.q.float() - module.zero.float().repeat_interleave(32, 1) if module.zero is not None else module.q.float()
    )
    want = (plain * direction).view(1024, -1, 32).sum(-1) * scale.detach()
    torch.testing.assert_close(module.delta.grad, want, rtol=1e-3, atol=1e-3)


def test_tails_of_groups_and_vectors_of_zeros():
    rng = np.random.default_rng(1)
    q = rng.integers(0, 15, (5, 40), endpoint=True).astype(np.uint8)
    scale = rng.standard_normal((5, 2)).astype(np.float16)
    zero = rng.integers(0, 15, (5, 2)).astype(np.uint8)
    data = Data.quantized(TensorType("f32", (5, 40), Quantized(4, 32, True)), q, scale, zero)
    np.testing.assert_allclose(Scales(data)().detach().numpy(), data.array(), rtol=1e-6)
    back = Scales(data).constant()["data"]
    np.testing.assert_array_equal(back.array(), data.array())
    v = Vector(constant(np.zeros(7, np.float32))["data"])
    v().sum().backward()
    assert (v.delta.grad != 0).all()


def test_scales_of_uneven_steps_learn_and_stay_multiples_of_their_unit():
    source = model()
    graph, _ = quantize(source, scheme="table")
    healed, report = heal(source, graph, samples(), Options(epochs=12, lr=8e-3, batch=16))
    assert report.closed > 0.4 and report.scales
    changed = 0
    for old, new in zip(graph.nodes(), healed.nodes()):
        if old.op == "constant" and old.type.encoding is not None and old.type.encoding.table:
            a, c = old["data"].parts(), new["data"].parts()
            np.testing.assert_array_equal(a["q"], c["q"])
            steps = c["scale"].astype(np.float32) / kernels.units(a["scale"])[:, None]
            np.testing.assert_array_equal(steps, np.clip(np.rint(steps), -127, 127))
            assert ((c["scale"] != 0) == (a["scale"] != 0)).all()
            changed += (a["scale"] != c["scale"]).sum()
            # the artifact stores exactly these
            format = kernels.format_name(4, 32, True, "linear", True, ())
            n, k = new.shape
            back = kernels.unpack(format, kernels.pack(format, c["q"], c["scale"], None), n, k)
            np.testing.assert_array_equal(back[1], c["scale"])
    assert changed > 1000


@pytest.mark.parametrize("scheme", ["best", "symmetric", "table"])
def test_integers_learn_from_the_weights_before_them(scheme):
    source = model()
    graph, _ = quantize(source, scheme=scheme)
    floats = products(source, QuantizeOptions(scheme=scheme))
    learned = learnable(graph, floats=floats)
    feeds = samples(1).feeds[0]
    with torch.no_grad():
        got = TorchGraph(graph, learned)(feeds)[0]["y0"].numpy()
    want = evaluate.run(graph, feeds)["y0"]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * np.abs(want).max())
    options = Options(epochs=12, lr=8e-3, batch=16)
    _, before = heal(source, graph, samples(), options)
    healed, report = heal(source, graph, samples(), options, floats=floats)
    assert report.closed > before.closed and report.weights >= 1024 * 128
    assert [n.type for n in graph.nodes()] == [n.type for n in healed.nodes()]
    changed = 0
    for old, new in zip(graph.nodes(), healed.nodes()):
        if old.op == "constant" and old.type.encoding is not None and old.type.encoding.bits == 4:
            a, c = old["data"].parts(), new["data"].parts()
            assert c["q"].dtype == a["q"].dtype and ("zero" not in a or (a["zero"] == c["zero"]).all())
            assert set(np.unique(c["q"])) <= set(np.unique(a["q"]))
            changed += (a["q"] != c["q"]).mean()
    assert changed > 0.01
    fresh = samples(13).feeds[12]
    want, old, new = (evaluate.run(g, fresh)["y0"].ravel() for g in (source, graph, healed))
    apart = [1 - x @ want / np.linalg.norm(x) / np.linalg.norm(want) for x in (old, new)]
    assert apart[1] < 0.5 * apart[0]


@given(st.sampled_from(["zero", "symmetric", "table"]), st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_latent_weights_begin_where_the_integers_are(kind, k, seed):
    """Also where a rounding that looks at data chose another integer than the nearest, in tails, and in groups of zeros."""
    rng = np.random.default_rng(seed)
    groups, values = -(-k // 32), kernels.TABLE if kind == "table" else range(16) if kind == "zero" else range(-8, 8)
    q = rng.choice(np.array(values), (3, k)).astype(np.uint8 if kind == "zero" else np.int8)
    scale = (rng.choice([0, 1, -3, 127], (3, groups)) * 2.0**-7).astype(np.float16)
    zero = rng.integers(0, 16, (3, groups)).astype(np.uint8) if kind == "zero" else None
    encoding = Quantized(4, 32, zero=kind == "zero", table=kind == "table")
    data = Data.quantized(TensorType("f32", (3, k), encoding), q, scale, zero)
    weight = data.array() + rng.standard_normal((3, k)).astype(np.float32) * 0.3 * np.abs(data.array()).mean()
    module = Integers(data, weight)
    np.testing.assert_allclose(module().detach().numpy(), data.array(), rtol=1e-6)
    np.testing.assert_array_equal(module.constant()["data"].array(), data.array())
    direction = torch.from_numpy(rng.standard_normal((3, k)).astype(np.float32))
    plain = Scales(data)
    for m in (module, plain):
        (m() * direction).sum().backward()
    torch.testing.assert_close(module.latent.grad, direction)
    torch.testing.assert_close(module.delta.grad, plain.delta.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("samples", "epochs"), [(5, 4.0), (64, 4.0), (128, 2.0), (256, 1.0), (512, 1.0)])
def test_much_text_is_read_once_and_little_often(samples, epochs):
    assert of_text(Calibration([], [], samples, "")) == Options(epochs=epochs, minutes=10.0, lr=1e-3, vectors=0.25)


def test_norms_and_biases_have_a_rate_of_their_own():
    source = model()
    graph, _ = quantize(source)
    healed, report = heal(source, graph, samples(), Options(epochs=4, batch=16, vectors=0.0))
    assert report.closed > 0 and report.vectors
    changed = {"vectors": 0, "scales": 0}
    for old, new in zip(graph.nodes(), healed.nodes()):
        if old.op == "constant":
            kind = "vectors" if old.type.encoding is None else "scales"
            part = "value" if kind == "vectors" else "scale"
            changed[kind] += (old["data"].parts()[part] != new["data"].parts()[part]).sum()
    assert changed["vectors"] == 0 and changed["scales"] > 1000


def test_a_graph_that_gets_no_better_comes_back_as_it_was():
    source = model()
    graph, _ = quantize(source)
    healed, report = heal(source, graph, samples(3), Options(epochs=1, lr=50.0, batch=16))
    assert healed is graph and report.closed == 0 and report.after == report.before


def test_what_it_refuses():
    source = graph_of(b.exp(f32("x", "n", K)))
    with pytest.raises(EdgecError, match=r"EC1303 .*no norms, biases or quantized weights"):
        heal(source, source, samples())
    graph, _ = quantize(model())
    with pytest.raises(EdgecError, match=r"EC1302 .*too few"):
        heal(model(), graph, samples(1), Options(batch=16))
    infinite = graph_of(b.mul(model().outputs[0][1], constant(np.float32(np.inf))))
    with pytest.raises(EdgecError, match=r"EC1303 the teacher's output 'y0': it holds numbers that are not finite"):
        heal(infinite, graph, samples(), Options(batch=16))


# --- in a build -----------------------------------------------------------------------------------------------------------


def test_a_build_heals_and_says_so(tmp_path, capsys):
    path = write_mlp(tmp_path / "m.onnx", 1536, 3)
    x = np.random.default_rng(0).standard_normal((160, 48)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    out, plain = tmp_path / "m.edgec", tmp_path / "plain.edgec"
    assert main(["build", str(path), "-o", str(out), "--distill", str(tmp_path / "d.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["healing"]
    assert 0 < found["closed"] < 1 and found["after"]["logits"] < found["before"]["logits"]
    edgec.build(path, out=plain)
    fresh = np.random.default_rng(1).standard_normal((200, 48)).astype(np.float32)
    want = edgec.load(_fp32(path, tmp_path))(x=fresh)["logits"]
    errors = [np.square(edgec.load(p)(x=fresh)["logits"] - want).mean() for p in (plain, out)]
    assert errors[1] < errors[0]
    assert edgec.load(out).manifest["report"]["healing"]["closed"] == found["closed"]


def test_a_pruned_model_heals_too(tmp_path):
    path = mlp(tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((640, 64)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    report = edgec.build(path, out=tmp_path / "m.edgec", weights="fp32", prune="ffn=50%", distill=tmp_path / "d.npz")
    assert report.pruning and report.healing["vectors"] and not report.healing["scales"]
    assert report.healing["closed"] > 0 and report.healing["weights"] > 64 * 64
    assert report.healing["pruned"]["closed"] == report.healing["closed"]


def test_weights_of_a_pruned_graph_learn_before_they_are_rounded():
    from edgec.calibrate.prune import parse, prune_model

    found = samples(12)
    hidden = b.linear(f32("x", "n", K), weights(512, K, seed=3, scale=0.1), weights(512, seed=4), act="gelu")
    source = graph_of(b.linear(hidden, weights(128, 512, seed=6, scale=0.1), None))
    smaller = prune_model(source, parse("ffn=50%", None)).graph
    healed, report = heal(source, smaller, found, Options(epochs=8, batch=16, weights=True))
    assert report.closed > 0.3 and not report.scales
    assert report.weights == sum(
        n.inputs[1].type.shape[0] * n.inputs[1].type.shape[1] for n in smaller.nodes() if n.op == "linear"
    )
    assert [n.type for n in smaller.nodes()] == [n.type for n in healed.nodes()]
    fresh = samples(13).feeds[12]
    want, old, new = (evaluate.run(g, fresh)["y0"] for g in (source, smaller, healed))
    assert np.square(new - want).mean() < 0.8 * np.square(old - want).mean()


def test_tables_stay_where_weights_learn():
    table = weights(640, 32, seed=1)
    graph = graph_of(b.linear(b.linear(f32("x", "n", 32), weights(32, 32, seed=2), None, act="tanh"), table, None))
    found = learnable(graph, weights=True)
    assert table not in found and len(found) == 1


def _fp32(path, tmp_path):
    edgec.build(path, weights="fp32", out=tmp_path / "fp32.edgec")
    return tmp_path / "fp32.edgec"


def test_a_build_checks_before_it_works(tmp_path, capsys, monkeypatch):
    path = write_mlp(tmp_path / "m.onnx", 64, 3)
    np.savez(tmp_path / "d.npz", y=np.ones((64, 48), np.float32))
    call = ["build", str(path), "-o", str(tmp_path / "m.edgec"), "--distill"]
    assert main([*call, str(tmp_path / "d.npz"), "--next-token", "1"]) == 2
    assert "EC1001 --next-token: 1.0 is no share of a loss. Use one between 0 and 1" in capsys.readouterr().err
    assert main([*call, str(tmp_path / "none.npz")]) == 2
    assert main([*call, str(tmp_path / "d.npz")]) == 1
    assert "EC1302" in capsys.readouterr().err
    assert main([*call, str(tmp_path / "d.npz"), "--weights", "fp32"]) == 2
    assert "lose nothing" in capsys.readouterr().err
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "torch" else find(name, *a))
    assert main([*call, str(tmp_path / "d.npz")]) == 1
    assert "EC1002 --distill needs torch. Install it: pip install 'edgec[distill]'" in capsys.readouterr().err
    assert not (tmp_path / "m.edgec").exists()


def test_a_decoder_that_has_lost_heads_and_layers_heals(tmp_path):
    """Its caches are narrower than the source's, and fewer."""
    from lm_tools import write_folder

    text = tmp_path / "texts.txt"
    text.write_text("\n".join("one two three four five six seven " * 8 for _ in range(24)))
    folder = write_folder(tmp_path / "lm")
    report = edgec.build(folder, prune="heads=50%,layers=1", calib=text, distill=text, out=tmp_path / "lm.edgec")
    assert report.pruning["dropped"] and report.pruning["removed"]
    assert report.healing["steps"] and report.healing["after"]["logits"] < report.healing["before"]["logits"]


def test_the_data_that_heals_calibrates_too(tmp_path):
    """Layers go with --distill alone, and weights are rounded with its data; --calib comes first where both are given."""
    from lm_tools import write_folder

    text, other = tmp_path / "texts.txt", tmp_path / "other.txt"
    text.write_text("\n".join("one two three four five six seven " * 8 for _ in range(24)))
    other.write_text("\n".join("seven six five four three two one " * 8 for _ in range(24)))
    folder = write_folder(tmp_path / "lm")
    report = edgec.build(folder, prune="layers=1", distill=text, out=tmp_path / "a.edgec")
    assert report.pruning["dropped"] and report.calibration["name"] == "texts.txt"
    report = edgec.build(folder, calib=other, distill=text, out=tmp_path / "b.edgec")
    assert report.calibration["name"] == "other.txt"
    both = edgec.build(folder, calib=other, distill=text, next_token=0.5, out=tmp_path / "c.edgec")
    assert both.healing["before"]["logits"] > report.healing["before"]["logits"] + 1  # the source knows no words


def test_next_tokens_are_learned_of_a_text_alone(tmp_path):
    from lm_tools import write_folder

    from edgec.calibrate import data
    from edgec.distill.student import plain_graph
    from edgec.frontend.folder import model_file, text_files

    text = tmp_path / "texts.txt"
    text.write_text("\n".join("one two three four five six seven " * 8 for _ in range(24)))
    file, vectors = model_file(write_folder(tmp_path / "lm")), model()
    source = plain_graph(file, {})
    found = data.load(text, source, text_files(file), length=32, limit=24)
    options = Options(epochs=4, batch=2, lr=1e-2, weights=True, following=1.0)
    _, report = heal(source, source, found, options)
    assert report.before["logits"] > 1 and report.closed > 0.2  # the source knows no words, the text repeats seven
    with pytest.raises(EdgecError, match=r"EC1303 .*no next tokens"):
        heal(vectors, vectors, samples(4), Options(following=0.5))
