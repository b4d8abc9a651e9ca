"""com.microsoft ops: fused elementwise, norms, embeddings, quantized products."""

from __future__ import annotations

import numpy as np

from edgec.frontend import movement, quant  # noqa: F401  (their importers are aliased here)
from edgec.frontend.blocks import block_quantized
from edgec.frontend.emit import array_of, cast, emit, op, reduce, reshape, transpose
from edgec.frontend.nn import matmul
from edgec.frontend.quant import along, dequantize, dynamic_u8, integer_product, limits, quantize
from edgec.frontend.recurrent import recurrent_of
from edgec.frontend.reduction import norm_statistics
from edgec.frontend.registry import MICROSOFT, TABLE, Call, Unsupported, onnx_op
from edgec.ir.node import Node, constant

# activations that fused ops name
_ACTIVATE = {
    "Relu": lambda x, p: op.relu(x),
    "Tanh": lambda x, p: op.tanh(x),
    "Sigmoid": lambda x, p: op.sigmoid(x),
    "LeakyRelu": lambda x, p: op.where(op.lt(x, 0), op.mul(x, p[0] if p else 0.01), x),
    "Clip": lambda x, p: op.min(op.max(x, p[0]), p[1]),
    "HardSigmoid": lambda x, p: op.min(op.max(op.add(op.mul(x, p[0]), p[1]), 0), 1),
}


# what is the same in both domains
for _name in ("QuantizeLinear", "DequantizeLinear", "Trilu"):
    TABLE[MICROSOFT, _name] = TABLE["", _name]


def activate(c: Call, x: Node, name: str, params) -> Node:
    if not name:
        return x
    if name not in _ACTIVATE:
        raise Unsupported(f"the activation {name!r}")
    return _ACTIVATE[name](x, params)


@onnx_op("Gelu", domain=MICROSOFT)
def gelu(c: Call):
    return op.gelu(c.x, approximate="none")


@onnx_op("BiasGelu", domain=MICROSOFT)
def bias_gelu(c: Call):
    return op.gelu(op.add(c[0], c[1]), approximate="none")


@onnx_op("FastGelu", domain=MICROSOFT)
def fast_gelu(c: Call):
    return op.gelu(op.add(c[0], c[1]) if c.has(1) else c[0], approximate="tanh")


@onnx_op("QuickGelu", domain=MICROSOFT)
def quick_gelu(c: Call):
    return op.mul(c.x, op.sigmoid(op.mul(c.x, c.attr("alpha", 1.702))))


@onnx_op("FusedMatMul", domain=MICROSOFT)
def fused_matmul(c: Call):
    a, b = c[0], c[1]

    def batch_last(x: Node) -> Node:
        return transpose(x, [*range(1, x.rank - 1), 0, x.rank - 1])

    a = batch_last(a) if c.attr("transBatchA", 0) else a
    b = batch_last(b) if c.attr("transBatchB", 0) else b
    if a.rank >= 2 and b.rank >= 2:
        y = op.matmul(a, b, trans_a=bool(c.attr("transA", 0)), trans_b=bool(c.attr("transB", 0)))
    else:
        y = matmul(a, b)
    alpha = c.attr("alpha", 1.0)
    return y if alpha == 1 else op.mul(y, alpha)


@onnx_op("FusedConv", domain=MICROSOFT)
def fused_conv(c: Call):
    residual, c.inputs = c.get(3), c.inputs[:3]
    y = TABLE["", "Conv"](c)
    y = y if residual is None else op.add(y, residual)
    return activate(c, y, c.attr("activation", ""), c.attr("activation_params", ()))


@onnx_op("FusedGemm", domain=MICROSOFT)
def fused_gemm(c: Call):
    params = [c.attr(f"activation_{n}") for n in ("alpha", "beta") if c.attr(f"activation_{n}") is not None]
    return activate(c, TABLE["", "Gemm"](c), c.attr("activation", ""), params)


# norms


@onnx_op("SimplifiedLayerNormalization")
@onnx_op("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_norm(c: Call):
    axis, eps = c.axis(-1), c.attr("epsilon", 1e-5)
    y = op.rms_norm(c.x, c[1], axis=axis, eps=eps)
    return (y, _inverse_rms(c.x, axis, eps)) if c.wants(1) else y


def _inverse_rms(x: Node, axis: int, eps: float) -> Node:
    y = cast(x, "f32")
    return op.rsqrt(op.add(reduce("mean", op.mul(y, y), range(axis, x.rank), True), eps))


@onnx_op("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(c: Call):
    simple = "Simplified" in c.op
    bias = c.get(3) if simple else c.get(4)
    x = op.add(c[0], c[1])
    x = x if bias is None else op.add(x, bias)
    axis, eps = x.rank - 1, c.attr("epsilon", 1e-12)
    if simple:
        y = op.rms_norm(x, c[2], axis=axis, eps=eps)
        mean, inverse = None, _inverse_rms(x, axis, eps) if c.wants(2) else None
    else:
        y = op.layer_norm(x, c[2], c.get(3), axis=axis, eps=eps)
        mean, inverse = norm_statistics(x, axis, eps) if c.wants(1) or c.wants(2) else (None, None)
    return y, mean, inverse, x


@onnx_op("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_norm(c: Call):
    ids, segments = c[0], c.get(1)
    batch, steps = ids.shape
    places = c.get(8)
    if places is None:
        places = op.expand(reshape(emit("iota", size=steps), [1, steps]), shape=(batch, steps))
    x = op.add(op.gather(c[2], ids, axis=0), op.gather(c[3], places, axis=0))
    if segments is not None and c.has(4):
        x = op.add(x, op.gather(c[4], segments, axis=0))
    y = op.layer_norm(x, c[5], c[6], axis=2, eps=c.attr("epsilon", 1e-12))
    count = None
    if c.has(7):
        count = cast(reduce("sum", cast(c[7], "i32"), (1,)), "i32")
    elif c.wants(1):
        count = op.expand(constant(np.zeros((), np.int32)), shape=(batch,))
    return y, count, x


# quantized products


@onnx_op("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(c: Call):
    """The input is rounded to u8 over its whole range, h at each step over the batch, as onnxruntime does."""
    x = c[0]
    q, scale, zero = dynamic_u8(x)
    x = op.mul(op.sub(cast(q, "f32"), cast(zero, "f32")), scale)

    def weights(i: int, s: int) -> Node:
        """[dirs, in, gates * hidden] integers -> [dirs, gates * hidden, in] values."""
        w, scale, zero = c[i], c[s], c[s + 1]
        rank = (w.shape[0], 1, scale.shape[1] if scale.rank == 2 else 1)
        y = op.sub(cast(w, "f32"), cast(reshape(zero, rank), "f32"))
        return transpose(op.mul(y, reshape(scale, rank)), (0, 2, 1))

    rest = [c.get(i) for i in range(3, 8)]
    return recurrent_of(c, "lstm", x, weights(1, 8), weights(2, 10), rest, quantize_state=True)


@onnx_op("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(c: Call):
    y = cast(integer_product(c[0], c[1], c.get(4), c.get(5)), "f32")
    y = op.mul(y, op.mul(_scalar(c[2]), _scalar(c[3])))
    return op.add(y, c[6]) if c.has(6) else y


def _scalar(x: Node) -> Node:
    return reshape(x, ()) if x.shape == (1,) else x


@onnx_op("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(c: Call):
    q, scale, zero = dynamic_u8(c[0])
    y = cast(integer_product(q, c[1], zero, c.get(3)), "f32")
    y = op.mul(y, op.mul(scale, _scalar(c[2])))
    return op.add(y, c[4]) if c.has(4) else y


@onnx_op("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_binary(c: Call):
    a, b = (dequantize(c[i], c[i + 1], c.get(i + 2), "f32") for i in (0, 3))
    y = emit(c.op[7:].lower(), a, b)
    return quantize(y, c[6], c.get(7), *limits(c[0].dtype), c[0].dtype)


@onnx_op("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_unary(c: Call):
    x = dequantize(c[0], c[1], c.get(2), "f32")
    if c.op == "QLinearSigmoid":
        y = op.sigmoid(x)
    elif c.op == "QLinearLeakyRelu":
        y = op.where(op.lt(x, 0), op.mul(x, c.attr("alpha", 0.01)), x)
    elif c.op == "QLinearSoftmax":
        if c.attr("opset", 13) < 13:
            raise Unsupported("softmax of a flattened matrix (opset below 13)")
        y = op.softmax(x, axis=c.axis(-1))
    else:
        y = reduce("mean", x, range(1, x.rank - 1) if c.attr("channels_last", 0) else range(2, x.rank), True)
    return quantize(y, c[3], c.get(4), *limits(c[0].dtype), c[0].dtype)


@onnx_op("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(c: Call):
    if c.attr("channels_last", 0):
        raise Unsupported("channels_last")
    dtype, scale, zero = c[0].dtype, c[3], c.get(4)
    c.inputs = [dequantize(c[0], c[1], c.get(2), "f32")]
    return quantize(TABLE["", "AveragePool"](c), scale, zero, *limits(dtype), dtype)


@onnx_op("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(c: Call):
    parts = [dequantize(c[i], c[i + 1], c.get(i + 2), "f32") for i in range(2, len(c.inputs), 3)]
    y = op.concat(*parts, axis=c.axis(None, parts[0].rank))
    return quantize(y, c[0], c[1], *limits(c[1].dtype), c[1].dtype)


@onnx_op("QGemm", domain=MICROSOFT)
def qgemm(c: Call):
    a = dequantize(c[0], _scalar(c[1]), c.get(2), "f32")
    b = c[3]
    axis = 0 if c.attr("transB", 0) else 1
    b = dequantize(b, along(c[4], b, axis), along(c[5], b, axis) if c.has(5) else None, "f32")
    y = op.matmul(a, b, trans_a=bool(c.attr("transA", 0)), trans_b=bool(c.attr("transB", 0)))
    alpha = c.attr("alpha", 1.0)
    y = y if alpha == 1 else op.mul(y, alpha)
    if c.has(6):  # i32 in units of the product's scale
        y = op.add(y, op.mul(cast(c[6], "f32"), op.mul(_scalar(c[1]), _scalar(c[4]))))
    return y if not c.has(7) else quantize(y, c[7], c.get(8), *limits(c[0].dtype), c[0].dtype)


@onnx_op("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(c: Call):
    bits, n, k = c.attr("bits", 4), c.need_attr("N"), c.need_attr("K")
    if bits not in (2, 4, 8) or c.attr("weight_prepacked", 0):
        raise Unsupported(f"{bits} bits" if bits not in (2, 4, 8) else "weights packed for one device")
    if c.has(4):
        order = array_of(c[4])
        if order is None or not np.array_equal(order[:k], np.arange(k) // c.need_attr("block_size")):
            raise Unsupported("groups in another order (g_idx)")
    w = block_quantized(c[1], c[2], c.get(3), n, k, c.need_attr("block_size"), bits)
    x = c[0]
    y = op.linear(x if x.dtype == "f32" else cast(x, "f32"), w, cast(c[5], "f32") if c.has(5) else None)
    return cast(y, x.dtype)


@onnx_op("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(c: Call):
    data, bits, block = c[0], c.attr("bits", 4), c.attr("block_size", 128)
    if (
        data.rank != 2
        or data.dtype != "u8"
        or c.attr("gather_axis", 0) != 0
        or c.attr("quantize_axis", 1) not in (1, -1)
    ):
        raise Unsupported(f"a table {data.type} quantized along axis {c.attr('quantize_axis', 1)}")
    n, k = int(data.shape[0]), int(data.shape[1]) * (8 // bits)
    table = block_quantized(data, c[2], c.get(3), n, k, block, bits)
    return cast(op.gather(table, c[1], axis=0), c[2].dtype)
