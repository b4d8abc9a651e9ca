"""edgec inspect: what is in an artifact or an ONNX model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgec.cli.common import (
    COMMON,
    Common,
    bytes_text,
    existing,
    fields,
    is_artifact,
    origin_text,
    print_json,
    shape_text,
    table,
)
from edgec.errors import EdgecError


def inspect(model: Path, /, *, common: Common = COMMON) -> int:
    """Show inputs, outputs, ops, bits and bytes per layer, the kernels chosen, memory and hashes.

    Parameters
    ----------
    model
        An artifact (.edgec), or an ONNX model.
    """
    existing(model)
    found = _artifact(model) if is_artifact(model) else _onnx(model)
    if common.json:
        print_json(found)
    else:
        _show(found)
    return 0


def _artifact(path: Path) -> dict[str, Any]:
    from edgec.artifact.reader import ArtifactFile
    from edgec.cli import estimates

    file = ArtifactFile(path, check_target=False)
    found = {"kind": "artifact", "path": str(path), "bytes": file.size, **file.manifest}
    found["estimates"] = [e.to_dict() for e in estimates.of_manifest(file.manifest)]
    try:
        import edgec

        session = edgec.load(path, threads=1)
    except EdgecError as error:
        if error.code != "EC1506":
            raise
        return found | {"steps": None, "note": error.message}
    steps = [{"origin": o, "kind": k, "kernel": n} for o, k, n in session.steps]
    sample = file.manifest.get("report", {}).get("sample") or {}
    memory = None
    if set(sample) == set(session.symbols):
        at = session.memory(sample)
        memory = [at["arena_bytes"], at["temp_bytes"]]
    return found | {"steps": steps, "memory": memory}


def _onnx(path: Path) -> dict[str, Any]:
    from edgec import frontend
    from edgec.cli.build import model_file
    from edgec.cli.common import need

    need("onnx_ir", "edgec inspect of an ONNX model", "'edgec[build]'")
    path = model_file(path)
    graph = frontend.load(path)
    nodes = graph.nodes()
    ops: dict[str, int] = {}
    for node in nodes:
        ops[node.op] = ops.get(node.op, 0) + 1
    layers = [_layer(graph, node) for node in nodes if any(i.op == "constant" and i.rank > 1 for i in node.operands())]
    return {
        "kind": "onnx",
        "path": str(path),
        "bytes": sum(f.stat().st_size for f in frontend.source_files(path)),
        "inputs": [_port(n["name"], n) for n in graph.inputs],
        "outputs": [_port(name, n) for name, n in graph.outputs],
        "symbols": {k: list(v) for k, v in graph.symbols.items()},
        "ops": dict(sorted(ops.items(), key=lambda item: -item[1])),
        "layers": layers,
    }


def _port(name: str, node) -> dict[str, Any]:
    return {"name": name, "dtype": node.dtype, "shape": [str(d) for d in node.shape]}


def _layer(graph, node) -> dict[str, Any]:
    """A node that has weights: what they are and what they take."""
    from edgec.ir.dims import format_dim
    from edgec.ir.types import dtype_size

    weights = [i for i in node.operands() if i.op == "constant" and i.rank > 1]
    nbytes = sum(math.prod(w.shape) * dtype_size(w.dtype) for w in weights)
    return {
        "origin": graph.origin(node),
        "op": node.op,
        "weights": [list(w.shape) for w in weights],
        "bits": 8 * dtype_size(weights[0].dtype),
        "bytes": nbytes,
        "output": [format_dim(d) for d in getattr(node.type, "shape", ())],
    }


def _show(found: dict[str, Any]) -> None:
    report = found.get("report") or {}
    target, options = found.get("target") or {}, found.get("options") or {}
    memory = found.get("memory")
    fields(
        (
            ("file", found["path"]),
            ("size", bytes_text(found["bytes"])),
            ("made by", f"edgec {found['edgec']}" if "edgec" in found else None),
            ("target", f"{target.get('name')} ({target.get('triple')}, {target.get('cpu')})" if target else None),
            ("needs", ", ".join(target.get("features", [])) or None),
            ("matrix unit", unit if (unit := target.get("matrix_unit")) not in (None, "none") else None),
            ("options", ", ".join(f"{k}={v}" for k, v in options.items() if v not in ({}, None)) or None),
            ("dims", ", ".join(f"{k} {_bounds(v)}" for k, v in (found.get("symbols") or {}).items()) or None),
            ("memory", memory and "{} peak, {} without reuse".format(*map(bytes_text, memory))),
            ("tuned", f"{report['tuned_share']:.1%} of {report['macs']} MACs" if "tuned_share" in report else None),
            *(("estimated", e["text"]) for e in found.get("estimates", ())),
            ("note", found.get("note")),
        )
    )
    for kind in ("input", "output"):
        rows = [(p["name"], p["dtype"], shape_text(p["shape"])) for p in found[kind + "s"]]
        table((kind, "dtype", "shape"), rows)
    if "ops" in found:
        table(("op", "count>"), found["ops"].items())
    if found.get("layers"):
        rows = [
            (
                origin_text(r["origin"]),
                r["op"],
                " ".join(map(shape_text, r["weights"])),
                shape_text(r["output"]),
                r["bits"],
                r["bytes"],
            )
            for r in found["layers"]
        ]
        table(("layer", "op", "weights", "output", "bits>", "bytes>"), rows)
    if report.get("weights"):
        rows = [
            (origin_text(w["name"]), shape_text(w["shape"]), w["bits"], w.get("group") or "-", bytes_text(w["bytes"]))
            for w in report["weights"]
        ]
        table(("weight", "shape", "bits>", "group>", "bytes>"), rows)
    if found.get("steps"):
        table(("step", "kind", "kernel"), [(origin_text(s["origin"]), s["kind"], s["kernel"]) for s in found["steps"]])
    if found.get("estimates"):
        from edgec.cli import estimates

        estimates.show(found["estimates"])
    if found.get("members"):
        table(("member", "bytes>", "sha256"), [(n, m["size"], m["sha256"]) for n, m in found["members"].items()])


def _bounds(bounds: list) -> str:
    low, high = bounds
    return f"{low}.." if high is None else str(low) if low == high else f"{low}..{high}"
