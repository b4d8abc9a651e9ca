"""Integers for a weight that lose least of what a layer gives on its calibration inputs.

The loss of a weight [N, K] on inputs X [rows, K] is |X (W - Q)^T|^2 = tr((W - Q) H (W - Q)^T) with H = X^T X. GPTQ (Frantar
et al. 2023, arXiv 2210.17323) rounds one column after the other and moves each one's error to the columns still to come;
columns of large H first. Then scales by least squares for these integers, and coordinate descent over the integers
(QuantEase, arXiv 2309.01885), in turns. Rows are independent: each ends with the best that it has had.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgec import kernels
from edgec.errors import EdgecError
from edgec.ir.types import Quantized

BLOCK = 64  # columns whose errors are moved on together
DAMP = 0.01  # of each column's H, added to its diagonal
ROUNDS = 2  # of scales and coordinate descent after GPTQ
_TABLE = np.array(kernels.TABLE, np.float32)
_MIDDLE = (_TABLE[1:] + _TABLE[:-1]) / 2


@dataclass
class Grid:
    """What the integers may be: scale and zero (or None) f32 [G, N], of groups along K; unit [N]: of a table's scales."""

    encoding: Quantized
    scale: np.ndarray
    zero: np.ndarray | None
    unit: np.ndarray | None

    def round(self, value: np.ndarray, group: int) -> np.ndarray:
        """Integers less zero points, f32, for values [..., N] of a group."""
        scale = self.scale[group]
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.where(scale != 0, value / scale, 0).astype(np.float32)
        if self.encoding.table:
            return _TABLE[np.searchsorted(_MIDDLE, x)]
        if self.zero is not None:
            zero = self.zero[group]
            return np.clip(np.rint(x), -zero, 2**self.encoding.bits - 1 - zero)
        top = 2 ** (self.encoding.bits - 1) - 1
        return np.clip(np.rint(x), -8 if self.encoding.bits == 4 else -top, top)

    def storable(self, scale: np.ndarray) -> np.ndarray:
        """The scales [G, N] as they are stored."""
        if self.unit is None:
            return scale.astype(np.float16).astype(np.float32)
        return np.clip(np.rint(scale / self.unit), -127, 127) * self.unit


@dataclass
class Solution:
    """q [N, K], scale f16 and zero u8 (or None) [N, G], as `kernels.quantize` gives them; and errors of each row [N]:
    loss and what there was, both tr(. H .), `plain` those of rounding to nearest in the searched grid."""

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    loss: np.ndarray
    plain: np.ndarray
    signal: np.ndarray


@dataclass
class Hessian:
    """H with its damping, and what GPTQ needs of it; made once for all weights that read the same input."""

    h: np.ndarray  # [K, K] f32, damped
    order: np.ndarray  # columns, those of the largest diagonal first
    upper: np.ndarray  # Cholesky factor (upper) of the inverse of h in that order

    def inverse(self, rows: np.ndarray) -> np.ndarray:
        """rows [.., K] times the inverse of h."""
        out = np.empty_like(rows)
        out[:, self.order] = product(product(rows[:, self.order], self.upper.T), self.upper)
        return out

    @staticmethod
    def of(h: np.ndarray, damp: float = DAMP) -> Hessian:
        """h [K, K]; a column that was never anything but 0 counts a little, so that its weights are rounded plainly."""
        h = np.array(h, np.float32)
        if not np.isfinite(h).all():
            raise EdgecError("EC1302", "values are too large or no numbers", "calibration data")
        diagonal = np.diagonal(h).copy()
        mean = float(diagonal.mean(dtype=np.float64)) or 1.0
        diagonal = damp * diagonal + 1e-6 * mean
        h[np.diag_indices_from(h)] += diagonal
        order = np.argsort(-np.diagonal(h), kind="stable")
        return Hessian(h, order, _inverse_factor(h[np.ix_(order, order)]))


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b of f32 matrices, by edgec's own kernel: numpy's BLAS waits for its threads where others use the cores."""
    return kernels.matmul(a, b, threads=kernels.threads())


def _inverse_factor(h: np.ndarray) -> np.ndarray:
    """Upper U with U^T U = inverse of h: through the Cholesky factor of h turned round, which needs no inverse of h.

    With J the reversal, J h J = L L^T gives h = (J L J)(J L J)^T with J L J upper, so U = inverse of J L J.
    """
    scale = 1 / np.sqrt(np.diagonal(h))  # a unit diagonal keeps f32 accurate
    work = np.ascontiguousarray((h * scale[:, None] * scale)[::-1, ::-1])
    for more in (0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        work[np.diag_indices_from(work)] += np.float32(more)
        try:
            inverse = _cholesky(work)[1]
            break
        except np.linalg.LinAlgError:
            continue
    else:
        raise EdgecError("EC1302", "the inputs of a weight have no usable second moments", "calibration data")
    return np.ascontiguousarray(inverse[::-1, ::-1] * scale)


def _cholesky(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower L with L L^T = a, and its inverse, by halves."""
    n = len(a)
    if n <= 64:
        lower = np.linalg.cholesky(a.astype(np.float64))
        return lower.astype(np.float32), np.linalg.inv(lower).astype(np.float32)
    m = n // 2
    lower, inverse = np.zeros((2, n, n), np.float32)
    lower[:m, :m], inverse[:m, :m] = _cholesky(a[:m, :m])
    below = lower[m:, :m] = product(a[m:, :m], inverse[:m, :m].T)
    lower[m:, m:], inverse[m:, m:] = _cholesky(a[m:, m:] - product(below, below.T))
    inverse[m:, :m] = -product(inverse[m:, m:], product(below, inverse[:m, :m]))
    return lower, inverse


def solve(w: np.ndarray, hessian: Hessian, encoding: Quantized, *, rounds: int = ROUNDS, threads: int = 0) -> Solution:
    """w [N, K] f32 in that encoding, with the least loss found."""
    k = w.shape[1]
    group = encoding.group or k
    weights = np.ascontiguousarray(np.diagonal(hessian.h))
    q, scale, zero = kernels.quantize(
        np.ascontiguousarray(w), encoding.bits, encoding.group, not encoding.zero, True,
        weights / max(float(weights.max()), 1e-30), threads or kernels.threads(), table=encoding.table,
    )  # fmt: skip
    unit = kernels.units(scale) if encoding.table else None
    grid = Grid(encoding, np.ascontiguousarray(scale.T, np.float32), None if zero is None else
                np.ascontiguousarray(zero.T, np.float32), unit)  # fmt: skip
    wt = np.ascontiguousarray(w.T)  # columns are rows here: each is contiguous
    groups = np.arange(k) // group
    plain = q.T.astype(np.float32) if zero is None else (q.astype(np.float32) - zero[:, np.arange(k) // group]).T
    best = plain.copy(), grid.scale.copy(), _loss(wt, plain * grid.scale[groups], hessian.h)
    first = best[2]
    current = _gptq(wt, hessian, grid, groups)
    for turn in range(rounds + 1):
        loss = _loss(wt, current * grid.scale[groups], hessian.h)
        best = _better(best, (current, grid.scale, loss))
        if turn == rounds:
            break
        grid.scale = _refit(wt, best[0], best[1], grid, hessian.h, group)
        current = _descend(wt, best[0].copy(), grid, hessian.h, groups)
    integers, scales, loss = best
    q = integers if grid.zero is None else integers + grid.zero[groups]
    return Solution(
        np.ascontiguousarray(q.T).astype(np.int8 if zero is None else np.uint8),
        np.ascontiguousarray(scales.T).astype(np.float16), zero, loss, first, _loss(wt, 0, hessian.h),
    )  # fmt: skip


def _loss(wt: np.ndarray, value, h: np.ndarray) -> np.ndarray:
    """tr(. H .) of each row [N] of the difference, transposed."""
    rest = wt - value
    return np.einsum("kn,kn->n", rest, product(h, rest), dtype=np.float64)


def _better(a, b):
    take = b[2] < a[2]
    return np.where(take, b[0], a[0]), np.where(take, b[1], a[1]), np.where(take, b[2], a[2])


def _gptq(wt: np.ndarray, hessian: Hessian, grid: Grid, groups: np.ndarray) -> np.ndarray:
    """Integers [K, N] (less zero points), column by column in the Hessian's order."""
    order, upper = hessian.order, hessian.upper
    rest = wt[order]
    out = np.empty_like(rest)
    for begin in range(0, len(order), BLOCK):
        end = min(begin + BLOCK, len(order))
        errors = np.empty((end - begin, rest.shape[1]), np.float32)
        for i in range(begin, end):
            g = groups[order[i]]
            out[i] = grid.round(rest[i], g)
            error = errors[i - begin] = (rest[i] - out[i] * grid.scale[g]) / upper[i, i]
            if i + 1 < end:
                rest[i + 1 : end] -= upper[i, i + 1 : end, None] * error
        rest[end:] -= product(upper[begin:end, end:].T, errors)
    back = np.empty_like(out)
    back[order] = out
    return back


def _descend(wt: np.ndarray, q: np.ndarray, grid: Grid, h: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """One pass of coordinate descent: each integer becomes the best one for the others as they are."""
    slope = product(h, wt - q * grid.scale[groups])
    for begin in range(0, len(q), BLOCK):
        end = min(begin + BLOCK, len(q))
        change = np.empty((end - begin, q.shape[1]), np.float32)
        for i in range(begin, end):
            g = groups[i]
            new = grid.round(q[i] * grid.scale[g] + slope[i] / h[i, i], g)
            change[i - begin] = (new - q[i]) * grid.scale[g]
            q[i] = new
            slope[i:end] -= h[i, i:end, None] * change[i - begin]
        slope[end:] -= product(h[begin:end, end:].T, change)
    return q


def _refit(wt: np.ndarray, q: np.ndarray, scale: np.ndarray, grid: Grid, h: np.ndarray, group: int) -> np.ndarray:
    """Scales [G, N] by least squares for these integers, one group after the other; stored ones that are no worse."""
    scale = scale.copy()
    k = len(wt)
    slope = product(h, wt - q * np.repeat(scale, group, axis=0)[:k])
    for g in range(len(scale)):
        at = slice(g * group, min(k, (g + 1) * group))
        block = q[at]
        curve = np.einsum("kn,kn->n", block, product(h[at, at], block))
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(curve > 0, np.einsum("kn,kn->n", block, slope[at]) / curve, 0)
        new = grid.storable((scale[g] + step)[None])[0]
        change = new - scale[g]
        worse = ~np.isfinite(new) | (new == 0) | (change * (change - 2 * step) * curve > 0)
        change = np.where(worse, 0, change).astype(np.float32)
        scale[g] += change
        slope -= product(h[:, at], block * change)
    return scale


__all__ = ["Grid", "Hessian", "Solution", "solve"]
