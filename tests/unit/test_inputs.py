"""Made-up inputs: they fit their ports, and sizes of dims come in the combinations that models want."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import numpy as np

from edgec.testing.inputs import EXTENTS, SAMPLES, SIZES, candidate_dims, random_inputs


class Port(NamedTuple):
    name: str
    shape: tuple
    dtype: str


IDS = Port("ids", ("b", "s"), "int64")
MASK = Port("attention_mask", ("b", "t"), "int64")
PAST = Port("past", ("b", 2, "p", 8), "float32")
IMAGE = Port("x", ("n", 3, "h", "w"), "float32")
AUDIO = Port("wave", ("n", "samples"), "float32")
OPEN = (0, None)


def test_inputs_fit_their_ports():
    feeds = random_inputs([IDS, MASK, PAST], {"b": 2, "s": 3, "t": 5, "p": 2}, {"ids": (0, 9)}, seed=1)
    assert {n: (f.shape, f.dtype.name) for n, f in feeds.items()} == {
        "ids": ((2, 3), "int64"),
        "attention_mask": ((2, 5), "int64"),
        "past": ((2, 2, 2, 8), "float32"),
    }
    assert feeds["ids"].min() >= 0 and feeds["ids"].max() <= 9
    assert (feeds["attention_mask"] == 1).all()
    again = random_inputs([IDS, MASK, PAST], {"b": 2, "s": 3, "t": 5, "p": 2}, {"ids": (0, 9)}, seed=1)
    assert all(np.array_equal(feeds[n], again[n]) for n in feeds)


def test_shapes_may_be_expressions():
    feeds = random_inputs([Port("x", ("2*n + 1",), "float32")], {"n": 3})
    assert feeds["x"].shape == (7,)


def test_sizes_keep_their_bounds_and_what_is_fixed():
    symbols = {"a": (2, 5), "b": (0, None), "c": (7, 7)}
    for sizes in islice(candidate_dims(symbols, [], {"b": 9}), 50):
        assert 2 <= sizes["a"] <= 5 and sizes["b"] == 9 and sizes["c"] == 7


def test_equal_sizes_come_first_and_sums_are_found():
    symbols = dict.fromkeys(("b", "s", "p", "t"), OPEN)
    found = list(islice(candidate_dims(symbols, [IDS, MASK, PAST]), 400))
    assert found[0] == {"b": SIZES[0], "s": SIZES[0], "p": EXTENTS[0], "t": SIZES[0]}
    assert sum(f["t"] == f["p"] + f["s"] for f in found) >= 3
    assert len({tuple(f.values()) for f in found}) == len(found)


def test_images_and_signals_are_not_tiny():
    sizes = next(candidate_dims(dict.fromkeys(("n", "h", "w", "samples"), OPEN), [IMAGE, AUDIO]))
    assert sizes == {"n": SIZES[0], "h": EXTENTS[0], "w": EXTENTS[0], "samples": SAMPLES[0]}
