"""Rotation by an orthonormal Hadamard matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgec.ir.ops.registry import define, need
from edgec.ir.types import FLOATS


def is_block(size: object) -> bool:
    return isinstance(size, int) and size > 0 and size & (size - 1) == 0


def spans(size: int, block: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of the blocks of a row: all of `block`, and its tail in the largest powers of two that fit."""
    at = 0
    while at < size:
        while block > size - at:
            block //= 2
        yield at, at + block
        at += block


def matrix(size: int) -> np.ndarray:
    """Sylvester's Hadamard matrix of a power of two, orthonormal and symmetric: float64 [size, size]."""
    index = np.arange(size)
    parity = np.array([bin(v).count("1") & 1 for v in range(size)])
    return (1 - 2 * parity[index[:, None] & index[None]]) / np.sqrt(size)


def rotated(x: np.ndarray, block: int) -> np.ndarray:
    y = x.astype(np.float64)
    with np.errstate(all="ignore"):
        for begin, end in spans(x.shape[-1], block):
            y[..., begin:end] = y[..., begin:end] @ matrix(end - begin)
        return y.astype(x.dtype)


def _hadamard(x, block):
    need(x.dtype in FLOATS and x.rank >= 1, f"hadamard does not take {x}")
    need(is_block(block), f"hadamard: {block} is no power of two")
    need(isinstance(x.shape[-1], int), f"hadamard: the last axis of {x} has no fixed size")
    return x


# The last axis in blocks of a power of two, its tail in the largest powers of two that fit: each times the orthonormal
# Hadamard matrix of its size, so twice gives x again. Sums of products along the axis stay where both sides are rotated
define("hadamard", "x", _hadamard, rotated, "nn", block=32)
