#!/usr/bin/env python3
"""Makes the model of `edgec demo`: MiniLM fine-tuned on movie snippets teaches a student of 3 layers, compiled to int4.

usage: make.py [--work FOLDER] [--seeds 1] [--epochs 0.75] [--student-epochs 2] [--texts N] [--ship]

Models and texts come from packages on PyPI. Every step leaves its result in the work
folder and is not done again; half an hour on two cores, ten minutes for each further seed.

    teacher/         MiniLM-L6 with a head, fine-tuned: a text is positive or negative
    pruned/          the same with the word pieces only that the texts use: what the students learn from
    texts.jsonl      what they are trained on, with the raters' opinion where the text is of a film; answers: the teacher's
    seed0/student/   3 of its layers with a quarter of their channels, a table of 96 columns; distilled through the roundings of
                     int4, on the teacher's answers and the raters'
    seed0/packed/    its weights in 4 bits, its rare word pieces gone
    seed0/           sentiment.edgec, sentiment.zip that edgec ships (--ship), result.json

python bench/student.py says how accurate and how fast they are.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import shutil
import sys
import time
import zipfile
from collections import Counter

import numpy as np
from models import MODELS, ROOT, fetch, keep_pieces, with_pieces, write_packed, write_student, write_teacher

LENGTH = 64  # tokens of the longest text in training
FROZEN = ("embeddings.*", "encoder.layer.[012].*")  # of the teacher: half the work, and what it knows of words stays
LAYERS, FFN, RANK, POSITIONS = (0, 2, 4), 384, 96, 128
HIDDEN = [("encoder.layer.5/down/LayerNorm", "encoder.layer.2/down/LayerNorm")]  # the last layer of both
COMMON = 8000  # of MiniLM's pieces, which are sorted by frequency, those that stay in any case


def snippets(name: str) -> list[tuple[float, str]]:
    """(mean rating from -4 to 4, text) of one of the files."""
    path = MODELS / f"movie-sentiment/hutto_ICWSM_2014/{name}_GroundTruth.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = (line.split("\t") for line in lines)
    return [(float(row[1]), row[2]) for row in rows if len(row) == 3]


def lesson(limit: int | None) -> list[dict]:
    """Texts for the student: films with the shares of raters' opinion as label, those that are neither too; others without."""
    test = {text for _, text in movie_texts()[1]}
    films = [(rating, text) for rating, text in snippets("movieReviewSnippets") if text not in test]
    shares = [1 / (1 + math.exp(-2 * rating)) for rating, _ in films]
    rows: list[dict] = [{"text": text, "label": [1 - p, p]} for p, (_, text) in zip(shares, films)]
    rows += [{"text": text} for text in other_texts()[::4]]
    return rows[:: max(1, len(rows) // limit)] if limit else rows


def other_texts() -> list[str]:
    return [text for name in ("amazonReviewSnippets", "tweets") for _, text in snippets(name)]


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


def make_student(folder: pathlib.Path, pruned: pathlib.Path, rows: list[dict], args, seed: int) -> pathlib.Path:
    from edgec.distill.student import Options, distill

    folder.mkdir(parents=True, exist_ok=True)
    start, model, texts = folder / "start.onnx", folder / "model.onnx", args.work / "texts.jsonl"
    (folder / "tokenizer.json").write_bytes((pruned / "tokenizer.json").read_bytes())
    if not model.exists():
        texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_student(pruned / "model.onnx", start, LAYERS, FFN, RANK, POSITIONS)
        print(f"student {seed}: {len(rows)} texts through the roundings of int4", flush=True)
        options = Options(
            embedding=4,
            lr=5e-4,
            epochs=args.student_epochs,
            length=LENGTH,
            seed=seed,
            labels=("logits", "label"),
            hidden=HIDDEN,
            hidden_weight=0.5,
            answers=args.work / "answers",
        )
        report = distill(pruned, start, texts, model, options, tick=_line)
        model.with_suffix(".json").write_text(json.dumps(report.to_dict()))
    return folder


def make_packed(folder: pathlib.Path, student: pathlib.Path, movie: list[str], others: list[str]) -> pathlib.Path:
    """The student in 4 bits, with the pieces of the snippets and those that occur often elsewhere, and beside the folder the
    archive of both files that edgec ships."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(student)
    kept, count = (Counter(i for e in tokenizer.encode_batch(t) for i in e.ids) for t in (movie, others))
    described = json.loads((student / "tokenizer.json").read_text())
    single = {i for piece, i in described["model"]["vocab"].items() if re.fullmatch(r"(##)?[\x21-\x7e]", piece)}
    pieces, rows = keep_pieces(described, set(kept) | {i for i, n in count.items() if n > 3} | single)
    (folder / "tokenizer.json").write_text(json.dumps(pieces, ensure_ascii=False, separators=(",", ":")))
    write_packed(student / "model.onnx", folder / "model.onnx", rows, LENGTH)
    print(f"packed: {len(rows)} word pieces", flush=True)
    with zipfile.ZipFile(folder.parent / "sentiment.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in ("model.onnx", "tokenizer.json"):  # with a fixed date: equal content, equal bytes
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/sentiment")
    parser.add_argument("--seeds", type=int, default=1, help="students to train, all of one teacher")
    parser.add_argument("--epochs", type=float, default=0.75, help="of the teacher")
    parser.add_argument("--student-epochs", type=float, default=2.0)
    parser.add_argument(
        "--texts", type=int, help="texts to train and test with, by default all: fewer show that it runs"
    )
    parser.add_argument("--ship", action="store_true", help="put the first seed's archive where edgec demo finds it")
    args = parser.parse_args()
    import edgec

    for name in ("minilm-weights", "movie-sentiment"):
        fetch(name)
    train, test = movie_texts()
    films, others = [text for _, text in train], other_texts()
    if args.texts:
        train, test = (part[:: max(1, len(part) // args.texts)] for part in (train, test))
    args.work.mkdir(parents=True, exist_ok=True)
    teacher = make_teacher(args.work, train, args.epochs, 0)
    pruned = make_pruned(args.work, teacher, films + others)
    rows = lesson(args.texts)
    theirs = accuracy(by_onnxruntime(teacher / "model.onnx"), tokenizer_of(teacher), test)
    for seed in range(args.seeds):
        folder = args.work / f"seed{seed}"
        began = time.perf_counter()
        student = make_student(folder / "student", pruned, rows, args, seed)
        packed = make_packed(folder / "packed", student, films, others)
        built = edgec.build(packed, embedding=4, out=folder / "sentiment.edgec")
        ours = {"artifact": accuracy(by_edgec(folder / "sentiment.edgec"), tokenizer_of(packed), test)}
        for name in (student, packed):
            ours[name.name] = accuracy(by_onnxruntime(name / "model.onnx"), tokenizer_of(name), test)
        result = {"seed": seed, "test_texts": len(test), "teacher_accuracy": theirs}
        result |= {f"{name}_accuracy": found for name, found in ours.items()}
        result |= {"share": ours["artifact"] / theirs, "artifact_mb": built.artifact_bytes / 1e6}
        result |= {
            "shipped_mb": (folder / "sentiment.zip").stat().st_size / 1e6,
            "seconds": time.perf_counter() - began,
        }
        (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1), flush=True)
    if args.ship:
        shutil.copy2(args.work / "seed0/sentiment.zip", ROOT / "edgec/models/sentiment.zip")
    return 0


def by_onnxruntime(path: pathlib.Path):
    """feeds -> logits of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda feeds: session.run(["logits"], {n: feeds[n] for n in names})[0]


def by_edgec(path: pathlib.Path):
    """feeds -> logits of an artifact."""
    import edgec

    session = edgec.load(path)
    return lambda feeds: session.run(["logits"], {n: feeds[n] for n in ("input_ids", "attention_mask")})[0]


if __name__ == "__main__":
    sys.exit(main())
