"""Weights that are quantized in the model keep their bits, whichever rows are read first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.frontend.blocks import block_quantized
from edgec.frontend.registry import Unsupported
from edgec.ir import constant, make
from edgec.rewrites.examples import value


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """[rows, count] u8 -> [rows, bytes], lowest bits first."""
    per = 8 // bits
    values = np.pad(values, [(0, 0), (0, -values.shape[1] % per)])
    return sum((values[:, i::per] << (bits * i) for i in range(per)), np.zeros_like(values[:, ::per]))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 600),
    st.sampled_from([16, 32, 64, 128, 256]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from(["none", "bits", "f32"]),
    st.sampled_from([np.float16, np.float32]),
    st.booleans(),
    st.integers(0, 9),
)
def test_values_and_bits(n, k, block, bits, kind, dtype, wide, seed):
    """wide: scales that f16 does not hold."""
    rng, blocks = np.random.default_rng(seed), -(-k // block)
    q = rng.integers(0, 1 << bits, (n, blocks * block), dtype=np.uint8)
    scale = (rng.random((n, blocks)) + 0.1).astype(np.float16).astype(dtype)
    scale = scale * np.float32(1e-9) if wide and dtype is np.float32 else scale
    zero = rng.integers(0, 1 << bits, (n, blocks), dtype=np.uint8)
    zeros = {"none": None, "bits": constant(pack(zero, bits)), "f32": constant(zero.astype(np.float32) + 0.5)}[kind]
    offset = {"none": np.full((n, blocks), 1 << bits - 1), "bits": zero, "f32": zero + 0.5}[kind]
    packed = make("reshape", constant(pack(q, bits).reshape(-1)), shape=(n, blocks, block * bits // 8))
    data = block_quantized(packed, constant(scale), zeros, n, k, block, bits)["data"]
    wanted = (q.astype(np.float64) - np.repeat(offset, block, axis=1)) * np.repeat(
        scale.astype(np.float64), block, axis=1
    )
    np.testing.assert_allclose(data.array(), wanted[:, :k], rtol=1e-5)
    keeps = (
        block >= 32
        and bits >= 4
        and kind != "f32"
        and not (wide and dtype is np.float32)
        and (bits, kind) != (8, "bits")
    )
    assert (data.type.encoding is not None) == keeps
    begin, end = sorted((seed * 7 % n, n))
    for name, part in data.rows(begin, end).items():
        np.testing.assert_array_equal(part, data.parts()[name][begin:end])
    if keeps:
        middle = 0 if kind == "bits" else 1 << bits - 1
        np.testing.assert_array_equal(data.parts()["q"].astype(int) + middle, q[:, :k])


def test_the_same_bits_are_one_constant():
    """A head's weight in blocks and the table that is a reshape of it."""
    w, scale = constant(np.zeros((64, 3, 16), np.uint8)), constant(np.ones(192, np.float16))
    table = make("reshape", w, shape=(64, 48))
    assert block_quantized(w, scale, None, 64, 96, 32, 4) is block_quantized(table, scale, None, 64, 96, 32, 4)


def test_what_is_no_constant_or_too_small_is_refused():
    w, scale = constant(np.zeros((64, 48), np.uint8)), constant(np.ones(192, np.float16))
    with pytest.raises(Unsupported, match="no constants"):
        block_quantized(value("u8", "w", 64, 48), scale, None, 64, 96, 32, 4)
    with pytest.raises(Unsupported, match="another size"):
        block_quantized(w, scale, None, 64, 128, 32, 4)
