"""Code for every target: linked here, and in the form that its system loads."""

from __future__ import annotations

import pytest

lief = pytest.importorskip("lief")
pytest.importorskip("tvm")

from macho_tools import IMPORTS, check_dylib  # noqa: E402

from edgec import compiler, targets  # noqa: E402
from edgec.artifact.reader import ArtifactFile  # noqa: E402
from edgec.errors import EdgecError  # noqa: E402
from edgec.lower.link import link  # noqa: E402

FILES = [n for n in targets.names() if n != "host"]


@pytest.fixture(scope="module")
def model():
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 40])
    nodes = [helper.make_node("Sin", ["x"], ["s"]), helper.make_node("Softmax", ["s"], ["p"]),
             helper.make_node("Pow", ["p", "x"], ["y"])]  # fmt: skip
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)])


def code_of(model, target: str, folder) -> bytes:
    path = folder / f"{target}.edgec"
    compiler.build(model, target=target, out=path)
    return bytes(ArtifactFile(path, check_target=False).members["code.so"])


@pytest.mark.parametrize("name", FILES)
def test_code_of_every_target(model, name, tmp_path):
    target = targets.load(name)
    code = code_of(model, name, tmp_path)
    assert code == code_of(model, name, tmp_path), "the same input gives the same bytes"
    if target.link == "macho":
        check_dylib(code, target)
        return
    elf = lief.ELF.parse(list(code))
    arch = {"x86_64": lief.ELF.ARCH.X86_64, "aarch64": lief.ELF.ARCH.AARCH64}[target.arch]
    assert elf.header.machine_type == arch and elf.header.file_type == lief.ELF.Header.FILE_TYPE.DYN
    assert set(elf.libraries) == ({"libm.so", "libc.so"} if target.link == "bionic" else {"libm.so.6"})
    assert {s.name for s in elf.imported_symbols} <= IMPORTS and len(elf.exported_functions) >= 2
    if target.link == "bionic":
        loaded = [s for s in elf.segments if s.type == lief.ELF.Segment.TYPE.LOAD]
        assert loaded and all(s.alignment >= 16384 for s in loaded)


def test_artifact_of_another_cpu_is_refused(model, tmp_path):
    other = "raspberry-pi-5" if targets.host().arch == "x86_64" else "x86-64-v2"
    code_of(model, other, tmp_path)
    with pytest.raises(EdgecError, match="EC1506"):
        ArtifactFile(tmp_path / f"{other}.edgec")


def test_unknown_recipe():
    from dataclasses import replace

    with pytest.raises(EdgecError, match="EC1401"):
        link([], replace(targets.load("x86-64-v2"), link="coff"))
    with pytest.raises(EdgecError, match="EC1403"):
        link([b"no object"], targets.load("x86-64-v2"))
