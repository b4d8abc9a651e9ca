#!/usr/bin/env python3
"""What calibration takes: CPU seconds, time and the most memory of `edgec build --calib`, in a process of its own.

usage: python bench/calibration.py MODEL... --calib TEXTS [--windows 64] [--tokenizer FOLDER] [--json FILE] [-- OPTIONS]

MODEL: an .onnx file or a folder; OPTIONS: more of `edgec build`. --windows: of 256 tokens, for a language model (edgec takes 64):
the texts are cut after so many of --characters a token. Without the build cache and the check afterwards. On a machine that is
busy with other work, CPU seconds over cores say what a quiet one needs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WINDOW = 256  # tokens


def cut(texts: Path, characters: float, folder: Path) -> Path:
    """The first lines of a file of texts, so many characters of them."""
    size, kept = 0, []
    for line in texts.read_text(encoding="utf-8").splitlines():
        if size >= characters:
            break
        kept.append(line)
        size += len(line)
    path = folder / texts.name
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


def build(model: str, options: list[str]) -> dict:
    """Builds once; what it reports, and what the system says of the process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.edgec"
        command = [
            sys.executable,
            "-m",
            "edgec.cli",
            "build",
            model,
            "-o",
            str(out),
            "--json",
            "--no-cache",
            "--no-check",
        ]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=True)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout)
    fitted = [w["output_snr_db"] for w in report["weights"] if w.get("output_snr_db") is not None]
    return {
        "model": model,
        "samples": report["calibration"]["samples"],
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_rss_bytes": after.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "artifact_bytes": report["artifact_bytes"],
        "fitted": len(fitted),
        "output_snr_db": sum(fitted) / max(len(fitted), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--windows", type=int)
    parser.add_argument("--characters", type=float, default=4.6, help="of a token, for --windows")
    parser.add_argument("--tokenizer")
    parser.add_argument("--json", type=Path)
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, rest = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        texts = args.calib
        if args.windows:
            texts = cut(texts, args.windows * WINDOW * args.characters, Path(folder))
        for model in args.models:
            options = ["--calib", str(texts), *(["--tokenizer", args.tokenizer] if args.tokenizer else [])]
            one = build(model, options + rest)
            cpu, size, memory = one["cpu_seconds"], one["artifact_bytes"] / 1e6, one["peak_rss_bytes"] / 1e9
            print(
                f"{model}: {one['samples']} samples, {cpu:.0f} CPU seconds, {one['seconds']:.0f} s, {memory:.2f} GB of memory"
            )
            print(f"  {size:.1f} MB, {one['fitted']} weights at {one['output_snr_db']:.2f} dB", flush=True)
            found.append(one)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
