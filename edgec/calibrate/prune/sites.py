"""Products whose columns are removed: their operands as rows, and the statistics of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgec.calibrate.gptq import product
from edgec.ir.node import Node
from edgec.ir.ops.nn import pad_spatial, window, windows
from edgec.rewrites.prune.channels import Channels, Group

PATCHES = 512  # rows that a convolution gives for each feed


@dataclass(frozen=True)
class Site:
    """A linear, or a convolution in one group, with a constant weight: Y = X W^T with a row of X for each token or patch.

    A convolution's rows are a sample of its places; `seed` (the number of the feed) chooses it.
    """

    node: Node

    @property
    def weight(self) -> Node:
        return self.node.inputs[1]

    @property
    def bias(self) -> Node | None:
        return self.node.inputs[2]

    @property
    def residual(self) -> Node | None:
        return self.node.inputs[3]

    @property
    def additive(self) -> bool:
        """Whether the value is the product, a bias and the residual alone."""
        return self.node["act"] == "none"

    def matrix(self) -> np.ndarray:
        """W [N, K] f32."""
        w = self.weight["data"].array()
        return w.reshape(w.shape[0], -1)

    def columns(self, channels: Channels, group: Group) -> np.ndarray | None:
        """[units, columns of a unit]; None where units have different numbers of them."""
        units = channels.units(self.weight, 1)
        assert units is not None
        order = np.argsort(units, kind="stable")
        ids, starts, counts = np.unique(units[order], return_index=True, return_counts=True)
        at = np.searchsorted(ids, group.units)
        if (at >= len(ids)).any() or (ids[at] != group.units).any() or len(set(counts[at].tolist())) != 1:
            return None
        where = order[starts[at][:, None] + np.arange(counts[at][0])]
        inner = int(np.prod(self.weight.shape[2:], dtype=int))
        return (where[:, :, None] * inner + np.arange(inner)).reshape(len(where), -1)

    def rows_in(self, x: np.ndarray, valid: np.ndarray | None, seed: int) -> np.ndarray:
        """X [n, K] of the operand's value."""
        if self.node.op == "linear":
            return _tokens(x, valid)
        kernel, attrs = self.weight.shape[2:], self.node.attrs
        views = windows(pad_spatial(x, attrs["pads"]), kernel, attrs["strides"], attrs["dilations"])
        first, *rest = self._places(x.shape, seed)
        return views[(first, slice(None), *rest)].reshape(len(first), -1)

    def rows_out(self, y: np.ndarray, shape: Sequence[int], valid: np.ndarray | None, seed: int) -> np.ndarray:
        """The same rows of the value, or of a residual; shape: the operand's."""
        if self.node.op == "linear":
            return _tokens(y, valid)
        return np.moveaxis(y, 1, -1)[tuple(self._places(shape, seed))]

    def _places(self, shape: Sequence[int], seed: int) -> list[np.ndarray]:
        n, kernel, attrs = len(shape) - 2, self.weight.shape[2:], self.node.attrs
        strides, pads, dilations = attrs["strides"], attrs["pads"], attrs["dilations"]
        places = [shape[0]] + [
            int(window(shape[2 + i], kernel[i], strides[i], pads[i], pads[n + i], dilations[i])) for i in range(n)
        ]
        total = int(np.prod(places))
        chosen = np.random.default_rng(seed).choice(total, min(total, PATCHES), replace=False)
        return list(np.unravel_index(np.sort(chosen), places))


def site(node: Node) -> Site | None:
    """The node as a site, if it is one."""
    if node.op not in ("linear", "conv") or node.inputs[1].op != "constant":
        return None
    w = node.inputs[1]
    plain = w.type.encoding is None and w.type.layout == "row" and w.dtype == "f32"
    if not plain or (node.op == "conv" and node["group"] != 1) or (node.op == "linear" and node["norm"] != "none"):
        return None
    bias = node.inputs[2]
    return Site(node) if bias is None or bias.op == "constant" else None


def _tokens(x: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    rows = x.reshape(-1, x.shape[-1])
    if valid is not None and x.shape[:-1] == valid.shape:
        rows = rows[valid.reshape(-1)]
    return rows


class Moments:
    """Sums over the rows of f32 matrices, in f64 from one to the next: h = X^T X, cross = R^T X; with a bias the last column of X
    is 1."""

    def __init__(self, columns: int, outputs: int = 0, bias: bool = False):
        size = columns + bias
        self.h, self.cross, self.rows, self.bias = np.zeros((size, size)), np.zeros((outputs, size)), 0, bias
        self.energy = 0.0

    def add(self, x: np.ndarray, residue: np.ndarray | None = None) -> None:
        if self.bias:
            x = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)
        self.h += product(x.T, x)
        self.rows += len(x)
        if residue is not None:
            self.cross += product(residue.T, x)
