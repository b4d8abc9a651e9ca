"""Objects and libraries: shared functions, the same bytes each time, other CPUs, no unexpected symbols."""

from __future__ import annotations

import platform
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("tvm")
from edgec.ir.dims import symbol
from edgec.ir.node import make
from edgec.ir.types import TensorType
from edgec.lower.link import link
from edgec.lower.tvm_backend import TvmBackend
from edgec.targets import load, names
from edgec.testing.groups import CompiledGroups, group_of, reference


def leaf(name, shape, dtype="f32"):
    return make("input", name=name, type=TensorType(dtype, shape))


def some_groups():
    n = symbol("n")
    x, y = leaf("x", (n, 24)), leaf("y", (24,))
    outputs = [make("gelu", make("add", x, y)), make("transpose", x, perm=(1, 0)), make("sin", x), make("fmod", x, y)]
    rows = [make("softmax", x, axis=1), make("layer_norm", x, y, y, axis=1, eps=1e-5), make("argmax", x, axis=0)]
    half = make("tanh", make("cast", leaf("h", (n, 9), "f16"), dtype="f32"))
    return [group_of("map", [o]) for o in (*outputs, half)] + [group_of("rows", [o]) for o in rows]


def test_equal_groups_share_a_function():
    """Names of inputs and of symbols do not matter; shapes, attributes and which operand is which do."""

    def group(a, b, dim, swap=False):
        x, y = leaf(a, (symbol(dim), 8)), leaf(b, (8,))
        return group_of("map", [make("sub", y, x) if swap else make("sub", x, y)]), x

    backend = TvmBackend(load("x86-64-v2"))
    first, x = group("a", "b", "n")
    one, two = backend.add(first), backend.add(group("p", "q", "m")[0])
    assert one.symbol == two.symbol
    assert one.args != two.args and ("value", x) in one.args
    assert one.extent == 8 * symbol("n") or one.extent == symbol("n")
    assert two.extent != one.extent
    assert backend.add(group("a", "b", "n", swap=True)[0]).symbol != one.symbol


def test_groups_that_come_to_the_same_code_share_it():
    """Shapes that collapse into one loop differ in the extent alone."""
    backend = TvmBackend(load("x86-64-v2"))
    one = backend.add(group_of("map", [make("tanh", leaf("x", (4, 6)))]))
    two = backend.add(group_of("map", [make("tanh", leaf("y", (symbol("n"), 3, 5)))]))
    assert one.symbol == two.symbol and one.extent == 24 and two.extent == 15 * symbol("n")


@pytest.mark.parametrize("name", [n for n in names() if n != "host"])
def test_every_target_compiles_to_the_same_bytes_twice(name):
    target = load(name)
    made = []
    for _ in range(2):
        backend = TvmBackend(target)
        several = [group_of("map", [make("add", leaf("x", (9, k)), leaf("y", (k,)))]) for k in range(20, 30)]
        for g in (*some_groups(), *several):  # enough to be compiled in parts
            backend.add(g)
        made.append(link(backend.compile(), target))
    assert made[0] == made[1]
    assert made[0][:4] == (b"\xcf\xfa\xed\xfe" if target.link == "macho" else b"\x7fELF")


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_only_libm_is_needed(tmp_path):
    backend = TvmBackend(load("x86-64-v3"))
    for g in some_groups():
        backend.add(g)
    path = tmp_path / "code.so"
    path.write_bytes(link(backend.compile(), load("x86-64-v3")))
    shown = subprocess.run(["readelf", "-Wd", "--dyn-syms", path], capture_output=True, text=True, check=True).stdout
    needed = [line for line in shown.splitlines() if "(NEEDED)" in line]
    assert len(needed) == 1 and "libm.so.6" in needed[0]
    undefined = {
        line.split()[7].split("@")[0] for line in shown.splitlines() if " UND " in line and len(line.split()) > 7
    }
    assert undefined <= {"sinf", "fmodf", "memset", "memcpy", "memmove"}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86-64")
def test_the_baseline_target_computes_the_same():
    """x86-64-v2: vectors of 128 bits, no fused multiply-add, no f16 conversions."""
    rng = np.random.default_rng(0)
    compiled = CompiledGroups(load("x86-64-v2"))
    groups = some_groups()
    for g in groups:
        compiled.add(g)
    for i, g in enumerate(groups):
        feeds = {}
        for x in g.inputs:
            shape = tuple(13 if not isinstance(d, int) else d for d in x.shape)
            feeds[x] = rng.standard_normal(shape).astype("f2" if x.dtype == "f16" else "f4")
        (actual,) = compiled.call(i, feeds, {"n": 13}, [0.4])
        (expected,) = reference(g.outputs, feeds, {"n": 13})
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
