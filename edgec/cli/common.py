"""What the commands share: options, parsing of NAME=VALUE, checks of paths, printing."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from edgec.errors import EdgecError


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options of every command."""

    json: bool = False
    "Print one JSON object instead of text."
    debug: bool = False
    "Show the traceback of an error."


COMMON = Common()


def console(stderr: bool = False):
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False, width=width)


def print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(_plain(value), allow_nan=False, indent=2))


def _plain(value: Any) -> Any:
    """What JSON has: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple, set)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, type(None))) else str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Prints rows under columns; a column whose name ends in ">" is right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for c in columns:
        out.add_column(c.rstrip(">"), justify="right" if c.endswith(">") else "left", overflow="fold")
    for row in rows:
        out.add_row(*(Text(str(v)) for v in row))
    console().print(out)


def fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Prints names and values, aligned; pairs whose value is None are left out."""
    pairs = [(k, v) for k, v in pairs if v is not None]
    width = max((len(k) for k, _ in pairs), default=0)
    for k, v in pairs:
        print(f"{k:<{width}}  {v}")


def bytes_text(n: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:.0f} B"


def ratio_text(before: float, after: float) -> str:
    if before >= after:
        return f"{before / max(after, 1):.1f}x smaller"
    return f"{after / max(before, 1):.1f}x larger"


def origin_text(origin: str, width: int = 70) -> str:
    """The source nodes of a step in one line: the last of them, shortened from the left, and how many more."""
    first, *more = origin.split(", ")
    first = first if len(first) <= width else "…" + first[1 - width :]
    return f"{first} +{len(more)}" if more else first


def step_table(steps: Sequence[Mapping[str, Any]], what: str = "") -> None:
    """Prints the 40 slowest steps of a run: origin, kernel, microseconds ("us")."""
    total = sum(s["us"] for s in steps) or 1.0
    slowest = sorted(steps, key=lambda s: -s["us"])
    rows = [
        (origin_text(s["origin"]), s["kernel"], f"{s['us']:.1f}", f"{100 * s['us'] / total:.1f}") for s in slowest[:40]
    ]
    table(("step", "kernel", "us>", "%>"), rows, title=f"{what}{len(steps)} steps, {total / 1e3:.3f} ms")


def shape_text(shape: Iterable[Any]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def split_pair(text: str, option: str, what: str = "NAME=VALUE") -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise EdgecError("EC1001", f"{text!r} is not {what}", option)
    return name, value


def parse_dims(texts: Sequence[str]) -> dict[str, int | tuple[int, int | None] | str]:
    """--dim NAME=VALUE fixes a size, NAME=LO..HI bounds it (LO.. has no upper bound), NAME=OTHER makes two dims one."""
    dims: dict[str, int | tuple[int, int | None] | str] = {}
    for text in texts:
        name, value = split_pair(text, "--dim", "NAME=VALUE, NAME=LO..HI or NAME=OTHER")
        if value[0].isalpha() or value[0] == "_":
            dims[name] = value
            continue
        low, dots, high = value.partition("..")
        numbers = [p for p in (low, high) if p]
        if not low or not all(p.isascii() and p.isdigit() and len(p) < 19 for p in numbers):
            raise EdgecError(
                "EC1001",
                f"{value!r} is neither a size, LO..HI nor another dim",
                f"--dim {name}",
                f"Such as {name}=4, {name}=1..64 or {name}=OTHER",
            )
        bounds = int(low), int(high) if high else None
        if bounds[1] is not None and bounds[1] < bounds[0]:
            raise EdgecError("EC1001", f"the range {value} is empty", f"--dim {name}", "Write the smaller size first")
        dims[name] = bounds if bounds[0] != bounds[1] and dots else bounds[0]
    return dims


def read_array(text: str, where: str):
    """An array of a .npy file or of a JSON literal such as 3, [1, 2] or true."""
    import numpy as np

    if text.endswith(".npy"):
        try:
            return np.load(existing(Path(text), where), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise EdgecError(
                "EC1003", f"{text} is not a whole .npy file: {_plainly(error)}", where, "Write it again with numpy.save"
            ) from None
    try:
        array = np.array(json.loads(text))
    except ValueError:
        raise EdgecError(
            "EC1001",
            f"{text!r} is neither a .npy file nor a JSON number or list",
            where,
            "Such as NAME=FILE.npy, NAME=3 or NAME=[1,2]",
        ) from None
    if array.dtype.kind not in "bif":
        raise EdgecError("EC1001", f"{text!r} is not an array of numbers", where, "Such as 3, [1, 2] or [[0.5, 1]]")
    return array


def read_arrays(path: Path, where: str) -> dict:
    """The arrays of a .npz file by name."""
    import zipfile

    import numpy as np

    try:
        with np.load(existing(path, where), allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise EdgecError("EC1003", f"{path} is not an .npz file", where, "Write it with numpy.savez")
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise EdgecError(
            "EC1003", f"{path} is not a whole .npz file: {_plainly(error)}", where, "Write it again with numpy.savez"
        ) from None


def _plainly(error: Exception) -> str:
    """numpy takes what it does not know for a pickle, and advises to load it."""
    return "it holds no plain arrays" if "pickle" in str(error) else str(error)


def existing(path: Path, where: str | None = None) -> Path:
    if not path.exists():
        raise EdgecError(
            "EC1003", "no such file" if where is None else f"no such file: {path}", where or str(path), "Check the path"
        )
    if not os.access(path, os.R_OK):
        raise EdgecError(
            "EC1003", f"{path} cannot be read: permission denied", where, "Give yourself permission to read it"
        )
    return path


def writable(path: Path, option: str) -> Path:
    """The path, if a file can be written there. Checked before any work is done."""
    folder = path.parent
    if not folder.is_dir():
        raise EdgecError("EC1003", f"the folder {folder} does not exist", f"{option} {path}", "Create it first")
    if path.is_dir():
        raise EdgecError("EC1003", "this is a folder", f"{option} {path}", "Name a file in it")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise EdgecError("EC1003", "permission denied", f"{option} {path}", "Choose a folder that you may write to")
    return path


def need(package: str, purpose: str, install: str) -> None:
    """Raises EC1002 where the package is not installed."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise EdgecError("EC1002", f"{purpose} needs {package}", hint=f"Install it: pip install {install}")


def is_artifact(path: Path) -> bool:
    """Whether the file is a zip archive, as artifacts are, rather than an ONNX model."""
    if path.is_dir():
        return False
    with open(path, "rb") as f:
        return f.read(4) == b"PK\x03\x04" or path.suffix == ".edgec"
