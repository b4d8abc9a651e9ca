"""The Mach-O of an artifact as macOS loads it, its functions called under Unicorn: what it binds, rebases and may touch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgec import targets
from edgec.emulate import macho, smoke
from edgec.errors import EdgecError
from edgec.lower.link import link

pytest.importorskip("unicorn")
pytest.importorskip("ziglang")

SOURCE = """
#include <stdint.h>
#include <string.h>
float expf(float); float powf(float, float); double sin(double); float erff(float); float lgammaf(float);
static float table[4] = {1, 2, 3, 4};
float* volatile pointers[2] = {table + 1, table + 3};  // rebased
int32_t math(const float* x, float* y, int64_t n, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    y[i] = expf(x[i]) + *pointers[i & 1] * (float)sin(x[i]) + powf(x[i], 2.5f) + erff(x[i]) + lgammaf(x[i]);
  return 0;
}
int32_t many(int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f, const int16_t* x, int64_t* y, int64_t k,
             int64_t begin, int64_t end) {
  int64_t sums[16];
  memset(sums, (int)d, sizeof(sums));
  y[0] = a - b + c + d + e + f + k + begin + end + sums[3];
  memcpy(y + 1, x, 8);
  return 0;
}
int32_t fails(float* x, int64_t begin, int64_t end) { return 7; }
int32_t beyond(float* x, int64_t begin, int64_t end) { x[end] = 1; return 0; }
int32_t far_off(float* x, int64_t begin, int64_t end) { x[1 << 20] = 1; return 0; }
int32_t code(float* x, int64_t begin, int64_t end) { *(volatile int*)(void*)fails = 0; return 0; }
int32_t callee(float* x, int64_t begin, int64_t end) { __asm__ volatile("fmov d9, xzr"); return 0; }
int32_t unknown(float* x, int64_t begin, int64_t end) { __asm__ volatile(".inst 0x00201220"); return 0; }
"""


def compiled(folder, source: str) -> bytes:
    (folder / "code.c").write_text(source)
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-macos.13.0", "-mcpu=apple_m1", "-O1",
               "-fno-builtin", "-fno-stack-protector", "-c", "code.c", "-o", "code.o"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True)
    return link([(folder / "code.o").read_bytes()], targets.load("apple-m1"))


@pytest.fixture(scope="module")
def dylib(tmp_path_factory):
    return macho.Dylib(compiled(tmp_path_factory.mktemp("macho"), SOURCE))


HERE, THERE = 0x5500000010, 0x100000FF8  # the second where the library would stand; both off any page


def test_functions_of_math(dylib):
    from math import erf, lgamma

    x = np.linspace(0.1, 2, 37).astype(np.float32)
    areas = [macho.Area(HERE, x.tobytes()), macho.Area(THERE, bytes(x.nbytes))]
    got = dylib.call("math", [HERE, THERE, 37], areas, 37)
    a = x.astype(np.float64)
    want = np.exp(a) + np.where(np.arange(37) % 2, 4, 2) * np.sin(a) + a**2.5
    want += [erf(v) + lgamma(v) for v in a]
    assert got[0] == x.tobytes()
    assert np.abs(np.frombuffer(got[1], np.float32) - want).max() <= 4e-6


def test_arguments_on_the_stack_and_memory_functions(dylib):
    areas = [macho.Area(HERE, np.arange(4, dtype=np.int16).tobytes()), macho.Area(THERE, bytes(16))]
    got = dylib.call("many", [2**40, -3, 5, 0, 11, 13, HERE, THERE, 17], areas, 19)
    assert int.from_bytes(got[1][:8], "little") == 2**40 + 3 + 5 + 11 + 13 + 17 + 19
    assert got[1][8:] == areas[0].data


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fails", "returns 7"),
        ("beyond", "beside its arguments"),
        ("far_off", "writes 4 bytes at"),
        ("code", "writes 4 bytes at"),
        ("callee", "a register that is not its own"),
    ],
)
def test_what_a_function_must_not_do(dylib, name, reason):
    with pytest.raises(macho.Fault, match=reason) as fault:
        dylib.call(name, [HERE], [macho.Area(HERE, bytes(16))], 4)
    assert not fault.value.lacking


def test_an_instruction_that_unicorn_lacks(dylib):
    with pytest.raises(macho.Fault, match="00201220") as fault:
        dylib.call("unknown", [HERE], [macho.Area(HERE, bytes(16))], 4)
    assert fault.value.lacking


def test_what_macos_would_not_load(tmp_path):
    with pytest.raises(EdgecError, match="EC1802"):
        macho.Dylib(b"no library")
    strange = "int getpid(void); int f(void) { return getpid(); }"
    with pytest.raises(EdgecError, match=r"EC1802.*getpid"):
        macho.Dylib(compiled(tmp_path, strange))


def record(*records) -> bytes:
    """As csrc/emulate/run.cpp writes them: (name, extent, slots, [(address, before, after, dtype)] or None)."""

    def words(*values):
        return b"".join((v % 2**64).to_bytes(8, "little") for v in values)

    def padded(data):
        return data + bytes(-len(data) % 8)

    out = b""
    for name, extent, slots, areas in records:
        count = -1 if areas is None else len(areas)
        out += words(len(name)) + padded(name.encode()) + words(extent, len(slots), count, *slots)
        for address, before, after, dtype in areas or ():
            out += words(address, len(before), dtype) + padded(before) + padded(after)
    return out


def test_comparison(dylib, monkeypatch):
    """The same values, nearly the same, others; calls that were not kept, and those that cannot run."""
    monkeypatch.setattr(smoke, "Dylib", lambda code: dylib)
    x = np.linspace(0.5, 1, 3).astype(np.float32)
    y = dylib.call("math", [HERE, THERE, 3], [macho.Area(HERE, x.tobytes()), macho.Area(THERE, bytes(12))], 3)[1]
    floats = np.frombuffer(y, np.float32)

    def after(changed):
        areas = [(HERE, x.tobytes(), x.tobytes(), 11), (THERE, bytes(12), changed.tobytes(), 11)]
        return record(("math", 3, (HERE, THERE, 3), areas))

    def ran(data):
        return smoke.smoke(b"", smoke.read(data))

    assert (ran(after(floats)).exact, ran(after(floats)).near) == (1, 0)
    found = ran(after(floats * np.float32(1 + 1e-6)))
    assert found.ok and found.near == 1 and 1e-8 < found.largest_error < 1e-5
    wrong = ran(after(floats * np.float32(1.001)))
    assert not wrong.ok and "argument 1" in wrong.wrong["math"] and "math: argument 1" in wrong.text()
    one = [(HERE, bytes(16), bytes(16), 11)]
    mixed = ran(record(("math", 3, (1, 2, 3), None), ("unknown", 4, (HERE,), one), ("fails", 4, (HERE,), one)))
    assert mixed.large == ["math"] and list(mixed.lacking) == ["unknown"] and list(mixed.wrong) == ["fails"]
    assert "0 of 3" in mixed.text()
    data = after(floats)
    with pytest.raises(EdgecError, match="cut off"):
        ran(data[:-8])


def test_without_unicorn(monkeypatch):
    monkeypatch.setattr(macho.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'edgec[emulate]'" in macho.missing()
    with pytest.raises(EdgecError, match="EC1801"):
        macho.Dylib(b"")
