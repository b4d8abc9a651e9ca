"""Hypothesis strategies for kernels: shapes with every tail, quantized tensors, arrays that abut guard pages."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from edgec import kernels as ek

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(array: np.ndarray, at_end: bool = True) -> np.ndarray:
    """A copy in pages of its own with an inaccessible page before and after: it ends (or starts) right at one.

    An access out of bounds on that side is a fault, not a wrong number. Most sizes misalign it.
    """
    page = mmap.PAGESIZE
    size = max(array.nbytes, 1)
    body = -(-size // page) * page
    area = mmap.mmap(-1, body + 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for guard in (address, address + page + body):
        if _libc.mprotect(ctypes.c_void_p(guard), page, mmap.PROT_NONE if hasattr(mmap, "PROT_NONE") else 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (body - size if at_end else 0)
    out = np.frombuffer(area, np.uint8, array.nbytes, offset).view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def sizes(limit: int, unit: int = 16) -> st.SearchStrategy[int]:
    """1 to `limit`, with a bias to the multiples of `unit` and what lies beside them."""
    near = st.builds(lambda i, d: min(max(i * unit + d, 1), limit), st.integers(0, limit // unit), st.integers(-1, 1))
    return st.one_of(st.integers(1, min(limit, unit + 1)), near, st.integers(1, limit))


@dataclass(frozen=True)
class QuantizedWeight:
    """A [N, K] weight as a packed format takes it: value (q - zero) * scale; f32 formats have q alone."""

    format: ek.Format
    q: np.ndarray
    scale: np.ndarray | None
    zero: np.ndarray | None

    @property
    def group(self) -> int:
        return self.format.group or max(self.q.shape[1], 1)

    def integers(self) -> np.ndarray:
        """q - zero as float64 [N, K]."""
        w = self.q.astype(np.float64)
        return w if self.zero is None else w - self.zero[:, np.arange(w.shape[1]) // self.group]

    def values(self) -> np.ndarray:
        """float64 [N, K]."""
        if self.scale is None:
            return self.integers()
        return self.integers() * self.scale.astype(np.float64)[:, np.arange(self.q.shape[1]) // self.group]

    def pack(self, threads: int = 1) -> np.ndarray:
        return ek.pack(self.format.name, self.q, self.scale, self.zero, threads=threads)


def formats(op: str = "linear") -> st.SearchStrategy[ek.Format]:
    return st.sampled_from([f for f in ek.formats().values() if f.op == op])


@st.composite
def quantized_weights(
    draw: st.DrawFn,
    formats: st.SearchStrategy[ek.Format],
    n: st.SearchStrategy[int] | None = None,
    k: st.SearchStrategy[int] | None = None,
    unit_scale: bool = False,
) -> QuantizedWeight:
    """Weights with the integers at an extreme, zero or random; scales 1, subnormal in f16, or random."""
    format = draw(formats)
    shape = (draw(n if n is not None else sizes(70)), draw(k if k is not None else sizes(300, 32)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if format.bits == 32:
        return QuantizedWeight(format, rng.standard_normal(shape).astype(np.float32), None, None)
    low, high = (0, 15) if not format.symmetric else (-(1 << format.bits - 1), (1 << format.bits - 1) - 1)
    if format.table:
        low, high = min(ek.TABLE), max(ek.TABLE)
    fill = draw(st.sampled_from(("random", "low", "high", "zero")))
    fixed = {"low": low, "high": high, "zero": 0}
    dtype = np.int8 if format.symmetric else np.uint8
    q = (
        rng.integers(low, high, shape, endpoint=True).astype(dtype)
        if fill == "random"
        else np.full(shape, fixed[fill], dtype)
    )
    if format.table and fill == "random":
        q = rng.choice(np.int8(ek.TABLE), shape)
    groups = (shape[0], -(-shape[1] // (format.group or shape[1])))
    kind = "one" if unit_scale else draw(st.sampled_from(("random", "one", "subnormal", "large")))
    scale = {
        "one": np.ones(groups),
        "random": rng.standard_normal(groups),
        "subnormal": rng.integers(0, 1023, groups) * 2.0**-24,
        "large": rng.uniform(-60000, 60000, groups),
    }[kind].astype(np.float16)
    if format.table and kind != "one":
        exponent = {"random": rng.integers(-16, 4, (shape[0], 1)), "subnormal": -24, "large": 9}[kind]
        scale = (rng.integers(-127, 127, groups, endpoint=True) * np.exp2(exponent)).astype(np.float16)
    zero = None if format.symmetric else rng.integers(0, 15, groups, endpoint=True).astype(np.uint8)
    return QuantizedWeight(format, q, scale, zero)


@st.composite
def activations(draw: st.DrawFn, m: int, k: int) -> np.ndarray:
    """float32 [m, k]: normal, zero, tiny, one huge outlier, or a wide range of magnitudes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((m, k)).astype(np.float32)
    kind = draw(st.sampled_from(("normal", "zero", "tiny", "outlier", "wide")))
    if kind == "zero":
        x[...] = 0
    elif kind == "tiny":
        x *= np.float32(1e-40)
    elif kind == "outlier":
        x[rng.integers(m), rng.integers(k)] = 1e30
    elif kind == "wide":
        x *= np.exp2(rng.integers(-60, 30, (m, k))).astype(np.float32)
    return x
