"""Whole models for Arm: built here, and executed under emulation."""

from __future__ import annotations

import functools
import os

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

LINUX = "cortex-a76"
APPLE = ("apple-m1", "apple-m2", "apple-m3", "apple-m4")
MODELS = ("minilm", "magika", "silero-vad", "smollm2-2-layers")


@pytest.fixture(scope="module", autouse=True)
def qemu():
    try:
        environment.setup()
    except environment.Unavailable as reason:
        pytest.skip(f"no arm64 to test in: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEC_QEMU", environment.emulator()[0])
        patch.setenv("EDGEC_CACHE", str(environment.BUILD / "cache"))
        yield


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
    """built(name, target): the artifact in int4; weights are encoded once for all targets."""
    folder, made = tmp_path_factory.mktemp("artifacts"), {}

    def build(name: str, target: str):
        if (name, target) not in made:
            made[name, target] = folder / f"{name}-{target}.edgec"
            edgec.build(source(name), target=target, out=made[name, target], cache=True)
        return made[name, target]

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
        assert got[key].shape == want.shape and cosine >= 0.95, (key, cosine)


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
