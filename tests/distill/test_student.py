"""edgec distill: what it trains, what it writes, that it can be interrupted, and what it refuses."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from distill.conftest import write_mlp
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec import frontend, kernels
from edgec.cli import main
from edgec.distill import losses
from edgec.distill.fit import order, rate
from edgec.distill.rounding import RoundedWeight
from edgec.distill.student import Options, Pair, distill
from edgec.distill.torch_graph import TorchGraph
from edgec.errors import EdgecError
from edgec.ir.types import Quantized

QUICK = Options(weights="fp32", steps=60, lr=5e-3, batch=16)


def weights_of(path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def by_onnxruntime(path, **feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))


def test_a_student_learns_and_is_onnx_again(pair, tmp_path):
    teacher, student, data = pair
    out = tmp_path / "out.onnx"
    ticks = []
    report = distill(teacher, student, data, out, QUICK, tick=ticks.append)
    assert report.after["logits"] < 0.4 * report.before["logits"]
    assert report.steps == len(ticks) == 60 and ticks[-1].left == 0 and ticks[0].left > 0
    onnx.checker.check_model(onnx.load(out))
    before, after = onnx.load(student), onnx.load(out)
    assert [n.name for n in before.graph.node] == [n.name for n in after.graph.node]
    assert before.graph.input == after.graph.input and before.graph.output == after.graph.output
    x = np.random.default_rng(5).standard_normal((64, 48)).astype(np.float32)
    wanted, old, new = (by_onnxruntime(p, x=x)["logits"] for p in (teacher, student, out))
    assert (wanted.argmax(1) == new.argmax(1)).mean() > (wanted.argmax(1) == old.argmax(1)).mean() + 0.3
    assert not out.with_name("out.onnx.checkpoint").exists()
    assert sorted(os.listdir(tmp_path)) == ["data.npz", "out.onnx", "student.onnx", "teacher.onnx"]


def test_every_weight_is_trained_equal_ones_too(pair, tmp_path):
    teacher, student, data = pair
    distill(teacher, student, data, tmp_path / "out.onnx", replace(QUICK, steps=3))
    before, after = weights_of(student), weights_of(tmp_path / "out.onnx")
    for name in before:  # b1 and shift begin as equal zeros, gain as ones
        assert (before[name] != after[name]).any(), name
    assert (after["b1"] != after["shift"]).any()


def test_the_same_seed_gives_the_same_student(pair, tmp_path):
    teacher, student, data = pair
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        distill(teacher, student, data, tmp_path / f"{name}.onnx", replace(QUICK, steps=5, seed=seed))
    a, b, c = (weights_of(tmp_path / f"{n}.onnx")["w1"] for n in "abc")
    assert (a == b).all() and (a != c).any()


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_an_interrupted_run_goes_on_where_it_was(pair, tmp_path, weights):
    teacher, student, data = pair
    options = replace(QUICK, steps=40, weights=weights)
    distill(teacher, student, data, tmp_path / "whole.onnx", options)

    def interrupt(tick):
        if tick.step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(teacher, student, data, tmp_path / "out.onnx", options, tick=interrupt)
    assert not (tmp_path / "out.onnx").exists()
    steps = []
    report = distill(teacher, student, data, tmp_path / "out.onnx", options, tick=lambda t: steps.append(t.step))
    assert steps[0] == 18 and report.steps == 40
    a, b = weights_of(tmp_path / "whole.onnx"), weights_of(tmp_path / "out.onnx")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_checkpoint_of_another_run_is_refused(pair, tmp_path):
    teacher, student, data = pair
    path = tmp_path / "out.onnx.checkpoint"

    def interrupt(tick):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(teacher, student, data, tmp_path / "out.onnx", QUICK, tick=interrupt)
    with pytest.raises(EdgecError, match=r"EC1001 .*checkpoint is of a run with other") as error:
        distill(teacher, student, data, tmp_path / "out.onnx", replace(QUICK, lr=1e-4))
    assert "Delete it" in error.value.hint
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EdgecError, match=r"EC1003 .*no whole checkpoint"):
        distill(teacher, student, data, tmp_path / "out.onnx", QUICK)
    assert not (tmp_path / "out.onnx").exists()


def test_training_through_the_roundings_helps_the_int4_artifact(pair, tmp_path):
    teacher, _, data = pair
    student = write_mlp(tmp_path / "wide.onnx", 512, 1)
    x = np.random.default_rng(5).standard_normal((256, 48)).astype(np.float32)
    wanted = torch.from_numpy(by_onnxruntime(teacher, x=x)["logits"])
    found = {}
    for weights in ("fp32", "int4"):
        out = tmp_path / f"{weights}.onnx"
        report = distill(teacher, student, data, out, replace(QUICK, steps=150, weights=weights, lr=2e-3))
        assert bool(report.rounded) == (weights == "int4")
        edgec.build(out, out=tmp_path / "m.edgec")
        got = torch.from_numpy(edgec.load(tmp_path / "m.edgec")(x=x)["logits"])
        found[weights] = losses.distance(losses.OutputLoss("", "kl"), wanted, got, None, 1.0).item()
    assert found["int4"] < found["fp32"]


def test_half_precision_stays_and_frozen_weights_do(pair, tmp_path):
    _, _, data = pair
    x = np.load(data)["x"]
    np.savez(tmp_path / "half.npz", x=x.astype(np.float16))
    teacher = write_mlp(tmp_path / "t16.onnx", 32, 0, dtype=np.float16)
    student = write_mlp(tmp_path / "s16.onnx", 16, 1, dtype=np.float16)
    options = replace(QUICK, freeze=("w*",))
    report = distill(teacher, student, tmp_path / "half.npz", tmp_path / "out.onnx", options)
    before, after = weights_of(student), weights_of(tmp_path / "out.onnx")
    assert all(a.dtype == np.float16 for a in after.values())
    assert (before["w1"] == after["w1"]).all() and (before["b1"] != after["b1"]).any()
    assert report.after["logits"] < report.before["logits"]


def test_values_inside_agree_by_a_projection(pair, tmp_path):
    teacher, student, data = pair
    options = replace(QUICK, hidden=[("norm", "norm"), ("act", "act")])
    report = distill(teacher, student, data, tmp_path / "out.onnx", options)
    assert report.history[-1] < 0.6 * report.history[0]
    with pytest.raises(
        EdgecError, match="EC1001 --hidden: no value inside the student comes from a node 'nor'"
    ) as error:
        distill(teacher, student, data, tmp_path / "no.onnx", replace(QUICK, hidden=[("norm", "nor")]))
    assert "norm" in error.value.hint


def test_what_is_written_is_what_was_trained(pair, tmp_path):
    """The graph of learned inputs gives the numbers that onnxruntime gives of the file."""
    _, student, _ = pair
    graph, learned = frontend.load_learned(student)
    assert {n["name"] for n in learned} == {"w1", "b1", "gain", "shift", "w2", "b2"}
    rng = np.random.default_rng(2)
    new = {n: torch.nn.Parameter(torch.from_numpy(rng.standard_normal(n.shape).astype(np.float32))) for n in learned}
    x = rng.standard_normal((5, 48)).astype(np.float32)
    got = TorchGraph(graph, new)({"x": x})[0]["logits"].detach().numpy()
    frontend.replace(student, tmp_path / "new.onnx", {n["name"]: p.detach().numpy() for n, p in new.items()})
    np.testing.assert_allclose(by_onnxruntime(tmp_path / "new.onnx", x=x)["logits"], got, rtol=1e-4, atol=1e-4)


def test_external_data_comes_along(pair, tmp_path):
    _, student, _ = pair
    (tmp_path / "far").mkdir()
    onnx.save_model(
        onnx.load(student), tmp_path / "far/m.onnx", save_as_external_data=True, size_threshold=0, location="m.bin"
    )
    frontend.replace(tmp_path / "far/m.onnx", tmp_path / "new.onnx", {"b2": np.full(8, 3, np.float32)})
    new, old = weights_of(tmp_path / "new.onnx"), weights_of(student)
    assert (new["b2"] == 3).all() and (new["w1"] == old["w1"]).all()
    with pytest.raises(EdgecError, match="EC1103 b2: its shape is"):
        frontend.replace(student, tmp_path / "no.onnx", {"b2": np.zeros(7)})
    with pytest.raises(EdgecError, match="EC1103 b9: the model has no such initializer"):
        frontend.replace(student, tmp_path / "no.onnx", {"b9": np.zeros(7)})
    assert not (tmp_path / "no.onnx").exists()


def test_constants_that_shapes_or_masks_are_made_of_are_not_trained(tmp_path):
    arrays = {
        "w": np.ones((4, 4)), "scales": np.array([1.0, 1, 2, 2]), "big": np.full((3, 4), -1e9), "one": np.array([2.0]),
        "table": np.ones((5, 4)),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Where", ["c", "a", "big"], ["b"]),
        helper.make_node("Mul", ["b", "one"], ["d"]),
        helper.make_node("Gather", ["table", "i"], ["e"]),
        helper.make_node("Add", ["d", "e"], ["y"]),
        helper.make_node("Resize", ["z", "", "scales"], ["r"]),
    ]
    value, f = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "g",
        [value("x", f, [3, 4]), value("c", TensorProto.BOOL, [3, 4]), value("i", TensorProto.INT64, [3]),
         value("z", f, [1, 1, 2, 2])],
        [value("y", f, [3, 4]), value("r", f, [1, 1, 4, 4])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )  # fmt: skip
    _, learned = frontend.load_learned(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    assert {n["name"] for n in learned} == {"w", "table"}


# --- true labels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(pair):
    """The data with labels "y" that the teacher would not give: classes of a rule over x, -1 for every third."""
    x = np.random.default_rng(9).standard_normal((480, 48)).astype(np.float32)
    y = (x[:, 0] > 0) + 2 * (x[:, 1] > 0)
    y = np.where(np.arange(len(y)) % 3 == 2, -1, y)
    np.savez(pair[2], x=x, y=y)
    np.savez(pair[2].with_name("plain.npz"), x=x)
    return pair


def test_labels_teach_what_the_teacher_does_not_know(labelled, tmp_path):
    teacher, student, data = labelled
    options = replace(QUICK, labels=("logits", "y"), steps=300)
    accuracy = {}
    for alpha in (0.0, 0.5, 1.0):
        report = distill(teacher, student, data, tmp_path / f"{alpha}.onnx", replace(options, alpha=alpha))
        accuracy[alpha] = report.accuracy
    assert accuracy[0.0]["teacher"] == accuracy[1.0]["teacher"] < 0.5
    assert accuracy[0.0]["student"] < accuracy[0.5]["student"] < accuracy[1.0]["student"] > 0.7
    plain = distill(teacher, student, data.with_name("plain.npz"), tmp_path / "plain.onnx", replace(QUICK, steps=300))
    assert plain.accuracy == {}
    a, b = weights_of(tmp_path / "0.0.onnx"), weights_of(tmp_path / "plain.onnx")
    assert all((a[n] == b[n]).all() for n in a)


@pytest.mark.parametrize("kind", ["kl", "probabilities"])
def test_cross_entropy_is_the_textbooks_over_rows_that_have_labels(kind):
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.tensor([[0, 1, 0], [0.2, 0.3, 0.5], [float("nan")] * 3, [1, 0, 0], [float("nan")] * 3])
    p = logits.double().softmax(-1)
    wanted = -(shares[[0, 1, 3]].double() * p[[0, 1, 3]].log()).sum(1).mean().item()
    got = losses.cross_entropy(kind, logits if kind == "kl" else p.float(), shares)
    assert got.item() == pytest.approx(wanted, rel=1e-5)
    assert losses.cross_entropy(kind, logits, shares[[2, 4, 2, 4, 2]]).item() == 0


def test_labels_that_do_not_fit(labelled, tmp_path):
    teacher, student, data = labelled
    x, out = np.load(data)["x"], tmp_path / "o.onnx"
    options = replace(QUICK, labels=("logits", "y"))
    assert "EC1001 --labels: 'answer' is no output" in str(
        refused(teacher, student, data, out, replace(options, labels=("answer", "y")))
    )
    assert "EC1302" in str(e := refused(teacher, student, data, out, replace(options, labels=("logits", "z"))))
    assert "no labels 'z'" in str(e)
    for y, text in (
        (np.full(480, 8), "class 8, the output has 8 classes (0 to 7)"),
        (np.full((480, 3), 1 / 3, np.float32), "3 shares, the output has 8 classes"),
        (np.full((480, 8), 0.5, np.float32), "do not sum to 1"),
        (np.full(480, -1), "no sample has a label"),
        (np.zeros(479, np.int64), "different numbers of samples"),
        (np.zeros(480, np.float32), "labels 'y' are float32[480]"),
    ):
        np.savez(tmp_path / "bad.npz", x=x, y=y)
        error = refused(teacher, student, tmp_path / "bad.npz", out, options)
        assert error.code == "EC1302" and text in str(error)
    assert "--alpha" in str(refused(teacher, student, data, out, replace(options, alpha=1.5)))


def test_kept_answers_make_the_same_student_without_the_teacher(pair, tmp_path, monkeypatch):
    teacher, student, data = pair
    options = replace(QUICK, steps=8, answers=tmp_path / "answers")
    distill(teacher, student, data, tmp_path / "plain.onnx", replace(options, answers=None))
    distill(teacher, student, data, tmp_path / "first.onnx", options)
    asked = []
    answers = Pair(teacher, student, options).teacher.forward.__func__

    def counted(self, *args, **kwargs):
        asked.append(not self.learned)
        return answers(self, *args, **kwargs)

    monkeypatch.setattr(TorchGraph, "forward", counted)
    distill(teacher, student, data, tmp_path / "again.onnx", options)
    distill(teacher, student, data, tmp_path / "other.onnx", replace(options, seed=1))
    assert asked and not any(asked)
    found = {n: weights_of(tmp_path / f"{n}.onnx")["w1"] for n in ("plain", "first", "again", "other")}
    assert (found["plain"] == found["first"]).all() and (found["first"] == found["again"]).all()
    assert (found["first"] != found["other"]).any()
    other = write_mlp(tmp_path / "t2.onnx", 64, 7)  # another teacher is asked, and its answers take the place
    distill(other, student, data, tmp_path / "o.onnx", options)
    assert any(asked)
    (tmp_path / "answers").write_bytes(b"no answers")
    with pytest.raises(EdgecError, match=r"EC1003 .*no answers of a teacher"):
        distill(teacher, student, data, tmp_path / "no.onnx", options)
    assert not (tmp_path / "no.onnx").exists()


# --- pieces -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("encoding", [Quantized(4, 32, True), Quantized(4, 32), Quantized(8, 128)])
def test_rounded_weights_are_the_encoders(axis, encoding):
    w = torch.nn.Parameter(torch.randn(24, 72, generator=torch.Generator().manual_seed(0)))
    module = RoundedWeight(w, encoding, axis)
    y = module()
    source = w.detach().numpy() if axis == 1 else np.ascontiguousarray(w.detach().numpy().T)
    q, scale, zero = kernels.quantize(source, encoding.bits, encoding.group, not encoding.zero)
    wanted = kernels.dequantize(q, scale, zero, encoding.group)
    got = y.detach().numpy() if axis == 1 else y.detach().numpy().T
    off = np.abs(got - wanted) > 1e-6  # an exact tie may fall to either side
    assert off.mean() < 0.002 and np.abs(got - wanted).max() <= np.abs(scale.astype(np.float32)).max() * 1.01
    y.sum().backward()
    assert (w.grad == 1).all()


def test_losses_are_0_for_equal_answers_and_see_no_padding():
    t, valid = torch.randn(2, 5, 7), torch.tensor([[True] * 5, [True, True, False, False, False]])
    s = t.clone()
    s[1, 2:] = 100
    for kind in losses.KINDS:
        a = t.softmax(-1) if kind == "probabilities" else t
        b = s.softmax(-1) if kind == "probabilities" else s
        assert losses.distance(losses.OutputLoss("", kind), a, a, None, 2.0).item() == pytest.approx(0, abs=1e-6)
        assert losses.distance(losses.OutputLoss("", kind), a, b, valid, 2.0).item() == pytest.approx(0, abs=1e-6)
        assert losses.distance(losses.OutputLoss("", kind), a, b, None, 2.0).item() > 0.01


def test_kl_is_the_textbooks():
    t, s = torch.randn(4, 6), torch.randn(4, 6)
    p, q = (x.double().softmax(-1) for x in (t / 2, s / 2))
    wanted = 4 * (p * (p / q).log()).sum(-1).mean()
    assert losses.distance(losses.OutputLoss("", "kl"), t, s, None, 2.0).item() == pytest.approx(
        wanted.item(), rel=1e-4
    )


def test_each_epoch_takes_every_batch_once():
    for epoch in range(3):
        assert sorted(order(7, 5, at) for at in range(7 * epoch, 7 * epoch + 7)) == list(range(7))
    assert [order(7, 5, i) for i in range(7)] != [order(7, 6, i) for i in range(7)]
    assert rate(0.0) == 0 and rate(0.05) == 1 and rate(0.5) < rate(0.2) and rate(1.0) == pytest.approx(0)


def test_batches_of_texts_lose_their_common_padding(pair):
    pair_ = Pair(*pair[:2], QUICK)
    masks = [np.arange(32)[None] < np.array(lengths)[:, None] for lengths in ([5, 9], [12, 20])]

    class Found:
        feeds = [{"x": np.ones((2, 48), np.float32)} for _ in masks]
        valid = masks
        samples = 4
        labels = None

    pair_.options = replace(QUICK, batch=2)
    pair_.lesson.batch = 2
    pair_.take(Found)  # not merged: batch is that of the data
    assert [v.shape for v in pair_.lesson.valid] == [(2, 32)] * 2


# --- what it refuses ----------------------------------------------------------------------------------------------------


def refused(teacher, student, data, out, options=QUICK) -> EdgecError:
    with pytest.raises(EdgecError) as error:
        distill(teacher, student, data, out, options)
    assert not out.exists() and not out.with_name(out.name + ".checkpoint").exists()
    return error.value


def test_outputs_that_do_not_match(pair, tmp_path):
    teacher, _, data = pair
    other = write_mlp(tmp_path / "other.onnx", 16, 0, out="scores")
    error = refused(teacher, other, data, tmp_path / "out.onnx")
    assert error.code == "EC1303" and "no output of one name: the teacher has logits, the student scores" in str(error)
    wide = write_mlp(tmp_path / "wide.onnx", 16, 0, classes=9)
    error = refused(teacher, wide, data, tmp_path / "out.onnx")
    assert error.code == "EC1303" and "'logits' is f32[batch, 8] of the teacher, f32[batch, 9] of the student" in str(
        error
    )
    error = refused(teacher, pair[1], data, tmp_path / "out.onnx", replace(QUICK, losses={"logits": "kld"}))
    assert "EC1001 --loss: 'kld' is none of kl" in str(error)


def test_numbers_that_are_not_finite(pair, tmp_path):
    teacher, student, data = pair
    bad = write_mlp(tmp_path / "bad.onnx", 16, 0, bias=np.full(16, np.nan))
    assert "EC1303 the student's 'b1': it holds numbers that are not finite" in str(
        refused(teacher, bad, data, tmp_path / "o.onnx")
    )
    assert (
        "EC1303 bias" in (text := str(refused(bad, student, data, tmp_path / "o.onnx")))
        and "the teacher's weights" in text
    )
    huge = write_mlp(tmp_path / "huge.onnx", 16, 0, bias=np.full(16, np.inf))
    assert "the teacher's output 'logits'" in str(refused(huge, student, data, tmp_path / "o.onnx"))
    x = np.load(data)["x"]
    x[3, 3] = np.nan
    np.savez(tmp_path / "nan.npz", x=x)
    assert refused(teacher, student, tmp_path / "nan.npz", tmp_path / "o.onnx").code == "EC1302"
    error = refused(teacher, student, data, tmp_path / "o.onnx", replace(QUICK, lr=1e30))
    assert error.code == "EC1303" and "not finite at step" in str(error)


def test_too_little_data(pair, tmp_path):
    teacher, student, _ = pair
    np.savez(tmp_path / "one.npz", x=np.ones((3, 48), np.float32))
    error = refused(teacher, student, tmp_path / "one.npz", tmp_path / "o.onnx")
    assert error.code == "EC1302" and "too few samples to train on: " in str(error) and "Give 32 or more" in str(error)


def test_a_student_without_weights(pair, tmp_path):
    teacher, student, data = pair
    assert "no weights to train" in str(
        refused(teacher, student, data, tmp_path / "o.onnx", replace(QUICK, freeze=("*",)))
    )


# --- the command --------------------------------------------------------------------------------------------------------


def test_the_command(pair, tmp_path, capsys):
    teacher, student, data = map(str, pair)
    out = str(tmp_path / "out.onnx")
    assert (
        main(["distill", teacher, student, "--data", data, "-o", out, "--steps", "4", "--batch", "16", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 4 and len(found["history"]) == 4 and found["samples"] == 96
    assert main(["distill", teacher, student, "--data", data, "-o", out, "--steps", "4", "--loss", "logits=mse"]) == 0
    captured = capsys.readouterr()
    assert "logits" in captured.out and "step 4/4, loss" in captured.err
    np.savez(data, **np.load(data), y=np.arange(96) % 8)
    labels, answers = ["--labels", "logits=y", "--alpha", "0.3"], str(tmp_path / "answers")
    assert (
        main(["distill", teacher, student, "--data", data, "-o", out, "--steps", "4", *labels, "--answers", answers])
        == 0
    )
    assert "of the labels kept out, the teacher" in capsys.readouterr().out and (tmp_path / "answers").exists()


def test_the_command_checks_before_it_works(pair, tmp_path, capsys, monkeypatch):
    teacher, student, data = map(str, pair)
    call = ["distill", teacher, student, "--data", data]
    for more, reason in (
        (["-o", student], "it would overwrite a model"),
        (["-o", str(tmp_path / "no/out.onnx")], "does not exist"),
        (["-o", str(tmp_path / "o.onnx"), "--lr", "0"], "not a positive number"),
        (["-o", str(tmp_path / "o.onnx"), "--hidden", "norm"], "TEACHER=STUDENT"),
        (["-o", str(tmp_path / "o.onnx"), "--labels", "logits"], "OUTPUT=FIELD"),
        (["-o", str(tmp_path / "o.onnx"), "--answers", str(tmp_path / "o.onnx")], "it is the output"),
    ):
        assert main([*call, *more]) == 2
        assert reason in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*call, "-o", str(tmp_path / "o.onnx")]) == 1
    assert "EC1002 training needs torch. Install it: pip install 'edgec[distill]'" in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()
