"""The text form of a graph: prints, and parses back to the same nodes.

    graph "g" (s: 1..)
    %0: f32[s, 4] = input {name="x", type=f32[s, 4]}
    %1: f32[4] = constant {data=dense<f32[4]>[0.0, 0x1.8p+1, 2.0, 3.0]}
    %2: f32[s, 4] = add(%0, %1)
    return (%2 as "y") inputs (%0)

A graph with states or parameters ends in `keeps {"states": [["past", "present"]], "parameters": {"k": "s"}}`.
Small constants stand in the text; others by a name, under which parse_graph is given their data.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

import numpy as np

from edgec.ir.dims import Expr, format_dim, is_ge, parse_dim, product
from edgec.ir.node import Data, Graph, Node, make
from edgec.ir.types import TensorType, numpy_dtype, parse_type, split_commas

INLINE = 16  # elements up to which a constant is printed


class TextError(ValueError):
    """A text that is not the form of a graph; says the line."""


def data_name(data: Data) -> str:
    """The name of a constant that is not printed in full: equal content, equal name."""
    return hashlib.blake2b(repr(data.key).encode(), digest_size=8).hexdigest()


def constants(graph: Graph) -> dict[str, Data]:
    """What parse_graph needs beside the text."""
    return {data_name(n["data"]): n["data"] for n in graph.nodes() if n.op == "constant"}


def _format_number(value) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, float):
        return value.hex() if np.isfinite(value) else {np.inf: "inf", -np.inf: "-inf"}.get(value, "nan")
    return str(value)


def _inline(type: TensorType) -> bool:
    return not type.encoding and type.layout == "row" and is_ge(INLINE, product(type.shape)) is True


def _format(value) -> str:
    if isinstance(value, Data):
        if not _inline(value.type):
            return f"data<{value.type}>{data_name(value)}"
        flat = value.array().reshape(-1)
        if value.type.dtype in ("f16", "bf16"):
            flat = flat.astype(np.float32)
        return f"dense<{value.type}>[{', '.join(_format_number(v) for v in flat.tolist())}]"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_format, value))}]"
    if isinstance(value, Expr):
        return f"dim<{format_dim(value)}>"
    if isinstance(value, TensorType):
        return f"type<{value}>"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float):
        return "f" + _format_number(value)
    return _format_number(value)


def _parse(text: str, data: Mapping[str, Data]):
    if text.startswith("dense<"):
        split = text.rindex(">[")
        type = parse_type(text[6:split])
        assert isinstance(type, TensorType)
        numbers = [_parse_number(v) for v in split_commas(text[split + 2 : -1])]
        return Data.of(np.array(numbers, dtype=numpy_dtype(type.dtype)).reshape(type.shape))
    if text.startswith("data<"):
        name = text[text.rindex(">") + 1 :]
        if name not in data:
            raise ValueError(f"the data of the constant {name} is not given")
        return data[name]
    if text.startswith("["):
        return tuple(_parse(t, data) for t in split_commas(text[1:-1]))
    if text.startswith("dim<"):
        return parse_dim(text[4:-1])
    if text.startswith("type<"):
        return parse_type(text[5:-1])
    if text.startswith('"'):
        return json.loads(text)
    if text.startswith("f") and text != "false":
        return _parse_number(text[1:])
    return _parse_number(text)


def _parse_number(text: str):
    if text in ("true", "false"):
        return text == "true"
    if text in ("inf", "-inf", "nan"):
        return float(text)
    return float.fromhex(text) if "x" in text else int(text)


def print_graph(graph: Graph) -> str:
    nodes = graph.nodes()
    nodes = [n for n in graph.inputs if n not in set(nodes)] + nodes
    ids = {n: i for i, n in enumerate(nodes)}
    bounds = ", ".join(
        f"{json.dumps(s)}: {lo}..{'' if hi is None else hi}" for s, (lo, hi) in sorted(graph.symbols.items())
    )
    lines = [f"graph {json.dumps(graph.name)} ({bounds})"]
    for n in nodes:
        args = f"({', '.join('_' if i is None else f'%{ids[i]}' for i in n.inputs)})" if n.inputs else ""
        attrs = ", ".join(f"{k}={_format(v)}" for k, v in n.attrs.items() if v is not None)
        origin = graph.origins.get(n)
        note = f"  # {json.dumps(list(origin))}" if origin else ""
        lines.append(f"%{ids[n]}: {n.type} = {n.op}{args}" + (f" {{{attrs}}}" if attrs else "") + note)
    outputs = ", ".join(f"%{ids[n]} as {json.dumps(name)}" for name, n in graph.outputs)
    tail = f"return ({outputs}) inputs ({', '.join(f'%{ids[n]}' for n in graph.inputs)})"
    if graph.states or graph.parameters:
        kept = {"states": graph.states, "parameters": {k: format_dim(d) for k, d in graph.parameters.items()}}
        tail += f" keeps {json.dumps(kept)}"
    lines.append(tail)
    return "\n".join(lines) + "\n"


_LINE = re.compile(r"%(\d+): (.*?) = (\w+)(?:\(([^)]*)\))?(?: \{(.*)\})?(?:  # (\[.*\]))?$")
_HEAD = re.compile(r"graph (\".*?[^\\]\"|\"\") \((.*)\)$")
_BOUND = re.compile(r"(\".*\"): (\d+)\.\.(\d*)$")
_TAIL = re.compile(r"return \((.*)\) inputs \(([^()]*)\)(?: keeps (\{.*\}))?$")


def parse_graph(text: str, data: Mapping[str, Data] | None = None) -> Graph:
    """Reads what print_graph writes; `data` as constants() gives it. Raises TextError with the line's number."""
    nodes: dict[str, Node] = {}
    origins: dict[Node, tuple] = {}
    name, symbols = "graph", {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if head := _HEAD.match(line):
                name = json.loads(head[1])
                for part in split_commas(head[2]):
                    bound = _BOUND.match(part)
                    if not bound:
                        raise ValueError(f"cannot read the bounds {part!r}")
                    symbols[json.loads(bound[1])] = (int(bound[2]), int(bound[3]) if bound[3] else None)
            elif tail := _TAIL.match(line):
                outputs = []
                for part in split_commas(tail[1]):
                    ref, _, label = part.partition(" as ")
                    outputs.append((json.loads(label), nodes[ref[1:]]))
                inputs = tuple(nodes[p[1:]] for p in split_commas(tail[2]))
                kept = json.loads(tail[3] or "{}")
                states = tuple((str(past), str(present)) for past, present in kept.get("states", ()))
                parameters = {str(k): parse_dim(v) for k, v in kept.get("parameters", {}).items()}
                graph = Graph(inputs, tuple(outputs), symbols, name, states=states, parameters=parameters)
                graph.origins.update(origins)
                return graph
            elif match := _LINE.match(line):
                args = [None if a == "_" else nodes[a[1:]] for a in split_commas(match[4] or "")]
                attrs = dict(part.partition("=")[::2] for part in split_commas(match[5] or ""))
                node = make(match[3], *args, **{k: _parse(v, data or {}) for k, v in attrs.items()})
                if node.type != parse_type(match[2]):
                    raise ValueError(f"the type says {match[2]}, the op gives {node.type}")
                nodes[match[1]] = node
                if match[6]:
                    origins[node] = tuple(json.loads(match[6]))
            elif line.strip():
                raise ValueError(f"cannot read {line!r}")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise TextError(f"line {number}: {error}") from None
    raise TextError("the text ends before the line `return`")
