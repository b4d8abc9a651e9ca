"""A teacher and a student in torch, the data they are run on, and what is between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from edgec.distill import head, losses
from edgec.distill.fit import write_whole
from edgec.distill.torch_graph import TorchGraph
from edgec.errors import EdgecError
from edgec.ir.dims import symbol_name
from edgec.ir.node import Node

Tensor = torch.Tensor
CACHED = 1 << 29  # bytes of teacher's values that are kept instead of computed again
# a loss of values inside: the teacher's node, the student's, and what brings the student's to the teacher's size
Inner = tuple[losses.HiddenLoss, Node, Node, torch.nn.Module]


def halves() -> bool:
    """Whether this CPU multiplies in bf16: twice as fast as in f32, where it does."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


class Lesson:
    """refresh: called before the student is measured. batch: samples a step. half: products of training steps in bf16. hard:
    the true labels' part of a loss. most_held: batches that are kept out of training, at most. following: the input of a
    causal language model's tokens, and the share that the cross entropy with the tokens that follow has in each kl; of
    temperature 1."""

    def __init__(
        self,
        teacher: TorchGraph,
        student: TorchGraph,
        outputs: Sequence[losses.OutputLoss],
        *,
        temperature: float = 1.0,
        pairs: Sequence[Inner] = (),
        batch: int = 32,
        refresh: Callable[[], None] = lambda: None,
        half: bool = False,
        hard: losses.LabelLoss | None = None,
        most_held: int | None = None,
        following: tuple[str, float] | None = None,
    ):
        self.teacher, self.student, self.outputs, self.pairs = teacher, student, outputs, pairs
        self.temperature, self.batch, self.refresh, self.half, self.hard = temperature, batch, refresh, half, hard
        labelled = None if hard is None else hard.name
        self.most_held, self.following = most_held, following
        found = {d.name: head.head_of(d, teacher, student) for d in outputs if d.name != labelled}
        self.heads = {name: h for name, h in found.items() if h is not None}
        self.plain = [d.name for d in outputs if d.name not in self.heads]

    def take(
        self,
        feeds: Sequence[dict[str, np.ndarray]],
        valid: Sequence[np.ndarray | None],
        samples: int,
        labels: Sequence[np.ndarray] | None = None,
    ) -> None:
        """The data: feeds of both, which [batch, tokens] are text (None: all), and the true shares of classes f32[batch,
        classes] (NaN: not known). A tenth is kept out of training.

        Raises EdgecError EC1302 for too little."""
        self.feeds, self.valid = list(feeds), list(valid)
        self.labels = None if labels is None else list(labels)
        self._merge()
        count = len(self.feeds)
        if count < 2:
            raise EdgecError(
                "EC1302", f"too few samples to train on: {samples}", None, f"Give {2 * self.batch} or more"
            )
        held = list(range(min(count - 1, 5), count, 10))
        self.held = held[-(self.most_held or len(held)) :]  # the first ones may have fitted the student's weights
        self.trained = [i for i in range(count) if i not in set(self.held)]
        self.cache: dict[int, tuple] = {}
        self.cached = 0

    def _merge(self) -> None:
        """Joins runs of one shape into batches of the size asked for, where the models leave the batch open."""
        open_ = all(n.rank and symbol_name(n.shape[0]) for n in (*self.teacher.inputs, *self.student.inputs))
        rows = max((v.shape[0] for v in self.feeds[0].values() if v.ndim), default=1) if self.feeds else 1
        self.accumulate = max(1, round(self.batch / rows))
        if not open_ or self.accumulate == 1:
            return
        any_length = all(n.rank < 2 or symbol_name(n.shape[1]) for n in (*self.teacher.inputs, *self.student.inputs))
        groups: dict[tuple, list[int]] = {}
        for i, feed in enumerate(self.feeds):
            groups.setdefault(tuple((k, v.shape[1:]) for k, v in sorted(feed.items())), []).append(i)
        feeds, valid, labels = [], [], []
        for members in groups.values():
            for at in range(0, len(members), self.accumulate):
                some = members[at : at + self.accumulate]
                feeds.append({k: np.concatenate([self.feeds[i][k] for i in some]) for k in self.feeds[some[0]]})
                labels += [np.concatenate([self.labels[i] for i in some])] if self.labels is not None else []
                masks = [self.valid[i] for i in some]
                shape = next((m.shape for m in masks if m is not None), None)
                whole = [np.ones(shape, bool) if m is None else m for m in masks] if shape else []
                valid.append(np.concatenate(whole) if whole else None)
                if valid[-1] is not None and any_length:
                    feeds[-1], valid[-1] = _trimmed(feeds[-1], valid[-1])
        self.feeds, self.valid, self.accumulate = feeds, valid, 1
        self.labels = None if self.labels is None else labels

    def restore(self, path: Path, key: str) -> None:
        """The teacher's answers that a run of the same key saved; another's are made again. Raises EdgecError EC1003."""
        if not path.exists():
            return
        try:
            found = torch.load(path, weights_only=True)
            if found["key"] == key:
                self.cache = found["answers"]
                self.cached = sum(v.nbytes for a, b in self.cache.values() for v in (*a.values(), *b))
        except Exception as error:
            raise EdgecError("EC1003", f"it holds no answers of a teacher ({type(error).__name__})", str(path),
                             "Delete it, or name another file with --answers") from None  # fmt: skip

    def save(self, path: Path, key: str) -> None:
        write_whole({"key": key, "answers": self.cache}, path)

    def answers(self, number: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The teacher's outputs (of a head the rows that it reads) and hidden values. Raises EdgecError EC1303 for numbers
        that are not finite."""
        if number in self.cache:
            return self.cache[number]
        names = {n["name"] for n in self.teacher.inputs}
        inside = [t for _, t, _, _ in self.pairs]
        with torch.no_grad():
            feeds = {k: v for k, v in self.feeds[number].items() if k in names}
            read = [h.teacher.inputs[0] for h in self.heads.values()]
            values, kept = self.teacher(feeds, keep=[*inside, *read], outputs=self.plain)
        valid = self._valid(number)
        outputs = {name: values[name] for name in self.plain}
        outputs |= {name: losses.rows(kept[h.teacher.inputs[0]], valid) for name, h in self.heads.items()}
        for name, value in outputs.items():
            losses.check_finite(f"the teacher's output {name!r}", losses.rows(value, valid))
        found = outputs, [kept[t] for t in inside]
        size = sum(v.nbytes for v in (*outputs.values(), *found[1]))
        if self.cached + size <= CACHED:
            self.cache[number], self.cached = found, self.cached + size
        return found

    def _valid(self, number: int) -> Tensor | None:
        valid = self.valid[number]
        return None if valid is None else torch.from_numpy(valid)

    def _truth(self, number: int) -> head.Truth | None:
        """The token behind each of a batch's valid ones."""
        if self.following is None:
            return None
        name, share = self.following
        ids, valid = torch.from_numpy(self.feeds[number][name]).long(), self._valid(number)
        behind = F.pad(ids[:, 1:], (0, 1), value=-1)
        if valid is None:
            return head.Truth(share, behind.reshape(-1))
        behind[:, :-1].masked_fill_(~valid[:, 1:], -1)
        return head.Truth(share, behind[valid])

    def _run(self, number: int) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
        """The student's outputs but those of heads, and the values that losses need."""
        names = {n["name"] for n in self.student.inputs}
        feeds = {k: v for k, v in self.feeds[number].items() if k in names}
        keep = [s for *_, s, _ in self.pairs] + [i for h in self.heads.values() for i in h.student.operands()]
        return self.student(feeds, keep=keep, outputs=self.plain)

    def loss(self, number: int) -> Tensor:
        """Of the batch that is this one of those trained on."""
        number = self.trained[number]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            wanted, inside = self.answers(number)
            got, kept = self._run(number)
            valid, found = self._valid(number), []
            for d in self.outputs:
                if d.name in self.heads:
                    h = self.heads[d.name]
                    x, *values = (kept[i] for i in h.student.operands())
                    rows = losses.rows(x, valid)
                    truth = self._truth(number)
                    value = head.kl(
                        h, self.teacher, self.student, wanted[d.name], rows, values, self.temperature, truth
                    )
                else:
                    value = losses.distance(d, wanted[d.name], got[d.name], valid, self.temperature)
                    if d.kind == "kl" and (truth := self._truth(number)) is not None:
                        value = _mixed(value, losses.rows(got[d.name], valid), truth)
                found.append(d.weight * self._with_labels(d, value, got, number))
            total = torch.stack(found).sum()
            for (loss, _, s, project), value in zip(self.pairs, inside):
                total = total + loss.weight * losses.hidden(loss, value, kept[s], valid, project)
        return total

    def _with_labels(self, d: losses.OutputLoss, value: Tensor, got: dict[str, Tensor], number: int) -> Tensor:
        if self.hard is None or self.labels is None or d.name != self.hard.name:
            return value
        true = losses.cross_entropy(d.kind, got[d.name], torch.from_numpy(self.labels[number]))
        return (1 - self.hard.weight) * value + self.hard.weight * true

    def accuracy(self) -> dict[str, float]:
        """Of both on what was kept out, as the labels have it: the share of rows whose likeliest class they choose."""
        if self.hard is None or self.labels is None:
            return {}
        right, known = {"teacher": 0, "student": 0}, 0
        self.refresh()
        self.student.eval()
        with torch.no_grad():
            for number in self.held:
                true = torch.from_numpy(self.labels[number])
                labelled = ~torch.isnan(true).any(1)
                known += int(labelled.sum())
                for who, outputs in (("teacher", self.answers(number)[0]), ("student", self._run(number)[0])):
                    same = outputs[self.hard.name].argmax(-1) == true.argmax(-1)
                    right[who] += int(same[labelled].sum())
        self.student.train()
        return {who: count / known for who, count in right.items()} if known else {}

    def measure(self) -> tuple[dict[str, float], dict[str, float]]:
        """On what was kept out: the mean loss of each output, and the share of rows where both choose the same (kl)."""
        self.refresh()
        self.student.eval()
        sums: dict[str, list[float]] = {d.name: [] for d in self.outputs}
        same: dict[str, list[float]] = {d.name: [] for d in self.outputs if d.kind in ("kl", "probabilities")}
        with torch.no_grad():
            for number in self.held:
                for d, value, agree in self._measured(number):
                    losses.check_finite(f"the loss of {d.name!r}", value)
                    sums[d.name].append(value.item())
                    if d.name in same:
                        same[d.name].append(agree)
        self.student.train()
        return tuple({k: float(np.mean(v)) for k, v in d.items()} for d in (sums, same))  # type: ignore[return-value]

    def _measured(self, number: int) -> Iterator[tuple[losses.OutputLoss, Tensor, float]]:
        """(output, its loss, share of rows where both choose the same) in f32."""
        wanted, (got, kept), valid = self.answers(number)[0], self._run(number), self._valid(number)
        for d in self.outputs:
            pairs = [(wanted[d.name], got.get(d.name))]
            mask = valid
            if d.name in self.heads:
                h, mask = self.heads[d.name], None
                x, *values = (kept[i] for i in h.student.operands())
                pairs = head.logits(h, self.teacher, self.student, wanted[d.name], losses.rows(x, valid), values)
            total, agree, count = torch.zeros(()), 0.0, 0
            truth = self._truth(number) if d.kind == "kl" else None
            for t, s in pairs:
                rows = [losses.rows(x, mask) for x in (t, s)]
                value = losses.distance(d, t, s, mask, self.temperature)
                value = value if truth is None else _mixed(value, rows[1], truth.part(count, len(rows[1])))
                total = total + value * len(rows[0])
                agree += float((rows[0].argmax(-1) == rows[1].argmax(-1)).sum())
                count += len(rows[0])
            yield d, total / max(count, 1), agree / max(count, 1)


def _mixed(kl: Tensor, rows: Tensor, truth: head.Truth) -> Tensor:
    """The mean kl of rows of logits, and what cross entropy with the tokens that are known to follow is by the rows."""
    entropy = F.cross_entropy(rows, truth.ids, ignore_index=-1, reduction="sum") / len(rows)
    return (1 - truth.share) * kl + truth.share * entropy


def _trimmed(feeds: dict[str, np.ndarray], valid: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Without the columns that are padding in every row."""
    end = int(np.flatnonzero(valid.any(0))[-1]) + 1
    same = {k for k, v in feeds.items() if v.shape[:2] == valid.shape}
    return {k: v[:, :end] if k in same else v for k, v in feeds.items()}, valid[:, :end]
