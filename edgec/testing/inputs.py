"""Random inputs that suit a model: sizes of symbolic dims, indices inside the tables they index, masks of ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from edgec.ir.dims import evaluate, parse_dim
from edgec.ir.node import Graph, Node
from edgec.ir.types import INTS


class Port(Protocol):
    """An input: a symbolic dim is a str, dtype is numpy's name of it."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


SIZES = (4, 1, 7, 16, 2, 32, 64, 3, 96, 5)  # tried for a symbolic dim, in this order
EXTENTS = (64, 48, 96, 33, 128, 32, 160, 224, 80, 256)  # the same for sides of images and lengths of series
SAMPLES = tuple(64 * e for e in EXTENTS)  # and for plain signals, f32[batch, samples]
# ops whose result holds values of their first operand (the others' positions are not values)
_CARRIES = {"cast", "reshape", "transpose", "expand", "slice", "pad", "item"}
_MASK = re.compile(r"mask", re.I)
_POSITION = re.compile(r"position", re.I)


def input_ranges(graph: Graph) -> dict[str, tuple[int, int]]:
    """For each integer input the values (low, high inclusive) that the graph can take, where the graph shows them.

    An input that indexes a table stays inside it; one that is compared with a list of numbers (a one-hot) within the
    list; a scalar that is compared with single numbers is the largest of them (a sample rate, a mode).
    """
    users = graph.users()
    found: dict[str, tuple[int, int]] = {}
    for node in graph.inputs:
        if node.dtype not in INTS:
            continue
        highs: list[int] = []
        choices: list[int] = []
        for carrier, user in _uses(node, users):
            if user.op in ("gather", "gather_elements") and user.inputs[1] is carrier:
                size = user.inputs[0].shape[user["axis"]]  # type: ignore[union-attr]
                if isinstance(size, int) and size > 0:
                    highs.append(size - 1)
            elif user.op == "equal":
                values = _values(next((i for i in user.operands() if i is not carrier), carrier))
                if values is not None and values.size > 1:
                    highs.append(int(values.max()))
                elif values is not None and values.size == 1:
                    choices.append(int(values.reshape(-1)[0]))
        if highs:
            found[node["name"]] = (0, min(highs))
        elif choices and all(d == 1 for d in node.shape):
            found[node["name"]] = (max(choices), max(choices))
    return found


def _uses(root: Node, users: Mapping[Node, list[Node]]) -> Iterator[tuple[Node, Node]]:
    """Each (node, user) where node holds the root's values unchanged."""
    stack, seen = [root], {root}
    while stack:
        node = stack.pop()
        for user in users.get(node, ()):
            yield node, user
            follows = (user.op in _CARRIES and user.inputs[0] is node) or user.op in ("concat", "where", "max", "min")
            if follows and user not in seen:
                seen.add(user)
                stack.append(user)


def _values(node: Node) -> np.ndarray | None:
    while node.op in ("cast", "reshape", "expand") and node.inputs[0] is not None:
        node = node.inputs[0]
    if node.op == "constant" and node.dtype in (*INTS, "f32", "f64"):
        return node["data"].array()
    if node.op == "iota" and isinstance(node["size"], int):
        return np.array([0, node["size"] - 1])
    return None


def size_of(dim: int | str, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    return dims[dim] if dim in dims else evaluate(parse_dim(dim), dims)


def random_inputs(
    inputs: Iterable[Port], dims: Mapping[str, int], ranges: Mapping[str, tuple[int, int]] | None = None, seed: int = 0
) -> dict[str, np.ndarray]:
    """An array for each input: floats normal, integers within `ranges` (else 0 or 1), masks ones, positions 0, 1, ...

    dims: the size of each symbol.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for port in inputs:
        shape = tuple(size_of(d, dims) for d in port.shape)
        feeds[port.name] = _random(rng, port, shape, (ranges or {}).get(port.name))
    return feeds


def _random(rng: np.random.Generator, port: Port, shape: tuple[int, ...], bounds: Sequence[int] | None) -> np.ndarray:
    if port.dtype == "bfloat16":
        import ml_dtypes

        return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
    dtype = np.dtype(port.dtype)
    if _MASK.search(port.name) and dtype.kind in "biu":
        return np.ones(shape, dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        if _POSITION.search(port.name) and shape:
            high = bounds[1] if bounds else np.iinfo(dtype).max
            return np.broadcast_to(np.minimum(np.arange(shape[-1]), high), shape).astype(dtype)
        low, high = bounds or (0, 1)
        return rng.integers(low, high, shape, dtype=np.int64, endpoint=True).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def pools(inputs: Iterable[Port]) -> dict[str, tuple[int, ...]]:
    """The sizes to try for symbols that are sides of images or lengths of signals: axes of float inputs alone."""
    found: dict[str, tuple[int, ...]] = {}
    others: set[str] = set()
    for port in inputs:
        for axis, d in enumerate(port.shape):
            if not isinstance(d, str):
                continue
            if "float" not in port.dtype or axis == 0 or (axis == 1 and len(port.shape) > 2):
                others.add(d)
            else:
                found[d] = SAMPLES if axis == 1 and found.get(d) != EXTENTS else EXTENTS
    return {d: pool for d, pool in found.items() if d not in others}


def candidate_dims(
    symbols: Mapping[str, tuple[int, int | None]],
    inputs: Sequence[Port],
    fixed: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Iterator[dict[str, int]]:
    """Sizes for all symbols at once: first the same size for all, then random ones, each within its bounds.

    Some of the random ones are sums of two others (total = past + new). Which sizes a model takes together is for the
    caller to find out.
    """
    fixed = dict(fixed or {})
    special = pools(inputs)
    rng = np.random.default_rng(seed)
    seen = set()
    for attempt in range(2000):
        sizes: dict[str, int] = {}
        for name, (low, high) in symbols.items():
            pool = special.get(name, SIZES)
            size = pool[attempt] if attempt < len(pool) else int(rng.choice(pool))
            if attempt >= len(pool) and len(sizes) >= 2 and rng.random() < 0.3:
                size = sum(rng.choice(list(sizes.values()), 2, replace=False))
            sizes[name] = fixed.get(name, max(low, size if high is None else min(size, high)))
        key = tuple(sizes.values())
        if key not in seen:
            seen.add(key)
            yield sizes
