"""Fourier transforms, as products with constant matrices."""

from __future__ import annotations

import numpy as np

from edgec.frontend.emit import STATIC, array_of, op, reshape, take, transpose, unsqueeze
from edgec.frontend.registry import Call, Unsupported, onnx_op
from edgec.ir.node import Node, constant
from edgec.ir.types import numpy_dtype

LARGEST = 8192  # points of a transform, whose matrices have points^2 elements


def _transform(real: Node, imag: Node | None, points: int, inverse: bool, onesided: bool) -> tuple[Node, Node]:
    """The transform of the last axis (cut or padded to `points` already)."""
    if points > LARGEST:
        raise Unsupported(f"a transform of {points} points; up to {LARGEST} are supported")
    outs = points // 2 + 1 if onesided and not inverse else points
    ins = real.shape[-1]
    angle = 2 * np.pi * (np.outer(np.arange(ins), np.arange(outs)) % points) / points
    dtype = numpy_dtype(real.dtype)
    scale = 1 / points if inverse else 1.0
    cos, sin = (constant((f(angle) * scale).astype(dtype)) for f in (np.cos, np.sin))
    if imag is None:
        return op.matmul(real, cos), op.mul(op.matmul(real, sin), 1.0 if inverse else -1.0)
    a, b = op.matmul(real, cos), op.matmul(imag, sin)
    d, e = op.matmul(imag, cos), op.matmul(real, sin)
    return (op.sub(a, b), op.add(d, e)) if inverse else (op.add(a, b), op.sub(d, e))


def _stack(real: Node, imag: Node) -> Node:
    return op.concat(unsqueeze(real, -1), unsqueeze(imag, -1), axis=real.rank)


def _parts(x: Node) -> tuple[Node, Node | None]:
    last = x.shape[-1]
    if last not in (1, 2):
        raise ValueError(f"the last axis of {x.type} holds real and imaginary parts, so 1 or 2 elements")
    parts = [reshape(take(x, -1, i, 1), x.shape[:-1]) for i in range(int(last))]
    return parts[0], parts[1] if last == 2 else None


def _fit(x: Node | None, points: int) -> Node | None:
    """The last axis cut or padded with zeros to `points`."""
    if x is None or x.shape[-1] == points:
        return x
    if not isinstance(x.shape[-1], int):
        raise Unsupported(f"a transform over an open size {x.shape[-1]}", "Fix the size with --dim")
    if x.shape[-1] > points:
        return take(x, -1, 0, points)
    return op.pad(x, before=(0,) * x.rank, after=(*(0,) * (x.rank - 1), points - x.shape[-1]))


@onnx_op("DFT")
def dft(c: Call):
    x = c.x
    if c.version >= 20:
        axis = c.in_rank(c.ints(2, "axis")[0] if c.has(2) else -2, x.rank)
    else:
        axis = c.in_rank(c.attr("axis", 1), x.rank)
    inverse, onesided = bool(c.attr("inverse", 0)), bool(c.attr("onesided", 0))
    real, imag = _parts(x)
    perm = [i for i in range(real.rank) if i != axis] + [axis]
    real, imag = (p if p is None else transpose(p, perm) for p in (real, imag))
    size = real.shape[-1]
    if inverse and onesided:
        return _inverse_real(c, real, imag, size, perm)
    points = c.ints(1, "dft_length")[0] if c.has(1) else size
    if not isinstance(points, int):
        raise Unsupported(f"a transform over an open size {points}", "Fix the size with --dim")
    out = _transform(_fit(real, points), _fit(imag, points), points, inverse, onesided)
    back = [perm.index(i) for i in range(len(perm))]
    return _stack(*(transpose(p, back) for p in out))


def _inverse_real(c: Call, real: Node, imag: Node | None, size, perm: list[int]) -> Node:
    """From the first half of the spectrum of a real signal to the signal."""
    if not isinstance(size, int):
        raise Unsupported(f"a transform over an open size {size}", "Fix the size with --dim")
    points = c.ints(1, "dft_length")[0] if c.has(1) else 2 * (size - 1)
    half = points // 2 + 1
    real, imag = _fit(real, half), _fit(imag, half)
    k, t = np.arange(half), np.arange(points)
    weight = np.where((k == 0) | (2 * k == points), 1.0, 2.0)[:, None] / points
    angle = 2 * np.pi * np.outer(k, t) / points
    dtype = numpy_dtype(real.dtype)
    y = op.matmul(real, constant((np.cos(angle) * weight).astype(dtype)))
    if imag is not None:
        y = op.sub(y, op.matmul(imag, constant((np.sin(angle) * weight).astype(dtype))))
    return unsqueeze(transpose(y, [perm.index(i) for i in range(len(perm))]), -1)


@onnx_op("STFT")
def stft(c: Call):
    signal, step = c[0], c.ints(1, "frame_step")[0]
    window = c.get(2)
    if c.has(3):
        length = c.ints(3, "frame_length")[0]
    elif window is not None and isinstance(window.shape[0], int):
        length = window.shape[0]
    else:
        raise ValueError("neither a frame length nor a window")
    flat = reshape(signal, signal.shape[:2]) if signal.rank == 3 and signal.shape[2] == 1 else signal
    parts = (flat, None) if flat.rank == 2 else _parts(signal)
    frames = (flat.shape[1] - length) // step + 1
    if not isinstance(frames, int):
        at = op.add(
            op.mul(reshape(op.iota(size=frames), [frames, 1]), step), reshape(op.iota(size=length), [1, length])
        )
    else:
        at = constant(np.arange(frames)[:, None] * step + np.arange(length)[None])

    def framed(x: Node | None) -> Node | None:
        if x is None:
            return None
        y = op.gather(x, at, axis=1)
        return y if window is None else op.mul(y, window)

    onesided = bool(c.attr("onesided", 1))
    return _stack(*_transform(framed(parts[0]), framed(parts[1]), length, False, onesided))


@onnx_op("MelWeightMatrix")
def mel_weight_matrix(c: Call):
    """As ONNX defines it: triangles between bins that are evenly spaced in mel."""
    values = [array_of(c[i]) for i in range(5)]
    if any(v is None for v in values):
        raise c.blame(c[next(i for i, v in enumerate(values) if v is None)], "a parameter of MelWeightMatrix")
    bins, length, rate, low, high = (v.reshape(-1)[0] for v in values)  # type: ignore[union-attr]
    spectrum = int(length) // 2 + 1
    if not (0 < bins <= LARGEST and 0 < length <= 1 << 20 and spectrum * int(bins) <= STATIC):
        raise Unsupported(f"a matrix of {spectrum} x {bins}")

    def mel(hz):
        return 2595 * np.log10(1 + hz / 700)

    edges = np.arange(int(bins) + 2) * ((mel(high) - mel(low)) / (int(bins) + 2)) + mel(low)
    at = ((int(length) + 1) * (700 * (10 ** (edges / 2595) - 1)) // rate).astype(int)
    out = np.zeros((spectrum, int(bins)))
    for i in range(int(bins)):
        first, centre, last = at[i : i + 3]
        if centre == first:
            out[centre, i] = 1
        else:
            out[first : centre + 1, i] = (np.arange(first, centre + 1) - first) / (centre - first)
        if last > centre:
            out[centre:last, i] = (last - np.arange(centre, last)) / (last - centre)
    return constant(out, c.dtype("output_datatype", "f32"))
