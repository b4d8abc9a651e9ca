"""The kernels and packed formats from Python: anyone can test or time one.

A weight is [N, K]: `linear` computes act(x @ W.T + bias) + residual. `docs/kernels.md` describes formats and kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from edgec import _core
from edgec.errors import EdgecError

_k = _core.kernels

GATED = ("swiglu", "geglu", "geglu_tanh")
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", *GATED)


TABLE = tuple(_k.table())
"""The 16 integers of a format with `table`: by least squared error over weights, in reach of int16 sums."""


@dataclass(frozen=True)
class Kernel:
    """One entry of the kernel table. `max_m` 0: any M. `available`: this CPU has the features."""

    name: str
    op: str
    family: str
    features: tuple[str, ...]
    mr: int
    nr: int
    max_m: int
    priority: int
    available: bool


@dataclass(frozen=True)
class Format:
    """A packed format. `group` 0: one scale for a whole row. `op`: what takes it, "linear" or "gather". `panel`: rows of
    W that lie together, so that what is packed in pieces must be cut at multiples of it."""

    name: str
    family: str
    bits: int
    group: int
    symmetric: bool
    table: bool
    bits_per_weight: float
    panel: int

    @property
    def layout(self) -> str:
        """The order of the values: "n16k4", "n32k4", "n16" or "row"."""
        return self.family.lstrip("sutf").lstrip("0123456789")

    @property
    def op(self) -> str:
        return "gather" if self.family.endswith("row") else "linear"

    def targets(self) -> tuple[str, ...]:
        """Instruction sets that have a kernel of their own for it."""
        return tuple(
            sorted({k.name.rsplit("_", 1)[1] for k in list() if k.family == self.family or k.op == self.op == "gather"})
        )


@cache
def list() -> tuple[Kernel, ...]:
    """The whole kernel table, kernels of other CPUs' features included."""
    return tuple(Kernel(**{**entry, "features": tuple(entry["features"])}) for entry in _k.list())


@cache
def formats() -> dict[str, Format]:
    """Every packed format by name."""
    return {entry["name"]: Format(**entry) for entry in _k.formats()}


@cache
def threads() -> int:
    """As many as affinity, cgroup quota and big cores allow."""
    return _core.default_threads()


def _call(where: str, function, *args):
    try:
        return function(*args)
    except (ValueError, IndexError, TypeError) as e:
        reason = str(e) if not isinstance(e, TypeError) else "an argument has the wrong dtype or is not an array"
        raise EdgecError("EC1605", reason, where=f"kernels.{where}") from e


def format_name(
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    op: str = "linear",
    table: bool = False,
    layouts: tuple[str, ...] = (),
) -> str:
    """Name of the packed format for an encoding, e.g. "s4g32n16k4". bits 32: fp32 panels. op: what reads it; gather
    reads those of linear as well, but rows of their own are the better format where only it does. table: as `TABLE` says.
    layouts: those that a target prefers, the best first; the others stand behind them, in the table's order.

    Raises EC1001 if there is none.
    """
    rank = {layout: i for i, layout in enumerate(layouts)}
    preferred = sorted(formats().values(), key=lambda f: rank.get(f.layout, len(rank)))
    for wanted in (op, "linear"):
        for f in preferred:
            same = (f.group, f.symmetric, f.table) == (group, symmetric, table)
            if (f.bits, f.op) == (bits, wanted) and (bits == 32 or same):
                return f.name
    raise EdgecError("EC1001", f"no packed format has {bits} bits, group {group}, symmetric {symmetric}", where=op)


def quantize(
    w: np.ndarray,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = True,
    search: bool = True,
    importance: np.ndarray | None = None,
    threads: int = 1,
    kernel: str | None = None,
    table: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Quantizes w [N, K] float32 per group along K: q [N, K], scale float16 and zero uint8 (or None) [N, groups].

    Value: (q - zero) * scale. q is int8 when symmetric (-8..7, -32..31 for 6 bits, -127..127 for 8; a scale of fewer
    than 8 bits may be negative), uint8 otherwise. group 0: one group for the row. search: minimise the squared error,
    weighted by importance [K], over scale and zero point; otherwise the scale is max|w| / 7 (or 127), asymmetric
    (max - min) / 15. table: q has values of `TABLE`, and the scales of a row are -127..127 times one power of two (4
    bits, group 32, symmetric).
    """
    return _call("quantize", _k.quantize, w, bits, group, symmetric, search, importance, threads, kernel or "", table)


def dequantize(q: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, group: int = 32) -> np.ndarray:
    """float32 [N, K] of what `quantize` returned."""
    k = q.shape[1]
    index = np.arange(k) // (group or max(k, 1))
    value = q.astype(np.float32)
    if zero is not None:
        value -= zero[:, index]
    return value * scale.astype(np.float32)[:, index]


def encode(
    w: np.ndarray, format: str, search: bool = True, importance: np.ndarray | None = None, threads: int = 1
) -> tuple[np.ndarray, float, float]:
    """`quantize` and `pack` of w [N, K] float32 (contiguous) in one pass: (bytes, sum of squared errors, sum of
    squares). The bytes of blocks of rows follow each other: those of all but the last must be multiples of its panel."""
    return _call("encode", _k.encode, w, format, search, importance, threads)


def units(scale: np.ndarray) -> np.ndarray:
    """Of a table's scales [N, G]: the power of two that those of each row are multiples of, 127 times at most. f32 [N]."""
    most = np.abs(scale.astype(np.float32)).max(1, initial=0)
    return np.exp2(np.ceil(np.log2(np.maximum(most, 1e-30) / 127))).astype(np.float32)


def to_float(x: np.ndarray, threads: int = 1) -> np.ndarray:
    """x [R, C] of float16, bfloat16 or float32 with any strides (a transposed one too) as contiguous float32."""
    bf16 = x.dtype.name == "bfloat16"
    return _call("to_float", _k.to_float, x.view(np.uint16) if bf16 else x, bf16, threads)


def hadamard(x: np.ndarray, block: int, threads: int = 1, kernel: str | None = None) -> np.ndarray:
    """x float32 [..., N] times an orthonormal Hadamard matrix, block by block of a power of two along the last axis; a
    tail goes in the largest powers of two that fit. Its own inverse. Every kernel gives the same floats."""
    return _call("hadamard", _k.hadamard, x, block, threads, kernel or "")


def packed_nbytes(format: str, n: int, k: int) -> int:
    """Bytes of a packed [n, k] weight."""
    return _call("packed_nbytes", _k.packed_nbytes, format, n, k)


def pack(
    format: str, q: np.ndarray, scale: np.ndarray | None = None, zero: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """The bytes of `format`. q [N, K]: int8, uint8 (asymmetric) or float32; scale f16, zero uint8: [N, groups]."""
    return _call("pack", _k.pack, format, np.ascontiguousarray(q), scale, zero, threads)


def unpack(format: str, packed: np.ndarray, n: int, k: int, threads: int = 1):
    """Inverse of `pack`: (q, scale or None, zero or None)."""
    return _call("unpack", _k.unpack, format, packed, n, k, threads)


def gemm(
    x: np.ndarray,
    packed: np.ndarray,
    format: str,
    n: int,
    k: int,
    bias: np.ndarray | None = None,
    act: str = "none",
    residual: np.ndarray | None = None,
    threads: int = 1,
    kernel: str | None = None,
    out: np.ndarray | None = None,
    norm: str = "none",
    eps: float = 0.0,
    norm_gain: np.ndarray | None = None,
    norm_bias: np.ndarray | None = None,
    rotate: bool = False,
) -> np.ndarray:
    """act(norm(x) @ W.T + bias) + residual for x float32 [M, K] with contiguous rows; no copies. kernel: force one by name.

    norm "rms" or "layer": of each row, with eps, norm_gain [K] and norm_bias [K]. act "swiglu", "geglu", "geglu_tanh": W's
    rows are in `interleave`'s order, N is a multiple of 16 and the result is [M, N / 2].
    rotate: norm(x) passes `hadamard` in blocks of 32 (not in formats of floats).
    A row with NaN or infinity gives NaN outputs in the quantized formats.
    """
    if out is None:
        out = np.empty((x.shape[0], n // 2 if act in GATED else n), np.float32)
    normed = (norm, eps, norm_gain, norm_bias, rotate)
    _call("gemm", _k.gemm, x, packed, format, n, k, out, bias, act, residual, *normed, threads, kernel or "")
    return out


def interleave(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """[N, ...] of gates and what they multiply to [2 N, ...] as gated products take it: 8 gates, their 8 rows, and so on.

    N must be a multiple of 8.
    """
    parts = [a.reshape(a.shape[0] // 8, 1, 8, *a.shape[1:]) for a in (gate, up)]
    return np.concatenate(parts, axis=1).reshape(2 * gate.shape[0], *gate.shape[1:])


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    alpha: float = 1.0,
    threads: int = 1,
    out: np.ndarray | None = None,
    kernel: str | None = None,
    add: bool = False,
) -> np.ndarray:
    """alpha * a @ b of float32 [.., M, K] and [.., K, N], any strides, batch axes broadcast. add: to what `out` holds."""
    rank = max(a.ndim, b.ndim)
    a, b = a.reshape((1,) * (rank - a.ndim) + a.shape), b.reshape((1,) * (rank - b.ndim) + b.shape)
    if out is None:
        out = np.empty((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float32)
    _call("matmul", _k.matmul, a, b, out, alpha, add, threads, kernel or "")
    return out


def gptq(
    rest: np.ndarray,
    upper: np.ndarray,
    groups: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None,
    bits: int,
    table: bool = False,
    threads: int = 1,
    kernel: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of W, as rest [R, N], rounded one after the other: (integers less zero points, errors), both f32 [R, N].

    Each value's error over upper's diagonal, times the rest of its row of upper [R, R], is taken from the columns behind
    it. scale, zero [G, N] f32, groups [R] int64: which of G a column is of. bits, table: as `quantize` has them.
    """
    return _call("gptq", _k.gptq, rest, upper, groups, scale, zero, bits, table, threads, kernel or "")


def sweep(
    h: np.ndarray,
    slope: np.ndarray,
    q: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None,
    unit: np.ndarray | None,
    gain: np.ndarray,
    bits: int,
    table: bool = False,
    threads: int = 1,
    kernel: str | None = None,
    refit: bool = True,
) -> np.ndarray:
    """One group's scale by least squares (refit), then each of its integers, the best for all others as they are.

    h [R, R] f32 of the group's columns, slope [R, N] = H (W - Q) there. q [R, N] f32 (integers less zero points), scale
    [N] f32 and gain [N] f64, to which the decrease of tr((W - Q) H (W - Q)^T) is added, change in place. zero [N] f32;
    unit [N] f32: scales are -127..127 times it, f16 otherwise. Returns what the values q * scale change by: [R, N].
    """
    options = (refit, bits, table, threads, kernel or "")
    return _call("sweep", _k.sweep, h, slope, q, scale, zero, unit, gain, *options)


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    scale: float | None = None,
    causal: bool = False,
    causal_offset: int = 0,
    softcap: float = 0.0,
    threads: int = 1,
    out: np.ndarray | None = None,
    kernel: str | None = None,
) -> np.ndarray:
    """softmax(scale * q k^T + mask) v of f32 q [B, H, Sq, D], k [B, Hkv, Skv, D], v [B, Hkv, Skv, Dv]; Hkv divides H.

    mask: additive, four axes that broadcast. causal: row i sees j <= i + causal_offset. A row that sees nothing is NaN.
    scale: default 1 / sqrt(D). out may have any strides with a contiguous last axis.
    """
    if out is None:
        out = np.empty((*q.shape[:3], v.shape[3]), np.float32)
    scale = q.shape[3] ** -0.5 if scale is None else scale
    _call("attention", _k.attention, q, k, v, mask, out, scale, softcap, causal, causal_offset, threads, kernel or "")
    return out


def gather(
    format: str,
    packed: np.ndarray,
    rows: int,
    dim: int,
    indices: np.ndarray,
    threads: int = 1,
    kernel: str | None = None,
) -> np.ndarray:
    """Dequantized rows of a packed weight [rows, dim] of any format: float32 [*indices.shape, dim].

    Raises EC1605 for an index out of [-rows, rows).
    """
    indices = np.ascontiguousarray(indices, np.int64)
    out = np.empty((*indices.shape, dim), np.float32)
    _call("gather", _k.gather, format, packed, rows, dim, indices, out, threads, kernel or "")
    return out


def activate(act: str, x: np.ndarray, kernel: str | None = None) -> np.ndarray:
    """act(x) elementwise, as the epilogues compute it."""
    return _call("activate", _k.activate, act, x, kernel or "")
