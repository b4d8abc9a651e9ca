"""Convolutions in small integers: as products of 4 or 8 bits over windows, or as they are with weights of 8 bits and, where
the range of their input is known, activations of 8 bits too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgec.ir.node import Data, Node, constant
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, weights
from edgec.rewrites.movement import reshaped
from edgec.rewrites.pattern import b, const, optional, p, var

if TYPE_CHECKING:
    from edgec.rewrites.quantize import Quantizer

PRODUCT_CHANNELS = 256  # a 1x1 convolution of fewer channels would lose more to the transposes than int4 gains
WINDOW_CHANNELS = 64  # the same for input channels of larger windows, whose pieces of rows are copied
LANE = 4  # channels that int8 multiplies at once: fewer gain nothing over fp32
LONGEST = (2**31 - 1) // (255 * 127)  # products whose sum int32 always holds


@dataclass(frozen=True)
class Rounding:
    """Of a convolution's input in 8 bits: grid [2, C], steps and zero points; mean [C] of the input."""

    grid: np.ndarray
    mean: np.ndarray


def in_floats(node: Node) -> str | None:
    """Why a convolution of constant f32 weights computes in floats whatever the range of its input is; None: it need not."""
    w = node.inputs[1]
    assert w is not None
    if w.shape[1] < LANE:
        return f"fewer than {LANE} channels go into each output: rounding them costs what int8 gains"
    if math.prod(w.shape[1:]) > LONGEST:
        return "its sums could leave 32 bits"
    if all(d == 1 for d in node.shape[2:]):
        return "it computes one position"
    return None


def grid(low: np.ndarray, high: np.ndarray, span: np.ndarray) -> np.ndarray:
    """f32 [2, C], steps and zero points of integers 0..255 that reach over `span` of each channel, at the middle of what
    lies within low <= 0 <= high where that is more."""
    step = np.maximum(span / 255, 1e-30).astype(np.float32)
    kept = np.minimum(span / np.maximum(high - low, 1e-30), 1)
    return np.stack([step, np.clip(np.rint(-low * kept / step), 0, 255)]).astype(np.float32)


def stepped(data: Data, steps: np.ndarray) -> Data:
    """Weights [M, C / group, ...] for an input in `steps` [C] of its channels."""

    def load() -> dict[str, np.ndarray]:
        m, c, *kernel = data.shape
        group = len(steps) // c
        by_channel = steps.reshape(group, 1, c, *[1] * len(kernel))
        w = np.asarray(data.array(), np.float32).reshape(group, m // group, c, *kernel)
        return {"value": (w * by_channel).reshape(data.shape)}

    return Data(data.type, ("stepped", data.key, steps.tobytes()), load)


def corrected(bias: Node | None, w: Data, new: Data, rounding: Rounding) -> Node | None:
    """The bias less what the weights' rounding adds on average (Nagel et al., https://arxiv.org/abs/1906.04721)."""
    if bias is not None and bias.op != "constant":
        return bias
    step = rounding.grid[0]
    group, c = len(step) // w.shape[1], w.shape[1]
    apart = (new.array() - stepped(w, step).array()).reshape(group, w.shape[0] // group, c, -1).sum(3, dtype=np.float64)
    added = np.einsum("gmc,gc->gm", apart, (rounding.mean / step).reshape(group, c)).reshape(-1)
    return constant((-added if bias is None else bias["data"].array() - added).astype(np.float32))


def rules(quantizer: Quantizer) -> list[Rule]:
    """The rules for convolutions; they ask the quantizer."""
    made: list[Rule] = []
    options = quantizer.options
    any_conv = p.conv(
        var("x"), const("w", lambda w: w.dtype == "f32"), optional("bias"), optional("residual"), name="node"
    )

    @rule(
        any_conv,
        promise="ulp:4",
        examples=[
            lambda: _conv(256, 256),
            lambda: _conv(256, 256, residual=True),
            lambda: _conv(64, 256, kernel=(3, 2), strides=(2, 1), pads=(1, 0, 1, 1), dilations=(1, 2)),
        ],
        misses=[lambda: _conv(16, 256), lambda: _conv(16, 256, kernel=(3, 3)), lambda: _conv(256, 16)],
        into=made,
    )
    def conv_to_linear(m: Match):
        """A convolution is a product over channels and window, once they are the last axis."""
        node = m.node
        if options.weights == "fp32" or not options.conv:
            return "it stays a convolution"
        (outs, channels), kernel, n = m.w.shape[:2], m.w.shape[2:], node.rank - 2
        if node["group"] != 1:
            return "it is in groups"
        least = PRODUCT_CHANNELS if math.prod(kernel) == 1 else WINDOW_CHANNELS
        if outs < PRODUCT_CHANNELS or channels < least:
            return "so few channels gain less than copying the windows costs"
        if options.weights == "int8" and quantizer.rounds(node):
            return "it computes in 8 bits as it is"
        from edgec.rewrites.fold import const_node

        last = (0, *range(2, node.rank), 1)
        first = (0, node.rank - 1, *range(1, node.rank - 1))
        x, pads = b.transpose(m.x, perm=last), node["pads"]
        if any(pads):
            x = b.pad(x, None, before=(0, *pads[:n], 0), after=(0, *pads[n:], 0), mode="constant")
        sizes, steps = (node.shape[0], *node.shape[2:], channels), (1, *node["strides"], 1)
        if math.prod(kernel) > 1 or any(s != 1 for s in steps):
            corners = [[k * d for k, d in zip(at, node["dilations"])] for at in np.ndindex(*kernel)]
            parts = [b.slice(x, starts=(0, *at, 0), sizes=sizes, steps=steps) for at in corners]
            x = parts[0] if len(parts) == 1 else b.concat(*parts, axis=node.rank - 1)
        w = const_node("transpose", m.w, perm=last)
        w = const_node("reshape", w, shape=(outs, channels * math.prod(kernel)))
        residual = None if m.residual is None else b.transpose(m.residual, perm=last)
        y = b.linear(x, w, m.bias, residual, act=node["act"])
        return reshaped(b.transpose(y, perm=first), node.shape)

    @rule(
        any_conv,
        promise="lossy",
        examples=[lambda: _conv(16, 256), lambda: _conv(16, 32, kernel=(3, 3), residual=True)],
        misses=[lambda: _conv(16, 16)],
        into=made,
    )
    def quantize_conv(m: Match):
        if not options.conv:
            return "it stays a convolution of floats"
        found = options.roundings[m.w["data"].key] if quantizer.rounds(m.node) else None
        new = quantizer.encode_conv(m.w["data"], found)
        if isinstance(new, str):
            return new
        if found is None:
            return b.conv(m.x, constant(new), m.bias, m.residual, **m.node.attrs)
        bias = corrected(m.bias, m.w["data"], new, found)
        return b.conv(m.x, constant(new), bias, m.residual, constant(found.grid), **m.node.attrs)

    return made


def _conv(
    c: int, n: int, kernel=(1, 1), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), residual: bool = False
) -> Node:
    x, w = f32("x", 1, c, 4, 5), weights(n, c, *kernel, scale=0.1)
    attrs = {"strides": strides, "pads": pads, "dilations": dilations}
    r = f32("r", *b.conv(x, w, **attrs).shape) if residual else None
    return b.conv(x, w, weights(n), r, **attrs)
