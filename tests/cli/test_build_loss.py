"""The loss report of a build, and --max-loss."""

from __future__ import annotations

import importlib.util
import json
import re
import zipfile

import numpy as np
import pytest
from lm_tools import TEXT, write_folder

from edgec.cli import loss
from edgec.options import Options


def test_every_lossy_build_says_how_much(edgec, mlp_onnx, tmp_path):
    done = edgec("build", mlp_onnx, "-o", "a.edgec", "--json")
    assert done.status == 0, done.err
    row = done.json["check"]["outputs"]["y"]
    assert 0.9 < row["cosine"] < 1 and 10 < row["snr_db"] < 50 and 0 < row["relative"] < 0.2
    assert done.json["check"]["against"] == "onnxruntime" and done.json["check"]["inputs"] == "random"
    lossy = [w for w in done.json["weights"] if w["bits"] < 32]
    assert lossy and all(0 < w["sensitivity"] < 0.5 and w["snr_db"] > 10 and w["bytes"] for w in lossy)
    with zipfile.ZipFile(tmp_path / "a.edgec") as z:
        report = json.loads(z.read("manifest.json"))["report"]
    assert report["loss"]["outputs"]["y"]["cosine"] == pytest.approx(row["cosine"], rel=1e-3)
    assert report["weights"] == done.json["weights"]
    text = edgec("build", mlp_onnx, "-o", "a.edgec").out
    assert " dB (y; random, against onnxruntime)" in text and "most of it: " in text
    exact = edgec("build", mlp_onnx, "-o", "a.edgec", "--weights", "fp32", "--json").json
    assert exact["check"]["outputs"]["y"]["relative"] < 1e-4 and not any("sensitivity" in w for w in exact["weights"])


@pytest.mark.parametrize(("name", "value"), [("a", np.nan), ("b", np.nan), ("c", np.inf)])
def test_numbers_that_are_not_finite_in_a_model(edgec, mlp_onnx, tmp_path, name, value):
    """A build says so; limits and calibration cannot be had, and nothing is written then."""
    import onnx

    model = onnx.load(mlp_onnx)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == name:
            array.reshape(-1, array.shape[-1])[:3] = value
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, "broken.onnx")
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32))
    done = edgec("build", "broken.onnx", "-o", "a.edgec")
    assert done.status == 0 and "not compared: the source gives no finite number of y" in done.out
    assert ("Weights that hold numbers that are not finite" in done.out) == (name != "b")
    (tmp_path / "a.edgec").unlink()
    for options in (["--max-loss", "cosine=0.9"], ["--calib", "x.npz"], ["--prune", "20%", "--calib", "x.npz"]):
        done = edgec("build", "broken.onnx", "-o", "a.edgec", *options, "--json")
        assert done.status == 1, options
        assert "finite" in done.err or "no number" in done.err
        assert done.json["error"]["hint"] and not (tmp_path / "a.edgec").exists()


def test_json_has_no_numbers_that_json_lacks(capsys):
    from edgec.cli.common import print_json

    print_json({"a": float("nan"), "b": [np.float32("inf"), np.arange(2)], "c": {1: (True, "x", None)}})
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert found == {"a": None, "b": [None, [0, 1]], "c": {"1": [True, "x", None]}}


@pytest.mark.parametrize("spec", ["cosine=0.9999999", "snr=80", "max=1e-7", "cosine=0.5,snr=80"])
def test_a_build_that_lost_too_much_fails_and_leaves_nothing(edgec, mlp_onnx, tmp_path, spec):
    done = edgec("build", mlp_onnx, "-o", "a.edgec", "--max-loss", spec)
    assert done.status == 1 and "EC1306" in done.err
    for word in ("of y is ", "Most of it comes from ", " dB, alone ", "Nothing was written", "--weights int8"):
        assert word in done.err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.edgec").write_bytes(b"what was here before")
    assert edgec("build", mlp_onnx, "-o", "a.edgec", "--max-loss", spec, "--json").json["error"]["code"] == "EC1306"
    assert [p.name for p in tmp_path.iterdir()] == ["a.edgec"]
    assert (tmp_path / "a.edgec").read_bytes() == b"what was here before"


def test_a_build_within_the_limits_is_written(edgec, mlp_onnx, tmp_path):
    done = edgec("build", mlp_onnx, "-o", "a.edgec", "--max-loss", "cosine=0.9,snr=10,max=20%")
    assert done.status == 0, done.err
    assert [p.name for p in tmp_path.iterdir()] == ["a.edgec"]
    assert edgec("verify", "a.edgec", "--against", mlp_onnx).status == 0


def test_wrong_limits_are_refused_before_the_work(edgec, mlp_onnx, tmp_path):
    for spec in ("", "cosine=2", "max=-1", "top1=200%", "snr=1e999", "cosine=0.9,cosine=0.8"):
        assert edgec("build", mlp_onnx, "--max-loss", spec).status == 2
    for wrong in (("--max-loss", "good"), ("--max-loss", "kl=0.1"), ("--max-loss", "cosine=0.9", "--no-check"),
                  ("--eval", "none.txt")):  # fmt: skip
        done = edgec("build", mlp_onnx, "-o", "a.edgec", *wrong)
        assert done.status == 2 and wrong[0] in done.err and "quantize" not in done.err
        assert list(tmp_path.iterdir()) == []
    np.savez(tmp_path / "other.npz", z=np.zeros((300, 64), np.float32))
    done = edgec("build", mlp_onnx, "-o", "a.edgec", "--eval", "other.npz")
    assert done.status == 1 and "EC1302" in done.err and "quantize" not in done.err


def test_given_inputs_are_what_is_compared_on(edgec, mlp_onnx, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32))
    done = edgec("build", mlp_onnx, "-o", "a.edgec", "--eval", "x.npz", "--json")
    assert done.json["check"]["inputs"] == "x.npz" and done.json["check"]["runs"] == 3


def test_another_cpus_artifact_is_measured_by_this_machines_kernels(edgec, mlp_onnx):
    found = edgec("build", mlp_onnx, "-o", "a.edgec", "--target", "apple-m2", "--json").json
    assert found["check"]["by"] == "this machine's kernels, not those of apple-m2"
    assert 10 < found["check"]["outputs"]["y"]["snr_db"] < 50
    assert edgec("build", mlp_onnx, "--target", "apple-m2", "--max-loss", "snr=90").status == 1


@pytest.mark.parametrize("why", ["onnxruntime is not there", "the source is large"])
def test_the_source_runs_in_fp32_where_onnxruntime_does_not(edgec, mlp_onnx, monkeypatch, tmp_path, why):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32))
    more = ["--eval", "x.npz"]
    want = edgec("build", mlp_onnx, "-o", "a.edgec", "--json", *more).json["check"]
    if why == "the source is large":
        monkeypatch.setattr(loss, "HELD", 0)
    else:
        spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else spec(name, *a)
        )
    if why == "the source is large":
        assert "--eval" in edgec("build", mlp_onnx, "-o", "a.edgec", "--json").json["check"]["skipped"]
    found = edgec("build", mlp_onnx, "-o", "a.edgec", "--json", *more).json["check"]
    assert found["against"] == "edgec's fp32 kernels, a few layers at a time"
    assert found["outputs"]["y"]["cosine"] == pytest.approx(want["outputs"]["y"]["cosine"], abs=1e-3)


@pytest.mark.parametrize(
    ("found", "given", "words"),
    [
        ({"lm": {"kl": 0.2}}, {}, "KL 0.200 .*--calib TEXT .*--bits 4.25"),
        ({"lm": {"kl": 0.2}}, {"bits": 4.25, "calib": "t"}, "--distill TEXT"),
        ({"lm": {"kl": 0.2}}, {"embedding": 4, "calib": "t", "distill": "t"}, "--embedding 6"),
        ({"lm": {"kl": 0.2}}, {"calib": "t", "distill": "t"}, "--bits 5"),
        ({"lm": {"kl": 0.04}}, {}, None),
        ({"lm": {"kl": 0.2}}, {"weights": "int8"}, None),
        ({"outputs": {"y": {"cosine": 0.98}}}, {}, "cosine 0.980 .*--calib"),
        ({"outputs": {"y": {"cosine": 0.995}}}, {}, None),
        ({}, {}, None),
    ],
)
def test_a_big_loss_names_what_would_help(found, given, words):
    options = Options(**{k: v for k, v in given.items() if k not in ("calib", "distill")})
    text = loss.advice(options, found, given.get("calib"), given.get("distill"))
    assert (text is None) == (words is None) and (words is None or re.search(words, text))


def test_a_language_model(edgec, tmp_path):
    write_folder(tmp_path / "lm")
    (tmp_path / "mine.txt").write_text("\n".join(TEXT * 40))
    done = edgec("build", "lm", "-o", "a.edgec", "--eval", "mine.txt", "--json")
    assert done.status == 0, done.err
    lm = done.json["check"]["lm"]
    assert lm["tokens"] > 256 and lm["kl"] > 0 and 0.3 < lm["top1"] <= 1 and lm["ppl"] > 1
    assert lm["ppl_increase"] == pytest.approx(lm["ppl"] / lm["source_ppl"] - 1)
    assert any(w.get("sensitivity") for w in done.json["weights"])
    assert any("--calib TEXT" in note for note in done.json["notes"]) == (lm["kl"] > loss.BIG["kl"])
    text = edgec("build", "lm", "-o", "a.edgec")
    assert "top-1 agreement" in text.out and "perplexity" in text.out and "edgec's sample text" in text.out
    assert "(--eval TEXT for yours)" in text.out
    failed = edgec("build", "lm", "-o", "b.edgec", "--max-loss", "kl=1e-9,ppl=50%")
    assert failed.status == 1 and "kl " in failed.err and "ppl" not in failed.err
    assert not (tmp_path / "b.edgec").exists()
    plain = edgec("build", "lm", "-o", "b.edgec", "--tokenizer", "none", "--json").json["check"]["lm"]
    assert plain["kl"] > 0 and "ppl" not in plain
