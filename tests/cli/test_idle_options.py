"""Options that would change nothing: an error where the call itself tells, a note where only the model does."""

from __future__ import annotations

import numpy as np
import pytest
from lm_tools import write_folder

M, A = "M", "A"  # the model, its artifact


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (("build", M, "--weights", "fp32", "--embedding", "4"), "--embedding"),
        (("build", M, "--weights", "int8", "--embedding", "8"), "--embedding"),
        (("build", M, "--weights", "fp32", "--group", "32"), "--group"),
        (("build", M, "--weights", "fp32", "--activations", "int8"), "--activations"),
        (("build", M, "--weights", "fp32", "--calib", "x.npz"), "--calib"),
        (("build", M, "--weights", "fp32", "--calib", "x.npz", "--prune", "magnitude:50%"), "--calib"),
        (("build", M, "--weights", "fp32", "--distill", "x.npz"), "--distill"),
        (("build", M, "--next-token", "0.5"), "--next-token"),
        (("build", M, "--onnx", "o.onnx", "--stop-after", "rewrite"), "--onnx"),
        (("build", M, "--max-loss", "cosine=0.9", "--no-check"), "--max-loss"),
        (("build", M, "--max-loss", "cosine=0.9", "--stop-after", "lower"), "--max-loss"),
        (("build", M, "--eval", "x.npz", "--no-check"), "--eval"),
        (("build", M, "--eval", "x.npz", "--stop-after", "import"), "--eval"),
        (("build", M, "--dim", "batch=0"), "--dim batch=0"),
        (("build", M, "--dim", "batch=0..0"), "--dim batch=0"),
        (("run", A, "x=1", "--dim", "batch=3"), "--dim"),
        (("run", A, "x=1", "--seed", "3"), "--seed"),
        (("bench", A, "--source", M), "--source"),
        (("bench", A, "--runs", "5", "--seconds", "1"), "--seconds"),
        (("bench", A, "--prompt-tokens", "5"), "--prompt-tokens"),
        (("bench", A, "--decode-tokens", "64"), "--decode-tokens"),
        (("bench", A, "--context", "5"), "--context"),
        (("bench", A, "--max-context", "5"), "--max-context"),
        (("verify", A, "--against", M, "--const", "q=1"), "--const q"),
        (("verify", A, "--against", M, "--const", "q=1", "--by", "reference"), "q"),
        (("report", A, "--no-measure", "--threads", "2"), "--threads"),
        (("report", A, "--no-measure", "--dim", "batch=2", "--against", M), "--dim"),
        (("generate", A, "x", "--top-k", "5"), "--top-k 5"),
        (("generate", A, "x", "--temperature", "0", "--min-p", "0.1"), "--min-p 0.1"),
        (("distill", M, M, "--data", "x.npz", "-o", "o.onnx", "--alpha", "0.5"), "--alpha"),
        (("distill", M, M, "--data", "x.npz", "-o", "o.onnx", "--steps", "2", "--epochs", "3"), "--epochs"),
        (("distill", M, M, "--data", "x.npz", "-o", "o.onnx", "--weights", "fp32", "--group", "64"), "--group"),
        (("distill", M, M, "--data", "x.npz", "-o", "o.onnx", "--length", "64"), "--length"),
        (("distill", M, M, "--data", "x.npz", "-o", "o.onnx", "--tokenizer", "."), "--tokenizer"),
        (
            ("distill", M, M, "--data", "x.npz", "-o", "o.onnx", "--loss", "y=mse", "--temperature", "2"),
            "--temperature",
        ),
    ],
    ids=lambda value: None if isinstance(value, tuple) else value,
)
def test_a_call_that_contradicts_itself_is_refused(edgec, mlp_onnx, mlp_artifact, tmp_path, call, option):
    if call[0] == "distill":
        pytest.importorskip("torch")
    np.savez(tmp_path / "x.npz", x=np.zeros((8, 64), np.float32))
    argv = [{M: mlp_onnx, A: mlp_artifact}.get(a, a) for a in call]
    found = edgec(*argv, "--json")
    assert found.status == 2, found
    error = found.json["error"]
    assert error["code"] == "EC1001" and option in f"{error['where']} {error['message']}" and error["hint"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_what_the_model_leaves_idle_is_noted(edgec, mlp_onnx, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32))
    call = ["build", mlp_onnx, "-o", "a.edgec", "--stop-after", "quantize", "--json"]
    assert edgec(*call, "--calib", "x.npz", "--group", 64).json["notes"] == []
    notes = edgec(*call, "--kv-cache", "int8", "--max-context", 10, "--embedding", 8).json["notes"]
    assert [note.split(" nothing: ")[0] for note in notes] == [
        "--kv-cache int8 and --max-context 10 change",
        "--embedding 8 changes",
    ]
    assert "note: --kv-cache int8 changes nothing" in edgec("build", mlp_onnx, "--kv-cache", "int8", "--no-check").out


def test_a_model_without_products_says_what_it_cannot_use(edgec, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "relu.onnx")
    np.savez("x.npz", x=np.ones((8, 8), np.float32))
    call = ["build", "relu.onnx", "--stop-after", "quantize", "--json"]
    (note,) = edgec(*call, "--weights", "int4", "--group", 64, "--calib", "x.npz").json["notes"]
    assert note.startswith("--weights int4, --group 64 and --calib FILE change nothing")
    assert edgec(*call[:-1]).status == 0 and edgec(*call).json["notes"] == []


def test_the_bits_of_a_language_model_are_chosen(edgec, mlp_onnx, tmp_path):
    """4.25 where products take them as fast and nothing else is asked for."""
    folder = write_folder(tmp_path / "lm")

    def chosen(model, *options) -> float | None:
        return edgec("build", model, "--stop-after", "rewrite", "--json", *options).json["options"]["bits"]

    fast = ("--target", "x86-64-v3")
    assert chosen(folder, *fast) == chosen(folder, *fast, "--weights", "int4") == 4.25
    for more in (["--group", 32], ["--weights", "int8"], ["--weights", "fp32"]):
        assert chosen(folder, *fast, *more) is None
    assert chosen(mlp_onnx, *fast) is None and chosen(folder, *fast, "--bits", 6.25) == 6.25
    for target in ("x86-64-v2", "raspberry-pi-5", "apple-m1"):
        assert chosen(folder, "--target", target) is None
    assert edgec("build", folder, "-o", "a.edgec", *fast).status == 0
    assert edgec("inspect", "a.edgec", "--json").json["options"]["bits"] == 4.25


def test_a_decoder_has_use_for_its_cache_only_if_it_has_one(edgec, tmp_path):
    folder = write_folder(tmp_path / "lm")
    call = ["build", folder, "--stop-after", "rewrite", "--json", "--kv-cache"]
    for kind in ("fp32", "int8", "exposed"):
        assert not any("changes nothing" in note for note in edgec(*call, kind, "--max-context", 64).json["notes"])
