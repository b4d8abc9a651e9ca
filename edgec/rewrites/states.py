"""Key-value caches that are inputs and outputs become states of the session, which appends to them in place.

A cache is an input `past` and an output `present` = concat(past, new) along the steps. What reads it is compared
element by element (scalar.py), so it does not matter which transposes and reads by index an exporter has put between.
Where rows have lengths of their own (GroupQueryAttention's seqlens_k), those are taken to be what the session holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgec.ir.dims import Dim, Expr, substitute, symbol, symbol_name, symbols_of
from edgec.ir.node import Graph, Node, make, topological
from edgec.ir.types import FLOATS, INTS, TensorType
from edgec.rewrites.masks import parts_of
from edgec.rewrites.pattern import b
from edgec.rewrites.scalar import Opaque, Tracer

MOVES = ("transpose", "reshape", "gather_nd", "where", "cast", "slice", "expand")  # between a cache and its readers
DTYPES = {"fp32": "f32", "int8": "i8"}
_SWAP = (0, 2, 1, 3)


class Exposed(Exception):
    """The caches stay inputs and outputs: why."""


@dataclass(eq=False)
class Cache:
    """One pair. wide: the past as it is read (cast to f32, where it is stored in 16 bits)."""

    past: Node
    wide: Node
    joined: Node
    present: str
    output: Node

    @property
    def axis(self) -> int:
        return self.joined["axis"]

    @property
    def new(self) -> Node:
        return self.joined.inputs[1]

    @property
    def layout(self) -> str:
        return "bhsd" if self.axis == 2 else "bshd"

    @property
    def length(self) -> Dim:
        return self.past.shape[self.axis]


# --- rebuilding ------------------------------------------------------------------------------------------------------


def _with_dims(value, dims: Mapping[str, Dim]):
    if isinstance(value, Expr):
        return substitute(value, dims)
    if isinstance(value, TensorType):
        return replace(value, shape=_with_dims(value.shape, dims))
    return tuple(_with_dims(v, dims) for v in value) if isinstance(value, tuple) else value


def rebuilt(graph: Graph, new: Mapping[Node, Node], dims: Mapping[str, Dim] | None = None) -> Graph:
    """The graph with nodes replaced (their replacements' operands too), and symbols by dims."""
    done: dict[Node, Node] = {}
    aims = {old: None for old in new}

    def image(root: Node) -> Node:
        for node in _order(root, new, done):
            if node in aims:
                done[node] = done[new[node]] if new[node] is not node else node
                continue
            inputs = tuple(None if i is None else done[i] for i in node.inputs)
            attrs = {k: _with_dims(v, dims) for k, v in node.attrs.items()} if dims else node.attrs
            same = not dims and all(a is c for a, c in zip(inputs, node.inputs))
            done[node] = node if same else make(node.op, *inputs, **attrs)
            if node in graph.origins and done[node] not in graph.origins:
                graph.origins[done[node]] = graph.origins[node]
        return done[root]

    outputs = tuple((name, image(n)) for name, n in graph.outputs)
    inputs = tuple(image(n) for n in graph.inputs)
    parameters = {k: _with_dims(d, dims or {}) for k, d in graph.parameters.items()}
    used = set(parameters).union(*(symbols_of(d) for n in inputs for d in n.shape))
    symbols = {k: v for k, v in graph.symbols.items() if k in used}
    return replace(graph, inputs=inputs, outputs=outputs, symbols=symbols, parameters=parameters)


def _order(root: Node, new: Mapping[Node, Node], done: dict[Node, Node]) -> list[Node]:
    """Nodes to do before the root and the root itself, what they wait for first."""
    order, stack, seen = [], [(root, False)], set()
    while stack:
        node, ready = stack.pop()
        if node in done or (node in seen and not ready):
            continue
        if ready:
            order.append(node)
            continue
        seen.add(node)
        stack.append((node, True))
        below = (new[node],) if node in new and new[node] is not node else node.operands() if node not in new else ()
        stack.extend((i, False) for i in below)
    return list(dict.fromkeys(order))


# --- finding ---------------------------------------------------------------------------------------------------------


def find(graph: Graph) -> list[Cache]:
    """The pairs of past and present."""
    users, caches = graph.users(), []
    roots: dict[Node, tuple[str, Node]] = {}
    for name, node in graph.outputs:
        if isinstance(node.type, TensorType) and node.rank == 4:
            roots.setdefault(_root(node), (name, node))
    for past in graph.inputs:
        if past.rank != 4 or past.dtype not in FLOATS:
            continue
        wide = past
        if past.dtype != "f32" and [u.op for u in users.get(past, [])] == ["cast"]:
            wide = users[past][0]
        for u in users.get(wide, []):
            if u.op == "concat" and len(u.inputs) == 2 and u.inputs[0] is wide and u["axis"] in (1, 2) and u in roots:
                caches.append(Cache(past, wide, u, *roots[u]))
    return caches


def _root(node: Node) -> Node:
    """The concat under moves."""
    while (node.op in MOVES and node.op != "where") or (node.op == "where" and node.inputs[1].op in MOVES):
        node = node.inputs[1] if node.op == "where" else node.inputs[0]
    return node


def one_length(graph: Graph) -> Graph:
    """The graph with one symbol for the length of all caches: sources often name each one's apart."""
    lengths = [symbol_name(c.length) for c in find(graph)]
    first = lengths[0] if lengths else None
    aliases: dict[str, Dim] = {n: symbol(first) for n in lengths if first is not None and n not in (None, first)}
    aliases |= _one_batch(graph) if lengths else {}
    return rebuilt(graph, {}, aliases) if aliases else graph


def _one_batch(graph: Graph) -> dict[str, Dim]:
    """The caches' batch is the new tokens'."""
    pairs = ((symbol_name(c.past.shape[0]), c.new.shape[0]) for c in find(graph))
    return {name: batch for name, batch in pairs if name is not None and symbol(name) != batch
            and name not in symbols_of(batch)}  # fmt: skip


# --- checking --------------------------------------------------------------------------------------------------------


def _reads(node: Node, layout: str, cache: Cache, lengths: Node | None) -> bool:
    """Whether the node's elements are those of concat(past, new), where rows have the past's length."""
    index = [symbol(f"~{i}") for i in range(4)]  # in the past's order of axes
    axis, t, before = cache.axis, index[cache.axis], cache.length
    steps = cache.joined.shape[axis]
    bounds = {f"~{i}": steps if i == axis else cache.new.shape[i] for i in range(4)}
    tracer = Tracer(bounds, {} if lengths is None else {lengths: before}, (cache.wide, cache.new))
    here = index if layout == cache.layout else [index[i] for i in _SWAP]
    want = {}
    for part, condition, at in ((cache.wide, before - 1 - t, t), (cache.new, t - before, t - before)):
        place = [at if i == axis else x for i, x in enumerate(index)]
        want[part, tuple(0 if d == 1 else x for d, x in zip(part.shape, place))] = tracer.ge(condition)
    try:
        cases = tracer.cases(node, tuple(here))
    except Opaque:
        return False
    names = [symbol_name(v) if isinstance(v, Expr) else None for _, v in cases]
    found = {tracer.leaves[n]: f for n, (f, _) in zip(names, cases) if n in tracer.leaves}
    return len(found) == len(cases) and found == want


def _lengths(node: Node, layout: str, cache: Cache) -> Node | None:
    """The vector of rows' lengths that the reads of a cache depend on. Raises Exposed where there is no such reading."""
    batch = cache.new.shape[0]
    vectors = [n for n in topological([node]) if isinstance(n.type, TensorType) and n.dtype in INTS
               and n.shape == (batch,)]  # fmt: skip
    for lengths in (None, *reversed(vectors)):
        if _reads(node, layout, cache, lengths):
            return lengths
    raise Exposed(f"{cache.past['name']!r} is read in another way than concat(past, new)")


def _check_readers(graph: Graph, cache: Cache, users: dict[Node, list[Node]], readers: set[Node]) -> None:
    if any(u is not cache.joined and u is not cache.wide for u in users.get(cache.past, ())) or any(
        u is not cache.joined for u in users.get(cache.wide, ()) if cache.wide is not cache.past
    ):
        raise Exposed(f"{cache.past['name']!r} is read by something else than its concat")
    outputs = {n for name, n in graph.outputs if name != cache.present}
    stack, seen = [cache.joined], set()
    while stack:
        node = stack.pop()
        if node in outputs:
            raise Exposed(f"{cache.present!r} is two outputs")
        for u in users.get(node, ()):
            if u.op == "attention" and u in readers and node not in (u.inputs[0], u.inputs[3]):
                continue
            if u.op not in MOVES:
                raise Exposed(f"{cache.present!r} is read by {u.op} ({graph.origin(u)}), not by attention alone")
            if u not in seen:
                seen.add(u)
                stack.append(u)


# --- the rewrite -----------------------------------------------------------------------------------------------------


def keep_states(graph: Graph, kv_cache: str = "fp32") -> tuple[Graph, str]:
    """(the graph with its caches as states, "") or (the graph as it is, the reason); no reason without a cache.

    kv_cache: "fp32", "int8" (rounded for each token and head), or "exposed": left as inputs and outputs.
    """
    caches = find(graph)
    if not caches or kv_cache == "exposed":
        return graph, "--kv-cache exposed" if caches else ""
    try:
        return _kept(graph, caches, DTYPES[kv_cache]), ""
    except Exposed as reason:
        return graph, str(reason)


def _kept(graph: Graph, caches: list[Cache], dtype: str) -> Graph:
    users, nodes = graph.users(), graph.nodes()
    by_root = {c.joined: c for c in caches}
    if len(by_root) < len(caches) or len({c.past for c in caches}) < len(caches):
        raise Exposed("a cache is joined twice")
    attentions = [n for n in nodes if n.op == "attention" and {_root(n.inputs[1]), _root(n.inputs[2])} & by_root.keys()]
    for cache in caches:
        if symbol_name(cache.length) is None or symbol_name(cache.length) != symbol_name(caches[0].length):
            raise Exposed(
                f"the length of {cache.past['name']!r} is {cache.length}, not the symbol that the others have"
            )
        _check_readers(graph, cache, users, set(attentions))
    new: dict[Node, Node] = {}
    appended: dict[Cache, Node] = {}
    for cache in caches:
        sizes = tuple(
            d if i == cache.axis else n for i, (d, n) in enumerate(zip(cache.past.shape, cache.new.shape))
        )  # fmt: skip
        past = b.input(name=cache.past["name"], type=TensorType("f32", sizes))
        x, layout = cache.new, cache.layout
        if x.op == "transpose" and x["perm"] == _SWAP:
            x, layout = x.inputs[0], "bshd" if layout == "bhsd" else "bhsd"
        x = _in_f32(x)
        appended[cache] = b.cache_append(past, x, axis=cache.axis, layout=layout, dtype=dtype)
        new[cache.past] = past
        _lengths(cache.output.inputs[0] if cache.output.op == "cast" else cache.output, cache.layout, cache)
        new[cache.output] = appended[cache]
    for node in attentions:
        new[node] = _attention(node, by_root, appended)
    return replace(rebuilt(graph, new), states=tuple((c.past["name"], c.present) for c in caches))


def _attention(node: Node, by_root: Mapping[Node, Cache], appended: Mapping[Cache, Node]) -> Node:
    q, k, v, mask = node.inputs
    key, value = (by_root.get(_root(x)) for x in (k, v))
    if key is None or value is None:
        raise Exposed("attention reads one of two caches")
    lengths = {_lengths(x, node[f"{n}_layout"], c) for n, x, c in (("k", k, key), ("v", v, value))}
    if len(lengths) > 1:
        raise Exposed("keys and values have different lengths")
    attrs = dict(node.attrs)
    steps = q.shape[1] if node["q_layout"] == "bshd" else q.shape[2]
    heads = q.shape[2] if node["q_layout"] == "bshd" else q.shape[1]
    total = key.joined.shape[key.axis]
    (vector,) = lengths
    if mask is not None and (vector is not None or mask.shape[-1] not in (1, total)):
        parts = parts_of(mask, (q.shape[0], heads, steps, total), vector)
        if isinstance(parts, str):
            raise Exposed(f"its mask cannot be taken apart: {parts}")
        mask = parts.mask
        attrs |= {"causal": attrs["causal"] or parts.causal, "window": attrs["window"] or parts.window}
    if steps == 1:
        attrs["causal"] = True
    attrs |= {"k_layout": key.layout, "v_layout": value.layout}
    y = b.attention(_in_f32(q), appended[key], appended[value], None if mask is None else _in_f32(mask), **attrs)
    return y if node.dtype == "f32" else b.cast(y, dtype=node.dtype)


def _in_f32(x: Node) -> Node:
    return x if x.dtype == "f32" else b.cast(x, dtype="f32")


def is_ragged(graph: Graph) -> bool:
    """Whether rows of a batch may have states of different lengths: nothing but the states, their attention and its
    padding depends on the length that they have in common."""
    inputs, outputs = {n["name"]: n for n in graph.inputs}, dict(graph.outputs)
    common = set().union(*(symbols_of(inputs[past].shape[outputs[out]["axis"]]) for past, out in graph.states))
    presents = {out for _, out in graph.states}

    def mentions(node: Node) -> bool:
        return any(common & _symbols(v) for v in (*node.attrs.values(), node.type))

    tainted = {n for n in graph.nodes() if mentions(n)}
    if not graph.states or any(n in tainted for name, n in graph.outputs if name not in presents):
        return False
    for node in graph.nodes():
        for i, operand in enumerate(node.inputs):
            if operand not in tainted:
                continue
            if node.op == "attention" and node["causal"] and i > 0 and (i < 3 or operand.shape[-2] == 1):
                continue
            if node not in tainted or node.op == "attention":
                return False
    return True


def _symbols(value) -> set[str]:
    if isinstance(value, Expr):
        return symbols_of(value)
    if isinstance(value, TensorType):
        return _symbols(value.shape)
    return set().union(*map(_symbols, value)) if isinstance(value, tuple) else set()
