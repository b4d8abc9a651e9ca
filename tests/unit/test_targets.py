"""Targets: their files, inheritance, and what is refused."""

from __future__ import annotations

import pytest

from edgec import targets
from edgec.errors import EdgecError


def test_files_load():
    """Every file makes a target, and a child keeps what it does not change."""
    loaded = {name: targets.load(name) for name in targets.names() if name != "host"}
    assert {"x86-64-v2", "x86-64-v3", "aarch64-generic"} <= loaded.keys()
    assert loaded["x86-64-v3"].triple == loaded["x86-64-v2"].triple
    assert loaded["x86-64-v3"].vector_bits == 256 and loaded["x86-64-v2"].vector_bits == 128
    assert loaded["aarch64-generic"].arch == "aarch64"


def test_host_is_one_of_them():
    host = targets.host()
    assert host.name == "host" and host.cores >= 1
    assert host.cpu in {targets.load(n).cpu for n in targets.names() if n != "host"}


def test_what_no_emulator_has_is_said_before_one_is_looked_for(monkeypatch):
    from edgec.emulate import runner

    monkeypatch.setattr(runner, "find_qemu", lambda arch: f"qemu-{arch}")
    assert runner.command(targets.load("x86-64-v3"))[0][0] == "qemu-x86_64"
    with pytest.raises(EdgecError, match=r"EC1801.*x86-64-vnni needs AVX-512.*--target x86-64-v3"):
        runner.command(targets.load("x86-64-vnni"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('inherits = "x86-64-v2"\nwidth = 3', "unknown key 'width'"),
        ('inherits = "x86-64-v2"\nvector_bits = "wide"', "must be of type int"),
        ('inherits = "bad"', "inherits from itself"),
        ('cpu = "generic"', "needs 'triple'"),
        ("cpu = ", "bad.toml"),
        ('inherits = "x86-64-v2"\nclock_ghz = 3', "must be of type float"),
        ('inherits = "x86-64-v2"\ncores = -1', "no such figure"),
        ('inherits = "x86-64-v2"\nclock_ghz = inf', "no such figure"),
        ('inherits = "x86-64-v2"\nmatrix_unit = "amx2"', "one of none, amx, sme2"),
        ('inherits = "x86-64-v2"\nlink = "coff"', "one of elf, bionic, macho"),
        ('inherits = "nothing"', "no target 'nothing'"),
        ("inherits = 3", "inherits must be of type str"),
        ('inherits = "x86-64-v2"\nfeatures = [1]', "features is a list of names"),
        ('inherits = "x86-64-v2"\nvector_bits = 100', "vector_bits is one of 128, 256"),
        ('inherits = "x86-64-v2"\nrequires = ["sse9"]', "no loader can detect: sse9"),
        ('triple = "riscv64-linux-gnu"\ncpu = "generic-rv64"', "is of riscv64, the runtime of x86_64 and aarch64"),
    ],
)
def test_faults_are_named(tmp_path, monkeypatch, text, part):
    for name in ("x86-64-v2",):
        (tmp_path / f"{name}.toml").write_text((targets.folder() / f"{name}.toml").read_text())
    (tmp_path / "bad.toml").write_text(text)
    monkeypatch.setattr(targets, "folder", lambda: tmp_path)
    with pytest.raises(EdgecError, match="EC1402") as caught:
        targets.load("bad")
    assert part in str(caught.value)


@pytest.mark.parametrize("name", ["none", "../targets/x86-64-v2", ""])
def test_unknown_target(name):
    with pytest.raises(EdgecError, match="there is no target"):
        targets.load(name)


FILES = [n for n in targets.names() if n != "host"]


@pytest.mark.parametrize(
    ("change", "part"),
    [({"cpu": "cortex-a99"}, "no CPU 'cortex-a99'"), ({"triple": "aarch65-linux-gnu"}, "no CPU"),
     ({"features": ("+warp",)}, "no feature '\\+warp'"), ({"features": ("dotprod",)}, "no feature 'dotprod'")],
)  # fmt: skip
def test_what_llvm_does_not_know_is_an_error(change, part):
    """LLVM itself would warn and compile for something else."""
    pytest.importorskip("tvm")
    from dataclasses import replace

    from edgec.lower.tvm_backend import check_cpu

    with pytest.raises(EdgecError, match=f"EC1402 target 'raspberry-pi-5': LLVM knows {part}"):
        check_cpu(replace(targets.load("raspberry-pi-5"), **change))


def test_a_name_that_is_nearly_right():
    with pytest.raises(EdgecError, match=r"Did you mean raspberry-pi-5 or raspberry-pi-4\?"):
        targets.load("rasberry-pi5")


@pytest.mark.parametrize("name", FILES)
def test_features_are_those_of_llvm(name):
    """What the compiled code may use is what the file requires, by LLVM's knowledge of the CPU."""
    codegen = pytest.importorskip("tvm.target.codegen")
    import tvm

    from edgec.lower.tvm_backend import tvm_target

    target = targets.load(name)
    described = tvm.target.Target(tvm_target(target))
    assert codegen.llvm_is_valid_cpu(target.cpu, target.triple)
    has = {str(f) for f in codegen.llvm_get_cpu_features(described)}
    assert has >= targets.DETECTED & set(target.requires), f"{target.cpu} lacks {set(target.requires) - has}"
    assert set(target.requires) == has & targets.DETECTED
    assert target.vector_bits <= 8 * codegen.llvm_get_vector_width(described)


@pytest.mark.parametrize("name", FILES)
def test_figures_for_estimates(name):
    """Every file has the figures that an estimate needs, of a size that a device can have."""
    t = targets.load(name)
    assert t.description and 1 <= t.cores <= 256 and 0.5 <= t.clock_ghz <= 6 and 1 <= t.bandwidth_gbs <= 1000
    assert 4 <= t.fp32_macs <= t.int8_macs <= 4096 and 0.5 <= t.watts <= 500
    assert (t.matrix_unit != "none") <= (t.link == "macho")


@pytest.mark.parametrize(
    ("flags", "cpu", "requires"),
    [
        ({"neon"}, "generic", ("neon",)),
        ({"neon", "dotprod", "i8mm", "sve"}, "generic", ("neon", "dotprod", "i8mm")),
    ],
)
def test_arm_host(monkeypatch, flags, cpu, requires):
    from edgec import _core

    monkeypatch.setattr(targets.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(targets.sys, "platform", "linux")
    monkeypatch.setattr(_core, "cpu_features", lambda: sorted(flags))
    host = targets.host()
    assert host.cpu == cpu and host.requires == requires and host.link == "elf"


@pytest.mark.parametrize(
    ("name", "unit", "layouts"),
    [
        ("apple-m1", "auto", ("n32k1", "nk")),
        ("apple-m3", "amx", ("n32k1", "nk")),
        ("apple-m2", "none", ()),
        ("apple-m4", "sme", ("n32k4", "nk")),
        ("apple-m4", "none", ()),
        ("apple-m1", "accelerate", ("nk",)),
        ("apple-a17", "auto", ()),
        ("raspberry-pi-5", "none", ()),
    ],
)
def test_matrix_unit(name, unit, layouts):
    target = targets.with_unit(targets.load(name), unit)
    assert target.layouts == layouts
    assert ("amx" in target.kernel_features) == ("n32k1" in layouts)
    assert ("accelerate" in target.kernel_features) == ("nk" in layouts)
    assert ("amx2" in target.kernel_features) == (name == "apple-m3")


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("apple-m2", "sme"),
        ("apple-m4", "amx"),
        ("x86-64-v3", "amx"),
        ("apple-a17", "amx"),
        ("apple-m1", "gpu"),
        ("apple-a17", "accelerate"),
    ],
)
def test_a_matrix_unit_that_is_not_there(name, unit):
    with pytest.raises(EdgecError, match="EC1001 --matrix-unit"):
        targets.with_unit(targets.load(name), unit)


@pytest.mark.parametrize(("extra", "name"), [((), "apple-m1"), (("i8mm", "bf16"), "apple-m2")])
def test_apple_host(monkeypatch, extra, name):
    from edgec import _core

    monkeypatch.setattr(targets.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(targets.sys, "platform", "darwin")
    monkeypatch.setattr(_core, "cpu_features", lambda: ["neon", "dotprod", "fullfp16", *extra])
    assert targets.host().cpu == name


def test_layouts_of_packed_weights_follow_the_matrix_unit():
    from dataclasses import replace

    from edgec import kernels

    known = {f.layout for f in kernels.formats().values()}
    for name in FILES:
        assert set(targets.load(name).packed) <= known, name
    m4 = targets.load("apple-m4")
    assert m4.layouts == ("n32k4", "nk") and replace(m4, matrix_unit="none").layouts == ()
    assert kernels.format_name(4, 64, False, layouts=m4.layouts) == "u4g64n32k4"
    assert kernels.format_name(8, 0, layouts=m4.layouts) == "s8n16k4"  # there is no other
    assert kernels.format_name(4, 32) == "s4g32n16k4" and kernels.format_name(32) == "f32n16"
    assert kernels.format_name(32, layouts=m4.layouts) == "f32nk"
