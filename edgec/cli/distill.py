"""edgec distill: a student trained to give a teacher's answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from edgec.cli.common import COMMON, Common, existing, fields, need, parse_dims, print_json, split_pair, writable
from edgec.errors import EdgecError
from edgec.options import check_encoding, idle

if TYPE_CHECKING:
    from edgec.distill.fit import Tick


def distill(
    teacher: Path,
    student: Path,
    /,
    *,
    data: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    loss: tuple[str, ...] = (),
    hidden: tuple[str, ...] = (),
    labels: str | None = None,
    alpha: float | None = None,
    temperature: float | None = None,
    weights: Literal["int4", "int8", "fp32"] = "int4",
    group: int | None = None,
    embedding: Literal[4, 6, 8] | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    lr: float = 3e-4,
    batch: int = 32,
    length: int | None = None,
    samples: int | None = None,
    freeze: tuple[str, ...] = (),
    answers: Path | None = None,
    seed: int = 0,
    dim: tuple[str, ...] = (),
    tokenizer: str | None = None,
    common: Common = COMMON,
) -> int:
    """Train a student model to give a teacher's answers. An interrupted run goes on where it was.

    Parameters
    ----------
    teacher
        The ONNX model to learn from, or a folder that has it.
    student
        The ONNX model to train, with inputs and outputs of the teacher's names: smaller, pruned, or the teacher itself.
    data
        What both are run on: texts (.txt, .jsonl) for the teacher's tokenizer, or arrays of its inputs (.npz, a folder of .npy).
    output
        The trained student, ONNX again.
    loss
        OUTPUT=kl, probabilities, cosine or mse; repeat it for several. By default every output that both have: kl for logits,
        cosine for vectors.
    hidden
        TEACHER=STUDENT: names of ONNX nodes whose values shall agree too, by a learned projection where sizes differ.
    labels
        OUTPUT=FIELD: true labels of an output of classes beside the teacher's answers: a field of .jsonl, or an array. A label is
        a class from 0 on, or a share of each; samples may have none.
    alpha
        What part of that output's loss the labels are, the teacher's answers being the rest; by default 0.5.
    temperature
        Of the distributions that kl compares, by default 2.
    weights
        What a build will make of the weights: training rounds them (and activations) so that they suit it.
    group
        int4 weights that share a scale, by default 32.
    embedding
        Bits of embedding tables under int4, by default 8.
    epochs
        Passes over the data, by default 3.
    steps
        Steps of the optimizer, instead of epochs.
    minutes
        Stop after so long.
    lr
        The learning rate at its peak.
    batch
        Samples a step.
    length
        Tokens of the longest text, or of a language model's windows.
    samples
        Samples to take of the data, by default all.
    freeze
        Pattern of names of initializers that keep their values; repeat it for several.
    answers
        File to keep the teacher's answers in: the next run on the same data need not ask it again.
    seed
        The same seed gives the same student.
    dim
        NAME=SIZE fixes a symbolic dim of both models.
    tokenizer
        The folder of the teacher's tokenizer, by default its own.
    """
    need("torch", "training", "'edgec[distill]'")
    for path, name in ((teacher, "TEACHER"), (student, "STUDENT"), (data, "--data")):
        existing(path, name)
    out = writable(output, "--output")
    if out.resolve() in (teacher.resolve(), student.resolve()):
        raise EdgecError("EC1001", "it would overwrite a model that is read", f"--output {out}", "Name another file")
    if answers is not None and answers.resolve() == out.resolve():
        raise EdgecError("EC1001", "it is the output", f"--answers {answers}", "Name another file")
    losses = dict(split_pair(text, "--loss", "OUTPUT=KIND") for text in loss)
    check_encoding(weights, group, embedding)
    if alpha is not None and labels is None:
        raise idle("--alpha", "it is the part of the labels", "Add --labels OUTPUT=FIELD")
    if epochs is not None and steps is not None:
        raise idle("--epochs", "--steps says how long", "Leave one of them out")
    if temperature is not None and losses and "kl" not in losses.values():
        raise idle("--temperature", "it is for --loss OUTPUT=kl", "Leave it out")
    if data.is_dir() or data.suffix == ".npz":
        for option, value in (("--length", length), ("--tokenizer", tokenizer)):
            if value is not None:
                raise idle(option, "the data are arrays, and no text", "Leave it out")
    from edgec.distill import student as training

    set_: dict[str, Any] = {
        "alpha": alpha,
        "temperature": temperature,
        "group": group,
        "embedding": embedding,
        "epochs": epochs,
    }
    options = training.Options(
        losses=losses,
        hidden=[split_pair(text, "--hidden", "TEACHER=STUDENT") for text in hidden],
        labels=None if labels is None else split_pair(labels, "--labels", "OUTPUT=FIELD"),
        weights=weights,
        steps=steps,
        minutes=minutes,
        lr=lr,
        batch=batch,
        length=length,
        samples=samples,
        seed=seed,
        freeze=freeze,
        answers=None if answers is None else writable(answers, "--answers"),
        dims=parse_dims(dim),
        **{name: value for name, value in set_.items() if value is not None},
    )
    with progress(common.json) as tick:
        report = training.distill(teacher, student, data, out, options, tokenizer, tick)
    found = report.to_dict()
    if common.json:
        print_json(found)
    else:
        _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    bits: dict[int, int] = {}
    for b in found["rounded"].values():
        bits[b] = bits.get(b, 0) + 1
    rounded = ", ".join(f"{count} in {b} bits" for b, count in sorted(bits.items()))
    fields(
        (
            ("student", found["out"]),
            (
                "trained",
                f"{found['parameters'] / 1e6:.2f} M numbers in {found['steps']} steps, {found['seconds']:.0f} s",
            ),
            ("rounded", rounded + " while it trained" if rounded else None),
            *((name, _loss_text(found, name)) for name in found["before"]),
            ("accuracy", _accuracy_text(found["accuracy"]) if found["accuracy"] else None),
        )
    )


def _loss_text(found: dict[str, Any], name: str) -> str:
    text = f"{found['before'][name]:.4f} -> {found['after'][name]:.4f} from the teacher"
    return text + (f", the same choice in {found['agreement'][name]:.1%}" if name in found["agreement"] else "")


def _accuracy_text(accuracy: dict[str, float]) -> str:
    return f"{accuracy['student']:.1%} of the labels kept out, the teacher {accuracy['teacher']:.1%}"


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[Tick], None]]:
    """A callback of steps: a bar on a terminal, a line every some seconds elsewhere, nothing when quiet."""
    from edgec.cli.common import console

    terminal = console(stderr=True)
    if quiet:
        yield lambda tick: None
    elif terminal.is_terminal:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        text = TextColumn("loss {task.fields[loss]}, {task.fields[left]} left")
        with Progress(TextColumn("training"), BarColumn(), TaskProgressColumn(), text, console=terminal,
                      transient=True) as bar:  # fmt: skip
            task = bar.add_task("training", total=None, loss="-", left="-")

            def show(t: Tick) -> None:
                bar.update(task, total=t.steps, completed=t.step, loss=f"{t.mean_loss:.4f}", left=f"{t.left:.0f} s")

            yield show
    else:
        last = 0.0

        def line(t: Tick) -> None:
            nonlocal last
            if time.monotonic() - last >= 5 or t.step == t.steps:
                last = time.monotonic()
                print(f"[{t.seconds:6.1f} s] step {t.step}/{t.steps}, loss {t.mean_loss:.4f}, {t.left:.0f} s left",
                      file=sys.stderr, flush=True)  # fmt: skip

        yield line
