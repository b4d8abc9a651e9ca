"""LSTM, GRU and RNN."""

from __future__ import annotations

from edgec.frontend.emit import emit, op, transpose
from edgec.frontend.registry import Call, onnx_op
from edgec.ir.node import Node

# per cell: activations by default, of one direction; the defaults of alpha and beta by activation
DEFAULT = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
ALPHA = {"affine": 1.0, "leakyrelu": 0.01, "thresholdedrelu": 1.0, "scaledtanh": 1.0, "hardsigmoid": 0.2, "elu": 1.0}
BETA = {"scaledtanh": 1.0, "hardsigmoid": 0.5}
TAKES_ALPHA, TAKES_BETA = set(ALPHA), {"affine", "scaledtanh", "hardsigmoid"}


def _activations(c: Call, cell: str, directions: int) -> dict:
    names = tuple(a.lower() for a in c.attr("activations", ())) or DEFAULT[cell] * directions
    alphas, betas = list(c.attr("activation_alpha", ())), list(c.attr("activation_beta", ()))
    # as onnxruntime reads them: the lists hold values only for the functions that take one
    return {
        "activations": names,
        "alphas": tuple(alphas.pop(0) if n in TAKES_ALPHA and alphas else ALPHA.get(n, 0.0) for n in names),
        "betas": tuple(betas.pop(0) if n in TAKES_BETA and betas else BETA.get(n, 0.0) for n in names),
    }


@onnx_op("LSTM", "GRU", "RNN")
def recurrent(c: Call):
    return recurrent_of(c, c.op.lower(), c[0], c[1], c[2], [c.get(i) for i in range(3, 8)])


def recurrent_of(c: Call, cell: str, x: Node, w: Node, r: Node, rest: list, **extra):
    """The outputs of a cell over x; rest: bias, lengths, h0, c0, peephole."""
    bias, lengths, h0, c0, peephole = rest
    batch_first = c.attr("layout", 0)
    if batch_first:
        x = transpose(x, (1, 0, 2))
        h0, c0 = (s if s is None else transpose(s, (1, 0, 2)) for s in (h0, c0))
    direction = c.attr("direction", "forward")
    attrs = {"hidden": r.shape[2], "direction": direction, "clip": float(c.attr("clip", 0.0))}
    attrs |= _activations(c, cell, 2 if direction == "bidirectional" else 1)
    if cell == "lstm":
        y = emit("lstm", x, w, r, bias, lengths, h0, c0, peephole, input_forget=bool(c.attr("input_forget", 0)),
                 **attrs, **extra)  # fmt: skip
    elif cell == "gru":
        y = emit("gru", x, w, r, bias, lengths, h0, linear_before_reset=bool(c.attr("linear_before_reset", 0)), **attrs)
    else:
        y = emit("rnn", x, w, r, bias, lengths, h0, **attrs)
    parts = [op.item(y, index=i) for i in range(len(y.type.items))]
    if batch_first:
        parts = [transpose(parts[0], (2, 0, 1, 3)), *(transpose(p, (1, 0, 2)) for p in parts[1:])]
    return parts
