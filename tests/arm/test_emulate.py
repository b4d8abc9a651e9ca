"""`verify --emulate`: artifacts of other CPUs run their own code under qemu, and compute what the source computes."""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest

if not os.environ.get("EDGEC_TEST_ARM"):
    pytest.skip("set EDGEC_TEST_ARM=1 (make test-arm) to test Arm under emulation", allow_module_level=True)

import edgec
from edgec.artifact.reader import ArtifactFile
from edgec.cli import main
from edgec.emulate import EmulatedSession, runner
from edgec.errors import EdgecError

pytestmark = pytest.mark.usefixtures("qemu")
TARGETS = (
    "raspberry-pi-4",
    "raspberry-pi-5",
    "cortex-a55",
    "android-arm64",
    "apple-m1",
    "apple-m2",
    "apple-m4",
    "apple-a17",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Products, a norm, attention-like movement, and functions of libm, with an open size."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)
    w = numpy_helper.from_array(rng.standard_normal((96, 320)).astype(np.float32), "w")
    v = numpy_helper.from_array(rng.standard_normal((320, 96)).astype(np.float32), "v")
    g = numpy_helper.from_array(rng.standard_normal(96).astype(np.float32), "g")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 96])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 96])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", "n"])
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["a"]),
        helper.make_node("Gelu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("Sin", ["c"], ["d"]),
        helper.make_node("Add", ["d", "x"], ["y"]),
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("MatMul", ["y", "t"], ["s"]),
        helper.make_node("Softmax", ["s"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y, z], [w, v, g])
    path = tmp_path_factory.mktemp("emulate") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def here(model, tmp_path_factory):
    """here(weights, bits): the session of this machine's artifact."""

    @functools.cache
    def session(weights: str, bits: float | None = None):
        path = tmp_path_factory.mktemp("here") / "here.edgec"
        edgec.build(model, weights=weights, bits=bits, out=path)
        return edgec.load(path, threads=1)

    return session


def runs_as_macos_loads_it(session: EmulatedSession, feeds: dict[str, np.ndarray]) -> None:
    """Every function of the Mach-O, under Unicorn, gives what it gave under qemu."""
    found = session.smoke(feeds)
    if session.target.link != "macho":
        assert found is None
        return
    print(f"{session.target.name}: {found.text()}")
    assert found.ok and found.functions > 0, found
    assert found.exact + found.near == found.functions and found.exact > 0, found


@pytest.mark.parametrize("weights", ["fp32", "int4"])
@pytest.mark.parametrize("target", TARGETS)
def test_same_numbers_as_this_machine(model, here, target, weights, tmp_path):
    """fp32 to rounding; int4 as this machine's kernels compute it."""
    edgec.build(model, target=target, weights=weights, out=tmp_path / "there.edgec")
    x = np.random.default_rng(1).standard_normal((7, 96)).astype(np.float32)
    want = here(weights)(x=x)
    for threads in (1, 3):
        session = EmulatedSession(tmp_path / "there.edgec", threads=threads)
        got = session(x=x)
        for name, value in want.items():
            limit = 2e-5 if weights == "fp32" else 5e-3
            assert np.abs(got[name] - value).max() <= limit * np.abs(value).max(), (name, threads)
    runs_as_macos_loads_it(session, {"x": x})


@pytest.mark.parametrize("target", ["raspberry-pi-4", "raspberry-pi-5", "apple-m2"])
def test_weights_from_a_table(model, here, target, tmp_path):
    """4.25 bits: the kernels of NEON, dotprod and i8mm, one row and many."""
    edgec.build(model, target=target, bits=4.25, out=tmp_path / "there.edgec")
    there = EmulatedSession(tmp_path / "there.edgec", threads=1)
    for rows in (1, 7):
        x = np.random.default_rng(rows).standard_normal((rows, 96)).astype(np.float32)
        want, got = here("int4", 4.25)(x=x), there(x=x)
        for name, value in want.items():
            assert np.abs(got[name] - value).max() <= 5e-3 * np.abs(value).max(), (name, rows)


def test_weights_for_sme2(model, here, tmp_path):
    """apple-m4 holds them as SME2 reads them, at any length of its vectors; other targets do not."""
    for target in ("apple-m3", "apple-m4"):
        edgec.build(model, target=target, out=tmp_path / f"{target}.edgec")
        plan = bytes(ArtifactFile(tmp_path / f"{target}.edgec", check_target=False).members["plan.bin"])
        assert (b"n32k4" in plan) == (target == "apple-m4")
    for bits in (128, 256, 512):
        there = EmulatedSession(tmp_path / "apple-m4.edgec", threads=1, vector_bits=bits)
        assert "sme2" not in there.cpu.partition("without")[2]
        for rows in (1, 7):
            x = np.random.default_rng(rows).standard_normal((rows, 96)).astype(np.float32)
            want, got = here("int4")(x=x), there(x=x)
            for name, value in want.items():
                assert np.abs(got[name] - value).max() <= 5e-3 * np.abs(value).max(), (name, rows, bits)


@pytest.mark.parametrize(("target", "unit"), [("apple-m1", "auto"), ("apple-m2", "auto"), ("apple-m2", "none")])
def test_many_rows_on_the_matrix_unit(target, unit, tmp_path):
    """AMX by trap and emulate: f16 activations are nearer to exact ones than int8 is, and threads change nothing."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(6)
    w = rng.standard_normal((1100, 160)).astype(np.float32)  # more than one stretch of K
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", 1100), ("y", 160))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:],
                              [numpy_helper.from_array(w, "w")])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    edgec.build(model, target=target, matrix_unit=unit, out=tmp_path / "there.edgec")
    edgec.build(model, out=tmp_path / "here.edgec")
    x = rng.standard_normal((70, 1100)).astype(np.float32)
    want = edgec.load(tmp_path / "here.edgec")(x=x)["y"]
    got = [EmulatedSession(tmp_path / "there.edgec", threads=n)(x=x)["y"] for n in (1, 2)]
    assert (got[0] == got[1]).all()
    error = np.abs(got[0] - want).max() / np.abs(want).max()
    # int8 activations cost some 5e-3; the same integers everywhere where AMX is not used
    assert 1e-5 < error < 2e-2 if unit == "auto" else error < 1e-5


def test_command(model, tmp_path, capsys):
    """The whole command for a Mac, with the count of instructions."""
    import json

    out = tmp_path / "m2.edgec"
    edgec.build(model, target="apple-m2", weights="fp32", out=out)
    arguments = [
        "verify",
        str(out),
        "--against",
        str(model),
        "--emulate",
        "--count",
        "--sizes",
        "1",
        "--dim",
        "n=4",
        "--json",
    ]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["emulated"]["target"] == "apple-m2"
    assert found["emulated"]["macho"]["exact"] > 0 and "functions" in found["emulated"]["macho"]["text"]
    # 4 rows by 96 x 320 x 2 products, four in an instruction at best
    assert 4 * 96 * 320 * 2 / 4 <= found["instructions"][0]["instructions"] < 5_000_000


def test_count_is_repeatable(model, tmp_path):
    edgec.build(model, target="raspberry-pi-5", out=tmp_path / "pi.edgec")
    session = EmulatedSession(tmp_path / "pi.edgec")
    x = np.ones((1, 96), np.float32)
    first, second = (session.run_counted({"x": x})[1] for _ in range(2))
    assert first > 96 * 320 * 2 / 32 and abs(first - second) <= 0.05 * first  # the heap's addresses are not the same


def test_faults(model, tmp_path, monkeypatch):
    out = tmp_path / "pi.edgec"
    edgec.build(model, target="raspberry-pi-5", out=out)
    session = EmulatedSession(out)
    with pytest.raises(EdgecError, match="EC1602"):
        session(x=np.ones((1, 96)))
    with pytest.raises(EdgecError, match="EC1601"):
        session()
    with pytest.raises(EdgecError, match="EC1603"):
        session(x=np.ones((1, 95), np.float32))
    monkeypatch.setenv("EDGEC_QEMU", "no-such-qemu")
    with pytest.raises(EdgecError, match=r"EC1801.*qemu-user"):
        runner.find_qemu("aarch64")
    monkeypatch.setenv("EDGEC_QEMU", "true")
    with pytest.raises(EdgecError, match="EC1801"):
        runner.find_qemu("aarch64")
