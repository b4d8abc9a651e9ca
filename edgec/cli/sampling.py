"""Inputs for the commands that make them up: sizes of dims, and what the artifact's manifest says of its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError


def input_hints(manifest: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Ranges of integer inputs, as `edgec build` found them in the graph and wrote them into the manifest."""
    hints = {}
    for port in manifest["inputs"]:
        bounds = port.get("range")
        if isinstance(bounds, list) and len(bounds) == 2 and all(isinstance(b, int) for b in bounds):
            if bounds[0] <= bounds[1]:
                hints[port["name"]] = (bounds[0], bounds[1])
    return hints


def fixed_sizes(dims: Mapping[str, Any], symbols: Mapping[str, Any]) -> dict[str, int]:
    """--dim options as sizes of symbols. Raises EC1001 for a dim that the model does not have, or a range."""
    for name, size in dims.items():
        if name not in symbols:
            known = ", ".join(symbols) or "none: all its shapes are static"
            raise EdgecError("EC1001", "the model has no such symbolic dim", f"--dim {name}", f"It has {known}")
        low, high = symbols[name]
        if not isinstance(size, int):
            raise EdgecError("EC1001", "one size is needed here, not a range", f"--dim {name}", f"Such as {name}=4")
        if size < low or (high is not None and size > high):
            raise EdgecError("EC1001", f"{size} is outside of {low}..{'' if high is None else high}", f"--dim {name}")
    return dict(dims)


def sizes_that_fit(
    session,
    fixed: Mapping[str, int],
    attempt: Callable[[dict[str, int]], Any],
    count: int,
    seed: int = 0,
) -> list[tuple[dict[str, int], Any]]:
    """Up to `count` (sizes of the session's symbols, attempt's result).

    Sizes at which attempt raises EC1603 to EC1605 are passed over. Raises the first of these errors if nothing fits.
    """
    from edgec.testing.inputs import candidate_dims

    found: list[tuple[dict[str, int], Any]] = []
    first: EdgecError | None = None
    for tries, sizes in enumerate(candidate_dims(session.symbols, session.inputs, fixed, seed)):
        if tries >= (400 if not found else 40 * count):
            break
        try:
            found.append((sizes, attempt(sizes)))
        except EdgecError as error:
            if error.code not in ("EC1603", "EC1604", "EC1605"):
                raise
            first = first or error
        if len(found) == count or not set(session.symbols) - set(fixed):
            break
    if not found and first is not None:
        raise first
    return found


def feeds_for(session, given: Sequence[str], dims: Mapping[str, Any], seed: int) -> tuple[dict[str, int], dict]:
    """(size of each symbol, inputs) for an artifact: those given, the rest made up at sizes that it takes."""
    from edgec.cli.run import read_feeds
    from edgec.testing.inputs import random_inputs

    feeds = read_feeds(given, session)
    fixed = fixed_sizes(dims, session.symbols)
    for port in session.inputs:
        if port.name in feeds and len(port.shape) == feeds[port.name].ndim:
            fixed |= {d: n for d, n in zip(port.shape, feeds[port.name].shape) if d in session.symbols}
    missing = [p for p in session.inputs if p.name not in feeds]
    hints = input_hints(session.manifest)

    def attempt(sizes: dict[str, int]) -> dict:
        made = feeds | random_inputs(missing, sizes, hints, seed)
        session(**made)
        return made

    return sizes_that_fit(session, fixed, attempt, 1, seed)[0]


def find_source(artifact: Path, manifest: Mapping[str, Any]) -> Path:
    """The ONNX model that the artifact was built from, by name and SHA-256, near the artifact or in this folder."""
    recorded = manifest.get("source")
    recorded = recorded if isinstance(recorded, dict) else {}
    names = [n for n in (recorded.get("name"),) if isinstance(n, str)] + [artifact.with_suffix(".onnx").name]
    for folder in (artifact.parent, Path()):
        for name in names:
            path = folder / Path(name).name
            if path.is_file() and recorded.get("sha256") in (None, sha256(path)):
                return path
    raise EdgecError(
        "EC1001", f"the source model ({names[0]}) is not beside the artifact", str(artifact), "Pass --source MODEL.onnx"
    )


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def onnxruntime_session(path: Path, threads: int = 0, content: bytes | None = None):
    """An onnxruntime session of the model on the CPU. Raises EC1103 where it does not load it.

    threads: 0 for its own choice. content: the model, if it is not what stands at `path`; external data is beside that.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if content is not None:
        folder = str(path.resolve().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        model = str(path) if content is None else content
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions have no common base
        reason = str(error).splitlines()[0]
        raise EdgecError(
            "EC1103",
            f"onnxruntime does not load it: {reason}",
            str(path),
            "Check the file; edgec verify --by reference does without onnxruntime",
        ) from None
