"""Weights as groups of small integers: the numbers, block by block, so that a weight is never in memory as a whole."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from functools import cache

import numpy as np

from edgec import kernels
from edgec.cache import Store
from edgec.ir.data import Data, Packed, Parts, key_text
from edgec.ir.types import Quantized, TensorType

PAIR = 128  # 128 * 255 fits int16
SAMPLES = 4  # places that a sample's rows are taken from
Tick = Callable[[int], None]  # weights done


def quantize_reference(w: np.ndarray, bits: int, group: int, symmetric: bool, importance: np.ndarray | None = None):
    """w [N, K] f32 -> q [N, K], scale f16 [N, groups], zero u8 [N, groups] or None; (q - zero) * scale.

    A grid search over shrunk ranges for the least squared error, weighted by importance [K]. The oracle, and the
    fallback where the extension is not built.
    """
    n, k = w.shape
    group = group or max(k, 1)
    groups = -(-k // group)
    pad = groups * group - k
    x = np.pad(w.astype(np.float32), [(0, 0), (0, pad)]).reshape(n, groups, group)
    weight = np.ones(k, np.float32) if importance is None else importance.astype(np.float32)
    weight = np.pad(weight, (0, pad)).reshape(1, groups, group)
    best = np.full((n, groups), np.inf)
    scale = np.zeros((n, groups), np.float16)
    zero = np.zeros((n, groups), np.uint8)
    low, high = x.min(-1), x.max(-1)
    extreme = np.where(np.abs(low) > np.abs(high), low, high)
    top = 2 ** (bits - 1) - 1
    if symmetric:  # below 8 bits the extreme lands on -8 or -32 by the scale's sign
        candidates = [(extreme / (top if bits == 8 else -(top + 1)) * f, None) for f in np.linspace(1, 0.7, 13)]
        if bits < 8:
            candidates.append((np.abs(extreme) / top, None))
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        candidates = []
        for f in np.linspace(1, 0.7, 7):
            s = (high - low) * f / (2**bits - 1)
            candidates += [(s, np.rint(-low * f / np.where(s > 0, s, 1)) + d) for d in (-1, 0, 1)]
    for s, z in candidates:
        s16 = s.astype(np.float16)
        z = None if z is None else np.clip(z, 0, 2**bits - 1)
        error = (weight * (_round(x, s16, z, bits)[1] - x) ** 2).sum(-1)
        better = error < best
        best = np.where(better, error, best)
        scale = np.where(better, s16, scale)
        if z is not None:
            zero = np.where(better, z, zero).astype(np.uint8)
    q, _ = _round(x, scale, None if symmetric else zero, bits)
    q = q.reshape(n, groups * group)[:, :k].astype(np.int8 if symmetric else np.uint8)
    return np.ascontiguousarray(q), scale, None if symmetric else zero


def _round(x, scale, zero, bits):
    s = scale.astype(np.float32)[..., None]
    z = 0 if zero is None else zero.astype(np.float32)[..., None]
    limits = (-127, 127) if bits == 8 else (-(1 << bits - 1), (1 << bits - 1) - 1)
    if zero is not None:
        limits = (0, 2**bits - 1)
    with np.errstate(all="ignore"):
        q = np.clip(np.rint(np.where(s != 0, x / s, 0) + z), *limits)
    return q, (q - z) * s


def encoded(
    data: Data,
    encoding: Quantized,
    importance: np.ndarray | None = None,
    threads: int = 0,
    store: Store | None = None,
    op: str = "linear",
    tick: Tick = lambda count: None,
    layouts: tuple[str, ...] = (),
) -> tuple[Data, float]:
    """The plain weight [N, K] in that encoding, and its signal-to-noise ratio in dB (NaN: numbers that are not finite).

    It is packed at once, in the format that `op` reads, and put into `store`. tick: called with the weights done. layouts:
    those of packed weights that the target prefers.
    """
    n, k = data.shape
    store, threads = store or Store(), threads or kernels.threads()
    format = kernels.format_name(encoding.bits, encoding.group, not encoding.zero, op, encoding.table, layouts)
    size = kernels.packed_nbytes(format, n, k)
    parts = (version(), key_text(data.key), str(encoding), format, _digest(importance))
    key = None if None in parts else "|".join(map(str, parts))
    found = store.find(key, size)
    if found is None:
        writer = store.put(key, size)
        noise = signal = 0.0
        try:
            for _, block in data.blocks(kernels.formats()[format].panel):
                w = floats(block["value"], threads)
                packed, more_noise, more_signal = kernels.encode(w, format, True, importance, threads)
                noise, signal = noise + more_noise, signal + more_signal
                writer.write(packed)
                tick(w.size)
            finite = math.isfinite(signal)
            if finite:  # None: JSON has no other numbers
                found = writer.done({"noise": noise if math.isfinite(noise) else None, "signal": signal})
        finally:
            writer.discard()
        if found is None:
            return data, math.nan
    else:
        tick(n * k)
    noise, signal = found.meta["noise"], found.meta["signal"]
    stored = Packed(format, found.nbytes, found.read)
    new = packed_data(TensorType("f32", (n, k), encoding), ("encoded", data.key, str(encoding), parts[-1]), stored)
    if not noise:
        return new, -math.inf if noise is None else math.inf  # None: a scale that left f16
    return new, 10 * math.log10(max(signal, 1e-300) / noise)


def in_channels(data: Data, paired: bool = False) -> tuple[Data, float]:
    """Weights [M, C, ...] f32 as int8 with a scale for each of the first axis, and their signal-to-noise ratio in dB (NaN:
    numbers that are not finite). The scale is the one of least squared error among some below the largest value's.

    paired: products with 0..255 of channels 2i and 2i + 1 shall fit int16 together, whatever the activations.
    """

    @cache
    def channels() -> tuple[np.ndarray, np.ndarray]:
        w = np.asarray(data.array(), np.float32).reshape(data.shape[0], -1)
        largest = np.abs(w).max(1)
        if paired:  # both of one sign round up at most
            largest = np.maximum(largest, _pairs(w.reshape(data.shape)) / np.float32(PAIR - 1) * np.float32(127))
        scale, q, least = np.ones_like(largest), np.zeros(w.shape, np.int8), np.full(len(w), np.inf)
        for share in np.linspace(1, 0.8, 9):
            tried = np.maximum(largest * np.float32(share / 127), np.float32(1e-30))
            rounded = np.clip(np.rint(w / tried[:, None]), -127, 127)
            error = np.square(rounded * tried[:, None] - w).sum(1)
            if paired:
                error = np.where(_pairs(rounded.reshape(data.shape)) <= PAIR, error, np.inf)
            better = error < least
            least, scale[better], q[better] = np.where(better, error, least), tried[better], rounded[better]
        return q.reshape(data.shape), scale

    def value() -> Parts:
        q, scale = channels()
        return {"value": q * scale.reshape(-1, *[1] * (q.ndim - 1))}

    w = np.asarray(data.array(), np.float64)
    if not np.isfinite(w).all():
        return data, math.nan
    new = Data(data.type, ("channels", data.key, paired), value, channels=channels)
    noise, signal = float(np.square(new.array() - w).sum()), float(np.square(w).sum())
    return new, 10 * math.log10(max(signal, 1e-300) / noise) if noise else math.inf


def _pairs(w: np.ndarray) -> np.ndarray:
    """Of each of the first axis the largest sum of what is positive, or negative, in channels 2i and 2i + 1 at one place."""
    w = np.pad(w, [(0, 0), (0, w.shape[1] % 2), *[(0, 0)] * (w.ndim - 2)]).reshape(
        w.shape[0], -1, 2, math.prod(w.shape[2:])
    )
    return np.maximum(np.maximum(w, 0).sum(2), np.maximum(-w, 0).sum(2)).reshape(len(w), -1).max(1, initial=0)


def packed_data(type: TensorType, key, packed: Packed) -> Data:
    """A handle of a quantized weight [N, K] that is stored in a packed format."""
    n, k = (d for d in type.shape if isinstance(d, int))
    panel = kernels.formats()[packed.format].panel

    def rows(begin: int, end: int) -> Parts:
        first, last = begin // panel * panel, min(n, -(-end // panel) * panel)
        at, to = (kernels.packed_nbytes(packed.format, r, k) for r in (first, last))
        q, scale, zero = kernels.unpack(packed.format, packed.read(at, to), last - first, k, kernels.threads())
        inner = slice(begin - first, end - first)
        return {"q": q[inner], "scale": scale[inner]} | ({} if zero is None else {"zero": zero[inner]})

    return Data(type, key, lambda: rows(0, n), rows=rows, packed=packed)


def floats(w: np.ndarray, threads: int) -> np.ndarray:
    """As contiguous f32."""
    if w.dtype == np.float32 and w.flags.c_contiguous:
        return w
    return kernels.to_float(w, threads) if w.dtype.itemsize <= 4 else w.astype(np.float32, order="C")


def sample(data: Data, count: int) -> Data:
    """Some `count` rows of the weight, from several places."""
    n, piece = data.shape[0], max(1, count // SAMPLES)
    if n <= count:
        return data
    starts = [i * (n - piece) // (SAMPLES - 1) for i in range(SAMPLES)]
    return Data.of(np.concatenate([floats(data.rows(s, s + piece)["value"], 1) for s in starts]))


def _digest(importance: np.ndarray | None) -> str:
    if importance is None:
        return "-"
    return hashlib.sha256(np.ascontiguousarray(importance, np.float32).tobytes()).hexdigest()


@cache
def version(*more: str) -> str:
    """Changes with the code that makes the numbers, so that nothing of another edgec is found. more: files of it."""
    files = [str(kernels._core.__file__), __file__, os.path.join(os.path.dirname(__file__), "fold.py"), *more]  # type: ignore
    return "|".join(f"{s.st_size}.{s.st_mtime_ns}" for s in map(os.stat, files))


def nbytes(shape: tuple[int, ...], encoding: Quantized | None) -> int:
    """Bytes of a weight [N, K], scales and zero points included."""
    n, k = shape
    if encoding is None:
        return 4 * n * k
    groups = -(-k // (encoding.group or max(k, 1)))
    scales = groups + 1 if encoding.table else groups * 2 + (-(-groups // 2) if encoding.zero else 0)
    return n * (-(-k * encoding.bits // 8) + scales)
