#!/usr/bin/env python3
"""Size against what is lost: MiniLM's sentence embeddings, and SmolLM2 beside llama.cpp's own quantizations of the same weights.

usage: python bench/compression.py minilm|smollm2 [--only NAME ...] [--windows 8] [--peers PYTHON] [--rotate SEED] [--json FILE]
       [--svg FILE]
       python bench/compression.py chart FILE.json [FILE.json ...] --svg FILE

Calibration reads the movie snippets that the evaluation does not (seed 0). minilm: mean and worst cosine with the fp32 model's
embeddings on 200 snippets. smollm2: perplexity and mean KL from the fp32 model on the first windows of 256 tokens of 300
snippets; --peers names an interpreter with llama-cpp-python and gguf, whose quantizer makes Q4_0, Q4_K_M, Q5_K_M and Q8_0 of
the same numbers. The model's projections come from a Q4_1 file, a grid that flatters any 4 bits: --rotate turns its weights
first (bench/same_weights.py), which leaves the function and no grid, and a head of its own. Models are those of
$EDGEC_MODELS (~/.cache/edgec-models). chart: of rows that --json wrote; a file's name tells its points apart.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import accuracy
import numpy as np
import onnxruntime
import perplexity
import same_weights
from tokenizers import Tokenizer

import edgec

MODELS = perplexity.MODELS
SNIPPETS, HELD = 300, 200  # of the evaluation; of them, those that MiniLM is measured on
WINDOW = 256
BUILDS = {
    "minilm": {
        "4 bits, no data": {"bits": 4.25, "embedding": 4},
        "4 bits": {"bits": 4.25, "embedding": 4, "calib": True},
        "4 bits, table of 8": {"bits": 4.25, "embedding": 8, "calib": True},
        "7.5 bits, table of 4": {"bits": 7.5, "embedding": 4, "calib": True},
    },
    "smollm2": {
        "default": {},
        "equal steps": {"group": 32},
        "4.25 bits, table of 6, no data": {"bits": 4.25, "embedding": 6},
        "4.25 bits, table of 6": {"bits": 4.25, "embedding": 6, "calib": True},
        "4.25 bits, table of 6, healed": {"bits": 4.25, "embedding": 6, "calib": True, "distill": True},
        "4.25 bits, table of 4, healed": {"bits": 4.25, "embedding": 4, "calib": True, "distill": True},
        "6.25 bits, table of 6": {"bits": 6.25, "embedding": 6},
        "6.25 bits, table of 8": {"bits": 6.25},
        "8.125 bits": {"weights": "int8"},
        "8.125 bits, calibrated": {"weights": "int8", "calib": True},
        "8.5 bits": {"weights": "int8", "group": 32},
        "8.125 bits, nothing rotated": {"weights": "int8", "rotate": "none"},
        "8.125 bits, keys rotated": {"weights": "int8", "rotate": "keys"},
        "8.125 bits, keys and down rotated": {"weights": "int8", "rotate": "keys,down"},
        "6.25 bits, table of 6, nothing rotated": {"bits": 6.25, "embedding": 6, "rotate": "none"},
        "6.25 bits, table of 8, nothing rotated": {"bits": 6.25, "rotate": "none"},
        "4.25 bits, table of 6, no data, nothing rotated": {"bits": 4.25, "embedding": 6, "rotate": "none"},
        "4.25 bits, table of 6, no data, keys and down rotated": {"bits": 4.25, "embedding": 6, "rotate": "keys,down"},
        "4.25 bits, table of 6, no data, all rotated": {"bits": 4.25, "embedding": 6, "rotate": "keys,inputs"},
        "4.25 bits, table of 6, all rotated": {"bits": 4.25, "embedding": 6, "rotate": "keys,inputs", "calib": True},
    },
}
LLAMA_TYPES = {"Q4_0": 2, "Q4_K_M": 15, "Q5_K_M": 17, "Q8_0": 7}
QUANTIZE = """
import sys, llama_cpp as l
p = l.llama_model_quantize_default_params()
p.ftype, p.allow_requantize = int(sys.argv[3]), True
sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))
"""


def calibration_texts(folder: Path) -> Path:
    """The snippets that no evaluation reads."""
    file = MODELS / "movie-sentiment/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    lines = [line.split("\t")[2] for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    held = set(perplexity.texts(SNIPPETS))
    path = folder / "calibration.txt"
    path.write_text("\n".join(line for line in lines if line not in held) + "\n", encoding="utf-8")
    return path


def builds(source: Path, folder: Path, wanted: dict[str, dict], only: list[str], calib: Path) -> dict[str, dict]:
    """Name -> artifact's path, MB, seconds."""
    made = {}
    for name, options in wanted.items():
        if only and name not in only:
            continue
        out, start = folder / f"{len(made)}.edgec", (time.perf_counter(), time.process_time())
        given = options | {key: calib for key in ("calib", "distill") if options.get(key)}
        report = edgec.build(source, out=out, cache=folder / "cache", **given)
        seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        made[f"edgec {name}"] = {"path": out, "mb": report.artifact_bytes / 1e6, "seconds": seconds, "cpu_seconds": cpu}
        print(f"  built {name}: {report.artifact_bytes / 1e6:.2f} MB, {cpu:.0f} CPU-s", file=sys.stderr, flush=True)
    return made


def minilm(args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    source = MODELS / "minilm/model.onnx"
    tokenizer = Tokenizer.from_file(str(source.parent / "tokenizer.json"))
    texts = perplexity.texts(SNIPPETS)[:HELD]
    peer = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])

    def vectors(run) -> np.ndarray:
        return np.concatenate([accuracy.embed(run, tokenizer, texts[i : i + 16]) for i in range(0, HELD, 16)])

    want = vectors(lambda feeds: peer.run(None, feeds)[0])
    found = builds(source, folder, BUILDS["minilm"], args.only, calibration_texts(folder))
    for row in found.values():
        session = edgec.load(row.pop("path"))
        cosines = (vectors(lambda feeds, session=session: session.run(None, feeds)[0]) * want).sum(1)
        row |= {"mean_cosine": float(cosines.mean()), "worst_cosine": float(cosines.min())}
    return found


def smollm2(args: argparse.Namespace, folder: Path) -> dict[str, dict]:
    given = MODELS / "smollm2"
    tokenizer = Tokenizer.from_file(str(given / "tokenizer.json"))
    joined = [i for e in tokenizer.encode_batch(perplexity.texts(SNIPPETS)) for i in e.ids]
    runs = [joined[at : at + WINDOW] for at in range(0, len(joined) - WINDOW + 1, WINDOW)][: args.windows]
    if args.rotate is None and not args.peers:
        source = given / "model.onnx"
    else:
        same_weights.make(given, folder, args.rotate, args.peers)
        source = folder / "model.onnx"
    found = builds(source, folder, BUILDS["smollm2"], args.only, calibration_texts(folder))
    logits = {"fp32": perplexity.onnxruntime_logits(given / "model.onnx", None)}
    logits |= {name: perplexity.edgec_logits(row.pop("path"), None) for name, row in found.items()}
    for name, kind in LLAMA_TYPES.items() if args.peers else ():
        out = folder / f"{name}.gguf"
        command = [args.peers, "-c", QUANTIZE, str(folder / "model.gguf"), str(out), str(kind)]
        subprocess.run(command, check=True, capture_output=True)
        found[f"llama.cpp {name}"] = {"mb": out.stat().st_size / 1e6}
        logits[f"llama.cpp {name}"] = perplexity.llama_logits(out, args.peers, WINDOW)
    measured = perplexity.measure(logits, runs)
    print(
        f"fp32 perplexity {measured['fp32']['perplexity']:.2f} on {measured['fp32']['tokens']} tokens", file=sys.stderr
    )
    return {name: row | {k: measured[name][k] for k in ("increase", "kl", "top1")} for name, row in found.items()}


def chart(found: dict[str, dict[str, dict]]) -> str:
    """An SVG of size against what is lost, both axes logarithmic. found: title -> rows; the first title's points are filled."""
    points = [(row["mb"], row["kl"] if "kl" in row else 1 - row["mean_cosine"], name, at)
              for at, rows in enumerate(found.values()) for name, row in rows.items()]  # fmt: skip
    spans = [(min(p[i] for p in points) * 0.97, max(p[i] for p in points) * 1.05) for i in range(2)]
    spans[1] = (spans[1][0] * 0.7, spans[1][1] * 1.2)

    def place(value: float, axis: int) -> float:
        (low, high), (begin, end) = spans[axis], ((70, 700), (400, 30))[axis]
        return begin + math.log(value / low) / math.log(high / low) * (end - begin)

    body = ['<rect x="70" y="30" width="630" height="370" fill="none" stroke="#999"/>']
    for axis, ticks in enumerate((range(60, 400, 20), [m * 10.0**e for e in range(-4, 1) for m in (1, 2, 5)])):
        for tick in (t for t in ticks if spans[axis][0] <= t <= spans[axis][1]):
            at = place(tick, axis)
            line, text = (f'x1="{at:.0f}" x2="{at:.0f}" y1="30" y2="400"', f'x="{at:.0f}" y="416" text-anchor="middle"')
            if axis:
                line, text = (
                    f'x1="70" x2="700" y1="{at:.0f}" y2="{at:.0f}"',
                    f'x="64" y="{at + 4:.0f}" text-anchor="end"',
                )
            body.append(f'<line {line} stroke="#ddd"/><text {text} fill="#666">{tick:g}</text>')
    body.append('<text x="385" y="434" text-anchor="middle">size of the file, MB</text>')
    body.append(
        '<text x="14" y="215" text-anchor="middle" transform="rotate(-90 14 215)">mean KL from fp32, nats a token</text>'
    )
    for at, title in enumerate(found):
        body.append(
            f'<circle cx="90" cy="{376 - 18 * at}" r="5" fill="{"#555" if at == 0 else "#fff"}" stroke="#555"/>'
        )
        body.append(f'<text x="101" y="{380 - 18 * at}">{title}</text>')
    # line, begin and end of each text so far; points are in the way too
    taken = [(place(p[1], 1) + 4, place(p[0], 0) - 6, place(p[0], 0) + 6) for p in points]
    for mb, value, name, at in sorted(points):
        x, y, color = place(mb, 0), place(value, 1), "#06c" if name.startswith("edgec") else "#c50"
        near = (y + 4 + step for step in (0, -11, 11, -22, 22, -33, 33, 44, 55, 66))
        last = x + 14 + 5.6 * len(name)
        free = (d for d in near if not any(abs(d - o) < 11 and x + 8 < end and last > begin for o, begin, end in taken))
        down = next(free, y + 4)
        taken.append((down, x + 8, last))
        body.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5" fill="{color if at == 0 else "#fff"}" stroke="{color}"/>')
        body.append(f'<text x="{x + 9:.0f}" y="{down:.0f}" fill="{color}">{name}</text>')
    style = "font:11px sans-serif;background:#fff"
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="445" style="{style}">{"".join(body)}</svg>\n'


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", choices=[*BUILDS, "chart"])
    ap.add_argument("rows", nargs="*", type=Path, help="of chart: what --json wrote")
    ap.add_argument("--only", nargs="+", default=[])
    ap.add_argument("--windows", type=int, default=8)
    ap.add_argument("--peers", metavar="PYTHON")
    ap.add_argument("--rotate", type=int, metavar="SEED")
    ap.add_argument("--json", type=Path)
    ap.add_argument("--svg", type=Path)
    args = ap.parse_args()
    if args.model == "chart":
        args.svg.write_text(chart({path.stem: json.loads(path.read_text()) for path in args.rows}))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {"minilm": minilm, "smollm2": smollm2}[args.model](args, Path(folder))
    for name, row in found.items():
        print(f"{name}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items()))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if args.svg:
        args.svg.write_text(chart({args.model: found}))


if __name__ == "__main__":
    main()
