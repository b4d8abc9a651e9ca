"""com.microsoft ops."""

from __future__ import annotations

from edgec.frontend.emit import cast, op, reshape, transpose
from edgec.frontend.quant import dynamic_u8
from edgec.frontend.recurrent import recurrent_of
from edgec.frontend.registry import MICROSOFT, Call, onnx_op
from edgec.ir.node import Node


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
