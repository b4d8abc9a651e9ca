"""Files of calibration data, read and checked: texts, conversations as the model's template renders them, arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgec.errors import EdgecError
from edgec.ir.node import Graph
from edgec.ir.types import numpy_dtype

LARGEST = 1 << 30  # bytes of a file of text
Feeds = dict[str, np.ndarray]


def paragraphs(content: str) -> list[str]:
    """The texts of a .txt file."""
    lines = [line.strip() for line in content.splitlines()]
    if "" not in lines[:-1]:
        return [line for line in lines if line]
    found: list[list[str]] = [[]]
    for line in lines:
        found[-1].append(line) if line else found.append([])
    return [" ".join(lines) for lines in found if lines]


def unfit(reason: str, where: str, hint: str | None = None) -> EdgecError:
    return EdgecError("EC1302", reason, where, hint)


def read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise unfit(f"it has {path.stat().st_size} bytes, {LARGEST} are allowed", str(path), "A part of it will do")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise unfit(f"it is no UTF-8: {error.reason} at byte {error.start}", str(path), "Write it as UTF-8") from None
    except OSError as error:
        raise EdgecError("EC1003", error.strerror or str(error), str(path), "Check the path") from None


def records_of(content: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty."""
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise unfit(f"line {number} is no JSON: {error}", where, "Write one JSON object a line") from None
        if not isinstance(record, dict) or not record:
            raise unfit(f"line {number} is no JSON object", where, 'Write {"text": ...} on each line')
        yield number, record


def conversations(records: Iterable[tuple[int, dict]], files: Mapping[str, bytes], where: str) -> Iterator[str]:
    template = None
    for number, record in records:
        if "text" in record:
            if not isinstance(record["text"], str):
                raise unfit(f"line {number}: text is no string", where, 'Write {"text": "..."}')
            yield record["text"]
            continue
        from edgec.runtime.generate import template as t

        try:
            messages = t.check_messages(record["messages"])
        except EdgecError as error:
            raise unfit(f"line {number}: {error.where}: {error.message}", where, error.hint) from None
        if template is None:
            configs = [json.loads(files.get(n, b"{}")) for n in ("tokenizer_config.json", "special_tokens_map.json")]
            source = t.find_template(files, configs[0])
            if source is None:
                raise EdgecError("EC1702", "the model has no chat template", where, 'Use {"text": ...} instead')
            template = t.ChatTemplate(source, t.special_tokens(*configs))
        yield template.render(messages, add_generation_prompt=False)


def columns_of(records: list[tuple[int, dict]], graph: Graph, where: str) -> Feeds:
    """An array for each name, its first axis the lines."""
    types = {n["name"]: n.dtype for n in graph.inputs}
    if not records[0][1].keys() & types.keys():
        reason = f"line {records[0][0]} has {names_of(records[0][1])}: no text, no messages, no input of the model"
        raise unfit(reason, where, f'Write {{"text": "..."}}, or the inputs {names_of(types)}')
    names = set(records[0][1])
    columns: dict[str, list] = {name: [] for name in records[0][1]}
    for number, record in records:
        if set(record) != names:
            raise unfit(
                f"line {number} has {names_of(record)}, the first one {names_of(names)}",
                where,
                "Give each line the same names",
            )
        for name, value in record.items():
            try:
                array = np.asarray(value)
            except ValueError:
                raise unfit(
                    f"line {number}: {name!r} is no array: its rows differ in length", where, "Give all rows one length"
                ) from None
            if array.dtype.kind not in "biuf":
                raise unfit(
                    f"line {number}: {name!r} holds something else than numbers", where, "Write lists of numbers"
                )
            if columns[name] and array.shape != columns[name][0].shape:
                expected = list(columns[name][0].shape)
                raise unfit(
                    f"line {number}: {name!r} is {list(array.shape)}, the first one {expected}",
                    where,
                    "Give all samples one shape",
                )
            columns[name].append(array)
    arrays = {name: np.stack(rows) for name, rows in columns.items()}
    for name, array in arrays.items():  # JSON has no types of its own
        want = np.dtype(numpy_dtype(types[name])) if name in types else array.dtype
        if array.dtype.kind in "iu" or want.kind not in "biu":
            arrays[name] = array.astype(want)
    return arrays


def read_npz(path: Path) -> Feeds:
    try:
        _starts(path, b"PK", "is a zip")
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise EdgecError("EC1003", error.strerror or str(error), str(path), "Check the path") from None
    except Exception as error:  # zipfile, zlib and numpy have exceptions of their own
        reason = f"it is no .npz file of plain arrays: {error}"
        raise EdgecError("EC1003", reason, str(path), "Write it with numpy.savez") from None


def _starts(path: Path, magic: bytes, what: str) -> None:
    """numpy takes whatever else it finds for a pickle, and says so."""
    with open(path, "rb") as f:
        if f.read(len(magic)) != magic:
            raise ValueError(f"such a file {what}")


def read_folder(path: Path) -> Feeds:
    found = {}
    for file in sorted(path.glob("*.npy")):
        try:
            _starts(file, b"\x93NUMPY", "begins with NUMPY")
            found[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = f"it is no .npy file of a plain array: {error}"
            raise EdgecError("EC1003", reason, str(file), "Write it with numpy.save") from None
    if not found:
        raise unfit("the folder has no .npy files", str(path), "Name them after the model's inputs")
    return found


def names_of(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
