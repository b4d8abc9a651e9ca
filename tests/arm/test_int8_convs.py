"""Convolutions in 8 bits as compiled for Arm, with dotprod and without, under qemu, against the reference."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if not os.environ.get("EDGEC_TEST_ARM"):
    pytest.skip("set EDGEC_TEST_ARM=1 (make test-arm) to test Arm under emulation", allow_module_level=True)

import environment

from edgec import targets
from edgec.ir.data import Data
from edgec.ir.node import constant, make
from edgec.ir.types import TensorType
from edgec.lower.tvm_backend import TvmBackend
from edgec.rewrites.encode import in_channels
from edgec.testing.groups import group_of, reference

SOURCE = Path(__file__).with_name("run_function.c")


def conv(rng, channels: int, size: int, rows: int, kernel: int, stride: int):
    x = make("input", name="x", type=TensorType("f32", (1, channels, size, size + 3)))
    w = (rng.standard_normal((rows, channels, kernel, kernel)) * 0.1).astype(np.float32)
    grid = np.stack([np.exp2(rng.integers(-8, -4, channels)), rng.integers(0, 256, channels)]).astype(np.float32)
    attrs = {"strides": (stride,) * 2, "pads": (kernel // 2,) * 4, "dilations": (1, 1), "act": "relu"}
    bias = constant(rng.standard_normal(rows).astype(np.float32))
    node = make("conv", x, constant(in_channels(Data.of(w), True)[0]), bias, None, constant(grid), **attrs)
    return node, {x: rng.standard_normal(x.shape).astype(np.float32)}


def call(node, feeds, target, folder: Path) -> np.ndarray:
    """The node by its function for the target, under qemu."""
    backend = TvmBackend(target)
    compiled = backend.add(group_of("conv", [node], node.operands()))
    (code,) = backend.compile()
    (folder / "code.o").write_bytes(code)
    arguments = []
    for kind, what, *packing in compiled.args:
        if kind == "packed":
            arguments.append(packing[0].packed(*(n["data"] for n in what)).array().tobytes())
        elif kind == "scratch":
            arguments.append(bytes(what))
        elif what is node:
            arguments.append(bytes(4 * int(np.prod(node.shape))))
            output = len(arguments) - 1
        else:
            arguments.append((feeds[what] if what in feeds else what["data"].array()).tobytes())
    head = struct.pack("<3q", len(arguments), compiled.extent, output)
    (folder / "in").write_bytes(head + b"".join(struct.pack("<q", len(a)) + a for a in arguments))
    link = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-O1"]
    link += [f"-DFUNCTION={compiled.symbol}", str(SOURCE), str(folder / "code.o"), "-o", str(folder / "run")]
    subprocess.run(link, check=True, capture_output=True)
    run = [environment.emulator()[0], "-cpu", "max", str(folder / "run"), str(folder / "in"), str(folder / "out")]
    subprocess.run(run, check=True)
    return np.fromfile(folder / "out", np.float32).reshape(node.shape)


@pytest.fixture(scope="module", autouse=True)
def qemu():
    try:
        environment.setup()
    except environment.Unavailable as reason:
        pytest.skip(f"no arm64 to test in: {reason}")


@pytest.mark.parametrize("target", ["cortex-a76", "aarch64-generic"])
@pytest.mark.parametrize("case", [(33, 12, 17, 3, 2), (16, 9, 24, 1, 1), (64, 8, 16, 3, 1)], ids=str)
def test_convolutions_in_8_bits(target, case, tmp_path):
    node, feeds = conv(np.random.default_rng(0), *case)
    want = reference([node], feeds)[0]
    got = call(node, feeds, targets.load(target), tmp_path)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * float(np.abs(want).max()))
