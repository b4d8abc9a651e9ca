"""The examples and edgec demo give the right answers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_the_demo_knows_the_repositorys_files(model, tmp_path):
    if not (model("magika").parent / "config.min.json").exists():
        raise AssertionError("the model is there without its config: run tests/fetch_models.py magika")
    done = subprocess.run(
        [sys.executable, ROOT / "examples/magika/demo.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[1:]}
    expected = {"README.md": "markdown", "Makefile": "makefile", "CMakeLists.txt": "cmake", "pyproject.toml": "toml"}
    expected |= {"module.cpp": "cpp", "demo.py": "python", "model.onnx": "onnx"}
    assert {k: v for k, v in answers.items() if k in expected} == expected
    assert "-> 0." in done.stdout.splitlines()[0]


def test_edgec_demo_compiles_once_and_judges_texts(edgec, monkeypatch, tmp_path):
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("EDGEC_CACHE_DIR", str(tmp_path / "cache"))
    texts = (
        "the pump works again, great",
        "a dull, lifeless mess that wastes two hours",
        "a moving and brilliant film",
    )
    first = edgec("demo", *texts)
    assert first.status == 0 and "compiled for this machine" in first.err
    assert [line.split("  ")[-3].strip() for line in first.out.splitlines()] == ["positive", "negative", "positive"]
    again = edgec("demo", *texts, "it " * 500, "--json")
    assert again.status == 0 and not again.err
    found = again.json
    assert [t["label"] for t in found["texts"][:3]] == ["positive", "negative", "positive"]
    assert all(0.5 <= t["confidence"] <= 1 and t["ms"] > 0 for t in found["texts"]) and found["bytes"] <= 3_000_000


def test_edgec_demo_says_what_is_missing(edgec, monkeypatch, tmp_path):
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("EDGEC_CACHE_DIR", str(tmp_path / "cache"))
    assert edgec("demo", " ").status == 2
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "tvm" else find(name, *a))
    missing = edgec("demo", "fine")
    assert missing.status == 1 and "EC1002" in missing.err and "pip install 'edgec[build,lm]'" in missing.err
    monkeypatch.setattr("edgec.cli.demo.MODEL", tmp_path / "none.zip")
    assert "EC1003" in edgec("demo", "fine").err


def test_the_sensors_example_reads_motions(model, tmp_path):
    pytest.importorskip("torch")
    model("sensors")
    done = subprocess.run(
        [sys.executable, ROOT / "examples/sensors/demo.py", "--work", tmp_path, "--no-summary"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for weights in ("int8", "int4"):
        assert int(done.stdout.split(f"seed 0, {weights}: ")[1].split()[0]) >= 38
    assert "weights of 4, 4, 32 bits" in done.stdout and "two minutes: Running" in done.stdout


@pytest.mark.skipif(not os.environ.get("EDGEC_TEST_EXAMPLES"), reason="it takes a minute: make examples")
def test_the_sentiment_example_runs_from_an_empty_folder(model, tmp_path):
    pytest.importorskip("torch")
    for name in ("movie-sentiment", "minilm-weights"):
        model(name)

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    few = ["--texts", "80", "--student-epochs", "1", "--seeds", "2"]
    make = (ROOT / "examples/sentiment/make.py", "--work", tmp_path, *few)
    assert "teacher: MiniLM-L6" in run(*make)
    assert "step" not in run(*make)  # nothing is trained again
    found = [json.loads((tmp_path / f"seed{seed}/result.json").read_text()) for seed in (0, 1)]
    assert all(r["artifact_mb"] <= 3 and 0 < r["artifact_accuracy"] <= 1 and r["test_texts"] >= 80 for r in found)
    measured = json.loads(
        run(ROOT / "bench/student.py", "--work", tmp_path, "--seconds", "0.2", "--threads", "1", "--json")
    )
    assert set(measured["accuracy"]["students"]) == {"seed0", "seed1"} and measured["accuracy"]["texts"] > 2000
    assert [row["tokens"] for row in measured["latency"]] == [16, 28] and all(
        r["times_faster"] > 2 for r in measured["latency"]
    )
