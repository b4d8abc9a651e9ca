"""Rotations by Hadamard matrices, so that no number stands out in what is rounded to 8 bits at run time.

Sums of products stay as they are where both sides are rotated, the matrix being orthonormal (QuaRot, arXiv 2404.00456):
queries and cached keys of a head, or the input of a product and the rows of its weight, which costs nothing at run time
but the input's own rotation. Inputs turn in the blocks of 32 that share a scale: what stands out spreads over its own
block, and no further. A table that a product reads too is stored once, rotated: its rows are turned back where they are
looked up.
"""

from __future__ import annotations

from collections.abc import Collection

from edgec.ir.dims import Dim
from edgec.ir.node import Graph, Node, make
from edgec.ir.ops.nn import BLOCK
from edgec.rewrites.fold import const_node
from edgec.rewrites.quantize import Options, Quantizer, plain

ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid")


def rotate(graph: Graph, parts: Collection[str], options: Options) -> tuple[Graph, dict[str, int]]:
    """The graph with some rotations, and how many values each of them turns; equal to the source but for rounding.

    parts: "keys": queries and keys of a cache in 8 bits. "inputs": of all products whose weights get few bits. "down": of
    those behind an activation or a gate, as a feed-forward block has them. options: those that the phase `quantize` will
    get: what stays in fp32 is not rotated.
    """
    keys = _caches(graph) if "keys" in parts else set()
    part, stored = _weights(graph, parts, Quantizer(options, graph))
    counts, turned, new = dict.fromkeys(parts, 0), dict[tuple[Node, int], Node](), dict[Node, Node]()

    def turn(x: Node | None, block: int, name: str) -> Node:
        assert x is not None
        if (x, block) not in turned:
            turned[x, block] = make("hadamard", x, block=block)
            counts[name] += 1
        return turned[x, block]

    for node in graph.nodes():
        inputs = [None if i is None else new[i] for i in node.inputs]
        found = part.get(key) if (key := _key(node)) is not None else None
        if node.op == "linear" and found is not None:
            inputs[:2] = turn(inputs[0], BLOCK, found), const_node("hadamard", node.inputs[1], block=BLOCK)
        elif node.op == "gather" and key in stored:
            inputs[0] = const_node("hadamard", node.inputs[0], block=BLOCK)
        elif node in keys:
            inputs[1] = turn(inputs[1], _largest(node.shape[-1]), "keys")
        elif node.op == "attention" and node.inputs[1] in keys:
            inputs[0] = turn(inputs[0], _largest(node.inputs[1].shape[-1]), "keys")
        out = make(node.op, *inputs, **node.attrs)
        if node.op == "gather" and key in stored:
            out = make("hadamard", out, block=BLOCK)
        new[node] = out
        if node in graph.origins:
            for n in (out, *out.operands()):
                if n is out or n.op == "hadamard":
                    graph.origins.setdefault(n, graph.origins[node])
    return graph.with_outputs([new[n] for _, n in graph.outputs]), counts


def _key(node: Node) -> object | None:
    """Of the matrix of a product, or of a table."""
    w = node.inputs[1] if node.op == "linear" else node.inputs[0] if node.op == "gather" and node["axis"] == 0 else None
    return w["data"].key if w is not None and plain(w) else None


def _weights(graph: Graph, parts: Collection[str], quantizer: Quantizer) -> tuple[dict[object, str], set[object]]:
    """(key of a product's weight that is rotated -> the part that asks for it, keys of tables that are stored with one)."""
    products = [n for n in graph.nodes() if n.op == "linear" and _key(n) is not None]
    asked: dict[object, str] = {}
    for n in products:
        kept, role = quantizer.role_of(n.inputs[1]["data"])
        name = "inputs" if "inputs" in parts else "down" if "down" in parts and _activated(n.inputs[0]) else None
        if name is not None and not quantizer.keeps(kept, role):
            asked.setdefault(kept.key, name)
    found = {}
    for n in products:
        kept, role = quantizer.role_of(n.inputs[1]["data"])
        if kept.key in asked:
            found[_key(n)] = asked[kept.key]
    return found, set(asked)


def _activated(x: Node | None) -> bool:
    """Whether a value comes from an activation, or is one times another: what a feed-forward block has inside."""
    waiting, seen = [x], set()
    while waiting:
        x = waiting.pop()
        if x is None or x in seen:
            continue
        seen.add(x)
        if x.op in ACTIVATIONS or (x.op == "linear" and x["act"] != "none"):
            return True
        if x.op in ("reshape", "mul"):
            waiting += x.inputs
    return False


def _caches(graph: Graph) -> set[Node]:
    """What holds keys in 8 bits, and is read as keys by attentions alone."""
    found = {n.inputs[1] for n in graph.nodes() if n.op == "attention" and n.inputs[1].op == "cache_append"}
    others = {i for n in graph.nodes() for at, i in enumerate(n.inputs) if (n.op, at) != ("attention", 1)}
    return {n for n in found - others if n["dtype"] == "i8"}


def _largest(size: Dim) -> int:
    """The largest power of two that fits."""
    assert isinstance(size, int)
    return 1 << max(size, 1).bit_length() - 1
