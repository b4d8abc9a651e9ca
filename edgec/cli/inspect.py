"""edgec inspect: what is in an artifact or an ONNX model."""

from __future__ import annotations

from pathlib import Path

from edgec.cli.common import COMMON, Common, bytes_text, existing, fields, is_artifact, print_json, shape_text, table


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


def _artifact(path: Path) -> dict:
    from edgec.artifact.reader import ArtifactFile

    file = ArtifactFile(path, check_target=False)
    return {"kind": "artifact", "path": str(path), "bytes": file.size, **file.manifest}


def _onnx(path: Path) -> dict:
    return {}


def _show(found: dict) -> None:
    fields([("file", found["path"]), ("size", bytes_text(found["bytes"]))])
    table(("input", "dtype", "shape"), [(p["name"], p["dtype"], shape_text(p["shape"])) for p in found["inputs"]])
