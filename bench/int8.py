#!/usr/bin/env python3
"""Image models in 8 bits with calibrated ranges: latency and loss, beside onnxruntime's static quantization of the same data.

usage: python bench/int8.py [--models nudenet,ppocr-det,...] [--threads 1,2] [--samples 32] [--held 8] [--repeat 7]
                            [--target host] [--only latency|loss] [--json FILE]

Contestants: edgec fp32, edgec --weights int8 --calib, onnxruntime fp32, and onnxruntime with quantize_static (QDQ, weights by
channel, MinMax). All in one process, in turns, as bench/models.py does it. Loss: against onnxruntime's fp32 on crops of pictures
that calibration has not seen (bench/images.py); signal to noise over all outputs, cosine of each crop's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import images
import models
import numpy as np

import edgec


class Reader:
    """Calibration samples as onnxruntime's tool asks for them, one at a time."""

    def __init__(self, samples: dict[str, np.ndarray]):
        self.feeds = iter(
            [{k: v[i : i + 1] for k, v in samples.items()} for i in range(len(next(iter(samples.values()))))]
        )

    def get_next(self):
        return next(self.feeds, None)


def static(path: Path, samples: dict[str, np.ndarray], folder: Path) -> Path | None:
    """onnxruntime's statically quantized model, or None where its tool cannot make it."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    CalibrationDataReader.register(Reader)
    out, ready = folder / f"{path.stem}-static.onnx", folder / f"{path.stem}-ready.onnx"
    try:
        model = onnx.load(path)
        if next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) < 13:
            model = onnx.version_converter.convert_version(model, 13)
        onnx.save(model, ready)
        quant_pre_process(ready, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            out,
            Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        models.onnxruntime_session(out, 1)
    except Exception as error:  # its own failures are of many kinds; the table shows a dash
        print(f"onnxruntime static int8 of {path.parent.name}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return out


def loss(run, want: list[list[np.ndarray]], feeds: list[dict]) -> dict[str, float]:
    noise = signal = 0.0
    cosines = []
    for feed, outputs in zip(feeds, want):
        got = run(feed)
        a, b = (np.concatenate([v.reshape(-1).astype(np.float64) for v in values]) for values in (got, outputs))
        noise, signal = noise + float(np.square(a - b).sum()), signal + float(np.square(b).sum())
        if b.any():  # else there is no direction
            cosines.append(float(a @ b) / max(float(np.sqrt((a @ a) * (b @ b))), 1e-300))
    snr = 10 * np.log10(signal / max(noise, 1e-300))
    return {"snr_db": round(float(snr), 2), "cosine": float(np.mean(cosines)), "worst": min(cosines)}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--models", default=",".join(images.INPUTS))
    ap.add_argument("--threads", default="1,2")
    ap.add_argument("--samples", type=int, default=32)
    ap.add_argument("--held", type=int, default=8)
    ap.add_argument("--repeat", type=int, default=7)
    ap.add_argument("--target", default="host")
    ap.add_argument("--only", choices=("latency", "loss"))
    ap.add_argument("--folder", type=Path, help="keep the models that are made, and take those that are there")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as tmp:
        folder = args.folder or Path(tmp)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.models.split(","):
            path = models.MODELS / models.ROWS[name][0]
            built = {w: folder / f"{name}-{w}-{args.target}.edgec" for w in ("fp32", "int8")}
            data = folder / f"{name}.npz"
            if not data.exists():
                np.savez(data, **images.crops(name, args.samples, held=False))
            samples = dict(np.load(data))
            row: dict = {"model": name}
            for weights, out in built.items():
                if not out.exists():
                    calib = data if weights == "int8" else None
                    edgec.build(path, weights=weights, calib=calib, out=out, target=args.target)
            convs = [w for w in edgec.load(built["int8"]).artifact.manifest["report"]["weights"] if w["role"] == "conv"]
            row["convs"], row["in 8 bits"] = len(convs), sum(w["activations"] == 8 for w in convs)
            peer = folder / f"{path.stem}-static.onnx"
            peer = peer if peer.exists() else static(path, samples, folder)
            sources = {"ort fp32": path} | ({} if peer is None else {"ort static": peer})
            if args.only != "latency":
                held = images.crops(name, args.held, held=True)
                feeds = [{k: v[i : i + 1] for k, v in held.items()} for i in range(args.held)]
                source = models.onnxruntime_session(path, 2)
                want = [source.run(None, f) for f in feeds]
                session = edgec.load(built["int8"])
                row["loss"] = {"edgec int8": loss(lambda f, s=session: s.run(None, f), want, feeds)}
                if peer is not None:
                    session = models.onnxruntime_session(peer, 2)
                    row["loss"]["ort static"] = loss(lambda f, s=session: s.run(None, f), want, feeds)
            for threads in map(int, args.threads.split(",")) if args.only != "loss" else ():
                sessions = {f"edgec {w}": edgec.load(p, threads=threads) for w, p in built.items()}
                sessions |= {n: models.onnxruntime_session(p, threads) for n, p in sources.items()}
                feed = {k: v[:1] for k, v in samples.items()}
                calls = {n: (lambda s=s: s.run(None, feed)) for n, s in sessions.items()}
                ms = models.measure(calls, args.repeat)
                row[f"{threads} threads, ms"] = {n: round(v, 3) for n, v in ms.items()}
            print(json.dumps(row), flush=True)
            results.append(row)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
