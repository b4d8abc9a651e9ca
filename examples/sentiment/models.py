"""The teacher and its student as ONNX: the MiniLM encoder of tests/exporters, a mean over tokens, a head of two logits.

inputs : input_ids, attention_mask (and the teacher's token_type_ids)  i64[batch, seq]
outputs: logits f32[batch, 2] (negative, positive), embedding f32[batch, hidden]: the mean over tokens
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "tests/exporters")]
import fetch_models  # noqa: E402
import minilm  # noqa: E402

MODELS, fetch = fetch_models.home(), fetch_models.fetch

EPS = 1e-12
HEADS = 12
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write(w: minilm.Writer, x: str, layers: int, hidden: int, inputs: tuple[str, ...], path: pathlib.Path) -> None:
    """The model from its embedded tokens `x` on."""
    mask = w.op("Cast", "attention_mask", name="mask/Cast", to=TensorProto.FLOAT)
    hidden_keys = w.op("Unsqueeze", mask, w.const([1, 2], np.int64), name="mask/Unsqueeze")
    hidden_keys = w.op("Sub", w.const(1.0), hidden_keys, name="mask/Sub")
    hidden_keys = w.op("Mul", hidden_keys, w.const(float(np.finfo(np.float32).min)), name="mask/Mul")
    for i in range(layers):
        layer = f"encoder.layer.{i}"
        y = minilm.attention(w, x, hidden_keys, layer, HEADS, hidden // HEADS)
        y = w.dense(y, f"{layer}.attention.output.dense", f"{layer}/attention_output")
        y = w.op("Add", y, x, name=f"{layer}/attention_output/Residual")
        x = w.norm(y, f"{layer}.attention.output.LayerNorm", EPS, f"{layer}/attention_output/LayerNorm")
        y = w.gelu(w.dense(x, f"{layer}.intermediate.dense", f"{layer}/up"), f"{layer}/gelu")
        y = w.dense(y, f"{layer}.output.dense", f"{layer}/down")
        y = w.op("Add", y, x, name=f"{layer}/down/Residual")
        x = w.norm(y, f"{layer}.output.LayerNorm", EPS, f"{layer}/down/LayerNorm")
    weight = w.op("Unsqueeze", mask, w.const([2], np.int64), name="pool/Unsqueeze")
    total = w.op(
        "ReduceSum", w.op("Mul", x, weight, name="pool/Mul"), w.const([1], np.int64), name="pool/Sum", keepdims=0
    )
    count = w.op("ReduceSum", weight, w.const([1], np.int64), name="pool/Count", keepdims=0)
    w.nodes.append(helper.make_node("Div", [total, count], ["embedding"], name="pool/Div"))
    w.nodes.append(
        helper.make_node(
            "Gemm", ["embedding", w.weight("head.weight"), w.weight("head.bias")], ["logits"], name="head", transB=1
        )
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        w.nodes,
        "sentiment",
        [value(n, TensorProto.INT64, ["batch", "seq"]) for n in inputs],
        [value("logits", TensorProto.FLOAT, ["batch", 2]), value("embedding", TensorProto.FLOAT, ["batch", hidden])],
        w.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", minilm.OPSET)], ir_version=8)
    checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path)


def initializers(path: pathlib.Path) -> dict[str, np.ndarray]:
    """By their names; products' weights turned back to [out, in] under the names that Writer.dense takes."""
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return found | {
        n.removesuffix("_t"): np.ascontiguousarray(a.T) for n, a in found.items() if n.endswith(".weight_t")
    }


def write_teacher(weights: pathlib.Path, path: pathlib.Path, seed: int) -> None:
    """MiniLM-L6 of the folder `weights` with a new head."""
    tensors = minilm.safetensors(weights / "model.safetensors")
    hidden = tensors["embeddings.LayerNorm.weight"].size
    head = np.random.default_rng(seed).standard_normal((2, hidden)) * 0.02
    tensors |= {"head.weight": head.astype(np.float32), "head.bias": np.zeros(2, np.float32)}
    w = minilm.Writer(tensors)
    x = minilm.embeddings(w, EPS)
    write(w, x, 6, hidden, ("input_ids", "attention_mask", "token_type_ids"), path)


def keep_pieces(tokenizer: dict, keep: set[int]) -> tuple[dict, np.ndarray]:
    """A WordPiece tokenizer of these pieces only, with ids from 0 on, and the old id of each new one. What is gone comes
    in smaller pieces."""
    vocab = tokenizer["model"]["vocab"]
    old = sorted((i, piece) for piece, i in vocab.items() if i in keep or piece in SPECIAL)
    new = {piece: at for at, (_, piece) in enumerate(old)}
    found = json.loads(json.dumps(tokenizer))
    found["model"]["vocab"] = new
    found["added_tokens"] = [t | {"id": new[t["content"]]} for t in tokenizer["added_tokens"] if t["content"] in new]
    for name, token in found["post_processor"].get("special_tokens", {}).items():
        token["ids"] = [new[name]]
    found["padding"] = found["truncation"] = None
    return found, np.array([i for i, _ in old])


def with_pieces(teacher: pathlib.Path, path: pathlib.Path, old_ids: np.ndarray) -> None:
    """The teacher with the rows of these pieces only."""
    tensors = initializers(teacher)
    tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"][old_ids]
    w = minilm.Writer(tensors)
    hidden = tensors["embeddings.LayerNorm.weight"].size
    write(w, minilm.embeddings(w, EPS), 6, hidden, ("input_ids", "attention_mask", "token_type_ids"), path)


def write_student(
    teacher: pathlib.Path, path: pathlib.Path, layers: tuple[int, ...], ffn: int, rank: int, length: int
) -> None:
    """Some layers of the teacher with the `ffn` strongest channels of each, a table of `rank` columns that a matrix
    widens (the best such pair by the singular values), positions up to `length`; token types are those of one text."""
    old = initializers(teacher)
    new = {n: a for n, a in old.items() if n.startswith(("embeddings.LayerNorm", "head."))}
    u, s, v = np.linalg.svd(old["embeddings.word_embeddings.weight"], full_matrices=False)
    root = np.sqrt(s[:rank])
    new["embeddings.table"] = (u[:, :rank] * root).astype(np.float32)
    new["embeddings.widen"] = (root[:, None] * v[:rank]).astype(np.float32)
    kind = old["embeddings.token_type_embeddings.weight"][0]
    new["embeddings.positions"] = old["embeddings.position_embeddings.weight"][:length] + kind
    for at, layer in enumerate(layers):
        prefix = f"encoder.layer.{layer}."
        part = {n.removeprefix(prefix): a for n, a in old.items() if n.startswith(prefix) and not n.endswith("_t")}
        up, down = part["intermediate.dense.weight"], part["output.dense.weight"]
        strength = np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
        keep = np.sort(np.argsort(strength)[-ffn:])
        part |= {"intermediate.dense.weight": up[keep], "output.dense.weight": down[:, keep]}
        part["intermediate.dense.bias"] = part["intermediate.dense.bias"][keep]
        new |= {f"encoder.layer.{at}.{n}": a for n, a in part.items()}
    w = minilm.Writer(new)
    x = w.op("Gather", w.weight("embeddings.table"), "input_ids", name="embeddings/words")
    x = w.op("MatMul", x, w.weight("embeddings.widen"), name="embeddings/widen")
    end = w.op("Shape", "input_ids", name="embeddings/Shape", start=1, end=2)
    zero, axis = w.const([0], np.int64), w.const([0], np.int64)
    places = w.op("Slice", w.weight("embeddings.positions"), zero, end, axis, name="embeddings/positions")
    x = w.norm(w.op("Add", x, places, name="embeddings/Add"), "embeddings.LayerNorm", EPS, "embeddings/LayerNorm")
    write(w, x, len(layers), new["head.weight"].shape[1], ("input_ids", "attention_mask"), path)


def _nibbles(values: np.ndarray) -> np.ndarray:
    """[rows, count] u8 below 16 -> [rows, ceil(count / 2)], the first of a pair in the low half."""
    values = np.pad(values, [(0, 0), (0, values.shape[1] % 2)])
    return values[:, ::2] | values[:, 1::2] << 4


def write_packed(student: pathlib.Path, path: pathlib.Path, rows: np.ndarray, positions: int) -> None:
    """The student in 4 bits: large products as MatMulNBits and the table as GatherBlockQuantized of com.microsoft, which
    onnxruntime runs and edgec takes as they are. rows: of the table, those to keep; positions: how many."""
    from edgec import kernels

    model = onnx.load(student)
    graph = model.graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    arrays["embeddings.table"] = arrays["embeddings.table"][rows]
    arrays["embeddings.positions"] = arrays["embeddings.positions"][:positions]

    def pack(name: str, w: np.ndarray, blob: bool) -> list[str]:
        """[n, k] as three initializers, and their names."""
        q, scale, zero = kernels.quantize(w, 4, 32, symmetric=False)
        packed = _nibbles(q)
        del arrays[name]
        made = {
            f"{name}.q4": packed.reshape(len(w), -1, 16) if blob else packed,
            f"{name}.scale": scale.astype(np.float32).reshape(-1) if blob else scale.astype(np.float32),
            f"{name}.zero": _nibbles(zero).reshape(-1) if blob else _nibbles(zero),
        }
        arrays.update(made)
        return list(made)

    nodes = []
    for node in graph.node:
        weight = arrays.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight.size > 1 << 16:
            k, n = weight.shape
            names = pack(node.input[1], np.ascontiguousarray(weight.T), True)
            sizes = {"K": k, "N": n, "bits": 4, "block_size": 32}
            node = helper.make_node("MatMulNBits", [node.input[0], *names], node.output, node.name,
                                    domain="com.microsoft", **sizes)  # fmt: skip
        elif node.op_type == "Gather" and node.input[0] == "embeddings.table":
            q, scale, zero = pack(node.input[0], arrays[node.input[0]], False)
            node = helper.make_node("GatherBlockQuantized", [q, node.input[1], scale, zero], node.output, node.name,
                                    domain="com.microsoft", bits=4, block_size=32, gather_axis=0, quantize_axis=1)  # fmt: skip
        nodes.append(node)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, path)
