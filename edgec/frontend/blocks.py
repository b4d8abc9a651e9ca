"""Weights that are quantized in the model already, block by block: they keep their bits, and stay on disk until read."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from edgec.frontend.registry import Unsupported
from edgec.ir.data import Data, Part, Parts, full_box
from edgec.ir.node import Node, constant
from edgec.ir.types import Quantized, TensorType
from edgec.rewrites.fold import const_node

MOVES = ("reshape", "transpose", "slice", "cast", "concat")
GROUPS = (128, 64, 32)  # those that packed formats have, the largest first
ROUNDED = 2.0**-10  # relative error of a scale in f16 that is taken for granted: it is nothing beside that of 4 bits


def constant_of(node: Node) -> Node | None:
    """The constant that a node is, if it only moves constants; nothing is read."""
    if node.op == "constant":
        return node
    if node.op not in MOVES:
        return None
    inputs = [constant_of(i) for i in node.operands()]
    return None if None in inputs else const_node(node.op, *inputs, **node.attrs)


def matrix(node: Node, rows: int, columns: int) -> Data:
    """The constant's numbers in their order, as a matrix. Raises Unsupported for what is no constant of that size."""
    while node.op == "reshape" and node.inputs[0] is not None:
        node = node.inputs[0]
    found = constant_of(node)
    if found is None:
        raise Unsupported("weights that are no constants")
    if prod(found["data"].shape) != rows * columns:
        raise Unsupported(f"weights of another size than {rows} rows of {columns}")
    return const_node("reshape", found, shape=(rows, columns))["data"]


def unpack_blocks(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """[rows, bytes] u8, lowest bits first -> [rows, count] u8."""
    per = 8 // bits
    values = np.empty((*packed.shape, per), np.uint8)
    for i in range(per):
        np.bitwise_and(packed >> (bits * i), (1 << bits) - 1, out=values[..., i])
    return values.reshape(len(packed), -1)[:, :count]


def block_quantized(packed: Node, scales: Node, zeros: Node | None, n: int, k: int, block: int, bits: int) -> Node:
    """The weight [n, k] whose values are (q - zero) * scale, q in blocks of `block` along k, as a constant.

    packed: u8, each block in whole bytes, lowest bits first. scales: one for each block, floats. zeros: of `bits` bits,
    packed row by row, or floats; None: the middle of the range. The constant keeps its bits where a packed format has
    these blocks; else it holds the values. Raises Unsupported.
    """
    blocks, blob = -(-k // block), -(-block * bits // 8)
    q, scale = matrix(packed, n, blocks * blob), matrix(scales, n, blocks)
    whole = zeros is None or zeros.dtype == "u8"
    zero = None if zeros is None else matrix(zeros, n, -(-blocks * bits // 8) if whole else blocks)
    middle = 1 << (bits - 1)
    key = ("blocks", q.key, scale.key, zero and zero.key, block, bits)
    group = next((g for g in GROUPS if block % g == 0), 0)

    def integers(begin: int, end: int) -> tuple[np.ndarray, np.ndarray | None]:
        bytes_ = q.rows(begin, end)["value"].view(np.uint8)
        found = unpack_blocks(bytes_, bits, k)
        if zero is None:
            return found, None
        z = zero.rows(begin, end)["value"]
        return found, unpack_blocks(z, bits, blocks) if whole else z

    if group and whole and (bits == 4 or (bits == 8 and zero is None)) and _fits_f16(scale):

        def rows(begin: int, end: int) -> Parts:
            found, z = integers(begin, end)
            repeated = np.repeat(scale.rows(begin, end)["value"].astype(np.float16), block // group, axis=1)
            parts = {"scale": np.ascontiguousarray(repeated[:, : -(-k // group)])}
            if z is None:
                return parts | {"q": (found - np.uint8(middle)).view(np.int8)}
            repeated = np.repeat(z, block // group, axis=1)[:, : -(-k // group)]
            return parts | {"q": np.ascontiguousarray(found), "zero": np.ascontiguousarray(repeated)}

        type = TensorType("f32", (n, k), Quantized(bits, group, zero is not None))
        return constant(Data(type, key, lambda: rows(0, n), rows=rows))

    def values(begin: int, end: int) -> np.ndarray:
        found, z = integers(begin, end)
        of = np.arange(k) // block
        offset = np.float32(middle) if z is None else z.astype(np.float32)[:, of]
        return (found.astype(np.float32) - offset) * scale.rows(begin, end)["value"].astype(np.float32)[:, of]

    return constant(_by_rows(TensorType("f32", (n, k)), ("values", *key), values))


def _by_rows(type: TensorType, key, values: Callable[[int, int], np.ndarray]) -> Data:
    def part(box: Part) -> np.ndarray:
        return values(box[0].start, box[0].stop)[(slice(None), *box[1:])]

    return Data(type, key, lambda: {"value": part(full_box(type.shape))}, part)


def _fits_f16(scale: Data) -> bool:
    """Whether f16 holds the scales, but for some rounding."""
    if scale.type.dtype == "f16":
        return True
    for _, parts in scale.blocks():
        s = np.abs(parts["value"].astype(np.float32))
        with np.errstate(over="ignore"):
            if not (np.abs(s.astype(np.float16).astype(np.float32) - s) <= ROUNDED * s).all():
                return False
    return True
