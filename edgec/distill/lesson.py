"""A teacher and a student in torch, the data they are run on, and what is between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from edgec.distill import losses
from edgec.distill.torch_graph import TorchGraph
from edgec.errors import EdgecError
from edgec.ir.dims import symbol_name
from edgec.ir.node import Node

Tensor = torch.Tensor
CACHED = 1 << 29  # bytes of teacher's values that are kept instead of computed again
# a loss of values inside: the teacher's node, the student's, and what brings the student's to the teacher's size
Inner = tuple[losses.HiddenLoss, Node, Node, torch.nn.Module]


class Lesson:
    """refresh: called before the student is measured. batch: samples a step."""

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
    ):
        self.teacher, self.student, self.outputs, self.pairs = teacher, student, outputs, pairs
        self.temperature, self.batch, self.refresh = temperature, batch, refresh

    def take(self, feeds: Sequence[dict[str, np.ndarray]], valid: Sequence[np.ndarray | None], samples: int) -> None:
        """The data: feeds of both, and which [batch, tokens] are text (None: all). A tenth is kept out of training.

        Raises EdgecError EC1302 for too little."""
        self.feeds, self.valid = list(feeds), list(valid)
        self._merge()
        count = len(self.feeds)
        if count < 2:
            raise EdgecError("EC1302", f"{samples} samples are too few to train on", None, "Give more data")
        self.held = list(range(min(count - 1, 5), count, 10))
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
        feeds, valid = [], []
        for members in groups.values():
            for at in range(0, len(members), self.accumulate):
                some = members[at : at + self.accumulate]
                feeds.append({k: np.concatenate([self.feeds[i][k] for i in some]) for k in self.feeds[some[0]]})
                masks = [self.valid[i] for i in some]
                shape = next((m.shape for m in masks if m is not None), None)
                whole = [np.ones(shape, bool) if m is None else m for m in masks] if shape else []
                valid.append(np.concatenate(whole) if whole else None)
                if valid[-1] is not None and any_length:
                    feeds[-1], valid[-1] = _trimmed(feeds[-1], valid[-1])
        self.feeds, self.valid, self.accumulate = feeds, valid, 1

    def answers(self, number: int) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The teacher's outputs and hidden values. Raises EdgecError EC1303 for numbers that are not finite."""
        if number in self.cache:
            return self.cache[number]
        names = {n["name"] for n in self.teacher.inputs}
        with torch.no_grad():
            feeds = {k: v for k, v in self.feeds[number].items() if k in names}
            values, kept = self.teacher(feeds, keep=[t for _, t, _, _ in self.pairs])
        outputs = {loss.name: values[loss.name] for loss in self.outputs}
        valid = self._valid(number)
        for name, value in outputs.items():
            losses.check_finite(f"the teacher's output {name!r}", losses.rows(value, valid))
        found = outputs, [kept[t] for _, t, _, _ in self.pairs]
        size = sum(v.nbytes for v in (*outputs.values(), *found[1]))
        if self.cached + size <= CACHED:
            self.cache[number], self.cached = found, self.cached + size
        return found

    def _valid(self, number: int) -> Tensor | None:
        valid = self.valid[number]
        return None if valid is None else torch.from_numpy(valid)

    def _losses(self, number: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """(loss of each output, of hidden values, the student's outputs)"""
        wanted, inside = self.answers(number)
        names = {n["name"] for n in self.student.inputs}
        feeds = {k: v for k, v in self.feeds[number].items() if k in names}
        got, kept = self.student(feeds, keep=[s for *_, s, _ in self.pairs])
        valid, temperature = self._valid(number), self.temperature
        found = {d.name: losses.distance(d, wanted[d.name], got[d.name], valid, temperature) for d in self.outputs}
        hidden = torch.zeros(())
        for (loss, _, s, project), value in zip(self.pairs, inside):
            hidden = hidden + loss.weight * losses.hidden(loss, value, kept[s], valid, project)
        return found, hidden, got

    def loss(self, number: int) -> Tensor:
        """Of the batch that is this one of those trained on."""
        found, hidden, _ = self._losses(self.trained[number])
        return torch.stack([d.weight * found[d.name] for d in self.outputs]).sum() + hidden

    def measure(self) -> tuple[dict[str, float], dict[str, float]]:
        """On what was kept out: the mean loss of each output, and the share of rows where both choose the same (kl)."""
        self.refresh()
        self.student.eval()
        sums: dict[str, list[float]] = {d.name: [] for d in self.outputs}
        same: dict[str, list[float]] = {d.name: [] for d in self.outputs if d.kind in ("kl", "probabilities")}
        with torch.no_grad():
            for number in self.held:
                found, _, got = self._losses(number)
                for name, value in found.items():
                    losses.check_finite(f"the loss of {name!r}", value)
                    sums[name].append(value.item())
                for name, rows in same.items():
                    t, s = (losses.rows(x[name], self._valid(number)) for x in (self.answers(number)[0], got))
                    rows.append((t.argmax(-1) == s.argmax(-1)).float().mean().item())
        self.student.train()
        return tuple({k: float(np.mean(v)) for k, v in d.items()} for d in (sums, same))  # type: ignore[return-value]


def _trimmed(feeds: dict[str, np.ndarray], valid: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Without the columns that are padding in every row."""
    end = int(np.flatnonzero(valid.any(0))[-1]) + 1
    same = {k for k, v in feeds.items() if v.shape[:2] == valid.shape}
    return {k: v[:, :end] if k in same else v for k, v in feeds.items()}, valid[:, :end]
