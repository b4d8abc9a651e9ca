"""Real models, compiled in fp32 and int4, against onnxruntime at several sizes of each dynamic dim."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import edgec

MODELS = Path(os.environ.get("EDGEC_MODELS", Path.home() / ".cache/edgec-models"))
Feeds = dict[str, np.ndarray]


def floats(rng, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def bert(batch: int, length: int) -> Callable[[np.random.Generator], Feeds]:
    def feeds(rng):
        ids = rng.integers(0, 30000, (batch, length))
        mask = np.ones((batch, length), np.int64)
        mask[0, length - length // 3 :] = 0
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    return feeds


def decoder(batch: int, length: int, past: int) -> Callable[[np.random.Generator], Feeds]:
    def feeds(rng):
        out = {
            "input_ids": rng.integers(0, 49000, (batch, length)),
            "attention_mask": np.ones((batch, past + length), np.int64),
            "position_ids": np.arange(past, past + length)[None].repeat(batch, 0),
        }
        for i in range(30):
            for kind in ("key", "value"):
                out[f"past_key_values.{i}.{kind}"] = floats(rng, batch, 3, past, 64)
        return out

    return feeds


def image(name: str, *shape: int) -> Callable[[np.random.Generator], Feeds]:
    return lambda rng: {name: floats(rng, *shape)}


def page(batch: int, height: int, width: int) -> Callable[[np.random.Generator], Feeds]:
    """Lines of dark strokes on white. On noise the detector yields 1e-6, where onnxruntime's sigmoid has two digits."""

    def feeds(rng):
        x = np.full((batch, 3, height, width), 2.0, np.float32)
        for top in range(8, height - 16, 32):
            dark = (rng.random((batch, 1, 8, (width - 16) // 2)) < 0.5).repeat(2, axis=2).repeat(2, axis=3)
            x[:, :, top : top + 16, 8 : width - 8] = np.where(dark, -2.0, 2.0)
        return {"x": x}

    return feeds


def voice(rate: int, batch: int) -> Callable[[np.random.Generator], Feeds]:
    size = 576 if rate == 16000 else 288
    return lambda rng: {"input": floats(rng, batch, size) * np.float32(0.1), "sr": np.array(rate),
                        "state": floats(rng, 2, batch, 128)}  # fmt: skip


def voices(length: int) -> Callable[[np.random.Generator], Feeds]:
    return lambda rng: {"input": floats(rng, length, 576) * np.float32(0.1), "h": floats(rng, 1, 1, 128),
                        "c": floats(rng, 1, 1, 128)}  # fmt: skip


def pitch(samples: int) -> Callable[[np.random.Generator], Feeds]:
    def feeds(rng):
        t = np.arange(samples) / 16000
        audio = 0.5 * np.sin(2 * np.pi * (220 + 40 * t) * t) + 0.01 * rng.standard_normal(samples)
        low, high = (np.array(v, np.float32) for v in (46.875, 2093.75))
        return {"audio": audio[None].astype(np.float32), "fmin": low, "fmax": high}

    return feeds


def letters(batch: int, length: int) -> Callable[[np.random.Generator], Feeds]:
    return lambda rng: {"input": rng.integers(0, 40, (batch, length))}


def file_bytes(batch: int) -> Callable[[np.random.Generator], Feeds]:
    return lambda rng: {"bytes": rng.integers(0, 257, (batch, 2048)).astype(np.int32)}


CASES: dict[str, tuple[str, list[Callable[[np.random.Generator], Feeds]]]] = {
    "minilm": ("model.onnx", [bert(1, 16), bert(2, 7), bert(3, 1), bert(1, 128)]),
    "magika": ("model.onnx", [file_bytes(1), file_bytes(3)]),
    "ppocr-cls": ("ch_ppocr_mobile_v2.0_cls_infer.onnx", [image("x", 1, 3, 48, 192), image("x", 2, 3, 48, 100)]),
    "ppocr-rec": ("ch_PP-OCRv4_rec_infer.onnx", [image("x", 1, 3, 48, 320), image("x", 2, 3, 48, 72)]),
    "ppocr-det": ("ch_PP-OCRv4_det_infer.onnx", [page(1, 64, 96), page(2, 160, 128)]),
    "eeg-seizure": ("modelB_full.onnx", [image("x", 1, 100, 60), image("x", 3, 100, 17)]),
    "mtcnn-pnet": ("pnet.onnx", [image("input_1", 1, 60, 80, 3), image("input_1", 2, 33, 21, 3)]),
    "mtcnn-rnet": ("rnet.onnx", [image("input_2", 1, 24, 24, 3), image("input_2", 5, 24, 24, 3)]),
    "mtcnn-onet": ("onet.onnx", [image("input_3", 1, 48, 48, 3), image("input_3", 3, 48, 48, 3)]),
    "nudenet": ("320n.onnx", [image("images", 1, 3, 320, 320), image("images", 2, 3, 96, 160)]),
    "silero-vad": ("silero_vad_op18_ifless.onnx", [voice(16000, 1), voice(8000, 1), voice(16000, 3)]),
    "silero-vad-sequence": ("silero_vad_16k_sequence.onnx", [voices(1), voices(7)]),
    "swift-f0": ("model.onnx", [pitch(16000), pitch(5000)]),
    "tashkeel": ("rawi.int8.onnx", [letters(1, 20), letters(2, 7)]),
    "smollm2": ("model.onnx", [decoder(1, 5, 0), decoder(1, 1, 9), decoder(2, 3, 4)]),
    "smollm2-torchscript": ("model.onnx", [decoder(1, 5, 2), decoder(2, 1, 9)]),
}


def relative(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference over the largest value."""
    if want.size == 0:
        return 0.0
    worst = np.max(np.abs(got.astype(np.float64) - want.astype(np.float64)))
    return float(worst / max(float(np.max(np.abs(want.astype(np.float64)))), 1e-30))


def source(name: str) -> Path:
    path = MODELS / name / CASES[name][0]
    if not path.exists():
        pytest.skip(f"the model {name} is not under $EDGEC_MODELS")
    return path


def onnxruntime_of(path: Path) -> onnxruntime.InferenceSession:
    """onnxruntime without what changes its own numbers: int8 products that saturate in 16 bits where there is no VNNI,
    and DynamicQuantizeLSTM's rounding of each thread's share of the batch by itself."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", CASES)
def test_fp32_agrees_with_onnxruntime(name, tmp_path):
    path = source(name)
    edgec.build(path, weights="fp32", kv_cache="exposed", out=tmp_path / "model.edgec")
    session = edgec.load(tmp_path / "model.edgec", threads=2)
    peer = onnxruntime_of(path)
    names = [o.name for o in peer.get_outputs()]
    assert [o.name for o in session.outputs] == names
    for i, make in enumerate(CASES[name][1]):
        feeds = make(np.random.default_rng(i))
        got, want = session(**feeds), dict(zip(names, peer.run(None, feeds)))
        for output, value in want.items():
            assert got[output].shape == value.shape and got[output].dtype == value.dtype, output
            assert np.isfinite(got[output]).all() == np.isfinite(value).all(), output
            error = relative(got[output], value)
            assert error <= 1e-3, f"{output} departs by {error:.2e} of its largest value in case {i}"


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("smollm2")])
def test_int4_builds_runs_and_stays_close(name, tmp_path):
    """int4 loses accuracy, and random input shows it at its worst: only a broken model falls below these bounds."""
    path = source(name)
    report = edgec.build(path, weights="int4", kv_cache="exposed", out=tmp_path / "model.edgec")
    assert report.artifact_bytes < path.stat().st_size * 1.3 + 2_000_000
    session = edgec.load(tmp_path / "model.edgec", threads=2)
    peer = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in peer.get_outputs()]
    feeds = CASES[name][1][0](np.random.default_rng(0))
    got, want = session(**feeds), dict(zip(names, peer.run(None, feeds)))
    for output, value in want.items():
        a, b = got[output].astype(np.float64).ravel(), value.astype(np.float64).ravel()
        assert np.isfinite(a).all(), output
        cosine = float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
        assert cosine > 0.8, f"{output}: cosine {cosine:.3f}"
        if value.size < 16:  # a few numbers have a cosine near 1 whatever they are
            error = relative(got[output], value)
            assert error < 0.5, f"{output} departs by {error:.2f} of its largest value"
