"""True labels beside calibration data: a class, or a share of each class, for some of the samples.

A label is a class (an int from 0 on), or a list of shares of the classes that sum to 1. None, a class below 0 or a row of
NaN says that the sample has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgec.errors import EdgecError

NONE = -1  # the class of a sample that has no label


def of_records(records: Sequence[tuple[int, dict[str, Any]]], name: str, where: str) -> np.ndarray:
    """The field `name` of (line number, object): i64[records], or f32[records, classes] where one is a list.

    Raises EdgecError EC1302 for what is no label, and where none of the lines has one."""
    found: list[int | list[float] | None] = []
    for number, record in records:
        value = record.get(name)
        if isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
            found.append([float(v) for v in value])
        elif value is None or (isinstance(value, int) and not isinstance(value, bool)):
            found.append(value)
        else:
            raise EdgecError("EC1302", f"line {number}: {name!r} is neither a class nor a list of shares", where,
                             f'Write {{"text": ..., "{name}": 0}}')  # fmt: skip
    sizes = {len(v) for v in found if isinstance(v, list)}
    if not sizes:
        return check(np.array([NONE if v is None else v for v in found], np.int64), name, where)
    if len(sizes) > 1:
        raise EdgecError("EC1302", f"{name!r} has lists of {sorted(sizes)} shares", where, "Give each class one")
    rows = np.full((len(found), sizes.pop()), np.nan, np.float32)
    for row, value in zip(rows, found):
        if isinstance(value, list):
            row[:] = value
        elif value is not None and value >= 0:
            row[:] = np.arange(len(row)) == value
    return check(rows, name, where)


def check(labels: np.ndarray, name: str, where: str) -> np.ndarray:
    """Labels as i64[samples] or f32[samples, classes]. Raises EdgecError EC1302."""
    whole = labels.ndim == 1 and labels.dtype.kind in "iu"
    if not whole and not (labels.ndim == 2 and labels.dtype.kind == "f" and labels.shape[1] > 1):
        raise EdgecError("EC1302", f"labels {name!r} are {labels.dtype}{list(labels.shape)}", where,
                         "Give ints [samples], or floats [samples, classes] that sum to 1")  # fmt: skip
    labels = labels.astype(np.int64 if whole else np.float32)
    real = labels[given(labels)]
    if not len(real):
        raise EdgecError("EC1302", f"no sample has a label {name!r}", where, "Name what holds the labels")
    if not whole and not (np.isfinite(real).all() and (real >= 0).all() and np.allclose(real.sum(1), 1, atol=1e-3)):
        raise EdgecError(
            "EC1302",
            f"shares of {name!r} are negative, or do not sum to 1",
            where,
            "Give each sample shares of 0 to 1, or a class from 0 on",
        )
    return labels


def given(labels: np.ndarray) -> np.ndarray:
    """bool[samples]: which have a label."""
    return labels >= 0 if labels.ndim == 1 else ~np.isnan(labels).all(1)


def shares(labels: np.ndarray, classes: int, name: str) -> np.ndarray:
    """f32[samples, classes], NaN where there is none. Raises EdgecError EC1302 for labels of other classes."""
    if labels.ndim == 2 and labels.shape[1] == classes:
        return labels
    if labels.ndim == 2 or labels.max(initial=0) >= classes:
        got = f"{labels.shape[1]} shares" if labels.ndim == 2 else f"class {labels.max()}"
        raise EdgecError(
            "EC1302",
            f"labels {name!r} have {got}, the output has {classes} classes (0 to {classes - 1})",
            hint="Name the output that has these classes",
        )
    rows = np.full((len(labels), classes), np.nan, np.float32)
    real = given(labels)
    rows[real] = np.eye(classes, dtype=np.float32)[labels[real]]
    return rows
