"""A student trained to give a teacher's answers: two ONNX files in, one out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgec import frontend, kernels, rewrites
from edgec.calibrate import data
from edgec.calibrate.labels import shares
from edgec.distill import losses
from edgec.distill.fit import Checkpoint, Plan, Tick, fit
from edgec.distill.lesson import Inner, Lesson
from edgec.distill.rounding import RoundedWeight, as_linears, encodings
from edgec.distill.torch_graph import TorchGraph
from edgec.errors import EdgecError
from edgec.frontend.folder import model_file, text_files
from edgec.ir.node import Data, Graph, Node
from edgec.rewrites.widen import widen

Tensor = torch.Tensor
WEIGHTS = ("int4", "int8", "fp32")


@dataclass(frozen=True)
class Options:
    """What a run is asked for. losses: output -> kind, default all that both have. hidden: pairs of node names (teacher's,
    student's). labels: an output, and the field or array of the data with its true labels; alpha: their part of its loss.
    weights: what a build will make of the student. batch: samples a step. freeze: patterns of initializers that keep their
    values. answers: a file that keeps the teacher's answers for the next run on the same data."""

    losses: Mapping[str, str] = field(default_factory=dict)
    hidden: Sequence[tuple[str, str]] = ()
    hidden_weight: float = 1.0
    labels: tuple[str, str] | None = None
    alpha: float = 0.5
    temperature: float = 2.0
    weights: str = "int4"
    group: int = 32
    embedding: int = 8
    epochs: float = 3.0
    steps: int | None = None
    minutes: float | None = None
    lr: float = 3e-4
    batch: int = 32
    length: int | None = None
    samples: int | None = None
    seed: int = 0
    freeze: Sequence[str] = ()
    dims: Mapping[str, Any] = field(default_factory=dict)
    answers: str | os.PathLike | None = None

    def check(self) -> None:
        if self.weights not in WEIGHTS:
            raise EdgecError("EC1001", f"{self.weights!r} is none of {', '.join(WEIGHTS)}", "--weights")
        for name in ("temperature", "epochs", "lr", "batch", "hidden_weight"):
            if not getattr(self, name) > 0:
                raise EdgecError("EC1001", f"{getattr(self, name)} is not a positive number", f"--{name}")
        if not 0 <= self.alpha <= 1:
            raise EdgecError("EC1001", f"{self.alpha} is not between 0 and 1", "--alpha")


@dataclass
class Report:
    """before, after: the loss of each output on samples that were kept out of training, by output; agreement: of outputs
    that choose (kl), the share of rows where both choose the same, after. accuracy: by the true labels of these samples,
    "teacher" and "student", where there are labels. history: the loss of each step."""

    out: str
    steps: int = 0
    seconds: float = 0.0
    samples: int = 0
    held_out: int = 0
    parameters: int = 0
    rounded: dict[str, int] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)

    def to_dict(self) -> dict:
        return asdict(self)


def distill(
    teacher: str | os.PathLike,
    student: str | os.PathLike,
    samples: str | os.PathLike,
    out: str | os.PathLike,
    options: Options | None = None,
    tokenizer: str | os.PathLike | None = None,
    tick: Callable[[Tick], None] = lambda tick: None,
) -> Report:
    """Trains the weights of the student so that it answers as the teacher does, and writes it as ONNX again: the student's
    file with other numbers in its initializers.

    samples: a file that calibrate.data.load takes, for the teacher's inputs. A run that was interrupted leaves
    `out`.checkpoint and goes on from there. Raises EdgecError: EC1303 (models that do not match, a node without gradient,
    numbers that are not finite), EC1302 (data), EC1001 (options), EC1003 and those of the frontend.
    """
    o = options or Options()
    o.check()
    teacher, student, out = model_file(Path(teacher)), model_file(Path(student)), Path(out)
    pair = Pair(teacher, student, o)
    # all of the data is cut into the same batches whatever the seed, so that the teacher's answers hold for the next one
    found = data.load(samples, pair.teacher.graph, text_files(teacher, tokenizer), length=o.length, limit=o.samples or 1 << 20,
                      seed=o.seed if o.samples else 0, labels=o.labels[1] if o.labels else None)  # fmt: skip
    pair.take(found)
    lesson = pair.lesson
    report = Report(str(out), samples=found.samples, held_out=len(lesson.held), parameters=pair.count)
    report.rounded = {node["name"]: m.encoding.bits for node, m in pair.rounded.items()}
    taught = _digest((o.batch, o.losses, list(o.hidden), o.dims, found.key), teacher)
    if o.answers is not None:
        lesson.restore(Path(o.answers), taught)
    report.before = lesson.measure()[0]
    accumulate = lesson.accumulate
    steps = o.steps or max(1, round(o.epochs * len(lesson.trained) / accumulate))
    key = _digest((replace(o, answers=None), found.key), teacher, student)
    checkpoint = Checkpoint(out.with_name(out.name + ".checkpoint"), key)
    plan = Plan(steps, o.lr, accumulate, seed=o.seed, minutes=o.minutes)
    started = None

    def seen(t: Tick) -> None:
        nonlocal started
        started = t.seconds
        tick(t)

    groups, carried = [{"params": pair.parameters()}], list(pair.rounded.values())
    report.history = fit(groups, lesson.loss, len(lesson.trained), plan, seen, checkpoint, carried)
    report.steps, report.seconds = len(report.history), started or 0.0
    report.after, report.agreement = lesson.measure()
    report.accuracy = lesson.accuracy()
    if o.answers is not None:
        lesson.save(Path(o.answers), taught)
    frontend.replace(student, out, {n["name"]: p.detach().numpy() for n, p in pair.weights.items()})
    checkpoint.remove()
    return report


def _digest(what: tuple, *models: Path) -> str:
    digest = hashlib.sha256(repr(what).encode())
    for model in models:
        for file in frontend.source_files(model):
            with open(file, "rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def plain_graph(model: Path, dims: Mapping[str, Any]) -> Graph:
    """In f32, rewritten, its weights constants."""
    return rewrites.run(rewrites.one_length(widen(frontend.load(model, dims=dims))), rewrites.PHASES)


class Pair:
    """Teacher and student in torch, and what is between them."""

    def __init__(self, teacher: Path, student: Path, options: Options):
        self.options = o = options
        self.student_path = student
        torch.set_num_threads(kernels.threads())
        self.teacher = TorchGraph(plain_graph(teacher, o.dims))
        graph, learned = frontend.load_learned(student, dims=o.dims, freeze=o.freeze)
        if not learned:
            raise EdgecError("EC1303", "the student has no weights to train", str(student),
                             "Check --freeze, and that weights are initializers")  # fmt: skip
        graph = rewrites.run(rewrites.one_length(widen(graph)), rewrites.PHASES[:2])
        _check_constants(self.teacher.graph, "the teacher's")
        _check_constants(graph, "the student's")
        nodes = set(graph.nodes())
        self.weights = {n: _parameter(n, d) for n, d in learned.items() if n in nodes}
        self.rounded: dict[Node, RoundedWeight] = {}
        if o.weights != "fp32":
            graph, axes, tables = as_linears(graph, self.weights)
            total = sum(d.array().size for d in learned.values())
            for node, e in encodings(axes, tables, o.weights, o.group, o.embedding, total).items():
                self.rounded[node] = RoundedWeight(self.weights[node], e, axes.get(node, 1))
        self.count = sum(p.numel() for p in self.weights.values())
        self.student = TorchGraph(graph, {**self.weights, **self.rounded})
        self._match()

    def _match(self) -> None:
        """Outputs, inputs and hidden values of both."""
        teacher, student, o = self.teacher.graph, self.student.graph, self.options
        caches = _cache_outputs(teacher)
        outputs = losses.outputs_of(teacher, student, o.losses, caches)
        known = {n["name"]: n for n in teacher.inputs}
        self.own = [n for n in self.student.inputs if n["name"] not in known]
        for node in self.student.inputs:
            theirs = known.get(node["name"], node)
            if theirs.dtype != node.dtype or theirs.rank != node.rank:
                raise EdgecError("EC1303", f"input {node['name']!r} is {theirs.type} of the teacher, {node.type} of the student",
                                 None, "Export both with the same inputs")  # fmt: skip
        self.pairs: list[Inner] = []
        for a, b in o.hidden:
            t, s = losses.find(teacher, a, "teacher"), losses.find(student, b, "student")
            sizes = t.shape[-1], s.shape[-1]
            if t.rank != s.rank or not all(isinstance(d, int) for d in sizes):
                raise EdgecError(
                    "EC1001",
                    f"{a} is {t.type}, {b} is {s.type}: they cannot be compared",
                    "--hidden",
                    "Name nodes whose values have one rank and a fixed last size",
                )
            with torch.random.fork_rng():
                torch.manual_seed(o.seed)
                project = (
                    torch.nn.Identity() if sizes[0] == sizes[1] else torch.nn.Linear(sizes[1], sizes[0], bias=False)
                )
            self.pairs.append((losses.HiddenLoss(a, b, o.hidden_weight), t, s, project))
        hard = None if o.labels is None else losses.LabelLoss(*o.labels, o.alpha)
        self.classes = losses.classes_of(student, outputs, hard)
        self.lesson = Lesson(self.teacher, self.student, outputs, temperature=o.temperature, pairs=self.pairs, batch=o.batch,
                             refresh=self._refresh, hard=hard)  # fmt: skip

    def take(self, found: data.Calibration) -> None:
        """The data, and the empty caches that the student alone has."""
        feeds = found.feeds
        if self.own:
            plain = plain_graph(self.student_path, self.options.dims)
            names = {n["name"] for n in self.own}
            extra = [data.empty_caches(plain, dict(f)) for f in feeds]
            if missing := names - (extra[0].keys() if extra else set()):
                raise EdgecError("EC1303", f"the teacher has no input {sorted(missing)[0]!r} of the student", None,
                                 "Export both with the same inputs")  # fmt: skip
            feeds = [f | {k: v for k, v in e.items() if k in names} for f, e in zip(feeds, extra)]
        true = found.labels and [shares(a, self.classes, str(self.options.labels)) for a in found.labels]
        self.lesson.take(feeds, found.valid, found.samples, true)

    def _refresh(self) -> None:
        for module in self.rounded.values():
            module.scale = None

    def parameters(self) -> list[torch.nn.Parameter]:
        projections = [p for *_, project in self.pairs for p in project.parameters()]
        return [*self.weights.values(), *projections]


def _parameter(node: Node, data: Data) -> torch.nn.Parameter:
    array = data.array().astype(np.float32)
    losses.check_finite(f"the student's {node['name']!r}", array)
    return torch.nn.Parameter(torch.from_numpy(array.copy()))


def _check_constants(graph: Graph, whose: str) -> None:
    """NaN is no weight; infinities may be masks."""
    for node in graph.nodes():
        if node.op == "constant" and node.dtype in ("f32", "f64") and np.isnan(node["data"].array()).any():
            users = [graph.origin(u) for u in graph.users().get(node, ())][:1]
            raise EdgecError("EC1303", f"{whose} weights hold numbers that are not finite", ", ".join(users) or None,
                             "Check the model that it comes from")  # fmt: skip


def _cache_outputs(graph: Graph) -> tuple[str, ...]:
    found = rewrites.decoder.roles(graph)
    return () if isinstance(found, str) else found.present
