"""What the removal of input columns of a product costs, and the weights that make up for it. All arrays f64 or f32.

Notation: Y = X W^T with W [N, K]; H = X^T X [K, K] over the calibration rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgec.calibrate.prune.sites import Moments
from edgec.errors import EdgecError

RIDGE = 1e-2  # of the mean of H's diagonal, where nothing chooses it
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # that a fit chooses from
AHEAD = 64  # units that are looked at when several go at once


@dataclass(frozen=True)
class Order:
    """Units in the order in which they go. error[i]: sum of squares of Y's change when the first i are gone."""

    units: np.ndarray
    error: np.ndarray


def damped(hessian: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """H + ridge * mean(diagonal) * I, in f64. Raises EC1302 where H is not finite."""
    if not np.isfinite(hessian).all():
        raise EdgecError("EC1302", "activations are not finite", "calibration data", "Check the model in fp32")
    h = np.asarray(hessian, np.float64)
    mean = float(np.mean(np.diag(h))) or 1.0
    return h + np.eye(len(h)) * ridge * mean


def by_size(weights: Sequence[np.ndarray], columns: Sequence[np.ndarray], scale: Sequence[np.ndarray | None]) -> Order:
    """Units by sum over readers of |W[:, columns]|^2 scale^2. columns: for each reader [units, columns of a unit];
    scale: root mean square of each column of X, or None (magnitude alone). Nothing makes up for what is gone. Raises EC1305
    where weights are not finite."""
    total = np.zeros(len(columns[0]))
    for w, at, rms in zip(weights, columns, scale):
        squares = np.square(w, dtype=np.float64).sum(0)
        squares = squares if rms is None else squares * np.square(rms, dtype=np.float64)
        total += squares[at].sum(1)
    if not np.isfinite(total).all():
        raise EdgecError("EC1305", "weights are not finite", "--prune", "Check the model: edgec verify")
    order = np.argsort(total, kind="stable")
    return Order(order, np.r_[0.0, np.cumsum(total[order])])


def by_inverse(
    weights: Sequence[np.ndarray],
    hessians: Sequence[np.ndarray],
    columns: Sequence[np.ndarray],
    most: int,
    step: int = 1,
) -> Order:
    """Up to `most` units, the cheapest first, where the other columns make up for each that goes. `step` at a time go from
    the whole of H^-1, chosen one by one among the cheapest before them.

    The optimal brain surgeon's update for whole columns: the error of removing S is tr(W_S (H^-1_SS)^-1 W_S^T), and the
    rest takes over -W_S (H^-1_SS)^-1 H^-1_S:. Hassibi & Stork 1993; for structures Kurtic et al., ZipLM,
    https://arxiv.org/abs/2302.04089. Several readers of the same units: their errors add.
    """
    if not all(np.isfinite(w).all() for w in weights):
        raise EdgecError("EC1305", "weights are not finite", "--prune", "Check the model: edgec verify")
    state = [(np.array(w, np.float64), np.linalg.inv(damped(h))) for w, h in zip(weights, hessians)]
    left = np.ones(len(columns[0]), bool)
    gone: list[int] = []
    error = [0.0]
    while len(gone) < most:
        cost = np.zeros(len(left))
        for (w, inverse), at in zip(state, columns):
            cost += _costs(w, inverse, at, left)
        count = min(step, most - len(gone))
        candidates = np.flatnonzero(left)
        candidates = candidates[np.argsort(cost[candidates], kind="stable")[: max(AHEAD, 4 * count)]]
        chosen = candidates[_one_by_one(state, columns, candidates, count)]
        total = 0.0
        for (w, inverse), at in zip(state, columns):
            total += _remove(w, inverse, at[chosen].reshape(-1))
        left[chosen] = False
        gone += chosen.tolist()
        error += [error[-1] + total * (i + 1) / count for i in range(count)]
    return Order(np.array(gone, int), np.array(error))


def _one_by_one(state, columns, candidates: np.ndarray, count: int) -> np.ndarray:
    """Which `count` of the candidates go, each after the others have made up for those before: of two equal ones, one."""
    if count == 1:
        return np.array([0])
    parts, places = [], []
    for (w, inverse), at in zip(state, columns):
        c = at[candidates].reshape(-1)
        parts.append((w[:, c], inverse[np.ix_(c, c)]))
        places.append(np.arange(len(c)).reshape(len(candidates), -1))
    left = np.ones(len(candidates), bool)
    chosen = []
    for _ in range(count):
        cost = np.zeros(len(left))
        for (w, inverse), at in zip(parts, places):
            cost += _costs(w, inverse, at, left)
        best = int(np.argmin(np.where(left, cost, np.inf)))
        for (w, inverse), at in zip(parts, places):
            _remove(w, inverse, at[best])
        left[best] = False
        chosen.append(best)
    return np.array(chosen)


def _costs(w: np.ndarray, inverse: np.ndarray, at: np.ndarray, left: np.ndarray) -> np.ndarray:
    cost = np.full(len(at), np.inf)
    live = np.flatnonzero(left)
    if at.shape[1] == 1:
        columns = at[live, 0]
        cost[live] = np.square(w[:, columns]).sum(0) / np.diag(inverse)[columns]
        return cost
    for unit in live:
        c = at[unit]
        cost[unit] = np.sum(np.linalg.solve(inverse[np.ix_(c, c)], w[:, c].T) * w[:, c].T)
    return cost


def _remove(w: np.ndarray, inverse: np.ndarray, c: np.ndarray) -> float:
    """Removes columns c from W and from H^-1, in place; the error that it adds."""
    block = inverse[np.ix_(c, c)]
    rows = inverse[c].copy()
    factor = np.linalg.solve(block, rows)  # [c, K]
    lost = float(np.sum(np.linalg.solve(block, w[:, c].T) * w[:, c].T))
    w -= w[:, c] @ factor
    w[:, c] = 0
    inverse -= rows.T @ factor
    inverse[c] = inverse[:, c] = 0
    inverse[c, c] = 1.0
    return lost


def correction(hessian: np.ndarray, cross: np.ndarray, kept: np.ndarray, ridge: float = RIDGE) -> np.ndarray:
    """D [N, K] with zeros beside the kept columns, so that X D^T comes nearest to the residue R; cross: R^T X [N, K].

    Ridge regression: small residues of few rows leave the weights as they are.
    """
    h = damped(hessian[np.ix_(kept, kept)], ridge)
    d = np.zeros(cross.shape)
    d[:, kept] = np.linalg.solve(h, np.asarray(cross, np.float64)[:, kept].T).T
    return d


def fit(fitted: Moments, held: Moments, kept: np.ndarray) -> np.ndarray:
    """`correction` by the ridge that does best on rows held out (Moments of both), fitted to all of them in the end; zeros
    where none does better than to leave the weights alone. Without rows held out: RIDGE."""
    h, cross = fitted.h + held.h, fitted.cross + held.cross
    if not held.rows or not fitted.rows:
        return correction(h, cross, kept)
    best, chosen = 0.0, None
    for ridge in RIDGES:
        d = correction(fitted.h, fitted.cross, kept, ridge)
        gain = float(np.sum((d @ held.h - 2 * held.cross) * d))
        if gain < best:
            best, chosen = gain, ridge
    return np.zeros(cross.shape) if chosen is None else correction(h, cross, kept, chosen)
