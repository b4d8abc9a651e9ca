"""Large tensors inside an ONNX file stay there: the model is parsed with references to their bytes in its own file.

Parsing protobuf holds a tensor two or three times; the wire format (protobuf.dev/programming-guides/encoding) is
simple enough to step over what is large.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO

WINDOW = 1 << 12
LARGE = 1 << 16  # bytes from which a tensor stays in the file
DEPTH = 64
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# (message, field) -> the message that it holds, where a tensor can be below it (onnx.proto)
BELOW = {
    ("model", 7): "graph", ("model", 25): "function", ("graph", 1): "node", ("graph", 5): "tensor",
    ("node", 5): "attribute", ("attribute", 5): "tensor", ("attribute", 6): "graph", ("attribute", 10): "tensor",
    ("attribute", 11): "graph", ("function", 7): "node",
}  # fmt: skip
DATA_TYPE, FLOAT_DATA, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 2, 4, 9, 13, 14  # of a TensorProto
FLOAT, EXTERNAL = 1, 1


class Malformed(Exception):
    """It is not protobuf, or not as onnx writes it."""


def without_tensors(path: str | os.PathLike, location: str) -> bytes:
    """The file's bytes with its large tensors as external data of the file `location`, which is this one. OSError,
    Malformed."""
    with open(path, "rb", buffering=0) as file:
        data = _File(file)
        return b"".join(_message(data, 0, file.seek(0, os.SEEK_END), "model", location, 0))


class _File:
    """A file's bytes by index and slice. Not mapped: mapped pages count as the process's memory."""

    def __init__(self, file: FileIO):
        self.file, self.window, self.at = file, b"", 0

    def __getitem__(self, i: int) -> int:
        if not 0 <= i - self.at < len(self.window):
            self.at, self.window = i, self.read(i, i + WINDOW)
            if not self.window:
                raise Malformed
        return self.window[i - self.at]

    def read(self, begin: int, end: int) -> bytes:
        self.file.seek(begin)
        return self.file.read(end - begin)


def _varint(data: _File, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise Malformed
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _fields(data: _File, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(number, wire type, where the field begins, where its content does, where it ends)."""
    while at < end:
        begin = at
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        content = at
        if kind == VARINT:
            _, at = _varint(data, at, end)
        elif kind == BYTES:
            length, content = _varint(data, at, end)
            at = content + length
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        else:
            raise Malformed
        if at > end or number == 0:
            raise Malformed
        yield number, kind, begin, content, at


def _message(data: _File, begin: int, end: int, kind: str, location: str, depth: int) -> list[bytes]:
    if kind == "tensor":
        return _tensor(data, begin, end, location)
    if depth > DEPTH:
        raise Malformed
    out, copied = [], begin
    for number, wire, start, content, stop in _fields(data, begin, end):
        below = BELOW.get((kind, number))
        if below is None or wire != BYTES or stop - content < LARGE:
            continue
        out.append(data.read(copied, start))
        out += _field(number, _message(data, content, stop, below, location, depth + 1))
        copied = stop
    return [*out, data.read(copied, end)]


def _tensor(data: _File, begin: int, end: int, location: str) -> list[bytes]:
    type_, found, out, copied = 0, [], [], begin
    for number, wire, start, content, stop in _fields(data, begin, end):
        if number == DATA_TYPE and wire == VARINT:
            type_ = data[content]
        elif number in (EXTERNAL_DATA, DATA_LOCATION):
            return [data.read(begin, end)]
        elif number in (RAW_DATA, FLOAT_DATA):
            found.append((number, wire))
            if wire == BYTES and stop - content >= LARGE:
                out.append(data.read(copied, start))
                copied = stop
                place = (content, stop - content)
    if len(found) != 1 or not out or (found[0][0] == FLOAT_DATA and type_ != FLOAT):
        return [data.read(begin, end)]
    out.append(data.read(copied, end))
    for key, value in (("location", location), ("offset", str(place[0])), ("length", str(place[1]))):
        out += _field(EXTERNAL_DATA, [*_field(1, [key.encode()]), *_field(2, [value.encode()])])
    return [*out, _encoded(DATA_LOCATION << 3 | VARINT), _encoded(EXTERNAL)]


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: list[bytes]) -> list[bytes]:
    return [_encoded(number << 3 | BYTES), _encoded(sum(map(len, content))), *content]
