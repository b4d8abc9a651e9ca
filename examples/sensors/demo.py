#!/usr/bin/env python3
"""What is the wearer of a smart watch doing? A classifier of motion, trained here, in 4 and 8 bits; SmolLM2 puts it in words.

usage: demo.py [--work FOLDER] [--seeds 1] [--no-summary]

Readings are ten seconds of accelerometer and gyroscope, 6 series of 100 numbers: standing, walking, running, badminton. They
come with sktime (BasicMotions: 40 to train on, 40 to test with), from PyPI. Training takes
seconds and needs torch ('edgec[distill]'). The summary needs SmolLM2's folder (smollm2/ under $EDGEC_MODELS).
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper

import edgec

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
import fetch_models  # noqa: E402

MODELS = fetch_models.home()
DONE = {"Standing": "stood still", "Walking": "walked", "Running": "ran", "Badminton": "played badminton"}
PATCH, WIDTH, STEPS = 10, 256, 250


def readings(part: str) -> tuple[np.ndarray, list[str]]:
    """f32[count, 6, 100] and the activity of each, of the TRAIN or TEST file."""
    lines = (MODELS / f"sensors/BasicMotions_{part}.ts").read_text().splitlines()
    rows = [line.split(":") for line in lines if line and line[0] not in "#@"]
    return np.array([[s.split(",") for s in row[:-1]] for row in rows], np.float32), [row[-1] for row in rows]


def write_model(path: pathlib.Path, mean: np.ndarray, spread: np.ndarray, classes: int, seed: int) -> None:
    """readings f32[batch, 6, 100] -> logits: patches of a second, two layers on each, the largest and the mean of them."""
    rng = np.random.default_rng(seed)
    size = 6 * PATCH
    arrays = {
        "mean": mean[None, :, None],
        "spread": spread[None, :, None],
        "w1": rng.standard_normal((size, WIDTH)) / np.sqrt(size),
        "b1": np.zeros(WIDTH),
        "w2": rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH),
        "b2": np.zeros(WIDTH),
        "w3": rng.standard_normal((2 * WIDTH, classes)) / np.sqrt(2 * WIDTH),
        "b3": np.zeros(classes),
    }
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    tensors += [
        numpy_helper.from_array(np.array([0, 6, 100 // PATCH, PATCH]), "cut"),
        numpy_helper.from_array(np.array([0, 100 // PATCH, size]), "join"),
        numpy_helper.from_array(np.array([1]), "over"),
    ]
    node = helper.make_node
    nodes = [
        node("Sub", ["readings", "mean"], ["centred"]),
        node("Div", ["centred", "spread"], ["x"]),
        node("Reshape", ["x", "cut"], ["patches"]),
        node("Transpose", ["patches"], ["seconds"], perm=[0, 2, 1, 3]),
        node("Reshape", ["seconds", "join"], ["h0"]),
        node("MatMul", ["h0", "w1"], ["a1"]),
        node("Add", ["a1", "b1"], ["c1"]),
        node("Relu", ["c1"], ["h1"]),
        node("MatMul", ["h1", "w2"], ["a2"]),
        node("Add", ["a2", "b2"], ["c2"]),
        node("Relu", ["c2"], ["h2"]),
        node("ReduceMax", ["h2"], ["most"], axes=[1], keepdims=0),
        node("ReduceMean", ["h2"], ["usual"], axes=[1], keepdims=0),
        node("Concat", ["most", "usual"], ["whole"], axis=1),
        node("MatMul", ["whole", "w3"], ["a3"]),
        node("Add", ["a3", "b3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "motions",
        [helper.make_tensor_value_info("readings", TensorProto.FLOAT, ["batch", 6, 100])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    onnx.save_model(model, path)


def train(start: pathlib.Path, out: pathlib.Path, x: np.ndarray, labels: np.ndarray, seed: int) -> None:
    """All weights of the ONNX file, with readings shifted in time, scaled and blurred by noise."""
    import torch

    from edgec import frontend, rewrites
    from edgec.distill.fit import Plan, fit
    from edgec.distill.torch_graph import TorchGraph

    torch.set_num_threads(1)
    graph, learned = frontend.load_learned(start, freeze=("mean", "spread"))
    weights = {n: torch.nn.Parameter(torch.from_numpy(d.array().copy())) for n, d in learned.items()}
    module = TorchGraph(rewrites.run(graph, rewrites.PHASES[:2]), weights)
    wanted = torch.from_numpy(labels)

    def loss(number: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, number))
        moved = np.stack([np.roll(r, rng.integers(100), axis=1) for r in x]) * rng.uniform(0.8, 1.25, (len(x), 6, 1))
        moved += rng.standard_normal(x.shape) * 0.1 * x.std((0, 2))[None, :, None]
        return torch.nn.functional.cross_entropy(module({"readings": moved.astype(np.float32)})[0]["logits"], wanted)

    fit([{"params": list(weights.values())}], loss, STEPS, Plan(STEPS, 2e-3, seed=seed))
    frontend.replace(start, out, {n["name"]: p.detach().numpy() for n, p in weights.items()})


def asked(seconds: list[tuple[str, int]]) -> str:
    return "Summarise: " + ", ".join(f"{DONE[activity]} {n} seconds" for activity, n in seconds)


def summary(seconds: list[tuple[str, int]], work: pathlib.Path) -> str | None:
    """What SmolLM2 says of the seconds of each activity, after two examples; None where it is not there."""
    if not (MODELS / "smollm2/model.onnx").exists():
        return None
    artifact = work / "smollm2.edgec"
    if not artifact.exists():
        edgec.build(MODELS / "smollm2", out=artifact)
    lm = edgec.load(artifact)
    turns = [
        asked([("Standing", 80), ("Running", 40)]),
        "You mostly stood still (80 seconds), and ran for 40 seconds.",
        asked([("Badminton", 70), ("Walking", 30), ("Running", 20)]),
        "You mostly played badminton (70 seconds), walked for 30 seconds and ran for 20 seconds.",
        asked(seconds),
    ]
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return "".join(lm.chat(messages, max_tokens=60, temperature=0)).strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/sensors")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--no-summary", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    fetch_models.fetch("sensors")
    (x, activity), (test, truth) = readings("TRAIN"), readings("TEST")
    names = sorted(set(activity))
    labels = np.array([names.index(a) for a in activity])
    for seed in range(args.seeds):
        start, model, artifact = (args.work / f"motions{seed}{end}" for end in (".start.onnx", ".onnx", ".edgec"))
        write_model(start, x.mean((0, 2)), x.std((0, 2)), len(names), seed)
        train(start, model, x, labels, seed)
        for weights in ("int8", "int4"):
            report = edgec.build(model, weights=weights, out=artifact)
            session = edgec.load(artifact, threads=1)
            found = [names[i] for i in session(readings=test)["logits"].argmax(1)]
            right = sum(a == b for a, b in zip(found, truth))
            bits = ", ".join(f"{w['bits']}" for w in report.weights)
            size = sum(w["bytes"] for w in report.weights) / 1e3
            print(
                f"seed {seed}, {weights}: {right} of {len(truth)} readings right, weights of {bits} bits, {size:.0f} kB"
            )
    some = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:12]]
    print("two minutes:", ", ".join(some))
    seconds = [(activity, 10 * count) for activity, count in Counter(some).most_common()]
    words = None if args.no_summary else summary(seconds, args.work)
    if words:
        print("SmolLM2:", words)
        if sorted(map(int, re.findall(r"\d+", words))) != sorted(n for _, n in seconds):
            print("(it says other numbers than it was told)")
    elif not args.no_summary:
        print(f"(no summary: SmolLM2 is not in {MODELS / 'smollm2'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
