"""Weights rounded to the grids that a build will choose, with gradients that pass straight through."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from edgec import kernels
from edgec.ir.node import Graph, Node, make
from edgec.ir.types import Quantized
from edgec.rewrites.gathers import TABLE
from edgec.rewrites.quantize import NARROW, SHARE, SMALL, TINY
from edgec.rewrites.states import rebuilt

Tensor = torch.Tensor
REFRESH = 16  # forward passes for which scales and zero points hold; between, weights move within their grid


class _ToGrid(torch.autograd.Function):
    """The nearest value of a grid; the gradient is that of the weight itself (straight-through estimator)."""

    @staticmethod
    def forward(ctx, w: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int, group: int) -> Tensor:
        n, k = w.shape
        x = F.pad(w, (0, -k % group)).view(n, scale.shape[1], group)
        q = x * torch.where(scale != 0, 1 / scale, 0)[..., None]
        if zero is None:
            return q.round_().clamp_(low, high).mul_(scale[..., None]).view(n, -1)[:, :k]
        shift = zero[..., None]
        return q.add_(shift).round_().clamp_(low, high).sub_(shift).mul_(scale[..., None]).view(n, -1)[:, :k]

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0], None, None, None, None, None


class RoundedWeight(torch.nn.Module):
    """A weight as the compiler's encoder rounds it. axis: of the products' sum, which groups lie along."""

    def __init__(self, weight: torch.nn.Parameter, encoding: Quantized, axis: int):
        super().__init__()
        self.weight, self.encoding, self.axis = weight, encoding, axis
        self.calls = 0
        self.scale: Tensor | None = None
        self.zero: Tensor | None = None

    def forward(self) -> Tensor:
        w = self.weight if self.axis == 1 else self.weight.t()
        if self.scale is None or (self.training and self.calls % REFRESH == 0):
            self.refresh()
        self.calls += self.training
        e = self.encoding
        low, high = (
            (0, 2**e.bits - 1)
            if e.zero
            else (-127, 127)
            if e.bits == 8
            else (-(1 << e.bits - 1), (1 << e.bits - 1) - 1)
        )
        w = _ToGrid.apply(w, self.scale, self.zero, low, high, e.group)
        return w if self.axis == 1 else w.t()

    def state(self) -> dict:
        """What a later step depends on, beside the weight."""
        return {"calls": self.calls, "scale": self.scale, "zero": self.zero}

    def restore(self, state: dict) -> None:
        self.calls, self.scale, self.zero = state["calls"], state["scale"], state["zero"]

    def refresh(self) -> None:
        """Scales and zero points by the compiler's own search."""
        w = self.weight.detach() if self.axis == 1 else self.weight.detach().t()
        array = np.ascontiguousarray(w.numpy(), np.float32)
        e = self.encoding
        _, scale, zero = kernels.quantize(array, e.bits, e.group, not e.zero, True, threads=kernels.threads())
        self.scale = torch.from_numpy(scale.astype(np.float32))
        self.zero = None if zero is None else torch.from_numpy(zero.astype(np.float32))


def _matrix_of(node: Node) -> tuple[Node, int] | None:
    """(the learned matrix, which of its axes is the node's first) behind casts and a transpose."""
    flipped = False
    while node.op == "cast" or (node.op == "transpose" and node["perm"] == (1, 0)):
        flipped ^= node.op == "transpose"
        node = node.inputs[0]
    return (node, int(flipped)) if node.op == "input" and node.rank == 2 else None


def as_linears(graph: Graph, learned: Mapping[Node, object]) -> tuple[Graph, dict[Node, int], set[Node]]:
    """Products with learned matrices as `linear` of int8 activations, where a build will quantize them.

    Returns the graph, the axis of the sum of each such matrix, and the matrices that are tables whose rows are gathered.
    """
    axes: dict[Node, int] = {}
    tables: set[Node] = set()
    new: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op == "gather" and node["axis"] == 0 and (found := _matrix_of(node.inputs[0])) and found[0] in learned:
            if found[1] == 0:
                tables.add(found[0])
        if node.op != "matmul" or node["trans_a"] or (found := _matrix_of(node.inputs[1])) is None:
            continue
        matrix, first = found
        if matrix not in learned or math.prod(matrix.shape) < TINY or min(matrix.shape) < NARROW:
            continue
        by_rows = bool(node["trans_b"])  # the operand is [n, k]
        axes.setdefault(matrix, first ^ by_rows)
        w = node.inputs[1] if by_rows else make("transpose", node.inputs[1], perm=(1, 0))
        new[node] = make("linear", node.inputs[0], w, activations="int8")
    return (rebuilt(graph, new) if new else graph), axes, tables


def encodings(
    axes: Mapping[Node, int], tables: set[Node], weights: str, group: int, embedding: int, total: int
) -> dict[Node, Quantized]:
    """The matrices whose rounding a build (edgec.rewrites.quantize) makes felt: those that it gives 4 bits, under int8
    all. Beside 4 bits, those of 8 lose nothing.

    total: of all constants' elements."""
    found: dict[Node, Quantized] = {}
    for node in (*axes, *(t for t in tables if t not in axes)):
        count, k = math.prod(node.shape), node.shape[axes.get(node, 1)]
        if weights == "int8":
            eight = 128
            while eight > 32 and (k % eight or eight > k):
                eight //= 2
            found[node] = Quantized(8, eight)
        elif (embedding == 4 and count >= TABLE) if node in tables else count > min(SMALL, SHARE * total):
            found[node] = Quantized(4, group, zero=True)
    return found
