"""Integers for a weight that lose least of what a layer gives on its calibration inputs.

The loss of a weight [N, K] on inputs X [rows, K] is |X (W - Q)^T|^2 = tr((W - Q) H (W - Q)^T) with H = X^T X. GPTQ (Frantar
et al. 2023, arXiv 2210.17323) rounds one column after the other and moves each one's error to the columns still to come;
columns of large H first. Rows that it leaves worse than rounding to nearest are taken from that. Then sweeps over the groups: the
scale by least squares for these integers, and coordinate descent over them (QuantEase, arXiv 2309.01885), which never lose.

What one column does to those near it is `kernels.gptq` and `kernels.sweep`; to the others, a product of many columns at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgec import kernels
from edgec.errors import EdgecError
from edgec.ir.types import Quantized

BLOCK = 64  # columns that GPTQ goes through in one call
FAR = 256  # columns whose changes move on together to those beyond
DAMP = 0.01  # of each column's H, added to its diagonal
ROUNDS = 2  # sweeps after GPTQ


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
        x, y = np.take(rows, self.order, axis=1), np.empty(rows.shape, np.float32)
        for at in pieces(len(self.h)):
            kernels.matmul(x[:, at.start :], self.upper[at, at.start :].T, threads=kernels.threads(), out=y[:, at])
        for at in pieces(len(self.h)):
            kernels.matmul(y[:, : at.stop], self.upper[: at.stop, at], threads=kernels.threads(), out=x[:, at])
        y[:, self.order] = x
        return y

    @staticmethod
    def of(h: np.ndarray, damp: float = DAMP) -> Hessian:
        """h [K, K] f32, which is taken over: it gets its damping in place. A column that was never anything but 0 counts a
        little, so that its weights are rounded plainly."""
        h = np.ascontiguousarray(h, np.float32)
        if not np.isfinite(h).all():
            raise EdgecError(
                "EC1302",
                "values are too large or no numbers",
                "calibration data",
                "Check the model and the data for numbers that are not finite",
            )
        diagonal = np.diagonal(h).copy()
        mean = float(diagonal.mean(dtype=np.float64)) or 1.0
        h[np.diag_indices_from(h)] += damp * diagonal + np.float32(1e-6 * mean)
        order = np.argsort(-np.diagonal(h), kind="stable")
        return Hessian(h, order, _inverse_factor(h, order))


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b of f32 matrices, by edgec's own kernel: numpy's BLAS waits for its threads where others use the cores."""
    return kernels.matmul(a, b, threads=kernels.threads())


def add(to: np.ndarray, a: np.ndarray, b: np.ndarray, factor: float = 1.0) -> None:
    """to += factor * a @ b."""
    if to.size and a.shape[1]:
        kernels.matmul(a, b, factor, kernels.threads(), to, add=True)


def pieces(n: int) -> Iterator[slice]:
    """[0, n) in parts, so that a product with a triangle skips most of what is zero."""
    step = max(256, -(-n // 8))
    return (slice(b, min(b + step, n)) for b in range(0, n, step))


def add_moments(h: np.ndarray, x: np.ndarray) -> None:
    """h += x^T x, below the diagonal and some of what is above; `mirror` fills in the rest."""
    for at in pieces(len(h)):
        add(h[at, : at.stop], x[:, at].T, x[:, : at.stop])


def mirror(h: np.ndarray) -> None:
    """What is above the diagonal, from below."""
    for at in pieces(len(h)):
        h[: at.start, at] = h[at, : at.start].T


def _inverse_factor(h: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Upper U with U^T U = inverse of h in that order: by the Cholesky factor of h turned round, with no inverse of h.

    With J the reversal, J h J = L L^T gives h = (J L J)(J L J)^T with J L J upper, so U = inverse of J L J.
    """
    scale = 1 / np.sqrt(np.diagonal(h)[order])  # a unit diagonal keeps f32 accurate
    for more in (0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        work = h[np.ix_(order[::-1], order[::-1])]
        work *= scale[::-1, None]
        work *= scale[::-1]
        work[np.diag_indices_from(work)] += np.float32(more)
        try:
            _invert_factor(work)
        except np.linalg.LinAlgError:
            continue
        return np.ascontiguousarray(work[::-1, ::-1]) * scale
    raise EdgecError(
        "EC1302",
        "the inputs of a weight have no usable second moments",
        "calibration data",
        "Give data that differs from sample to sample, or check the model for numbers that are not finite",
    )


def _invert_factor(a: np.ndarray) -> None:
    """a, read below its diagonal, becomes the inverse of its lower Cholesky factor: in place, by halves."""
    n = len(a)
    if n <= 64:
        a[:] = np.tril(np.linalg.inv(np.linalg.cholesky(a.astype(np.float64))))
        return
    m = n // 2
    first, rest, last = a[:m, :m], a[m:, :m], a[m:, m:]
    a[:m, m:] = 0
    _invert_factor(first)
    below, moved = np.empty((2, n - m, m), np.float32)
    for at in pieces(m):
        kernels.matmul(rest[:, : at.stop], first[at, : at.stop].T, threads=kernels.threads(), out=below[:, at])
    for at in pieces(n - m):
        add(last[at, : at.stop], below[at], below[: at.stop].T, -1)
    _invert_factor(last)
    for at in pieces(m):
        kernels.matmul(below[:, at.start :], first[at.start :, at], threads=kernels.threads(), out=moved[:, at])
    for at in pieces(n - m):
        kernels.matmul(last[at, : at.stop], moved[: at.stop], -1, kernels.threads(), rest[at])


def solve(w: np.ndarray, hessian: Hessian, encoding: Quantized, *, rounds: int = ROUNDS, threads: int = 0) -> Solution:
    """w [N, K] f32 in that encoding, with the least loss found."""
    k = w.shape[1]
    threads, h = threads or kernels.threads(), hessian.h
    weights = np.ascontiguousarray(np.diagonal(h))
    q, scale, zero = kernels.quantize(
        np.ascontiguousarray(w), encoding.bits, encoding.group, not encoding.zero, True,
        weights / max(float(weights.max()), 1e-30), threads, table=encoding.table,
    )  # fmt: skip
    unit = kernels.units(scale) if encoding.table else None
    grid = Grid(encoding, _turned(scale, threads), None if zero is None else _turned(zero, threads), unit, threads)
    wt = _turned(w, threads)  # columns are rows here: each is contiguous
    plain = _turned(q, threads)
    if grid.zero is not None:
        plain -= grid.of_columns(grid.zero, k)
    rest = wt - plain * grid.of_columns(grid.scale, k)
    first = _loss(h, rest)
    now = _gptq(wt, hessian, grid)
    np.subtract(wt, now * grid.of_columns(grid.scale, k), out=rest)
    slope = product(h, rest)
    loss = np.einsum("kn,kn->n", rest, slope, dtype=np.float64)
    if len(worse := np.flatnonzero(first < loss)):
        now[:, worse], loss[worse] = plain[:, worse], first[worse]
        slope[:, worse] = product(h, wt[:, worse] - plain[:, worse] * grid.of_columns(grid.scale, k)[:, worse])
    for turn in range(rounds):
        loss -= _sweep(now, slope, h, grid, turn + 1 < rounds)
    if grid.zero is not None:
        now += grid.of_columns(grid.zero, k)
    return Solution(
        _turned(now, threads).astype(np.int8 if zero is None else np.uint8),
        np.ascontiguousarray(grid.scale.T).astype(np.float16), zero, np.maximum(loss, 0), first, _loss(h, wt),
    )  # fmt: skip


@dataclass
class Grid:
    """What the integers may be: scale and zero (or None) f32 [G, N], of groups along K; unit [N]: of a table's scales."""

    encoding: Quantized
    scale: np.ndarray
    zero: np.ndarray | None
    unit: np.ndarray | None
    threads: int = 1

    def of_columns(self, values: np.ndarray, k: int) -> np.ndarray:
        """[K, N] of values of groups."""
        return np.repeat(values, self.encoding.group or k, axis=0)[:k]


def _turned(x: np.ndarray, threads: int) -> np.ndarray:
    """x transposed, f32."""
    return kernels.to_float(x.astype(np.float32, copy=False).T, threads)


def _loss(h: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """tr(. H .) of each column [N] of rest [K, N], from the lower triangle of h."""
    total = np.zeros(rest.shape[1])
    for at in pieces(len(h)):
        here = product(h[at, at], rest[at])
        add(here, h[at, : at.start], rest[: at.start], 2)
        total += np.einsum("kn,kn->n", rest[at], here, dtype=np.float64)
    return total


def _gptq(wt: np.ndarray, hessian: Hessian, grid: Grid) -> np.ndarray:
    """Integers [K, N] (less zero points), column by column in the Hessian's order."""
    order, upper, encoding = hessian.order, hessian.upper, grid.encoding
    k, rest, out = len(order), wt[order], np.empty_like(wt)
    groups = order // (encoding.group or k)
    for far in range(0, k, FAR):
        end = min(far + FAR, k)
        errors = np.empty((end - far, wt.shape[1]), np.float32)
        for begin in range(far, end, BLOCK):
            at = slice(begin, min(begin + BLOCK, end))
            out[order[at]], error = kernels.gptq(
                rest[at], upper[at, at], groups[at], grid.scale, grid.zero, encoding.bits, encoding.table, grid.threads
            )
            errors[at.start - far : at.stop - far] = error
            add(rest[at.stop : end], upper[at, at.stop : end].T, error, -1)
        add(rest[end:], upper[far:end, end:].T, errors, -1)
    return out


def _sweep(q: np.ndarray, slope: np.ndarray, h: np.ndarray, grid: Grid, again: bool) -> np.ndarray:
    """Scales and integers of each group in turn, the best for all others as they are; what the loss [N] has lost.

    q [K, N], its grid's scales and slope = H (W - Q) are changed in place; slope is right afterwards only with `again`.
    """
    k, encoding = len(q), grid.encoding
    group, gain = encoding.group or k, np.zeros(q.shape[1])
    for far in range(0, k, max(FAR, group)):
        end = min(far + max(FAR, group), k)
        changes = np.empty((end - far, q.shape[1]), np.float32)
        for begin in range(far, end, group):
            at, g = slice(begin, min(begin + group, end)), begin // group
            changes[at.start - far : at.stop - far] = change = kernels.sweep(
                h[at, at], slope[at], q[at], grid.scale[g], None if grid.zero is None else grid.zero[g], grid.unit,
                gain, encoding.bits, encoding.table, grid.threads,
            )  # fmt: skip
            near = slice(far if again else at.stop, end)
            add(slope[near], h[near, at], change, -1)
        add(slope[end:], h[end:, far:end], changes, -1)
        if again:
            add(slope[:far], h[:far, far:end], changes, -1)
    return gain


__all__ = ["Grid", "Hessian", "Solution", "add", "add_moments", "mirror", "pieces", "product", "solve"]
