#!/usr/bin/env python3
"""Latency of whole models beside onnxruntime, all in one run: edgec int4 and fp32, onnxruntime fp32 and int8 (dynamic).

usage: python bench/models.py [--models minilm,magika,...] [--threads 1,2] [--repeat 9] [--json FILE]

The contestants of a row take turns, so that the machine's drift meets all of them: 0.1 s of warming up, then three calls
that count; medians.
Models are looked for under $EDGEC_MODELS (~/.cache/edgec-models); one that is not there is reported and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

import edgec

MODELS = Path(os.environ.get("EDGEC_MODELS", Path.home() / ".cache/edgec-models"))
WARM_S = 0.1
RNG = np.random.default_rng(0)


def tokens(length: int) -> dict[str, np.ndarray]:
    ids = RNG.integers(1000, 29000, (1, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# name -> (file below $EDGEC_MODELS, {label: feeds})
ROWS: dict[str, tuple[str, dict[str, Callable[[], dict]]]] = {
    "minilm": ("minilm/model.onnx", {"16 tokens": lambda: tokens(16), "128 tokens": lambda: tokens(128)}),
    "magika": ("magika/model.onnx", {"1 file": lambda: {"bytes": RNG.integers(0, 256, (1, 2048)).astype(np.int32)}}),
    "ppocr-cls": ("ppocr-cls/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"48x192": lambda: {"x": floats(1, 3, 48, 192)}}),
    "ppocr-det": ("ppocr-det/ch_PP-OCRv4_det_infer.onnx", {"320x320": lambda: {"x": floats(1, 3, 320, 320)}}),
    "ppocr-rec": ("ppocr-rec/ch_PP-OCRv4_rec_infer.onnx", {"48x320": lambda: {"x": floats(1, 3, 48, 320)}}),
    "nudenet": ("nudenet/320n.onnx", {"320x320": lambda: {"images": floats(1, 3, 320, 320)}}),
    "mtcnn-onet": ("mtcnn-onet/onet.onnx", {"48x48": lambda: {"input_3": floats(1, 48, 48, 3)}}),
    "silero-vad": (
        "silero-vad/silero_vad_op18_ifless.onnx",
        {"512 samples": lambda: {"input": floats(1, 576), "sr": np.array(16000), "state": floats(2, 1, 128)}},
    ),
    "swift-f0": (
        "swift-f0/model.onnx",
        {
            "1 s": lambda: {
                "audio": floats(1, 16000),
                "fmin": np.array(46, np.float32),
                "fmax": np.array(2000, np.float32),
            }
        },
    ),
}


def onnxruntime_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def int8_dynamic(path: Path, folder: Path) -> Path | None:
    """onnxruntime's own dynamic int8 of a model, or None where its tool cannot make it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = folder / f"{path.parent.name}-int8.onnx"
    try:
        if not out.exists():
            quantize_dynamic(path, out, weight_type=QuantType.QInt8)
        onnxruntime_session(out, 1)
    except Exception as error:  # its own failures are of many kinds; the table shows a dash
        print(f"onnxruntime int8 of {path.parent.name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return out


def measure(calls: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Median milliseconds of each call; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(3):
            call()
    for _ in range(repeat):
        for name, call in calls.items():
            # Until the others' threads have stopped spinning and the caches are this one's own.
            warm = time.perf_counter() + WARM_S
            while time.perf_counter() < warm:
                call()
            for _ in range(3):
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--models", default=",".join(ROWS))
    ap.add_argument("--threads", default="1,2")
    ap.add_argument("--repeat", type=int, default=9)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    results = []
    print(
        "| model | threads | edgec int4 | edgec fp32 | onnxruntime fp32 | onnxruntime int8 | int4 / ort fp32 | fp32 / ort fp32 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        for name in args.models.split(","):
            file, cases = ROWS[name]
            path = MODELS / file
            if not path.exists():
                print(f"left out: {name}: there is no {path}", file=sys.stderr)
                continue
            built = {}
            for weights in ("int4", "fp32"):
                built[weights] = folder / f"{name}-{weights}.edgec"
                edgec.build(path, weights=weights, out=built[weights])
            int8 = int8_dynamic(path, folder)
            for threads in map(int, args.threads.split(",")):
                ours = {w: edgec.load(p, threads=threads) for w, p in built.items()}
                peers = {"ort fp32": onnxruntime_session(path, threads)}
                if int8 is not None:
                    peers["ort int8"] = onnxruntime_session(int8, threads)
                for label, make_feeds in cases.items():
                    feeds = make_feeds()
                    calls = {f"edgec {w}": (lambda s=s: s.run(None, feeds)) for w, s in ours.items()}
                    calls |= {n: (lambda p=p: p.run(None, feeds)) for n, p in peers.items()}
                    ms = measure(calls, args.repeat)
                    fp32 = ms["ort fp32"]
                    cells = [
                        f"{ms[n]:.3f}" if n in ms else "-" for n in ("edgec int4", "edgec fp32", "ort fp32", "ort int8")
                    ]
                    ratios = [f"{ms['edgec int4'] / fp32:.2f}", f"{ms['edgec fp32'] / fp32:.2f}"]
                    print(f"| {name}, {label} | {threads} | " + " | ".join(cells + ratios) + " |", flush=True)
                    results.append({"model": name, "case": label, "threads": threads, "ms": ms})
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
