"""edgec build: an ONNX model to an artifact."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from edgec.cli.common import (
    COMMON,
    Common,
    existing,
    need,
    parse_dims,
    print_json,
    read_array,
    split_pair,
    writable,
)
from edgec.errors import EdgecError


def build(
    model: Path,
    /,
    *,
    target: str = "host",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    weights: Literal["int4", "int8", "fp32"] = "int4",
    group: int = 32,
    activations: Literal["int8", "fp32"] = "int8",
    dim: tuple[str, ...] = (),
    const: tuple[str, ...] = (),
    calib: Path | None = None,
    stop_after: str | None = None,
    dump_ir: Path | None = None,
    no_check: bool = False,
    common: Common = COMMON,
) -> int:
    """Compile an ONNX model to an artifact.

    Parameters
    ----------
    model
        The ONNX model, or a folder that has model.onnx.
    target
        What to compile for; `edgec targets` lists them.
    output
        The artifact to write; by default the model's name with .edgec, in this folder.
    weights
        What weights of matrix products and embeddings become.
    group
        Weights that share a scale.
    activations
        int8 quantizes activations of quantized products at run time.
    dim
        NAME=SIZE fixes a symbolic dim, NAME=LO..HI bounds it; repeat it for several. An unnamed dim is INPUT.AXIS.
    const
        NAME=VALUE or NAME=FILE.npy makes an input a constant; repeat it for several.
    calib
        Inputs to measure on (.npz).
    stop_after
        Stop after this phase; nothing is written but what --dump-ir asks for.
    dump_ir
        Write the graph after each phase into this folder.
    no_check
        Do not compare the artifact with the source afterwards.
    """
    need("tvm", "edgec build", "'edgec[build]'")
    need("onnx_ir", "edgec build", "'edgec[build]'")
    existing(model)
    out = writable(output or Path(_stem(model) + ".edgec"), "--output")
    _check_target(target)
    if group < 1:
        raise EdgecError("EC1001", f"{group} is not a positive number", "--group")
    if calib is not None:
        existing(calib, "--calib")
    options: dict[str, Any] = {
        "target": target,
        "weights": weights,
        "group": group,
        "activations": activations,
        "dims": parse_dims(dim),
        "out": None if stop_after else out,
    }
    optional = {
        "consts": {name: read_array(value, f"--const {name}") for name, value in map(_pair, const)},
        "calib": calib,
        "stop_after": stop_after,
        "dump_ir": dump_ir,
    }
    options |= {k: v for k, v in optional.items() if v}
    import edgec

    with _progress(common.json) as progress:
        report = edgec.build(model, **options, progress=progress)
        if stop_after is None and not no_check and report.errors is None:
            progress("check")
            report.errors = _check(model, out, optional["consts"], calib)
    if common.json:
        print_json(report.as_dict())
    elif stop_after is None:
        _show(report, out)
    return 0


def _pair(text: str) -> tuple[str, str]:
    return split_pair(text, "--const", "NAME=VALUE or NAME=FILE.npy")


def _stem(model: Path) -> str:
    return model.resolve().name if model.is_dir() else model.stem


def _check_target(name: str) -> None:
    """Raises EC1402, with the nearest names, for a target that does not exist."""
    from difflib import get_close_matches

    from edgec import targets

    names = targets.names()
    if name not in names:
        near = get_close_matches(name, names, 3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"One of: {', '.join(names)}"
        raise EdgecError("EC1402", f"there is no target {name!r}", "--target", hint)


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """A callback that shows each phase as it begins: a spinner on a terminal, plain lines elsewhere."""
    from edgec.cli.common import console

    terminal = console(stderr=True)
    start = time.perf_counter()
    if quiet:
        yield lambda phase: None
    elif not terminal.is_terminal:
        import sys

        yield lambda phase: print(f"[{time.perf_counter() - start:6.1f} s] {phase}", file=sys.stderr, flush=True)
    else:
        with terminal.status("starting") as status:

            def show(phase: str) -> None:
                terminal.print(f"[{time.perf_counter() - start:6.1f} s] {phase}", style="dim")
                status.update(phase)

            yield show


def _check(model: Path, artifact: Path, consts: dict, calib: Path | None) -> dict[str, Any]:
    """Errors of each output against the source; {"skipped": reason} where the two cannot be compared here."""
    import edgec
    from edgec.cli import compare, sampling

    try:
        session = edgec.load(artifact)
    except EdgecError as error:
        if error.code == "EC1506":
            return {"skipped": error.message}
        raise
    try:
        source = compare.Source(model, consts)
        given = (str(calib),) if calib is not None and calib.suffix == ".npz" else ()
        sizes, feeds = sampling.feeds_for(session, given, {}, seed=0)
        wanted = source.run(feeds)
    except EdgecError as error:
        return {"skipped": str(error)}
    got = session(**feeds)
    return {
        "against": source.by,
        "inputs": "calibration" if given else "random",
        "dims": sizes,
        "outputs": {name: compare.errors(got[name], wanted[name]) for name in got},
    }


def _show(report, out: Path) -> None:
    pass
