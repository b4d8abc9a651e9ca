"""The values inside a model's graph: for those who look at intermediates."""

from __future__ import annotations

import os
from collections.abc import Iterable

import onnx


def outputs_of_nodes(path: str | os.PathLike) -> dict[str, tuple[int, str]]:
    """Node name -> (its place in the graph, its first output), for the nodes that have both."""
    graph = onnx.load(os.fspath(path), load_external_data=False).graph
    return {n.name: (i, n.output[0]) for i, n in enumerate(graph.node) if n.name and n.output and n.output[0]}


def with_outputs(path: str | os.PathLike, values: Iterable[str]) -> bytes:
    """The model with these values as further outputs; external data stays in its files."""
    proto = onnx.load(os.fspath(path), load_external_data=False)
    have = {o.name for o in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=v) for v in dict.fromkeys(values) if v not in have)
    return proto.SerializeToString()
