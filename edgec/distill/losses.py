"""How far a student is from its teacher: over outputs, and over values inside of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from edgec.errors import EdgecError
from edgec.ir.node import Graph, Node
from edgec.ir.ops.registry import same_dims
from edgec.ir.types import FLOATS, TensorType

Tensor = torch.Tensor
KINDS = ("kl", "probabilities", "cosine", "mse")


@dataclass(frozen=True)
class OutputLoss:
    """kind: "kl" of logits, "probabilities" (kl of what is a distribution already), "cosine" of vectors, "mse"."""

    name: str
    kind: str
    weight: float = 1.0


@dataclass(frozen=True)
class HiddenLoss:
    """The mean squared error of two values inside, by the names of source nodes, relative to the teacher's mean square.
    Where sizes differ the student's is projected by a matrix that is learned on the way and then dropped (Romero et al.,
    FitNets, https://arxiv.org/abs/1412.6550)."""

    teacher: str
    student: str
    weight: float = 1.0


@dataclass(frozen=True)
class LabelLoss:
    """True labels beside the teacher's answers: the loss of the output is (1 - weight) of what it was plus weight of the
    cross entropy with the labels (Hinton et al., Distilling the Knowledge in a Neural Network,
    https://arxiv.org/abs/1503.02531). labels: their field or array in the data."""

    name: str
    labels: str
    weight: float = 0.5


def outputs_of(teacher: Graph, student: Graph, chosen: Mapping[str, str], skip: Sequence[str] = ()) -> list[OutputLoss]:
    """A loss for each output of floats that both have; chosen: output -> kind, for these outputs only.

    skip: outputs that are no answers (caches). Raises EdgecError EC1303 where the outputs do not match."""
    ours, theirs = ({n: v for n, v in g.outputs if _floats(v) and n not in skip} for g in (student, teacher))
    listed = f"the teacher has {_names(theirs)}, the student {_names(ours)}"
    names = list(chosen) or [n for n in theirs if n in ours]
    if not names:
        raise EdgecError("EC1303", f"teacher and student have no output of one name: {listed}", None,
                         "Export both with the same output names")  # fmt: skip
    found = []
    for name in names:
        if name not in ours or name not in theirs:
            raise EdgecError("EC1303", f"not both have an output {name!r}: {listed}", None, "Choose one that both have")
        a, b = theirs[name].type, ours[name].type
        if a.rank != b.rank or not all(same_dims(x, y) for x, y in zip(a.shape, b.shape)):
            raise EdgecError("EC1303", f"output {name!r} is {a} of the teacher, {b} of the student", None,
                             "Give the student an output of the teacher's shape")  # fmt: skip
        kind = chosen.get(name) or _kind(name, theirs[name])
        if kind not in KINDS:
            raise EdgecError("EC1001", f"{kind!r} is none of {', '.join(KINDS)}", "--loss")
        found.append(OutputLoss(name, kind))
    return found


def classes_of(student: Graph, outputs: Sequence[OutputLoss], hard: LabelLoss | None) -> int:
    """Classes of the output that has labels, 0 for none. Raises EdgecError EC1001 where it is none of classes."""
    if hard is None:
        return 0
    known = {d.name: d for d in outputs if d.kind in ("kl", "probabilities")}
    found = dict(student.outputs).get(hard.name)
    if hard.name not in known or found is None or found.rank != 2 or not isinstance(found.shape[1], int):
        raise EdgecError("EC1001", f"{hard.name!r} is no output [batch, classes] that is trained by kl or probabilities",
                         "--labels", f"Outputs that choose: {_names(known)}")  # fmt: skip
    return found.shape[1]


def _floats(node: Node) -> bool:
    return isinstance(node.type, TensorType) and node.dtype in FLOATS and node.rank > 0


def _names(named: Mapping[str, object]) -> str:
    return ", ".join(named) or "none of floats"


def _kind(name: str, node: Node) -> str:
    while node.op in ("cast", "reshape"):
        node = node.inputs[0]
    if node.op == "softmax":
        return "probabilities"
    if "logit" in name.lower() or "score" in name.lower():
        return "kl"
    return "cosine" if node.rank > 1 else "mse"


def distance(loss: OutputLoss, teacher: Tensor, student: Tensor, valid: Tensor | None, temperature: float) -> Tensor:
    """Mean over the rows that are valid; 0 where both agree. valid: bool [batch, tokens] for values [batch, tokens, ...]."""
    if loss.kind == "cosine":
        return _cosine(teacher, student, valid)
    t, s = (rows(x, valid) for x in (teacher, student))
    if loss.kind == "mse":
        return F.mse_loss(s, t)
    if loss.kind == "probabilities":
        t, s = (x.clamp_min(1e-8).log() for x in (t, s))
    else:
        t, s = t / temperature, s / temperature
    kl = F.kl_div(F.log_softmax(s, -1), F.log_softmax(t, -1), log_target=True, reduction="batchmean")
    return kl if loss.kind == "probabilities" else kl * temperature**2


def cross_entropy(kind: str, student: Tensor, shares: Tensor) -> Tensor:
    """With the true shares of classes f32[rows, classes], over the rows that are not NaN; 0 where all are."""
    known = ~torch.isnan(shares).any(1)
    if not known.any():
        return student.sum() * 0
    x, wanted = rows(student, None)[known], shares[known]
    logs = x.clamp_min(1e-8).log() if kind == "probabilities" else F.log_softmax(x, -1)
    return -(wanted * logs).sum(1).mean()


def rows(x: Tensor, valid: Tensor | None) -> Tensor:
    """The vectors along the last axis, f32[count, size], without padding."""
    x = x.float()
    if valid is not None and x.ndim > 2 and x.shape[:2] == valid.shape:
        return x[valid].reshape(-1, x.shape[-1])
    return x.reshape(-1, x.shape[-1])


def _cosine(teacher: Tensor, student: Tensor, valid: Tensor | None) -> Tensor:
    """1 - cosine of each vector, and of the means over a text's tokens: what sentence embeddings are made of."""
    apart = 1 - F.cosine_similarity(rows(student, valid), rows(teacher, valid), dim=-1).mean()
    if teacher.ndim != 3:
        return apart
    pooled = [pool(x, valid) for x in (student, teacher)]
    return apart + 1 - F.cosine_similarity(*pooled, dim=-1).mean()


def pool(x: Tensor, valid: Tensor | None) -> Tensor:
    """The mean over tokens, f32[batch, size]."""
    x = x.float()
    if valid is None or x.shape[:2] != valid.shape:
        return x.mean(1)
    mask = valid[..., None].to(x.dtype)
    return (x * mask).sum(1) / mask.sum(1).clamp_min(1)


def hidden(loss: HiddenLoss, teacher: Tensor, student: Tensor, valid: Tensor | None, project) -> Tensor:
    t, s = rows(teacher, valid), project(rows(student, valid))
    return F.mse_loss(s, t) / t.square().mean().clamp_min(1e-12)


def find(graph: Graph, name: str, who: str) -> Node:
    """The value that the source's node of this name became. Raises EdgecError EC1001."""
    found = [n for n in graph.nodes() if name in graph.origins.get(n, ()) and _floats(n) and n.rank > 1]
    found += [n for output, n in graph.outputs if output == name]
    if not found:
        near = sorted({o for n in graph.nodes() for o in graph.origins.get(n, ()) if name.lower() in o.lower()})[:5]
        raise EdgecError("EC1001", f"no value inside the {who} comes from a node {name!r}", "--hidden",
                         f"Some of its nodes: {', '.join(near)}" if near else "Name a node of the ONNX file")  # fmt: skip
    return found[-1]


def check_finite(what: str, array: np.ndarray | Tensor) -> None:
    """Raises EdgecError EC1303 where numbers are NaN or infinite."""
    finite = torch.isfinite(array).all() if isinstance(array, Tensor) else np.isfinite(array).all()
    if not finite:
        raise EdgecError("EC1303", "it holds numbers that are not finite", what, "Check the model that it comes from")
