"""Whole models for Arm: built here, and executed under emulation."""

from __future__ import annotations

import functools
import os
import subprocess

import numpy as np
import onnxruntime
import pytest

if not os.environ.get("EDGEC_TEST_ARM"):
    pytest.skip("set EDGEC_TEST_ARM=1 (make test-arm) to test Arm under emulation", allow_module_level=True)

import environment
import lm_tools
from macho_tools import check_dylib

import edgec
from edgec import targets
from edgec.artifact.reader import ArtifactFile
from edgec.emulate import EmulatedSession

pytestmark = pytest.mark.usefixtures("qemu")
LINUX = "cortex-a76"
APPLE = ("apple-m1", "apple-m2", "apple-m3", "apple-m4")
MODELS = ("minilm", "magika", "silero-vad", "smollm2-2-layers")


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
    """source(name): the ONNX file. The decoder has SmolLM2-135M's sizes, two of its layers and random weights."""
    made = {}

    def find(name: str):
        if name != "smollm2-2-layers":
            return model(name)
        if name not in made:
            made[name] = tmp_path_factory.mktemp("decoder") / "model.onnx"
            with pytest.MonkeyPatch.context() as patch:
                sizes = {"HIDDEN": 576, "HEADS": 9, "KV_HEADS": 3, "DIM": 64, "FFN": 1536, "LAYERS": 2}
                for key, value in sizes.items():
                    patch.setattr(lm_tools, key, value)
                lm_tools.write_decoder(made[name], vocab=49152)
        return made[name]

    return find


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """built(name, target, weights="int4"): the artifact; weights are encoded once for all targets."""
    folder, made = tmp_path_factory.mktemp("artifacts"), {}

    def build(name: str, target: str, weights: str = "int4"):
        key = name, target, weights
        if key not in made:
            made[key] = folder / f"{'-'.join(key)}.edgec"
            edgec.build(source(name), target=target, out=made[key], weights=weights, cache=True)
        return made[key]

    return build


def feeds_of(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    if name == "minilm":
        ids = rng.integers(0, 30000, (1, 7))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    if name == "magika":
        return {"bytes": rng.integers(0, 257, (1, 2048)).astype(np.int32)}
    if name == "silero-vad":
        floats = {"input": (1, 576), "state": (2, 1, 128)}
        made = {key: (0.1 * rng.standard_normal(shape)).astype(np.float32) for key, shape in floats.items()}
        return made | {"sr": np.array(16000)}
    ids = rng.integers(0, 49000, (1, 5))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(5)[None]}


@pytest.fixture(scope="module")
def on_linux(built):
    """on_linux(name): the outputs of the artifact for Linux."""
    return functools.cache(lambda name: EmulatedSession(built(name, LINUX))(**feeds_of(name)))


@pytest.mark.parametrize("name", MODELS)
def test_against_the_source(name, source, on_linux):
    """On Linux: what onnxruntime computes from the source, within what int4 weights cost."""
    session = onnxruntime.InferenceSession(source(name), providers=["CPUExecutionProvider"])
    feeds = feeds_of(name)
    caches = {i.name: np.zeros((1, 3, 0, 64), np.float32) for i in session.get_inputs() if i.name not in feeds}
    got = on_linux(name)
    for key, want in zip(got, session.run(list(got), feeds | caches), strict=True):
        mine = got[key].astype(np.float64).ravel()
        cosine = mine @ want.ravel() / np.sqrt((mine @ mine) * (want.ravel().astype(np.float64) @ want.ravel()))
        print(f"{name} {key}: cosine {cosine:.5f}")
        assert got[key].shape == want.shape and cosine >= 0.97, (key, cosine)


@pytest.mark.parametrize("target", APPLE)
@pytest.mark.parametrize("name", MODELS)
def test_on_every_mac(name, target, built, on_linux):
    """Artifacts are dylibs that macOS takes, and compute what the one for Linux computes."""
    path = built(name, target)
    check_dylib(bytes(ArtifactFile(path, check_target=False).members["code.so"]), targets.load(target))
    session = EmulatedSession(path)
    got, want = session(**feeds_of(name)), on_linux(name)
    for key, value in want.items():
        assert np.isfinite(value).all()
        assert np.abs(got[key] - value).max() <= 0.02 * np.abs(value).max(), key
    smoke = session.smoke(feeds_of(name))
    print(f"{name} {target}: {smoke.text()}")
    assert smoke.ok and smoke.exact + smoke.near == smoke.functions > 0, smoke


@pytest.fixture(scope="module")
def app():
    return environment.build_app()


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_an_app_in_c(weights, app, built, source):
    """The C example, linked with libedgec.a for arm64: of fp32 weights it prints what onnxruntime computes."""
    path, size = built("minilm", LINUX, weights), 6
    done = subprocess.run([*environment.emulator(), str(app), str(path), str(size)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    session = EmulatedSession(path)
    feeds = {p.name: (np.arange(size * size) % 2).astype(p.dtype).reshape(size, size) for p in session.inputs}
    name = session.outputs[0].name
    if weights == "fp32":
        (want,) = onnxruntime.InferenceSession(source("minilm"), providers=["CPUExecutionProvider"]).run([name], feeds)
    else:
        want = session(**feeds)[name]
    (line,) = (text for text in done.stdout.splitlines() if text.startswith(f"{name} {list(want.shape)} sum "))
    total, first = line.split(" sum ")[1].split(": ")
    assert abs(float(total) - want.sum(dtype=np.float64)) <= 1e-4 * np.abs(want).sum()
    assert np.abs(np.array(first.split(), float) - want.ravel()[:4]).max() <= 1e-4 * np.abs(want).max()


def test_an_app_says_what_is_wrong(app, built):
    """An artifact of another CPU, or no file at all: one message, and no crash."""
    for path, text in ((built("magika", "x86-64-v3"), "EC15"), (built("magika", LINUX).with_name("none"), "EC15")):
        done = subprocess.run([*environment.emulator(), str(app), str(path)], capture_output=True, text=True)
        assert done.returncode == 1 and text in done.stderr, done.stderr
