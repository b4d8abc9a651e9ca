"""Random inputs that fit a graph."""

from __future__ import annotations

import numpy as np

from edgec.ir.dims import evaluate, symbols_of
from edgec.ir.node import Graph
from edgec.ir.types import numpy_dtype


def random_env(graph: Graph, rng: np.random.Generator, high: int = 6) -> dict[str, int]:
    """A size for each symbol, within its bounds and at most `high` (where the lower bound allows)."""
    env = {}
    for name, (low, top) in sorted(graph.symbols.items()):
        end = max(low, high if top is None else min(top, high))
        env[name] = int(rng.integers(low, end + 1))
    return env


def random_feeds(graph: Graph, rng: np.random.Generator, env: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """Arrays for all inputs: floats normal (scale 1), integers 0 to 3, bools even."""
    env = random_env(graph, rng) if env is None else env
    feeds = {}
    for node in graph.inputs:
        missing = set().union(*map(symbols_of, node.shape)) - env.keys()
        shape = tuple(evaluate(d, env | dict.fromkeys(missing, 2)) for d in node.shape)
        if node.dtype == "bool":
            array = rng.integers(0, 2, shape).astype(bool)
        elif node.dtype in ("f16", "bf16", "f32", "f64"):
            array = rng.standard_normal(shape)
        else:
            array = rng.integers(0, 4, shape)
        feeds[node["name"]] = np.asarray(array, dtype=numpy_dtype(node.dtype))
    return feeds
