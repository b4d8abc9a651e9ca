#!/usr/bin/env python3
"""Writes the BERT encoder whose safetensors and config.json are in SOURCE as ONNX, without torch.

usage: minilm.py SOURCE DEST      (writes DEST/model.onnx, and copies tokenizer.json)

inputs : input_ids, attention_mask, token_type_ids  i64[batch, seq]
outputs: last_hidden_state  f32[batch, seq, hidden]
"""

import json
import math
import pathlib
import shutil
import struct
import sys

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save_model

OPSET = 17


def safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The f32 tensors of the file by name."""
    raw = np.memmap(path, np.uint8, "r")
    (length,) = struct.unpack("<Q", raw[:8].tobytes())
    header = json.loads(raw[8 : 8 + length].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + length + o for o in entry["data_offsets"])
            tensors[name] = raw[begin:end].view("<f4").reshape(entry["shape"])
    return tensors


class Writer:
    """Nodes and initializers of a graph; each method adds a node and gives its output's name."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors, self.nodes, self.initializers, self.known = tensors, [], [], set()

    def weight(self, name: str, value: np.ndarray | None = None) -> str:
        if name not in self.known:
            self.known.add(name)
            array = self.tensors[name] if value is None else value
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def const(self, value, dtype=np.float32) -> str:
        array = np.array(value, dtype)
        text = "_".join(map(str, array.reshape(-1).tolist()))
        return self.weight(f"const_{array.dtype}_{array.ndim}_{text}", array)

    def op(self, kind: str, *inputs: str, name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def dense(self, x: str, weight: str, name: str) -> str:
        """x @ W.T + b of the tensors WEIGHT.weight [out, in] and WEIGHT.bias, stored as [in, out] as exporters do."""
        w = self.weight(f"{weight}.weight_t", self.tensors[f"{weight}.weight"].T)
        y = self.op("MatMul", x, w, name=f"{name}/MatMul")
        return self.op("Add", y, self.weight(f"{weight}.bias"), name=f"{name}/Add")

    def norm(self, x: str, weight: str, eps: float, name: str) -> str:
        gain, bias = self.weight(f"{weight}.weight"), self.weight(f"{weight}.bias")
        return self.op("LayerNormalization", x, gain, bias, name=name, axis=-1, epsilon=eps)

    def gelu(self, x: str, name: str) -> str:
        y = self.op("Div", x, self.const(math.sqrt(2.0)), name=f"{name}/Div")
        y = self.op("Erf", y, name=f"{name}/Erf")
        y = self.op("Add", y, self.const(1.0), name=f"{name}/Add")
        y = self.op("Mul", x, y, name=f"{name}/Mul")
        return self.op("Mul", y, self.const(0.5), name=f"{name}/Half")


def attention(w: Writer, x: str, mask: str, layer: str, heads: int, size: int) -> str:
    split = w.const([0, 0, heads, size], np.int64)
    parts = {}
    for part, perm in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
        y = w.dense(x, f"{layer}.attention.self.{part}", f"{layer}/{part}")
        y = w.op("Reshape", y, split, name=f"{layer}/{part}/Reshape")
        parts[part] = w.op("Transpose", y, name=f"{layer}/{part}/Transpose", perm=perm)
    scores = w.op("MatMul", parts["query"], parts["key"], name=f"{layer}/scores/MatMul")
    scores = w.op("Div", scores, w.const(math.sqrt(size)), name=f"{layer}/scores/Div")
    scores = w.op("Add", scores, mask, name=f"{layer}/scores/Add")
    weights = w.op("Softmax", scores, name=f"{layer}/scores/Softmax", axis=-1)
    y = w.op("MatMul", weights, parts["value"], name=f"{layer}/context/MatMul")
    y = w.op("Transpose", y, name=f"{layer}/context/Transpose", perm=(0, 2, 1, 3))
    return w.op("Reshape", y, w.const([0, 0, heads * size], np.int64), name=f"{layer}/context/Reshape")


def embeddings(w: Writer, eps: float) -> str:
    y = w.op("Gather", w.weight("embeddings.word_embeddings.weight"), "input_ids", name="embeddings/words")
    kinds = w.op(
        "Gather", w.weight("embeddings.token_type_embeddings.weight"), "token_type_ids", name="embeddings/kinds"
    )
    y = w.op("Add", y, kinds, name="embeddings/Add")
    seq = w.op("Shape", "input_ids", name="embeddings/Shape", start=1, end=2)
    table = w.tensors["embeddings.position_embeddings.weight"]
    ids = w.weight("embeddings.position_ids", np.arange(len(table), dtype=np.int64)[None])
    ids = w.op("Slice", ids, w.const([0], np.int64), seq, w.const([1], np.int64), name="embeddings/position_ids")
    places = w.op("Gather", w.weight("embeddings.position_embeddings.weight"), ids, name="embeddings/positions")
    y = w.op("Add", y, places, name="embeddings/Add_1")
    return w.norm(y, "embeddings.LayerNorm", eps, "embeddings/LayerNorm")


def export(source: pathlib.Path, dest: pathlib.Path) -> None:
    config = json.loads((source / "config.json").read_text())
    hidden, heads, eps = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]
    w = Writer(safetensors(source / "model.safetensors"))
    mask = w.op("Unsqueeze", "attention_mask", w.const([1, 2], np.int64), name="mask/Unsqueeze")
    mask = w.op("Cast", mask, name="mask/Cast", to=TensorProto.FLOAT)
    mask = w.op("Sub", w.const(1.0), mask, name="mask/Sub")
    mask = w.op("Mul", mask, w.const(float(np.finfo(np.float32).min)), name="mask/Mul")
    x = embeddings(w, eps)
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        y = attention(w, x, mask, layer, heads, hidden // heads)
        y = w.dense(y, f"{layer}.attention.output.dense", f"{layer}/attention_output")
        y = w.op("Add", y, x, name=f"{layer}/attention_output/Residual")
        x = w.norm(y, f"{layer}.attention.output.LayerNorm", eps, f"{layer}/attention_output/LayerNorm")
        y = w.gelu(w.dense(x, f"{layer}.intermediate.dense", f"{layer}/up"), f"{layer}/gelu")
        y = w.dense(y, f"{layer}.output.dense", f"{layer}/down")
        y = w.op("Add", y, x, name=f"{layer}/down/Residual")
        x = w.norm(y, f"{layer}.output.LayerNorm", eps, f"{layer}/down/LayerNorm")
    w.nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"], name="last_hidden_state"))
    ids = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        w.nodes,
        "minilm",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "seq"]) for n in ids],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "seq", hidden])],
        w.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    checker.check_model(model)
    dest.mkdir(parents=True, exist_ok=True)
    save_model(model, dest / "model.onnx")
    shutil.copy2(source / "tokenizer.json", dest / "tokenizer.json")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    export(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
