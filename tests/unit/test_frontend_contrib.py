"""com.microsoft ops beside onnxruntime's."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the build extra is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from edgec.frontend import load  # noqa: E402
from edgec.ir.evaluate import run  # noqa: E402
from edgec.ir.verify import verify  # noqa: E402

RNG = np.random.default_rng(1)


def f(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def u8(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def i8(*shape):
    return RNG.integers(-60, 60, shape).astype(np.int8)


S, Z8, ZI = np.array(0.05, np.float32), np.array(120, np.uint8), np.array(3, np.int8)
ANGLES = np.arange(32)[:, None] * 0.1 + np.arange(8)
CACHE = (np.cos(ANGLES).astype("f"), np.sin(ANGLES).astype("f"))
QKV = [f(2, 3, 16) for _ in range(3)]
KEEP = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
GROUPS = {"num_heads": 4, "kv_num_heads": 2}
SCALES = abs(f(10))
HALVES = SCALES.astype(np.float16).astype(np.float32)
IDS = np.array([[3, 1, 2]], np.int32)


def last(n):
    return np.array([n], np.int32)


def total(n):
    return np.array(n, np.int32)


# op, inputs (a str: absent; a tuple: constant), attributes, number of outputs
CASES = [
    ("Gelu", [f(2, 5)], {}, 1),
    ("BiasGelu", [f(2, 5), f(5)], {}, 1),
    ("FastGelu", [f(2, 5), f(5)], {}, 1),
    ("QuickGelu", [f(2, 5)], {"alpha": 1.5}, 1),
    ("FusedMatMul", [f(2, 3, 4), f(2, 5, 4)], {"transB": 1, "alpha": 0.5}, 1),
    ("FusedMatMul", [f(3, 2, 4), f(2, 4, 5)], {"transBatchA": 1}, 1),
    ("FusedConv", [f(1, 2, 5, 5), f(3, 2, 3, 3), f(3)], {"activation": "Relu", "pads": [1, 1, 1, 1]}, 1),
    ("FusedGemm", [f(2, 3), f(3, 4), f(4)], {"activation": "LeakyRelu", "activation_alpha": 0.3}, 1),
    ("SkipLayerNormalization", [f(2, 3, 8), f(2, 3, 8), f(8), f(8), f(8)], {"epsilon": 1e-5}, 1),
    ("SkipLayerNormalization", [f(2, 3, 8), f(2, 3, 8), f(8), f(8)], {}, 4),
    ("SkipSimplifiedLayerNormalization", [f(2, 3, 8), f(2, 3, 8), f(8)], {"epsilon": 1e-5}, 4),
    ("EmbedLayerNormalization", [IDS, IDS % 2, f(5, 8), f(4, 8), f(2, 8), f(8), f(8)], {}, 2),
    ("MatMulIntegerToFloat", [u8(3, 8), i8(8, 5), S, f(5), Z8], {}, 1),
    ("DynamicQuantizeMatMul", [f(3, 8), (i8(8, 5),), (S,), (ZI,)], {}, 1),
    ("QLinearAdd", [u8(2, 5), S, Z8, u8(2, 5), S, Z8, np.array(0.09, np.float32), Z8], {}, 1),
    ("QLinearMul", [i8(2, 5), S, ZI, i8(5), S, ZI, np.array(0.3, np.float32), ZI], {}, 1),
    ("QLinearSigmoid", [u8(2, 5), (S,), (Z8,), (np.array(1 / 256, np.float32),), (np.array(0, np.uint8),)], {}, 1),
    ("QLinearLeakyRelu", [u8(2, 5), (S,), (Z8,), (S,), (Z8,)], {"alpha": 0.1}, 1),
    ("QLinearConcat", [(S,), (Z8,), u8(2, 5), (S,), (Z8,), u8(2, 3), (S * 2,), (Z8,)], {"axis": 1}, 1),
    ("QLinearGlobalAveragePool", [u8(1, 2, 3, 3), S, Z8, S, Z8], {}, 1),
    ("QLinearAveragePool", [u8(1, 2, 5, 5), S, Z8, S, Z8], {"kernel_shape": [2, 2], "strides": [2, 2]}, 1),
    ("QuantizeLinear", [f(2, 3), S, Z8], {}, 1),
    ("DequantizeLinear", [RNG.integers(-900, 900, (2, 3)).astype(np.int16), S, np.array(7, np.int16)], {}, 1),
    ("RotaryEmbedding", [f(2, 3, 32), np.array([[0, 1, 2], [4, 5, 6]]), *CACHE], {}, 1),
    ("RotaryEmbedding", [f(2, 2, 3, 16), np.array([5]), *CACHE], {"interleaved": 1}, 1),
    ("MultiHeadAttention", [f(2, 3, 16), f(2, 5, 16), f(2, 5, 16)], {"num_heads": 2}, 1),
    ("MultiHeadAttention", [*QKV, f(48), "", f(2, 2, 3, 3)], {"num_heads": 2}, 1),
    ("MultiHeadAttention", [*QKV, "", KEEP], {"num_heads": 4}, 1),
    ("MultiHeadAttention", [*(x[:, :1] for x in QKV), "", "", "", f(2, 2, 4, 8), f(2, 2, 4, 8)], {"num_heads": 2}, 3),
    ("MultiHeadAttention", QKV, {"num_heads": 2, "unidirectional": 1, "scale": 0.2}, 1),
    ("GroupQueryAttention", [f(1, 3, 64), f(1, 3, 32), f(1, 3, 32), "", "", last(2), total(3)], GROUPS, 3),
    ("GroupQueryAttention", [f(1, 1, 64), f(1, 1, 32), f(1, 1, 32), f(1, 2, 4, 16), f(1, 2, 4, 16), last(4), total(5),
                             *CACHE], {**GROUPS, "do_rotary": 1}, 3),
    ("GroupQueryAttention", [f(1, 6, 128), "", "", "", "", last(5), total(6), *CACHE],
     {**GROUPS, "do_rotary": 1, "local_window_size": 3}, 3),
    ("GroupQueryAttention", [f(1, 3, 64), f(1, 3, 32), f(1, 3, 32), "", "", last(2), total(3)],
     {**GROUPS, "softcap": 2.0}, 3),
    ("GroupQueryAttention", [f(2, 1, 64), f(2, 1, 32), f(2, 1, 32), f(2, 2, 5, 16), f(2, 2, 5, 16),
                             np.array([5, 3], np.int32), total(6), *CACHE], {**GROUPS, "do_rotary": 1}, 3),
    ("GroupQueryAttention", [f(3, 1, 128), "", "", f(3, 2, 5, 16), f(3, 2, 5, 16), np.array([0, 3, 5], np.int32),
                             total(6), *CACHE], {**GROUPS, "do_rotary": 1, "local_window_size": 2}, 3),
    ("GroupQueryAttention", [f(1, 2, 128), "", "", f(1, 2, 5, 16), f(1, 2, 5, 16), last(6), total(7), *CACHE, "",
                             f(1, 1, 2, 7)], {**GROUPS, "do_rotary": 1, "rotary_interleaved": 1}, 3),
    ("Attention", [f(2, 3, 16), f(16, 48), f(48)], {"num_heads": 2}, 1),
    ("Attention", [f(2, 3, 16), f(16, 48), f(48), KEEP], {"num_heads": 2, "unidirectional": 1}, 1),
    ("MatMulNBits", [f(2, 64), (u8(5, 2, 16),), (HALVES,)], {"K": 64, "N": 5, "bits": 4, "block_size": 32}, 1),
    ("MatMulNBits", [f(2, 64), (u8(5, 2, 16),), (SCALES,), (u8(5),)], {"K": 64, "N": 5, "bits": 4, "block_size": 32},
     1),
    ("MatMulNBits", [f(2, 64), (u8(5, 2, 32),), (SCALES,)], {"K": 64, "N": 5, "bits": 8, "block_size": 32}, 1),
    ("MatMulNBits", [f(2, 40), (u8(5, 2, 16),), (HALVES,)], {"K": 40, "N": 5, "bits": 4, "block_size": 32}, 1),
    ("GatherBlockQuantized", [(u8(6, 32),), np.array([[1, 5]]), (f(6, 2),)],
     {"bits": 4, "block_size": 32, "quantize_axis": 1}, 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inputs", "attrs", "count"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_beside_onnxruntime(name, inputs, attrs, count):
    h = onnx.helper
    feeds, infos, initializers, names = {}, [], [], []
    for i, value in enumerate(inputs):
        if isinstance(value, str):
            names.append("")
            continue
        names.append(f"x{i}")
        array = value[0] if isinstance(value, tuple) else value
        if isinstance(value, tuple):
            initializers.append(onnx.numpy_helper.from_array(np.asarray(array), f"x{i}"))
        else:
            feeds[f"x{i}"] = np.asarray(array)
            infos.append(h.make_tensor_value_info(f"x{i}", h.np_dtype_to_tensor_dtype(array.dtype), array.shape))
    outputs = [f"y{i}" for i in range(count)]
    if name.startswith("Skip") and count == 4:
        outputs = ["y0", "", "", "y3"]
    node = h.make_node(name, names, outputs, "n", domain="com.microsoft", **attrs)
    graph = h.make_graph([node], "g", infos, [h.make_empty_tensor_value_info(o) for o in outputs if o], initializers)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid("com.microsoft", 1)])
    model.ir_version = 10
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want = session.run(None, feeds)
    imported = load(model)
    verify(imported)
    got = run(imported, feeds)
    blocks = name in ("MatMulNBits", "GatherBlockQuantized")  # their scales are kept in f16
    for output, w in zip((o for o in outputs if o), want):
        assert got[output].shape == w.shape and got[output].dtype == w.dtype
        if w.dtype.kind in "iu":  # onnxruntime's integer kernels may round the other way
            assert np.abs(got[output].astype(int) - w).max() <= 1
        else:
            np.testing.assert_allclose(got[output], w, atol=2e-3 * np.abs(w).max() if blocks else 2e-5)
