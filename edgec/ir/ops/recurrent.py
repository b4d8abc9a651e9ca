"""LSTM, GRU and RNN over a sequence, as ONNX defines them (layout 0)."""

from __future__ import annotations

import numpy as np

from edgec.ir.ops.elementwise import _sigmoid
from edgec.ir.ops.registry import REQUIRED, define, need
from edgec.ir.types import TensorType, TupleType

# name -> f(x, alpha, beta); the defaults of alpha and beta are ONNX's
FUNCTIONS = {
    "sigmoid": lambda x, a, b: _sigmoid(x),
    "tanh": lambda x, a, b: np.tanh(x),
    "relu": lambda x, a, b: np.maximum(x, 0),
    "affine": lambda x, a, b: a * x + b,
    "leakyrelu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "thresholdedrelu": lambda x, a, b: np.where(x >= a, x, 0),
    "scaledtanh": lambda x, a, b: a * np.tanh(b * x),
    "hardsigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "elu": lambda x, a, b: np.where(x >= 0, x, a * (np.exp(np.minimum(x, 0)) - 1)),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: np.logaddexp(x, 0),
}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
DIRECTIONS = ("forward", "reverse", "bidirectional")


def _infer(op):
    def infer(x, w, r, bias, lengths, h0, *rest, hidden, direction, activations, alphas, betas, clip, **_):
        need(x.rank == 3 and w.rank == 3 and r.rank == 3, f"{op}: operands of rank 3")
        need(direction in DIRECTIONS, f"{op}: no direction {direction!r}")
        dirs = 2 if direction == "bidirectional" else 1
        need(w.shape[:2] == (dirs, GATES[op] * hidden), f"{op}: weights {w} for {dirs} directions of {hidden}")
        need(r.shape == (dirs, GATES[op] * hidden, hidden), f"{op}: recurrent weights {r}")
        need(bias is None or bias.shape == (dirs, 2 * GATES[op] * hidden), f"{op}: bias {bias}")
        each = {"lstm": 3, "gru": 2, "rnn": 1}[op] * dirs
        need(len(activations) == len(alphas) == len(betas) == each, f"{op}: {each} activations")
        need(all(a in FUNCTIONS for a in activations), f"{op}: activations {activations}")
        last = TensorType(x.dtype, (dirs, x.shape[1], hidden))
        whole = TensorType(x.dtype, (x.shape[0], dirs, x.shape[1], hidden))
        return TupleType((whole, last, last) if op == "lstm" else (whole, last))

    return infer


def _run(op, x, w, r, bias, lengths, h0, c0, peephole, hidden, direction, activations, alphas, betas, clip, step):
    """Runs step(x W^T, h, c, R^T, biases, peephole, functions) -> h, c for the whole batch over each direction."""
    steps, batch, _ = x.shape
    dirs, gates = w.shape[0], GATES[op]
    lengths = np.full(batch, steps) if lengths is None else lengths
    y = np.zeros((steps, dirs, batch, hidden))
    last_h, last_c = np.zeros((dirs, batch, hidden)), np.zeros((dirs, batch, hidden))
    per = len(activations) // dirs

    def clipped(v):
        return np.clip(v, -clip, clip) if clip else v

    rows = np.arange(batch)
    for d in range(dirs):
        fs = [
            lambda v, i=i: FUNCTIONS[activations[i]](clipped(v), alphas[i], betas[i])
            for i in range(d * per, (d + 1) * per)
        ]
        b = np.zeros(2 * gates * hidden) if bias is None else bias[d].astype(np.float64)
        p = None if peephole is None else peephole[d].astype(np.float64)
        h = np.zeros((batch, hidden)) if h0 is None else h0[d].astype(np.float64)
        c = np.zeros((batch, hidden)) if c0 is None else c0[d].astype(np.float64)
        h, c = (np.where((lengths > 0)[:, None], v, 0) for v in (h, c))
        backwards = direction == "reverse" or d == 1
        wd, rd = w[d].astype(np.float64).T, r[d].astype(np.float64).T
        for i in range(steps):
            active = i < lengths
            t = np.where(active, lengths - 1 - i if backwards else i, 0)
            new_h, new_c = step(x[t, rows].astype(np.float64) @ wd, h, c, rd, b, p, fs)
            h, c = np.where(active[:, None], new_h, h), np.where(active[:, None], new_c, c)
            y[t[active], d, rows[active]] = h[active]
        last_h[d], last_c[d] = h, c
    outs = (y, last_h, last_c) if op == "lstm" else (y, last_h)
    return tuple(o.astype(x.dtype) for o in outs)


def quantize_state_u8(h):
    """h rounded to u8 over its whole range and back (ONNX DynamicQuantizeLinear), in f32."""
    h = h.astype(np.float32)
    low, high = min(h.min(initial=0), np.float32(0)), max(h.max(initial=0), np.float32(0))
    scale = (high - low) / np.float32(255) or np.float32(1)
    zero = np.rint(np.clip(-low / scale, 0, 255))
    return ((np.clip(np.rint(h / scale) + zero, 0, 255) - zero) * scale).astype(np.float64)


def _lstm(x, w, r, bias, lengths, h0, c0, peephole, *, input_forget, quantize_state, hidden, **attrs):
    def step(xw, h, c, rd, b, p, fs):
        h = quantize_state_u8(h) if quantize_state else h
        i, o, f, g = np.split(xw + h @ rd + b[: 4 * hidden] + b[4 * hidden :], 4, axis=-1)
        pi, po, pf = np.split(p, 3) if p is not None else (0, 0, 0)
        i = fs[0](i + pi * c)
        f = 1 - i if input_forget else fs[0](f + pf * c)
        c = f * c + i * fs[1](g)
        return fs[0](o + po * c) * fs[2](c), c

    return _run("lstm", x, w, r, bias, lengths, h0, c0, peephole, hidden, step=step, **attrs)


def _gru(x, w, r, bias, lengths, h0, *, linear_before_reset, hidden, **attrs):
    def step(xw, h, c, rd, b, p, fs):
        wb, rb = b[: 3 * hidden], b[3 * hidden :]
        xz, xr, xh = np.split(xw + wb, 3, axis=-1)
        rz, rr, rh = np.split(rd, 3, axis=-1)
        bz, br, bh = np.split(rb, 3)
        z, reset = fs[0](xz + h @ rz + bz), fs[0](xr + h @ rr + br)
        new = fs[1](xh + (reset * (h @ rh + bh) if linear_before_reset else (reset * h) @ rh + bh))
        return (1 - z) * new + z * h, c

    return _run("gru", x, w, r, bias, lengths, h0, None, None, hidden, step=step, **attrs)


def _rnn(x, w, r, bias, lengths, h0, *, hidden, **attrs):
    def step(xw, h, c, rd, b, p, fs):
        return fs[0](xw + h @ rd + b[:hidden] + b[hidden:]), c

    return _run("rnn", x, w, r, bias, lengths, h0, None, None, hidden, step=step, **attrs)


# x [steps, batch, in], w [dirs, gates*hidden, in], r [dirs, gates*hidden, hidden], bias [dirs, 2*gates*hidden] -> a
# tuple of y [steps, dirs, batch, hidden], y_h [dirs, batch, hidden] (and y_c). clip: 0.0 is none. Gates: iofc, zrh.
# quantize_state: each step rounds h to u8 over the batch before it multiplies r (com.microsoft DynamicQuantizeLSTM)
_COMMON = {
    "hidden": REQUIRED,
    "direction": "forward",
    "activations": REQUIRED,
    "alphas": REQUIRED,
    "betas": REQUIRED,
    "clip": 0.0,
}
define(
    "lstm",
    "x w r bias? lengths? h0? c0? peephole?",
    _infer("lstm"),
    _lstm,
    "recurrent",
    **_COMMON,
    input_forget=False,
    quantize_state=False,
)
define("gru", "x w r bias? lengths? h0?", _infer("gru"), _gru, "recurrent", **_COMMON, linear_before_reset=False)
define("rnn", "x w r bias? lengths? h0?", _infer("rnn"), _rnn, "recurrent", **_COMMON)
