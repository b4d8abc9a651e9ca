"""build and verify: what they print, refuse, write and leave behind."""

from __future__ import annotations

import json
import shutil
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgec.cli.compare import errors


def save(path, nodes, inputs, outputs, tensors=(), opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(tensors))
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def f32(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def test_build_reports(edgec, mlp_onnx, tmp_path):
    done = edgec("build", mlp_onnx, "-o", "m.edgec", "--json")
    assert done.status == 0, done.err
    found = done.json
    assert found["artifact_bytes"] == (tmp_path / "m.edgec").stat().st_size
    assert found["source_bytes"] == mlp_onnx.stat().st_size
    assert 4 < found["weight_bits"] < 6 and found["tuned_share"] == 1.0 and found["macs"] == 64 * 128 + 128 * 32
    assert 0 < found["arena_bytes"] <= found["values_bytes"]
    assert 0 < found["check"]["outputs"]["y"]["relative"] < 0.2
    assert found["check"]["outputs"]["y"]["cosine"] > 0.98
    assert {p.name for p in tmp_path.iterdir()} == {"m.edgec"}


def test_rotations_are_reported(edgec, mlp_onnx, tmp_path):
    found = {}
    for rotate in ("auto", "none"):
        done = edgec("build", mlp_onnx, "-o", "m.edgec", "--weights", "int8", "--rotate", rotate, "--json")
        assert done.status == 0, done.err
        found[rotate] = done.json
        with zipfile.ZipFile(tmp_path / "m.edgec") as artifact:
            report = json.loads(artifact.read("manifest.json"))["report"]
        assert report.get("rotated", {}) == done.json["rotated"]
    assert "rotated    2 inputs" in edgec("build", mlp_onnx, "-o", "m.edgec", "--weights", "int8").out
    assert found["auto"]["rotated"] == {"inputs": 2} and found["none"]["rotated"] == {}
    assert found["auto"]["options"]["rotate"] == "auto" and found["auto"]["options"]["group"] == 128
    errors = [f["check"]["outputs"]["y"]["snr_db"] for f in found.values()]
    assert errors[0] > 30 and errors[0] > errors[1] - 2
    wrong = edgec("build", mlp_onnx, "-o", "w.edgec", "--rotate", "values", "--json")
    assert (
        wrong.status == 2
        and "keys, down, inputs" in wrong.json["error"]["hint"]
        and not (tmp_path / "w.edgec").exists()
    )


def test_weights_of_4_25_bits(edgec, tmp_path):
    rng = np.random.default_rng(0)
    w = [numpy_helper.from_array(rng.standard_normal((512, 512)).astype(np.float32), n) for n in "ab"]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    save(tmp_path / "m.onnx", nodes, [f32("x", ["n", 512])], [f32("y", ["n", 512])], w)
    bits = {}
    for extra in ([], ["--bits", "4.25"]):
        done = edgec("build", "m.onnx", "-o", "m.edgec", "--target", "x86-64-v3", "--json", *extra)
        assert done.status == 0, done.err
        bits[len(extra)] = done.json["weight_bits"]
    assert 4.25 < bits[2] < 4.3 < 4.5 <= bits[0]
    assert edgec("build", "m.onnx", "-o", "m2.edgec", "--target", "apple-m2", "--bits", "4.25").status == 0
    for wrong in (["--bits", "3"], ["--bits", "5"], ["--bits", "4.25", "--group", "64"]):
        assert edgec("build", "m.onnx", *wrong).status == 2


def test_calibrated_weights_are_in_the_report(edgec, mlp_onnx, tmp_path):
    name = onnx.load(mlp_onnx).graph.input[0].name
    x = np.random.default_rng(0).standard_normal((600, 64)).astype(np.float32)
    np.savez(tmp_path / "c.npz", **{name: x})
    done = edgec("build", mlp_onnx, "-o", "m.edgec", "--calib", "c.npz", "--json")
    assert done.status == 0, done.err
    assert done.json["calibration"]["samples"] == 256 and done.json["check"]["inputs"] == "calibration"
    assert all(w["output_snr_db"] > 15 for w in done.json["weights"])
    np.savez(tmp_path / "c.npz", **{name: x[:, 1:]})
    wrong = edgec("build", mlp_onnx, "-o", "w.edgec", "--calib", "c.npz", "--json")
    assert wrong.status == 1 and wrong.json["error"]["code"] == "EC1302" and not (tmp_path / "w.edgec").exists()


def test_build_shows_phases_and_a_summary(edgec, mlp_onnx, tmp_path):
    done = edgec("build", mlp_onnx)
    assert done.status == 0 and (tmp_path / "mlp.edgec").exists()
    assert [line.split("] ")[1] for line in done.err.splitlines()][:2] == ["import", "rewrite"]
    for word in ("size", "weights", "tuned", "memory", "error", "time"):
        assert f"\n{word}" in done.out


def test_same_inputs_give_the_same_bytes(edgec, mlp_onnx, tmp_path):
    for name in ("a", "b"):
        assert edgec("build", mlp_onnx, "-o", name, "--no-check").status == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_folder_stands_for_its_model(edgec, mlp_onnx, tmp_path):
    (tmp_path / "classifier").mkdir()
    shutil.copy(mlp_onnx, tmp_path / "classifier/model.onnx")
    assert edgec("build", "classifier", "--no-check").status == 0
    assert (tmp_path / "classifier.edgec").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    done = edgec("build", empty)
    assert done.status == 2 and "model.onnx" in done.err


def test_phases_can_be_dumped(edgec, mlp_onnx, tmp_path):
    done = edgec("build", mlp_onnx, "--stop-after", "rewrite", "--dump-ir", "ir")
    assert done.status == 0 and not (tmp_path / "mlp.edgec").exists()
    dumped = sorted(p.name for p in (tmp_path / "ir").iterdir())
    assert dumped and dumped[0].startswith("00-import")
    assert (
        "linear" in (tmp_path / "ir" / dumped[-1]).read_text() or "matmul" in (tmp_path / "ir" / dumped[-1]).read_text()
    )


def test_dims_fixed_and_bounded(edgec, mlp_onnx):
    assert edgec("build", mlp_onnx, "-o", "one.edgec", "--dim", "batch=1", "--weights", "fp32").status == 0
    shapes = edgec("inspect", "one.edgec", "--json").json["inputs"][0]["shape"]
    assert list(map(str, shapes)) == ["1", "64"]
    assert edgec("run", "one.edgec", "--random").status == 0
    assert edgec("build", mlp_onnx, "-o", "few.edgec", "--dim", "batch=2..8", "--weights", "fp32").status == 0
    assert edgec("run", "few.edgec", "--random", "--dim", "batch=8").status == 0
    assert edgec("run", "few.edgec", "--random", "--dim", "batch=9").status == 2
    checked = edgec("verify", "few.edgec", "--against", mlp_onnx, "--json").json
    assert checked["ok"] and all(2 <= r["dims"]["batch"] <= 8 for r in checked["results"])


def test_const_takes_an_input_away(edgec, tmp_path):
    nodes = [helper.make_node("Add", ["x", "c"], ["y"], name="add")]
    model = save(tmp_path / "add.onnx", nodes, [f32("x", ["n"]), f32("c", [])], [f32("y", ["n"])])
    assert edgec("build", model, "-o", "m.edgec", "--const", "c=2.5").status == 0
    assert [p["name"] for p in edgec("inspect", "m.edgec", "--json").json["inputs"]] == ["x"]
    assert edgec("run", "m.edgec", "x=[1, 2]", "--json").json["outputs"]["y"]["values"] == [3.5, 4.5]
    assert edgec("verify", "m.edgec", "--against", model, "--const", "c=2.5").status == 0


@pytest.mark.parametrize(
    ("args", "status", "code", "says"),
    [
        (("nope.onnx",), 2, "EC1003", "nope.onnx"),
        (("M", "--target", "aple-m2"), 2, "EC1402", "aple-m2"),
        (("M", "--target", "x86-64-v9"), 2, "EC1402", "x86-64-v"),
        (("M", "--weights", "int3"), 2, "EC1001", "int3"),
        (("M", "--group", "7"), 2, "EC1001", "7"),
        (("M", "--activations", "fp32"), 2, "EC1001", "no kernel"),
        (("M", "--activations", "fp32", "--weights", "int8"), 2, "EC1001", "int8"),
        (("M", "--group", "0"), 2, "EC1001", "0"),
        (("M", "--dim", "bach=1"), 2, "EC1001", "batch"),
        (("M", "--dim", "batch"), 2, "EC1001", "NAME=VALUE"),
        (("M", "--dim", "batch=5..2"), 2, "EC1001", "empty"),
        (("M", "--dim", "batch=-3"), 2, "EC1001", "-3"),
        (("M", "--const", "q=1"), 2, "EC1001", "q"),
        (("M", "--calib", "nope.npz"), 2, "EC1003", "nope.npz"),
        (("M", "--stop-after", "lunch"), 2, "EC1001", "import"),
        (("M", "-o", "no/such/folder/m.edgec"), 2, "EC1003", "folder"),
        (("M", "-o", "."), 2, "EC1003", "folder"),
        (("M", "another.onnx"), 2, "EC1001", "another"),
        ((), 2, "EC1001", "MODEL"),
    ],
)
def test_wrong_calls(edgec, mlp_onnx, tmp_path, args, status, code, says):
    done = edgec("build", *(mlp_onnx if a == "M" else a for a in args))
    assert done.status == status
    message = done.err.splitlines()[-1]
    assert message.startswith(f"error: {code} ") and says in message
    assert not list(tmp_path.iterdir())


def broken(kind: str, path, good) -> None:
    content = good.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is no model")
    elif kind == "unsupported":
        nodes = [
            helper.make_node("Frobnicate", ["x"], ["a"], name="odd_one", domain="nobody"),
            helper.make_node("Bamboozle", ["a"], ["y"], name="odd_two", domain="nobody"),
        ]
        graph = helper.make_graph(nodes, "g", [f32("x", ["n"])], [f32("y", ["n"])])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
        onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    elif kind == "shapes":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="wrong_matmul")]
        w = numpy_helper.from_array(np.zeros((3, 4), np.float32), "w")
        save(path, nodes, [f32("x", [2, 5])], [f32("y", [2, 4])], [w])


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", ""),
        ("empty", "empty"),
        ("text", ""),
        ("unsupported", "Frobnicate"),
        ("unsupported", "odd_two"),
        ("shapes", "wrong_matmul"),
    ],
)
def test_bad_models_leave_nothing_and_harm_nothing(edgec, mlp_onnx, tmp_path, kind, says):
    broken(kind, tmp_path / "bad.onnx", mlp_onnx)
    (tmp_path / "out.edgec").write_bytes(b"what was here before")
    done = edgec("build", "bad.onnx", "-o", "out.edgec")
    assert done.status == 1
    assert "\nerror: EC1" in done.err and says in done.err
    assert (tmp_path / "out.edgec").read_bytes() == b"what was here before"
    assert {p.name for p in tmp_path.iterdir()} == {"bad.onnx", "out.edgec"}
    assert edgec("build", "bad.onnx", "--json").json["error"]["code"].startswith("EC1")
    assert edgec("inspect", "bad.onnx").status == 1


def test_files_of_another_kind_are_named(edgec, mlp_onnx, mlp_artifact, tmp_path):
    (tmp_path / "model.pt").write_text("hello")
    (tmp_path / "odd.jsonl").write_text('{"texxt": "a"}\n')
    for call, says in (
        (("build", "model.pt"), "Export it to ONNX"),
        (("build", mlp_artifact, "-o", "x.edgec"), "It is built already: edgec inspect"),
        (("run", mlp_onnx, "--random"), "it is a model, no artifact. Make one of it: edgec build"),
        (("bench", mlp_onnx), "edgec build"),
        (("build", mlp_onnx, "-o", "x.edgec", "--calib", "odd.jsonl"), "no input of the model"),
    ):
        done = edgec(*call)
        assert done.status == 1 and says in done.err.splitlines()[-1], done.err
    assert {p.name for p in tmp_path.iterdir()} == {"model.pt", "odd.jsonl"}


def test_a_successful_build_replaces_what_was_there(edgec, mlp_onnx, tmp_path):
    (tmp_path / "out.edgec").write_bytes(b"old")
    assert edgec("build", mlp_onnx, "-o", "out.edgec", "--no-check").status == 0
    assert edgec("run", "out.edgec", "--random").status == 0


def test_verify_holds(edgec, mlp_onnx, mlp_artifact):
    for by in ("onnxruntime", "reference"):
        done = edgec("verify", mlp_artifact, "--against", mlp_onnx, "--by", by, "--json")
        assert done.status == 0, done.err
        found = done.json
        assert found["ok"] and len({r["dims"]["batch"] for r in found["results"]}) == 4
    assert "holds" in edgec("verify", mlp_artifact, "--against", mlp_onnx).out


def test_verify_does_not_hold_for_another_models_weights(edgec, mlp_artifact, make_mlp, tmp_path):
    other = make_mlp(tmp_path / "other.onnx", seed=1)
    done = edgec("verify", mlp_artifact, "--against", other, "--layers", "--json")
    assert done.status == 1 and not done.json["ok"]
    text = edgec("verify", mlp_artifact, "--against", other)
    assert text.status == 1 and "NOT" in text.out
    # the layers are built from the model that is given, so they do agree with it
    assert done.json["layers"]["first"] is None


def test_verify_tolerance_decides(edgec, mlp_onnx, mlp_artifact):
    strict = edgec("verify", mlp_artifact, "--against", mlp_onnx, "--tolerance", "1e-9")
    assert strict.status == 1
    assert edgec("verify", mlp_artifact, "--against", mlp_onnx, "--tolerance", "-1").status == 2


def test_verify_layers_names_the_first_op_that_departs(edgec, mlp_onnx, mlp_artifact):
    done = edgec("verify", mlp_artifact, "--against", mlp_onnx, "--layers", "--tolerance", "1e-9", "--json")
    found = done.json["layers"]
    assert done.status == 1 and [r["node"] for r in found["layers"]] == ["relu", "second"]
    assert found["first"]["node"] == "relu"


def test_verify_refuses_a_model_with_other_outputs(edgec, mlp_artifact, tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["other"], name="relu")]
    model = save(tmp_path / "relu.onnx", nodes, [f32("x", ["n", 64])], [f32("other", ["n", 64])])
    done = edgec("verify", mlp_artifact, "--against", model)
    assert done.status == 2 and "other" in done.err


def test_bench_compares(edgec, mlp_artifact):
    found = edgec("bench", mlp_artifact, "--compare", "onnxruntime", "--runs", 10, "--json").json
    assert found["runs"] == found["onnxruntime"]["runs"] == 10
    ratio = found["onnxruntime"]["median_ms"] / found["median_ms"]
    assert found["speedup"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    "wrong", [("--runs", "0"), ("--seconds", "-1"), ("--seconds", "nan"), ("--source", "relu.onnx")]
)
def test_bench_refuses(edgec, mlp_artifact, tmp_path, wrong):
    nodes = [helper.make_node("Relu", ["other"], ["y"])]
    save(tmp_path / "relu.onnx", nodes, [f32("other", ["n", 64])], [f32("y", ["n", 64])])
    more = ("--compare", "onnxruntime", "--runs", "3") if wrong[0] == "--source" else ()
    error = edgec("bench", mlp_artifact, *wrong, *more, "--json").json["error"]
    assert error["code"] == "EC1001" and wrong[0] in error["where"] and error["hint"]


def test_inspect_onnx(edgec, mlp_onnx):
    found = edgec("inspect", mlp_onnx, "--json").json
    assert found["ops"]["matmul"] == 2
    assert {(r["origin"], r["bits"], r["bytes"]) for r in found["layers"]} == {
        ("first", 32, 64 * 128 * 4),
        ("second", 32, 128 * 32 * 4),
    }


def test_random_inputs_stay_inside_tables(edgec, tmp_path):
    table = numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(5, 4), "t")
    nodes = [
        helper.make_node("Gather", ["t", "ids"], ["rows"], name="rows"),
        helper.make_node("ReduceSum", ["rows"], ["y"], name="sum", keepdims=0),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    model = save(tmp_path / "table.onnx", nodes, [ids], [f32("y", [])], [table])
    assert edgec("build", model, "-o", "t.edgec", "--weights", "fp32").status == 0
    assert edgec("inspect", "t.edgec", "--json").json["inputs"][0]["range"] == [0, 4]
    assert edgec("verify", "t.edgec", "--against", model, "--dim", "n=500").status == 0


@pytest.mark.parametrize(
    ("got", "want", "relative"),
    [
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([1.0, np.nan], [1.0, np.nan], 0.0),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([1.0, np.inf], [1.0, -np.inf], np.inf),
        ([1.0, np.nan], [1.0, 2.0], np.inf),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1.0], [0.0, 0.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_errors_of_outputs(got, want, relative):
    assert errors(np.array(got), np.array(want))["relative"] == relative


def test_errors_of_unlike_outputs():
    assert errors(np.zeros(3), np.zeros(4))["relative"] == np.inf
    assert "float32" in errors(np.zeros(3, np.float32), np.zeros(3))["reason"]


def test_json_of_a_failed_build_is_one_object(edgec):
    done = edgec("build", "nope.onnx", "--json")
    assert json.loads(done.out)["error"]["code"] == "EC1003" and done.err.startswith("error: EC1003")
