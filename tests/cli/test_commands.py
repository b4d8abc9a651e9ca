"""The commands on an artifact that is there: run, bench, inspect; and targets, kernels, doctor, help."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from plan_tools import WEIGHTS, scale_add_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """y = 3 x + w, z = x, for x f32[n, 4]."""
    return scale_add_artifact(tmp_path_factory.mktemp("cli"))


def test_run_on_a_literal(edgec, artifact):
    done = edgec("run", artifact, "x=[[1, 2, 3, 4]]", "--json")
    assert done.status == 0
    outputs = done.json["outputs"]
    assert outputs["y"]["values"] == [[3.0, 7.0, 11.0, 15.0]]
    assert outputs["y"]["shape"] == [1, 4] and outputs["y"]["dtype"] == "float32"


def test_run_on_files_writes_outputs(edgec, artifact, tmp_path):
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "in.npz", x=x)
    for given in ("x=x.npy", "in.npz"):
        done = edgec("run", artifact, given, "-o", "out.npz")
        assert done.status == 0, done.err
        with np.load(tmp_path / "out.npz") as outputs:
            np.testing.assert_array_equal(outputs["y"], 3 * x + WEIGHTS[:8].reshape(2, 4))
        (tmp_path / "out.npz").unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.npz", "x.npy"]


def test_run_random_is_repeatable_and_takes_dims(edgec, artifact):
    one = edgec("run", artifact, "--random", "--dim", "n=3", "--seed", 5, "--json").json
    two = edgec("run", artifact, "--random", "--dim", "n=3", "--seed", 5, "--json").json
    other = edgec("run", artifact, "--random", "--dim", "n=3", "--seed", 6, "--json").json
    assert one == two != other
    assert one["outputs"]["y"]["shape"] == [3, 4]


@pytest.mark.parametrize(
    ("args", "status", "code", "says"),
    [
        ((), 2, "EC1601", "x float32[n, 4]"),
        (("q=1",), 2, "EC1601", "'q'"),
        (("x=[1, 2]",), 2, "EC1603", "x"),
        (("x=[[1, 2, 3]]",), 2, "EC1603", "x"),
        (("x=there.npy",), 2, "EC1003", "there.npy"),
        (("x=oops",), 2, "EC1001", "oops"),
        (("x",), 2, "EC1001", "NAME=VALUE"),
        (("bad.npy.npz",), 2, "EC1003", "bad.npy.npz"),
        (("--random", "--dim", "m=3"), 2, "EC1001", "It has n"),
        (("--random", "--dim", "n=9999"), 2, "EC1001", "0..1000"),
        (("--random", "--dim", "n=1..3"), 2, "EC1001", "range"),
        (("--random", "--dim", "n=-1"), 2, "EC1001", "-1"),
        (("--random", "--threads", "0"), 2, "EC1001", "threads"),
        (("--random", "-o", "no/such/out.npz"), 2, "EC1003", "no/such"),
        (("--frobnicate",), 2, "EC1001", "--frobnicate"),
    ],
)
def test_run_refuses_with_one_message(edgec, artifact, args, status, code, says):
    done = edgec("run", artifact, *args)
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith(f"error: {code} ") and says in done.err
    assert done.err.count("\n") == 1
    again = edgec("run", artifact, *args, "--json")
    assert again.status == status
    assert again.json["error"]["code"] == code
    assert set(again.json["error"]) == {"code", "message", "where", "hint"}
    says_what_would_do = "outside of 0..1000" in done.err or "expected (n, 4)" in done.err
    assert again.json["error"]["hint"] or says_what_would_do


def test_run_refuses_another_dtype(edgec, artifact, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((1, 4), np.float64))
    done = edgec("run", artifact, "x=x.npy")
    assert done.status == 2 and "EC1602" in done.err and "f32" in done.err


@pytest.mark.parametrize("command", ["run", "bench", "inspect"])
@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "text", "flipped"])
def test_damaged_artifacts(edgec, artifact, tmp_path, command, fault):
    path = tmp_path / "bad.edgec"
    content = bytearray(artifact.read_bytes())
    if fault == "empty":
        content.clear()
    elif fault == "truncated":
        content = content[: len(content) // 2]
    elif fault == "text":
        content = b"not an artifact" * 100
    elif fault == "flipped":
        at = content.index(WEIGHTS[100:110].tobytes())
        content[at] ^= 0x10
    if fault != "missing":
        path.write_bytes(content)
    done = edgec(command, path)
    assert done.status == (2 if fault == "missing" else 1)
    assert done.err.startswith("error: EC1003" if fault == "missing" else "error: EC15")
    assert done.out == "" and done.err.count("\n") == 1


def test_an_artifact_for_another_cpu(edgec, tmp_path):
    target = {"name": "apple-m9", "triple": "riscv64-unknown-linux-gnu", "cpu": "m9", "features": []}
    path = scale_add_artifact(tmp_path, manifest={"target": target})
    done = edgec("run", path, "--random")
    assert done.status == 1 and "EC1506" in done.err and "riscv64" in done.err
    shown = edgec("inspect", path)
    assert shown.status == 0 and "apple-m9" in shown.out


def test_bench(edgec, artifact):
    done = edgec("bench", artifact, "--runs", 20, "--threads", 1, "--profile", "--json")
    assert done.status == 0
    found = done.json
    assert found["runs"] == 20 and found["threads"] == 1
    assert 0 < found["min_ms"] <= found["median_ms"] <= found["p99_ms"]
    assert found["median_ms"] == found["p50_ms"] and found["throughput_per_s"] > 0
    assert [s["kernel"] for s in found["steps"]] == ["scale", "add", "copy"]
    text = edgec("bench", artifact, "--seconds", 0.05, "--profile")
    assert text.status == 0 and "median ms" in text.out and "Mul_0" in text.out


def test_bench_needs_the_source_to_compare(edgec, artifact):
    done = edgec("bench", artifact, "--compare", "onnxruntime")
    assert done.status == 2 and "--source" in done.err


def test_inspect(edgec, artifact):
    found = edgec("inspect", artifact, "--json").json
    assert found["kind"] == "artifact" and found["bytes"] == artifact.stat().st_size
    assert [s["kernel"] for s in found["steps"]] == ["scale", "add", "copy"]
    assert set(found["members"]) >= {"plan.bin", "code.so", "weights.bin"}
    text = edgec("inspect", artifact).out
    assert "plan.bin" in text and "scale" in text


def test_targets(edgec):
    found = edgec("targets", "--json").json["targets"]
    assert found[0]["name"] == "host" and {"x86-64-v3", "aarch64-generic"} <= {t["name"] for t in found}
    assert "x86-64-v3" in edgec("targets").out
    assert edgec("targets", "x86-64-v3", "--json").json["triple"].startswith("x86_64")
    assert edgec("targets", "host").status == 0
    done = edgec("targets", "pdp-11")
    assert done.status == 2 and "EC1402" in done.err and "x86-64-v3" in done.err


def test_kernels(edgec):
    found = edgec("kernels", "--json").json
    assert any(k["available"] for k in found["kernels"]) and found["formats"]
    assert found["kernels"][0]["name"] in edgec("kernels").out
    far = edgec("kernels", "--target", "aarch64-generic", "--json").json
    assert not any(k["available"] for k in far["kernels"] if "avx2" in k["features"])


def test_doctor(edgec, monkeypatch):
    done = edgec("doctor", "--json")
    found = done.json
    assert done.status == (1 if found["problems"] else 0)
    assert found["threads"] >= 1 and found["features"]
    assert {e["name"] for e in found["emulation"]} == {"qemu-aarch64", "arm64 Linux"}
    assert all((e["path"] is None) == bool(e["missing"]) for e in found["emulation"])
    text = edgec("doctor").out
    assert all(name in text for name in ("qemu-aarch64", "arm64 Linux", "unicorn", "make test-arm"))
    monkeypatch.setattr("edgec.cli.doctor.PACKAGES", (("apache-tvm", "no_such_module", "building", "'edgec[build]'"),))
    lacking = edgec("doctor")
    assert lacking.status == 1 and "pip install 'edgec[build]'" in lacking.out


def test_help_names_every_command_and_option(edgec):
    text = edgec("--help").out
    for command in ("build", "run", "inspect", "verify", "bench", "targets", "kernels", "doctor"):
        assert command in text
        assert "--json" in edgec(command, "--help").out
    assert edgec("--version").out.strip().count(".") == 2


def test_unknown_command(edgec):
    done = edgec("frobnicate")
    assert done.status == 2 and "frobnicate" in done.err


def test_a_fault_of_edgec_is_one_message_and_debug_shows_the_traceback(artifact):
    script = (
        "import sys, edgec.cli.targets as t, edgec.targets\n"
        "edgec.targets.names = lambda: 1 / 0\n"
        "from edgec.cli import main\nsys.exit(main(sys.argv[1:]))"
    )

    def call(*args):
        return subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True)

    quiet, loud = call("targets"), call("targets", "--debug")
    assert quiet.returncode == 1 and "EC1901" in quiet.stderr and "Traceback" not in quiet.stderr
    assert loud.returncode == 1 and "Traceback" in loud.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_ends_cleanly(artifact, number):
    command = [sys.executable, "-m", "edgec.cli", "bench", str(artifact), "--seconds", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(2)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == "" and err == "Interrupted.\n"


def test_a_closed_pipe_is_no_traceback(artifact):
    command = f"{sys.executable} -m edgec.cli inspect {artifact} --json | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_json_is_all_that_stdout_has(edgec, artifact):
    for command in (("targets",), ("kernels",), ("doctor",), ("inspect", artifact), ("run", artifact, "--random")):
        json.loads(edgec(*command, "--json").out)


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("content", ["rubbish", "objects"])
def test_files_that_hold_no_arrays(edgec, mlp_artifact, tmp_path, name, content):
    """numpy's own message advises to load them as pickles."""
    path = tmp_path / name
    if content == "rubbish":
        path.write_bytes(b"rubbish")
    else:
        array = np.array([{}] * 64, object)
        np.savez(path, x=array) if name == "x.npz" else np.save(path, array, allow_pickle=True)
    done = edgec("run", mlp_artifact, f"x={path}" if name == "x.npy" else path)
    assert done.status == 2 and "EC1003" in done.err and "it holds no plain arrays" in done.err
