"""Types of values: dtype, shape, encoding of constants, and layout in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from edgec.ir.dims import Dim, format_dim, parse_dim

# name -> numpy dtype; the order is the plan's dtype code. bf16 has no numpy type: see numpy_dtype.
DTYPES = ("bool", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "bf16", "f32", "f64")
_NUMPY = dict(zip(DTYPES, ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
                           "float16", None, "float32", "float64")))  # fmt: skip
_SIZES = dict(zip(DTYPES, (1, 1, 1, 2, 2, 4, 4, 8, 8, 2, 2, 4, 8)))
FLOATS = ("f16", "bf16", "f32", "f64")
INTS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")


def numpy_dtype(dtype: str) -> np.dtype:
    if dtype == "bf16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_NUMPY[dtype])


def dtype_of(array_dtype) -> str:
    """The name of a numpy dtype. KeyError for one that edgec has no name for (strings, complex)."""
    name = np.dtype(array_dtype).name
    return "bf16" if name == "bfloat16" else {v: k for k, v in _NUMPY.items()}[name]


def dtype_size(dtype: str) -> int:
    return _SIZES[dtype]


@dataclass(frozen=True)
class Quantized:
    """Integers of `bits` bits in groups of `group` along the last axis (0: the whole axis), one f16 scale a group.

    `zero`: with a zero point per group (asymmetric). The value is (q - zero) * scale. `table`: the integers are values of
    a table of 16 (edgec.kernels.TABLE), a row's scales -127..127 times one power of two.
    """

    bits: int
    group: int
    zero: bool = False
    table: bool = False

    def __str__(self):
        return f"q{self.bits}g{self.group}" + ("z" if self.zero else "") + ("t" if self.table else "")


@dataclass(frozen=True)
class TensorType:
    """A tensor's dtype and shape; of an encoded constant, those of the value it stands for."""

    dtype: str
    shape: tuple[Dim, ...]
    encoding: Quantized | None = None
    layout: str = "row"

    @property
    def rank(self) -> int:
        return len(self.shape)

    def __str__(self):
        tail = (f":{self.encoding}" if self.encoding else "") + (f"@{self.layout}" if self.layout != "row" else "")
        return f"{self.dtype}[{', '.join(map(format_dim, self.shape))}]{tail}"


@dataclass(frozen=True)
class TupleType:
    """What an op of several outputs yields; `item` takes one of them."""

    items: tuple[TensorType, ...]

    def __str__(self):
        return f"({'; '.join(map(str, self.items))})"


Type = TensorType | TupleType
_TYPE = re.compile(r"(\w+)\[(.*)\](?::q(\d+)g(\d+)(z?)(t?))?(?:@([\w.]+))?$")


def parse_type(text: str) -> Type:
    """Reads what str() of a type writes. ValueError says what it could not read."""
    text = text.strip()
    if text.startswith("("):
        return TupleType(tuple(_parse_tensor(t) for t in text[1:-1].split(";") if t.strip()))
    return _parse_tensor(text)


def _parse_tensor(text: str) -> TensorType:
    match = _TYPE.match(text.strip())
    if not match or match[1] not in DTYPES:
        raise ValueError(f"cannot read the type {text!r}")
    encoding = Quantized(int(match[3]), int(match[4]), bool(match[5]), bool(match[6])) if match[3] else None
    dims = tuple(parse_dim(d) for d in split_commas(match[2]))
    return TensorType(match[1], dims, encoding, match[7] or "row")


def split_commas(text: str) -> list[str]:
    """Parts between commas that stand outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote and text[i - 1] != "\\" else quote
        elif c in '`"':
            quote = c
        elif c in "([{<":
            depth += 1
        elif c in ")]}>":
            depth -= 1
        elif c == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]
