"""Masks of zeros, by weight alone or with data: for comparison, since shapes stay and no kernel is faster for them.

A pattern is a share (0.5) or (n, m): n of each m weights in a row of the matrix stay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgec.calibrate.prune.scores import damped
from edgec.errors import EdgecError

Pattern = float | tuple[int, int]
BLOCK = 128  # columns that SparseGPT decides on at once


def keep_largest(score: np.ndarray, pattern: Pattern, rowwise: bool = True) -> np.ndarray:
    """Mask [N, K] (True: stays) of the largest scores: of each m in a row, of each row, or of the whole matrix."""
    if isinstance(pattern, tuple):
        n, m = pattern
        if score.shape[1] % m:
            reason = f"{score.shape[1]} columns are no multiple of {m}"
            raise EdgecError("EC1305", reason, "--prune", "Give a share (50%) instead")
        blocks = score.reshape(score.shape[0], -1, m)
        order = np.argsort(-blocks, axis=2, kind="stable")
        mask = np.zeros(blocks.shape, bool)
        np.put_along_axis(mask, order[..., :n], True, axis=2)
        return mask.reshape(score.shape)
    flat = score if rowwise else score.reshape(1, -1)
    gone = round(pattern * flat.shape[1])
    order = np.argsort(flat, axis=1, kind="stable")
    mask = np.ones(flat.shape, bool)
    np.put_along_axis(mask, order[:, :gone], False, axis=1)
    return mask.reshape(score.shape)


def magnitude(w: np.ndarray, hessian: np.ndarray | None, pattern: Pattern) -> np.ndarray:
    """W with its smallest weights zero."""
    return np.where(keep_largest(np.abs(w), pattern, rowwise=False), w, 0)


def wanda(w: np.ndarray, hessian: np.ndarray | None, pattern: Pattern) -> np.ndarray:
    """W with the smallest |weight| * norm of its input zero in each row. Sun et al., https://arxiv.org/abs/2306.11695"""
    assert hessian is not None
    return np.where(keep_largest(np.abs(w) * np.sqrt(np.diag(hessian)), pattern), w, 0)


def sparsegpt(w: np.ndarray, hessian: np.ndarray | None, pattern: Pattern) -> np.ndarray:
    """W with zeros chosen column block by column block, the columns after them making up for each.

    Frantar & Alistarh, https://arxiv.org/abs/2301.00774
    """
    assert hessian is not None
    h = damped(hessian)
    u = np.linalg.cholesky(np.linalg.inv(h)).T  # upper: row i is what columns after i take over
    w = np.array(w, np.float64)
    k = w.shape[1]
    block = BLOCK if not isinstance(pattern, tuple) else max(pattern[1], BLOCK // pattern[1] * pattern[1])
    for begin in range(0, k, block):
        end = min(k, begin + block)
        part, inner = w[:, begin:end].copy(), u[begin:end, begin:end]
        error = np.zeros_like(part)
        mask = None
        if not isinstance(pattern, tuple):
            mask = keep_largest(np.square(part / np.diag(inner)), pattern, rowwise=False)
        chosen = np.ones(part.shape, bool)
        for i in range(end - begin):
            if isinstance(pattern, tuple) and i % pattern[1] == 0:  # decided late, on what is there by then
                ahead = slice(i, i + pattern[1])
                score = np.square(part[:, ahead] / np.diag(inner)[ahead])
                chosen[:, ahead] = keep_largest(score, pattern)
            elif mask is not None:
                chosen[:, i] = mask[:, i]
            new = np.where(chosen[:, i], part[:, i], 0)
            error[:, i] = (part[:, i] - new) / inner[i, i]
            part[:, i:] -= np.outer(error[:, i], inner[i, i:])
            part[:, i] = new
        w[:, begin:end] = part
        w[:, end:] -= error @ u[begin:end, end:]
    return w.astype(np.float32)


MASKS: dict[str, Callable[[np.ndarray, np.ndarray | None, Pattern], np.ndarray]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
}


def mask(method: str, w: np.ndarray, hessian: np.ndarray | None, pattern: Pattern) -> np.ndarray:
    """W [N, K] with zeros in this pattern. hessian: X^T X [K, K] of its input, for all methods but magnitude.

    Raises EC1305 for a pattern that the shape cannot have, EC1302 where activations are not finite.
    """
    if isinstance(pattern, tuple) and w.shape[1] % pattern[1]:
        keep_largest(w, pattern)  # raises
    return np.asarray(MASKS[method](w, hessian, pattern), np.float32)
