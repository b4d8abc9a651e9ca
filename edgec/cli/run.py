"""edgec run: one call of an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from edgec.cli.common import COMMON, Common, existing, parse_dims, print_json, read_array, read_arrays, table, writable
from edgec.cli.sampling import feeds_for
from edgec.errors import EdgecError
from edgec.options import idle


def run(
    model: Path,
    /,
    *inputs: Annotated[str, Parameter(allow_leading_hyphen=False)],
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    random: bool = False,
    seed: int | None = None,
    dim: tuple[str, ...] = (),
    threads: int | None = None,
    common: Common = COMMON,
) -> int:
    """Run an artifact once and show its outputs.

    Parameters
    ----------
    model
        The artifact (.edgec).
    inputs
        NAME=FILE.npy, NAME=JSON (a number or a list), or FILE.npz with an array for each input.
    output
        Write the outputs to this .npz file.
    random
        Make up the inputs that are not given.
    seed
        Seed of --random, by default 0.
    dim
        NAME=SIZE of a symbolic dim, for --random; repeat it for several.
    threads
        Threads to run on; by default as many as the machine allows this process.
    """
    import edgec

    existing(model)
    if output is not None:
        writable(output, "--output")
    for option, value in () if random else (("--seed", seed), ("--dim", dim or None)):
        if value is not None:
            raise idle(option, "inputs are made up with --random only", "Add --random, or leave it out")
    session = edgec.load(model, threads=threads)
    if random:
        _, feeds = feeds_for(session, inputs, parse_dims(dim), seed or 0)
    else:
        feeds = read_feeds(inputs, session)
    missing = [p for p in session.inputs if p.name not in feeds]
    if missing:
        listed = ", ".join(f"{p.name} {p.dtype}{_shape(p.shape)}" for p in missing)
        raise EdgecError("EC1601", f"no value for {listed}", str(model), "Pass NAME=FILE.npy for each, or --random")
    outputs = session(**feeds)
    if output is not None:
        _write(output, outputs)
    _show(outputs, output, common.json)
    return 0


def _shape(shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def read_feeds(inputs: Sequence[str], session) -> dict:
    """The arrays that NAME=FILE.npy, NAME=JSON and FILE.npz arguments give."""
    import numpy as np

    ports = {p.name: p for p in session.inputs}
    feeds: dict = {}
    for text in inputs:
        name, equals, value = text.partition("=")
        if not equals and text.endswith(".npz"):
            feeds |= read_arrays(Path(text), text)
        elif not equals or not value:
            raise EdgecError(
                "EC1001",
                f"{text!r} is neither NAME=VALUE nor a .npz file",
                "inputs",
                "Such as x=FILE.npy, x=[1,2] or FILE.npz",
            )
        else:
            array = read_array(value, name)
            port = ports.get(name)
            if port is not None and not value.endswith(".npy") and port.dtype != "bfloat16":
                want = np.dtype(port.dtype)
                if array.dtype.kind == "f" and want.kind != "f":
                    raise EdgecError(
                        "EC1602", f"{value} is not {want}", f"input {name!r}", "Store the array in that dtype"
                    )
                array = array.astype(want)
            feeds[name] = array
    unknown = [n for n in feeds if n not in ports]
    if unknown:
        raise EdgecError("EC1601", "the model has no such input", f"input {unknown[0]!r}", f"It has {', '.join(ports)}")
    return feeds


def _write(path: Path, outputs: dict) -> None:
    """The .npz appears under its name only when it is whole."""
    import os

    import numpy as np

    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as f:
            np.savez(f, **outputs)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _show(outputs: dict, written: Path | None, as_json: bool) -> None:
    import numpy as np

    def summary(a):
        wide = np.asarray(a, np.float64)
        wide = wide[np.isfinite(wide)]
        return {"min": float(wide.min()), "max": float(wide.max()), "mean": float(wide.mean())} if wide.size else {}

    rows = {n: {"shape": list(a.shape), "dtype": a.dtype.name, **summary(a)} for n, a in outputs.items()}
    if as_json:
        small = {n: {"values": a.tolist()} if a.size <= 1000 and written is None else {} for n, a in outputs.items()}
        print_json({"outputs": {n: r | small[n] for n, r in rows.items()}, "written": written and str(written)})
        return
    table(
        ("output", "dtype", "shape", "min>", "max>", "mean>"),
        [
            (n, r["dtype"], _shape(r["shape"]), *(f"{r[k]:.5g}" if k in r else "-" for k in ("min", "max", "mean")))
            for n, r in rows.items()
        ],
    )
    for name, a in outputs.items():
        if a.size <= 16:
            print(f"{name} = {np.array2string(a, precision=5, separator=', ')}")
    if written is not None:
        print(f"written: {written}")
