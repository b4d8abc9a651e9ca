"""Random networks as a Hypothesis strategy: feed-forward, gated and attention blocks, convolutions, residuals, concats.

Unlike testing.graphs' they have hidden channels that can be removed.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from edgec.ir.dims import symbol
from edgec.ir.node import Graph, Node, constant, make
from edgec.ir.types import TensorType
from edgec.rewrites.pattern import b

ACTS = ("none", "relu", "gelu", "silu", "tanh")


class _Maker:
    """Draws constants and the blocks that are built of them."""

    def __init__(self, draw):
        self.draw, self.count = draw, 0

    def choose(self, *options):
        return self.draw(st.sampled_from(options))

    def weights(self, *shape: int) -> Node:
        self.count += 1
        rng = np.random.default_rng([self.count, *shape])
        return constant((rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32))

    def linear(self, x: Node, n: int, act: str = "none", residual: Node | None = None) -> Node:
        bias = self.weights(n) if self.choose(True, False) else None
        return b.linear(x, self.weights(n, x.shape[-1]), bias, residual, act=act)

    def norm(self, x: Node) -> Node:
        op = self.choose("layer_norm", "rms_norm")
        return make(op, x, self.weights(x.shape[-1]), axis=x.rank - 1, eps=1e-5)

    # --- tokens [1, s, d] ---

    def ffn(self, x: Node) -> Node:
        return self.linear(self.linear(x, self.choose(3, 5, 8), self.choose(*ACTS)), x.shape[-1], residual=x)

    def gated(self, x: Node) -> Node:
        return self.linear(self.linear(x, self.choose(32, 48), "swiglu"), x.shape[-1], residual=x)

    def gated_apart(self, x: Node) -> Node:
        n = self.choose(4, 6)
        return self.linear(b.mul(self.linear(x, n, "silu"), self.linear(x, n)), x.shape[-1], residual=x)

    def joined(self, x: Node) -> Node:
        parts = [self.linear(x, self.choose(2, 3, 4), self.choose(*ACTS)) for _ in range(self.choose(2, 3))]
        both = b.concat(*parts, axis=2)
        if self.choose(True, False):
            order = np.random.default_rng(self.count).permutation(both.shape[2])
            both = b.gather(both, constant(order.astype(np.int64)), axis=2)
        return self.linear(both, x.shape[-1], residual=x)

    def cut(self, x: Node) -> Node:
        n = self.choose(4, 6)
        whole = self.linear(x, 2 * n)
        step = self.choose(1, -1)
        second = {"starts": (0, 0, 2 * n - 1 if step < 0 else n), "sizes": (*x.shape[:2], n), "steps": (1, 1, step)}
        first = b.slice(whole, starts=(0, 0, 0), sizes=(*x.shape[:2], n), steps=(1, 1, 1))
        return self.linear(b.mul(b.sigmoid(first), b.slice(whole, **second)), x.shape[-1], residual=x)

    def attention(self, x: Node) -> Node:
        heads, groups, dim = self.choose(2, 3), self.choose(1, 2), 4
        if self.choose(True, False):
            q, k, v = (self.linear(x, n * dim) for n in (heads * groups, heads, heads))
            starts = (0, 0, 0)
        else:
            q = k = v = self.linear(x, (heads * groups + 2 * heads) * dim)
            starts = (0, heads * groups * dim, heads * (groups + 1) * dim)
        turned = self.choose(True, False)
        angle = b.reshape(b.cos(b.slice(x, starts=(0, 0, 0), sizes=(*x.shape[:2], 2), steps=(1, 1, 1))),
                          shape=(*x.shape[:2], 2))  # fmt: skip

        def split(y: Node, n: int, start: int, rope: bool) -> Node:
            if rope:
                return b.rope(y, angle, b.sin(angle), heads=n, dim=dim, start=start)
            y = b.slice(y, starts=(0, 0, start), sizes=(*x.shape[:2], n * dim), steps=(1, 1, 1))
            return b.reshape(y, shape=(*x.shape[:2], n, dim))

        q, k = split(q, heads * groups, starts[0], turned), split(k, heads, starts[1], turned)
        v = split(v, heads, starts[2], False)
        if groups == 1 and self.choose(True, False):  # as exporters write it
            q, k, v = (b.transpose(t, perm=(0, 2, 1, 3)) for t in (q, k, v))
            y = b.transpose(b.matmul(b.softmax(b.matmul(q, k, trans_b=True), axis=3), v), perm=(0, 2, 1, 3))
        else:
            layout = dict.fromkeys(("q_layout", "k_layout", "v_layout", "out_layout"), "bshd")
            y = b.attention(q, k, v, scale=0.5, causal=self.choose(True, False), **layout)
        return self.linear(b.reshape(y, shape=(*x.shape[:2], heads * groups * dim)), x.shape[-1], residual=x)

    # --- images [1, c, h, w] ---

    def conv(self, x: Node, n: int, size: int = 3, group: int = 1, residual: Node | None = None) -> Node:
        pad, bias = size // 2, self.weights(n) if self.choose(True, False) else None
        w = self.weights(n, x.shape[1] // group, size, size)
        where = {"strides": (1, 1), "pads": (pad,) * 4, "dilations": (1, 1), "group": group}
        return b.conv(x, w, bias, residual, act=self.choose("none", "relu", "hard_swish"), **where)

    def inverted(self, x: Node) -> Node:
        """1x1, depthwise or in groups, 1x1; sometimes squeeze and excitation."""
        n = self.choose(4, 6)
        group, times = self.choose((n, 1), (n, 2), (2, 1))
        y = self.conv(self.conv(x, n, 1), n * times, 3, group)
        if self.choose(True, False):
            y = b.mul(y, b.sigmoid(b.reduce_mean(y, axes=(2, 3), keepdims=True)))
        if self.choose(True, False):
            y = b.max_pool(y, kernel=(3, 3), strides=(1, 1), pads=(1,) * 4, dilations=(1, 1))
        return self.conv(y, x.shape[1], 1, residual=x)

    def added(self, x: Node) -> Node:
        """Channels of several layers that a sum links."""
        n = self.choose(3, 5)
        y = self.conv(x, n)
        for _ in range(self.choose(1, 2)):
            y = b.add(y, self.conv(y, n))
        return self.conv(y, x.shape[1], 1)

    def dense(self, x: Node) -> Node:
        first = self.conv(x, self.choose(2, 3))
        both = b.concat(first, self.conv(first, self.choose(2, 4)), x, axis=1)
        return self.conv(both, x.shape[1], 1)

    def transposed(self, x: Node) -> Node:
        y = self.conv(x, 4)
        w = self.weights(4, 3, 2, 2)
        y = b.conv_transpose(y, w, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1), output_padding=(0, 0))
        return self.conv(y, x.shape[1], 2)

    def flat(self, x: Node) -> Node:
        """Pixels of hidden channels as one row for a linear, and back to an image."""
        y = self.conv(x, 3)
        y = self.linear(b.reshape(y, shape=(1, 3 * y.shape[2] * y.shape[3])), x.shape[1])
        return b.add(x, b.reshape(y, shape=(1, x.shape[1], 1, 1)))


TOKENS = ("ffn", "gated", "gated_apart", "joined", "cut", "attention", "norm")
IMAGES = ("inverted", "added", "dense", "transposed", "flat")


@st.composite
def networks(draw, most: int = 4) -> Graph:
    """A graph of up to `most` blocks over x: tokens [1, s, d] or an image [1, c, 5, 4]."""
    maker = _Maker(draw)
    images = draw(st.booleans())
    shape = (1, draw(st.sampled_from((3, 4))), 5, 4) if images else (1, symbol("s"), draw(st.sampled_from((6, 8))))
    x = given = make("input", name="x", type=TensorType("f32", shape))
    for kind in draw(st.lists(st.sampled_from(IMAGES if images else TOKENS), min_size=1, max_size=most)):
        x = getattr(maker, kind)(x)
    return Graph((given,), (("y", x),), {} if images else {"s": (1, None)}, "network")
