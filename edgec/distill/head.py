"""KL of logits that one product makes of a hidden value, a few rows at a time: neither the logits of all tokens nor their
gradients are in memory at once, and what is kept of the teacher are its hidden rows. The idea: Hsu et al., Liger Kernel,
https://arxiv.org/abs/2410.10989."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from edgec.distill.losses import OutputLoss
from edgec.distill.torch_graph import TorchGraph
from edgec.ir.node import Node

Tensor = torch.Tensor
WIDE = 2048  # outputs of a product that is worth it
ROWS = 256  # of a product
PIECE = 8  # of its logits at once, in caches


@dataclass(frozen=True)
class Truth:
    """What came next: share of the loss that its cross entropy is, and ids [rows] of it, -1 where it is not known."""

    share: float
    ids: Tensor

    def part(self, at: int, count: int) -> Truth:
        return Truth(self.share, self.ids[at : at + count])


@dataclass(frozen=True)
class Head:
    """The products that are an output of the teacher and of the student."""

    teacher: Node
    student: Node


def head_of(loss: OutputLoss, teacher: TorchGraph, student: TorchGraph) -> Head | None:
    """The heads of an output whose loss is the kl of many logits, made by a product with a constant alone; else None."""
    found = []
    for module in (teacher, student):
        node = dict(module.graph.outputs)[loss.name]
        plain = node.op == "linear" and node["act"] == "none" and node.inputs[3] is None
        plain = plain and all(i.op == "constant" or i in module.learned for i in list(node.operands())[1:])
        if not plain or not isinstance(node.shape[-1], int) or node.shape[-1] < WIDE:
            return None
        found.append(node)
    return Head(*found) if loss.kind == "kl" else None


def _apply(module: TorchGraph, node: Node, x: Tensor, values: Sequence[Tensor]) -> Tensor:
    left = iter(values)
    return module.apply(node, [x, *(None if i is None else next(left) for i in node.inputs[1:])])


class _Kl(torch.autograd.Function):
    """Gradients are computed on the way, row by row, with the loss: backward only scales them."""

    @staticmethod
    def forward(ctx, head: Head, modules, teacher_rows: Tensor, theirs, temperature: float, truth: Truth | None, x: Tensor,
                *values: Tensor):  # fmt: skip
        leaves = [v.detach().requires_grad_(r) for v, r in zip((x, *values), ctx.needs_input_grad[6:])]
        wanted = [v for v in leaves[1:] if v.requires_grad]
        sums = [torch.zeros_like(v) for v in wanted]
        grad = torch.empty_like(x) if ctx.needs_input_grad[6] else None
        total = torch.zeros((), dtype=torch.float64)
        for at in range(0, len(x), ROWS):
            t = _apply(modules[0], head.teacher, teacher_rows[at : at + ROWS], theirs)
            with torch.enable_grad():
                rows = leaves[0][at : at + ROWS].detach().requires_grad_(grad is not None)
                s = _apply(modules[1], head.student, rows, tuple(leaves[1:]))
            outer = torch.empty_like(s) if s.requires_grad else None
            known = None if truth is None else truth.part(at, ROWS)
            total += _divergence(t, s.detach(), temperature, outer, temperature / len(x), known)
            if outer is not None:
                found = torch.autograd.grad(s, [*([rows] if grad is not None else []), *wanted], outer)
                if grad is not None:
                    grad[at : at + ROWS], *found = found
                for a, b in zip(sums, found):
                    a += b
        left = iter(sums)
        ctx.save_for_backward(grad, *(next(left) if v.requires_grad else None for v in leaves[1:]))
        return (total * temperature**2 / len(x)).float()

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (g,) = grads
        return (None,) * 6 + tuple(None if v is None else v * g for v in ctx.saved_tensors)


def _divergence(
    t: Tensor, s: Tensor, temperature: float, outer: Tensor | None, factor: float, truth: Truth | None
) -> Tensor:
    """The sum over rows of logits of kl, or of kl and cross entropy as the truth says, f64, by the temperature's square; the
    gradient by s of that times temperature and factor goes to `outer`."""
    total = torch.zeros((), dtype=torch.float64)
    for at in range(0, len(t), PIECE):
        logs = (v[at : at + PIECE].float() for v in (t, s))
        logs = (v if temperature == 1 else v / temperature for v in logs)
        wanted, got = (torch.log_softmax(v, -1) for v in logs)
        p = wanted.exp()
        kl = wanted.sub_(got).mul_(p).sum(-1)
        weight = None
        if truth is not None:
            part = truth.part(at, PIECE)
            known, ids = (part.ids >= 0) * part.share, part.ids.clamp_min(0)[:, None]
            kl = kl * (1 - part.share) - known * got.gather(1, ids)[:, 0]
            weight = (1 - part.share + known)[:, None]
            p.mul_(1 - part.share).scatter_add_(1, ids, known[:, None])  # both targets
        total += kl.sum().double()
        if outer is not None:
            q = got.exp_() if weight is None else got.exp_().mul_(weight)
            outer[at : at + PIECE] = q.sub_(p).mul_(factor)
    return total


def kl(head: Head, teacher: TorchGraph, student: TorchGraph, wanted: Tensor, x: Tensor, values: Sequence[Tensor],
       temperature: float, truth: Truth | None = None) -> Tensor:  # fmt: skip
    """losses.distance of the logits, mixed with what came next. wanted: the teacher's rows before its head, x: the student's,
    f32[count, size]; values: of the student's other operands. A truth wants the temperature 1."""
    theirs = tuple(teacher.constant(i) for i in list(head.teacher.operands())[1:])
    own = list(head.student.operands())[1:]
    values = [student.constant(i) if i in student.constants else v for i, v in zip(own, values)]
    return _Kl.apply(head, (teacher, student), wanted, theirs, temperature, truth, x, *values)


def logits(head: Head, teacher: TorchGraph, student: TorchGraph, wanted: Tensor, x: Tensor, values: Sequence[Tensor]
           ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """(the teacher's, the student's) of some rows at a time."""
    theirs = tuple(teacher.constant(i) for i in list(head.teacher.operands())[1:])
    for at in range(0, len(x), ROWS):
        yield (_apply(teacher, head.teacher, wanted[at : at + ROWS], theirs),
               _apply(student, head.student, x[at : at + ROWS], values))  # fmt: skip
