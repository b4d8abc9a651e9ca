#!/usr/bin/env python3
"""What kind of file is it? Compiles Google's magika to int4 and asks it about files.

usage: demo.py [FILE ...]      (no FILE: some of this repository's)

The model comes from the package magika on PyPI: `python tests/fetch_models.py magika` (make demo does it).
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import numpy as np

import edgec
from edgec import _core

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = (
    pathlib.Path(os.environ.get("EDGEC_MODELS") or pathlib.Path.home() / ".cache/edgec-models") / "magika/model.onnx"
)


def features(path: pathlib.Path, config: dict) -> np.ndarray:
    """i32[beg_size + end_size]: the file's first and last bytes without the white space around them, padded."""
    size, block, pad = path.stat().st_size, config["block_size"], config["padding_token"]
    with open(path, "rb") as f:
        head = f.read(min(block, size)).lstrip()[: config["beg_size"]]
        f.seek(size - min(block, size))
        tail = f.read(min(block, size)).rstrip()[-config["end_size"] :]
    out = np.full(config["beg_size"] + config["end_size"], pad, np.int32)
    out[: len(head)] = np.array(bytearray(head), np.uint8)
    out[len(out) - len(tail) :] = np.array(bytearray(tail), np.uint8)
    return out


def answer(scores: np.ndarray, config: dict) -> str:
    """magika's label, or its guess with a question mark where it is not sure enough."""
    best = int(scores.argmax())
    label = config["target_labels_space"][best]
    needed = config["thresholds"].get(label, config["medium_confidence_threshold"])
    return config["overwrite_map"].get(label, label) + ("" if scores[best] >= needed else "?")


def some_files() -> list[pathlib.Path]:
    wanted = ["README.md", "Makefile", "CMakeLists.txt", "pyproject.toml", "LICENSE", "csrc/python/module.cpp"]
    files = [ROOT / w for w in wanted] + [pathlib.Path(__file__), MODEL, pathlib.Path(_core.__file__)]
    return [f for f in files if f.exists()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()
    config = json.loads(MODEL.with_name("config.min.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "magika.edgec"
        start = time.perf_counter()
        report = edgec.build(MODEL, weights="int4", out=out)
        before, after = report.source_bytes / 1e6, report.artifact_bytes / 1e6
        print(
            f"magika: {before:.2f} MB of ONNX -> {after:.2f} MB in int4, built in {time.perf_counter() - start:.1f} s"
        )
        session = edgec.load(out)
        for path in args.files or some_files():
            if path.stat().st_size < config["min_file_size_for_dl"]:
                print(f"  {path.name[:28]:<28} too short to say")
                continue
            batch = features(path, config)[None]
            start = time.perf_counter()
            scores = session(bytes=batch)["target_label"][0]
            took = (time.perf_counter() - start) * 1e3
            print(f"  {path.name[:28]:<28} {answer(scores, config):<14} {scores.max():6.1%}   {took:5.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
