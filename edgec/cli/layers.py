"""Which op departs first: a build with every value as an output beside the source with the same values as outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

_PREFIX = "edgec.layer."
_SAME = 0.01  # relative error up to which a rewritten value is the source's


def compare_layers(
    manifest: Mapping[str, Any], model: Path, consts: Mapping[str, Any], feeds: Mapping[str, Any], limit: float, by: str
) -> dict[str, Any]:
    """{"layers": [{node, op, max_abs, relative, cosine}], "first": the first of them beyond the limit or None}.

    The artifact's own code has no intermediates to look at: the source is built again with the artifact's options, each
    value that stands for an ONNX node's result being an output.
    """
    import tempfile

    import edgec
    from edgec.cli import compare
    from edgec.compiler import Build, Options
    from edgec.frontend.values import outputs_of_nodes

    options = manifest.get("options") or {}
    dims = {k: tuple(v) if isinstance(v, list) else v for k, v in (options.get("dims") or {}).items()}
    job = Build(Options(**{**options, "dims": dims, "kv_cache": "exposed"}))  # the source's caches are exposed as well
    job.load(model, constants=dict(consts))
    source = outputs_of_nodes(model)
    rewritten = job.rewrite()
    quantized = job.quantize()
    values = [v for graph in (rewritten, quantized) for _, _, v in _kept(graph, source).values()]
    want = _source_values(model, consts, feeds, [*values, *(name for name, _ in rewritten.outputs)], by)
    moved = _moved(rewritten, _kept(rewritten, source), feeds, want)
    kept = {k: v for k, v in _kept(quantized, source).items() if v[1] not in moved}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "layers.edgec"
        job.graph = _with_outputs(quantized, kept)
        job.lower()
        job.write(out)
        session = edgec.load(out)
        got = session(**{i.name: feeds[i.name] for i in session.inputs})
    rows = []
    for key, (node, name, value) in kept.items():
        if value in want and want[value].shape == got[key].shape:
            rows.append({"node": name, "op": node.op, **compare.errors(got[key], want[value])})
    first = next((r for r in rows if not r["relative"] <= limit), None)
    return {"layers": rows, "first": first}


def _moved(
    graph, kept: Mapping[str, tuple[Any, str, str]], feeds: Mapping[str, Any], want: Mapping[str, Any]
) -> set[str]:
    """ONNX nodes whose value the rewritten graph no longer has: a factor of it went into the next weights, say.

    Where the rewritten graph's own outputs are wrong, nothing counts as moved: a rewrite is what departs.
    """
    import numpy as np

    from edgec.cli.compare import errors
    from edgec.ir.evaluate import run

    values: dict[Any, Any] = {}
    with np.errstate(all="ignore"):
        outputs = run(graph, {n["name"]: feeds[n["name"]] for n in graph.inputs}, values.__setitem__)
    if any(errors(outputs[n], want[n])["relative"] > _SAME for n in outputs if n in want):
        return set()
    return {
        name
        for node, name, value in kept.values()
        if value in want and node in values and not errors(values[node], want[value])["relative"] <= _SAME
    }


def _kept(graph, source: Mapping[str, tuple[int, str]]) -> dict[str, tuple[Any, str, str]]:
    """Output name -> (IR node, ONNX node, ONNX value): for each ONNX node the last IR node that it ends in."""
    last: dict[str, Any] = {}
    for node in graph.nodes():
        if node.op in ("constant", "input", "pack", "iota", "dim_value") or not hasattr(node.type, "shape"):
            continue
        names = [n for n in graph.origins.get(node, ()) if n in source]
        if names:
            last[max(names, key=lambda n: source[n][0])] = node
    outputs = {node for _, node in graph.outputs}
    ordered = sorted(last, key=lambda n: source[n][0])
    return {
        f"{_PREFIX}{i}": (last[name], name, source[name][1])
        for i, name in enumerate(ordered)
        if last[name] not in outputs
    }


def _with_outputs(graph, kept: Mapping[str, tuple[Any, str, str]]):

    more = tuple((key, node) for key, (node, _, _) in kept.items())
    return replace(graph, outputs=(*graph.outputs, *more))


def _source_values(
    model: Path, consts: Mapping[str, Any], feeds: Mapping[str, Any], values: list[str], by: str
) -> dict[str, Any]:
    """The values of these names, from the source run by onnxruntime, or by the reference evaluator."""
    from edgec.cli import compare
    from edgec.frontend.values import with_outputs

    if by != "onnxruntime":
        return _reference_values(model, consts, feeds, values)
    return compare.Source(model, consts, content=with_outputs(model, values)).run(feeds)


def _reference_values(model: Path, consts: Mapping[str, Any], feeds: Mapping[str, Any], values: list[str]) -> dict:
    from edgec import frontend
    from edgec.frontend.values import outputs_of_nodes
    from edgec.ir.evaluate import run

    graph = frontend.load(model, constants=dict(consts))
    source = outputs_of_nodes(model)
    found: dict[str, Any] = {}
    kept = {node: value for node, _, value in _kept(graph, source).values() if value in values}

    def watch(node, value):
        if node in kept:
            found[kept[node]] = value

    run(graph, {n["name"]: feeds[n["name"]] for n in graph.inputs}, watch)
    return found


def show(layers: dict[str, Any]) -> None:
    from edgec.cli.common import table

    rows = [
        (r["node"], r["op"], f"{r['max_abs']:.3g}", f"{r['relative']:.3g}", f"{r['cosine']:.6f}")
        for r in layers["layers"]
    ]
    table(("source node", "op", "max error>", "relative>", "cosine>"), rows)
    first = layers["first"]
    print(f"first op that departs: {first['node']} ({first['op']})" if first else "no intermediate departs")
