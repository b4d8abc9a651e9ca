"""Handles of constants: weights stay where they are on disk until a block of their rows is asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgec.ir.types import Quantized, TensorType, dtype_of, dtype_size

SMALL = 4096  # constants up to this many bytes are equal by content, larger ones by where they come from
BLOCK = 32 << 20  # bytes (of f32 values) that are read at once
Part = tuple[slice, ...]  # one slice for each axis, its ends known, its step 1
Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Packed:
    """A weight's bytes in a packed format, stored somewhere. read(begin, end): uint8."""

    format: str
    nbytes: int
    read: Callable[[int, int], np.ndarray]


class Data:
    """A handle of a constant's content; nothing is read before it is asked for.

    key: hashable; handles with equal keys hold equal content.
    """

    def __init__(
        self,
        type: TensorType,
        key,
        load: Callable[[], Parts],
        part: Callable[[Part], np.ndarray] | None = None,
        rows: Callable[[int, int], Parts] | None = None,
        packed: Packed | None = None,
        pieces: Callable[[], Iterator[np.ndarray]] | None = None,
        channels: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None,
        expands: int | None = None,
    ):
        """load: everything. part: a box of a plain constant's value; rows: what load gives, of some rows; both for
        those that can have them without reading the rest. packed: where the bytes of a packed format are stored
        already. pieces: the bytes of a packed constant, one piece after another. channels: int8 of the value's shape and f32
        of its first axis, whose product the value is. expands: bytes of pieces() where the runtime makes the value of them
        when it loads (csrc/runtime/expanded.h)."""
        self.type, self.key, self._load, self._part, self._rows = type, key, load, part, rows
        self.packed, self._pieces, self.channels, self.expands = packed, pieces, channels, expands

    def parts(self) -> Parts:
        """What is stored: {"value": array}, or "q" [N, K] int8 or uint8, "scale" f16 [N, groups], and "zero"
        uint8 [N, groups] of a quantized constant, or "bytes" uint8 of a packed one."""
        return self._load()

    def array(self) -> np.ndarray:
        """The value, dequantized."""
        parts = self.parts()
        return parts["value"] if "value" in parts else dequantize(parts, self.type)

    def part(self, box: Part) -> np.ndarray:
        """A box of a plain constant's value."""
        return self._part(box) if self._part else self.array()[box]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes, which a constant has all of."""
        return tuple(d for d in self.type.shape if isinstance(d, int))

    @property
    def streams(self) -> bool:
        """Whether a part costs less memory than the whole."""
        return self._part is not None or self._rows is not None

    def rows(self, begin: int, end: int) -> Parts:
        """parts() of the rows [begin, end) of the first axis."""
        if self._rows:
            return self._rows(begin, end)
        if self._part:
            return {"value": self._part((slice(begin, end), *full_box(self.shape[1:])))}
        return {name: array[begin:end] for name, array in self.parts().items()}

    def blocks(self, multiple: int = 1, nbytes: int = BLOCK) -> Iterator[tuple[int, Parts]]:
        """(first row, parts) of blocks of some `nbytes` of f32 values, each but the last a `multiple` of rows."""
        n, *rest = self.shape
        row = 4 * max(1, math.prod(rest))
        step = max(1, nbytes // row // multiple) * multiple
        if not self.streams:
            parts = self.parts()
            for begin in range(0, n, step):
                yield begin, {name: array[begin : begin + step] for name, array in parts.items()}
            return
        for begin in range(0, n, step):
            yield begin, self.rows(begin, min(n, begin + step))

    def pieces(self) -> Iterator[np.ndarray]:
        """The bytes of a plain or packed constant, in order: uint8, since bfloat16 has no buffer of its own."""
        if self._pieces:
            yield from self._pieces()
        elif self._part and self.type.shape:
            for _, parts in self.blocks():
                yield np.ascontiguousarray(parts["value"]).reshape(-1).view(np.uint8)
        else:
            parts = self.parts()
            value = np.ascontiguousarray(parts["bytes"] if "bytes" in parts else parts["value"])
            yield value.reshape(-1).view(np.uint8)

    def __eq__(self, other):
        return isinstance(other, Data) and self.key == other.key

    def __hash__(self):
        return hash(self.key)

    @staticmethod
    def of(array) -> Data:
        """A handle of an array in memory (it must not be changed afterwards)."""
        array = np.asarray(array)
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array).reshape(array.shape)
        type = TensorType(dtype_of(array.dtype), array.shape)
        content = array.tobytes() if array.nbytes <= SMALL else _digest(array)
        return Data(type, (str(type), content), lambda: {"value": array})

    @staticmethod
    def quantized(type: TensorType, q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> Data:
        """A handle of a quantized constant: type.encoding says how q, scale and zero are to be read."""
        assert type.encoding is not None and type.encoding.zero == (zero is not None)
        parts = {"q": q, "scale": scale} | ({} if zero is None else {"zero": zero})
        return Data(type, (str(type), _digest(*parts.values())), lambda: parts)


def _digest(*arrays: np.ndarray) -> bytes:
    digest = hashlib.sha256(usedforsecurity=False)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def full_box(shape) -> Part:
    """The box of all of a shape."""
    return tuple(slice(0, int(d)) for d in shape)


def sizes(box: Part) -> tuple[int, ...]:
    return tuple(s.stop - s.start for s in box)


def dequantize(parts: Mapping[str, np.ndarray], type: TensorType) -> np.ndarray:
    encoding = type.encoding
    assert isinstance(encoding, Quantized)
    q, scale = parts["q"].astype(np.float32), parts["scale"].astype(np.float32)
    group = encoding.group or q.shape[-1]
    scale = np.repeat(scale, group, axis=-1)[..., : q.shape[-1]]
    if encoding.zero:
        q = q - np.repeat(parts["zero"].astype(np.float32), group, axis=-1)[..., : q.shape[-1]]
    return q * scale


def key_text(key) -> str | None:
    """The key as text that is the same in every process; None for keys that mean nothing in another one."""
    if isinstance(key, Data):
        key = key.key
    if isinstance(key, tuple):
        inner = [key_text(k) for k in key]
        return None if None in inner else "(" + ",".join(i for i in inner if i is not None) + ")"
    if isinstance(key, bytes):
        return "0x" + key.hex()
    if key is None or isinstance(key, (bool, int, float, str, TensorType, Quantized)):
        return f"{type(key).__name__}:{key!r}"
    return None


def nbytes(type: TensorType) -> int:
    """Bytes of a plain value of a static shape."""
    return math.prod(d for d in type.shape if isinstance(d, int)) * dtype_size(type.dtype)
