"""A model with zeros in its weights, by a mask: shapes stay, so that methods can be compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgec.calibrate.capture import Stream
from edgec.calibrate.data import Calibration
from edgec.calibrate.prune.masks import Pattern, mask
from edgec.calibrate.prune.sites import Moments, site
from edgec.errors import EdgecError
from edgec.ir.data import Data
from edgec.ir.node import Graph, Node, constant
from edgec.rewrites.prune import with_weights

TABLE = 8  # a weight with so many times more rows than columns is a head or table, and stays whole


def mask_model(
    graph: Graph, method: str, pattern: Pattern, load: Callable[[], Calibration] | None, tick=lambda done, total: None
) -> tuple[Graph, list[dict]]:
    """(the graph with zeros in its linears, name, share and relative error of each). Layer by layer, each on what the
    layers before it give by then. Raises EC1305 for a method that needs data where there is none, or a pattern that no
    weight can have."""
    if load is None and method != "magnitude":
        raise EdgecError("EC1305", f"{method} needs data", "--prune", "Give it texts or arrays with --calib")
    users = graph.users()
    nodes = [n for n in graph.nodes() if n.op == "linear" and site(n) and len(users[n.inputs[1]]) == 1]
    nodes = [n for n in nodes if n.inputs[1].shape[0] < TABLE * n.inputs[1].shape[1]]
    if isinstance(pattern, tuple):
        nodes = [n for n in nodes if n.inputs[1].shape[1] % pattern[1] == 0]
    if not nodes:
        raise EdgecError("EC1305", "the model has no linear that the pattern fits", "--prune", "Try a share: wanda:50%")
    calibration = load() if load else None
    stream = None if calibration is None else Stream(graph, calibration.feeds)
    if stream is not None:
        stream.expect([n.inputs[0] for n in nodes])
    new: dict[Node, tuple[Node, Node | None]] = {}
    report = []
    for done, node in enumerate(nodes):
        s = site(node)
        assert s is not None
        w, hessian = s.matrix(), None
        if stream is not None and calibration is not None:
            moments = Moments(w.shape[1])
            for number, values in stream.run([node.inputs[0]]):
                moments.add(s.rows_in(values[node.inputs[0]], calibration.valid[number], number))
            hessian = moments.h
        sparse = mask(method, w, hessian, pattern)
        if stream is not None:
            stream.weights[node.inputs[1]["data"].key] = Data.of(sparse)
        new[node] = (constant(sparse), node.inputs[2])
        h = np.eye(w.shape[1]) if hessian is None else hessian
        lost, energy = (float(np.sum((m @ h) * m)) for m in (w - sparse, w))
        report.append({"name": graph.origin(node).split(", ")[0], "zeros": round(float((sparse == 0).mean()), 4),
                       "error": float(f"{lost / max(energy, 1e-30):.3g}")})  # fmt: skip
        tick(done + 1, len(nodes))
    return with_weights(graph, new)[0], report
