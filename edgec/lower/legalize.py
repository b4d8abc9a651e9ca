"""Rewrites what no kernel computes as it stands into what one does: dtypes, activations, packed weights."""

from __future__ import annotations

from collections.abc import Callable, Container

import numpy as np

from edgec.ir.dims import product
from edgec.ir.node import Graph, Node, constant, make
from edgec.ir.ops.nn import BLOCK, GATED, PANEL
from edgec.ir.ops.registry import IrError
from edgec.ir.types import TensorType

# Built-in kernels that compute in f32; the other float dtypes are cast around them.
F32_ONLY = ("linear", "hadamard", "attention", "rope", "lstm", "gru", "rnn")
LINEAR_ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", *GATED)
NORM_READERS = 4  # a norm is computed again for each product that reads it

Pick = Callable[[Node, str], str]  # (weight, op that reads it) -> packed format


def cast(node: Node, dtype: str) -> Node:
    if node.dtype == dtype:
        return node
    if node.op == "constant" and not node.type.encoding:
        return constant(node["data"].array(), dtype)
    return make("cast", node, dtype=dtype)


def activation(x: Node, act: str) -> Node:
    """The activation `act` of `linear` and `conv` as nodes of its own."""

    def number(value: float) -> Node:
        return constant(value, x.dtype)

    def clip(v: Node, low: float, high: float) -> Node:
        return make("min", make("max", v, number(low)), number(high))

    if act == "none":
        return x
    if act in GATED:
        gate, up = (
            make("slice", make("reshape", x, shape=(*x.shape[:-1], x.shape[-1] // PANEL, 2, PANEL // 2)),
                 starts=(0,) * x.rank + (i, 0), sizes=(*x.shape[:-1], x.shape[-1] // PANEL, 1, PANEL // 2),
                 steps=(1,) * (x.rank + 2))
            for i in range(2)
        )  # fmt: skip
        y = make("mul", activation(gate, GATED[act]), up)
        return make("reshape", y, shape=(*x.shape[:-1], x.shape[-1] // 2))
    if act == "relu6":
        return clip(x, 0, 6)
    if act in ("hard_sigmoid", "hard_swish"):
        gate = clip(make("add", make("mul", x, number(1 / 6)), number(0.5)), 0, 1)
        return gate if act == "hard_sigmoid" else make("mul", x, gate)
    return make("gelu", x, approximate="tanh") if act == "gelu_tanh" else make(act, x)


def _in_f32(node: Node) -> Node:
    inputs = [i if i is None or i.dtype not in ("f16", "bf16", "f64") else cast(i, "f32") for i in node.inputs]
    return make(node.op, *inputs, **node.attrs)


def _linear(node: Node, pick: Pick) -> Node:
    x, w, bias, residual, gain, shift = node.inputs
    assert x is not None and w is not None
    if w.op != "constant":
        x = _norm(x, node["norm"], node["eps"], gain, shift)
        x = make("hadamard", x, block=BLOCK) if node["rotate"] else x
        y = make("matmul", x, w, trans_b=True) if x.rank > 1 else None
        if y is None:
            flat = make("matmul", make("reshape", x, shape=(1, x.shape[0])), w, trans_b=True)
            y = make("reshape", flat, shape=(w.shape[0],))
        y = y if bias is None else make("add", y, bias)
        y = activation(y, node["act"])
        return y if residual is None else make("add", y, residual)
    if node["rotate"] and not w.type.encoding:  # their kernels take x as it is
        x = make("hadamard", _norm(x, node["norm"], node["eps"], gain, shift), block=BLOCK)
        attrs = dict(node.attrs) | {"norm": "none", "eps": 0.0, "rotate": False}
        return _linear(make("linear", x, w, bias, residual, **attrs), pick)
    if node["act"] not in LINEAR_ACTIVATIONS:
        plain = make("linear", x, w, bias, None, gain, shift, **(dict(node.attrs) | {"act": "none"}))
        y = activation(_linear(plain, pick), node["act"])
        return y if residual is None else make("add", y, residual)
    packed = make("pack", w, format=pick(w, "linear"))
    return make("linear", x, packed, bias, residual, gain, shift, **node.attrs)


def _norm(x: Node, norm: str, eps: float, gain: Node | None, shift: Node | None) -> Node:
    """The norm of a linear as nodes of its own."""
    if norm == "none":
        return x
    if norm == "layer":
        return make("layer_norm", x, gain, shift, axis=x.rank - 1, eps=eps)
    y = make("rms_norm", x, gain, axis=x.rank - 1, eps=eps)
    return y if shift is None else make("add", y, shift)


def products_of(graph: Graph) -> Callable[[Node], list[Node] | None]:
    """A function from a value to the linears with constant weights and no norm that read it, through reshapes as well;
    None if anything else reads it."""
    readers: dict[Node, list[Node | None]] = {}
    for node in graph.nodes():
        for i in node.operands():
            readers.setdefault(i, []).append(node)
    for _, node in graph.outputs:
        readers.setdefault(node, []).append(None)

    def products(x: Node) -> list[Node] | None:
        found: list[Node] = []
        for r in readers.get(x, []):
            if r is None or r.inputs[0] is not x or any(i is x for i in r.inputs[1:]):
                return None
            if r.op == "linear" and r["norm"] == "none" and r.inputs[1] is not None and r.inputs[1].op == "constant":
                found.append(r)
            elif r.op == "reshape" and r.rank and r.shape[-1] == x.shape[-1] and (more := products(r)) is not None:
                found += more
            else:
                return None
        return found

    return products


def fuse_rotations(graph: Graph) -> Graph:
    """Rotations become part of the products with encoded weights that alone read them, if in the blocks of activations,
    or of the rope whose only reader they are."""
    products, users, new = products_of(graph), graph.users(), dict[Node, Node]()
    rotates: set[Node] = set()  # what stands for its input
    outputs = {n for _, n in graph.outputs}
    alone = lambda n: len(users[n]) == 1 and n not in outputs  # noqa: E731
    for node in graph.nodes():
        inputs = [None if i is None else new[i] for i in node.inputs]
        first = node.inputs[0] if node.inputs else None
        if node.op == "hadamard" and node["block"] == BLOCK and (read := products(node)):
            if all(not r["rotate"] and r.inputs[1].type.encoding for r in read):  # type: ignore[union-attr]
                rotates.add(node)
                new[node] = inputs[0]  # type: ignore[assignment]
                continue
        attrs = dict(node.attrs)
        if node.op == "hadamard" and first.op == "rope" and not first["rotate"] and alone(first):  # type: ignore[union-attr]
            new[node] = make("rope", *inputs[0].inputs, **(dict(first.attrs) | {"rotate": node["block"]}))  # type: ignore
            graph.origins.setdefault(new[node], graph.origins.get(first, ()))
            continue
        if first in rotates:
            if node.op == "reshape":
                rotates.add(node)
            else:
                attrs["rotate"] = True
        new[node] = make(node.op, *inputs, **attrs)
        if node in graph.origins:
            graph.origins.setdefault(new[node], graph.origins[node])
    return graph.with_outputs([new[n] for _, n in graph.outputs])


def fuse_norms(graph: Graph) -> Graph:
    """Norms over the last axis that only products with constant weights read become part of these."""
    products = products_of(graph)
    new: dict[Node, Node] = {}
    norms: dict[Node, tuple[dict, tuple[Node | None, ...]]] = {}  # what a node that stands for its input lacks
    for node in graph.nodes():
        inputs = [None if i is None else new[i] for i in node.inputs]
        first = node.inputs[0] if node.inputs else None
        if node.op in ("layer_norm", "rms_norm") and node["axis"] == node.rank - 1:
            parameters = [None if p is None else _vector(p, node.shape[-1]) for p in (*inputs[1:], None)][:2]
            count = len(products(node) or ())
            if 0 < count <= NORM_READERS and all((p is None) == (i is None) for p, i in zip(parameters, inputs[1:])):
                assert inputs[0] is not None
                attrs = {"norm": "rms" if node.op == "rms_norm" else "layer", "eps": node["eps"]}
                norms[node], new[node] = (attrs, tuple(parameters)), inputs[0]
                continue
        out = make(node.op, *inputs, **node.attrs)
        if first in norms:
            attrs, parameters = norms[first]
            if node.op == "reshape":
                norms[node] = norms[first]
            else:
                out = make("linear", *inputs[:4], *parameters, **(dict(node.attrs) | attrs))
        new[node] = out
        if node in graph.origins:
            graph.origins.setdefault(out, graph.origins[node])
    return graph.with_outputs([new[n] for _, n in graph.outputs])


def _vector(p: Node, k) -> Node | None:
    """A norm's gain or bias as [k], if it is one or a constant that broadcasts to it."""
    if p.shape == (k,):
        return p
    return constant(np.broadcast_to(p["data"].array(), (k,)).copy()) if p.op == "constant" and p.rank < 2 else None


def _matmul(node: Node) -> Node:
    """Products of other dtypes than f32 become a multiplication and a sum."""
    a, b = node.operands()
    if node["trans_a"]:
        a = make("transpose", a, perm=(*range(a.rank - 2), a.rank - 1, a.rank - 2))
    if not node["trans_b"]:
        b = make("transpose", b, perm=(*range(b.rank - 2), b.rank - 1, b.rank - 2))
    a = make("reshape", a, shape=(*a.shape[:-1], 1, a.shape[-1]))
    b = make("reshape", b, shape=(*b.shape[:-2], 1, *b.shape[-2:]))
    products = make("mul", a, b)
    return make("reduce_sum", products, axes=(products.rank - 1,))


def _cache_append(node: Node) -> Node:
    """A cache that is an input and an output, no state: the new tokens behind it in a copy."""
    past, new = node.operands()
    if node["dtype"] != "f32":
        raise IrError("cache_append: only a state can be of 8 bits")
    if node["layout"] != ("bshd" if node["axis"] == 1 else "bhsd"):
        new = make("transpose", new, perm=(0, 2, 1, 3))
    return make("concat", past, new, axis=node["axis"])


def legalize(graph: Graph, pick: Pick) -> Graph:
    """The graph with only what the kernels and templates compute.

    pick: the packed format of a weight. Nodes get the origins of what they replace.
    """
    graph = fuse_norms(fuse_rotations(graph))
    new: dict[Node, Node] = {}
    kept = {past for past, _ in graph.states}
    tied = {n.inputs[1] for n in graph.nodes() if n.op == "linear"}  # a table that a product reads too is stored once
    for node in graph.nodes():
        inputs = [None if i is None else new[i] for i in node.inputs]
        again = make(node.op, *inputs, **node.attrs)
        state = node.op == "cache_append" and inputs[0].op == "input" and inputs[0]["name"] in kept
        out = again if state else _one(again, pick, tied)
        new[node] = out
        origin = graph.origins.get(node)
        if origin:
            stack = [out]
            while stack:
                n = stack.pop()
                if n not in graph.origins and n.op not in ("input", "constant"):
                    graph.origins[n] = origin
                    stack.extend(n.operands())
    return graph.with_outputs([new[n] for _, n in graph.outputs])


def _one(node: Node, pick: Pick, tied: Container[Node | None] = ()) -> Node:
    if isinstance(node.type, TensorType) and node.op in F32_ONLY and node.dtype != "f32":
        return cast(_one(_in_f32(node), pick, tied), node.dtype)
    if node.op == "item":
        inner = node.inputs[0]
        assert inner is not None
        wanted = node.type.dtype
        if inner.op in F32_ONLY and wanted in ("f16", "bf16", "f64"):
            return cast(make("item", _in_f32(inner), index=node["index"]), wanted)
        return node
    if node.op == "linear" and node.inputs[1] is not None and node.inputs[1].op != "pack":
        return _linear(node, pick)
    if node.op == "matmul" and node.dtype != "f32":
        if node.dtype in ("f16", "bf16"):
            return cast(_in_f32(node), node.dtype)
        return _matmul(node)
    if node.op == "gather" and node.inputs[0] is not None and node.inputs[0].type.encoding:
        table, indices = node.inputs
        assert indices is not None
        format = pick(table, "linear" if table in tied else "gather")
        return make("gather", make("pack", table, format=format), cast(indices, "i64"), axis=0)
    if node.op == "cache_append":
        return _cache_append(node)
    if node.op == "conv" and node.inputs[1] is not None and node.inputs[1].type.encoding:
        x, w, *rest = node.inputs
        return make("conv", x, constant(w["data"].array()), *rest, **node.attrs)
    return node


def macs(node: Node):
    """Multiply-accumulates of a matrix product, convolution, attention or recurrent op, as a Dim; 0 of others."""
    if node.op == "linear":
        x, w = node.inputs[:2]
        return product(x.shape) * w.shape[0]
    if node.op in ("matmul", "matmul_int"):
        a = node.inputs[0]
        return product(node.shape) * (a.shape[-2] if node.attrs.get("trans_a") else a.shape[-1])
    if node.op == "conv":
        return product(node.shape) * product(node.inputs[1].shape[1:])
    if node.op == "conv_transpose":
        return product(node.inputs[0].shape) * product(node.inputs[1].shape[1:])
    if node.op == "attention":
        q, k = node.inputs[:2]
        keys = k.shape[1] if node["k_layout"] == "bshd" else k.shape[2]
        return 2 * product(q.shape) * keys
    if node.op in ("lstm", "gru", "rnn"):
        x, w, r = node.inputs[:3]
        return x.shape[0] * x.shape[1] * (product(w.shape) + product(r.shape))
    return 0
