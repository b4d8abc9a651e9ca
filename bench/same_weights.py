#!/usr/bin/env python3
"""A Llama-like decoder exported to ONNX, its residual stream turned by a random rotation, and the same weights as GGUF.

usage: python bench/same_weights.py FOLDER OUT [--rotate SEED] [--gguf PYTHON]

FOLDER: torch.export's model.onnx, config.json and tokenizer. OUT gets the same files, and with --gguf model.gguf in f32,
written by an interpreter that has the package gguf. A rotation folds each norm's gain into the products behind it, then
turns what they read and what is added to the residual by one orthogonal matrix: the function stays, while any grid that the
weights were rounded to before is gone. A head that was tied to the table becomes a matrix of its own.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

READ = {  # products -> the norm before them
    "self_attn.q_proj": "input_layernorm", "self_attn.k_proj": "input_layernorm", "self_attn.v_proj": "input_layernorm",
    "mlp.gate_proj": "post_attention_layernorm", "mlp.up_proj": "post_attention_layernorm",
}  # fmt: skip
ADDED = ("self_attn.o_proj", "mlp.down_proj")
GGUF = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TABLE, HEAD, NORM = "embed_tokens", "lm_head", "norm"
LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight$")
Weights = dict[str, np.ndarray]


def short(name: str) -> str:
    """layers.0.mlp.up_proj.weight of model.model.layers.0.mlp.up_proj.weight."""
    return re.sub(r"^(model\.)+", "", name)


def rotation(size: int, seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return q * np.sign(np.diagonal(r))


def rotated(weights: Weights, seed: int) -> Weights:
    """By short names: the same function in other numbers."""
    table = weights[f"{TABLE}.weight"].astype(np.float64)
    q, new = rotation(table.shape[1], seed), dict(weights)
    head = weights.get(f"{HEAD}.weight", table).astype(np.float64)
    new[f"{TABLE}.weight"], new[f"{HEAD}.weight"] = table @ q, (head * weights[f"{NORM}.weight"]) @ q
    new[f"{NORM}.weight"] = np.ones_like(weights[f"{NORM}.weight"])
    for name, value in weights.items():
        if (found := LAYER.match(name)) is None:
            continue
        layer, kind = found.groups()
        if kind in READ:
            new[name] = (value.astype(np.float64) * weights[f"layers.{layer}.{READ[kind]}.weight"]) @ q
        elif kind in ADDED:
            new[name] = q.T @ value
        elif kind in READ.values():
            new[name] = np.ones_like(value)
        else:
            raise SystemExit(f"{name}: no weight that a rotation is known for")
    return {name: np.ascontiguousarray(value, np.float32) for name, value in new.items()}


def places(model: Any) -> dict[str, tuple[Any, bool]]:
    """Short name -> (initializer, whether it lies transposed). Products have names of torch.export's metadata."""
    initializers = {i.name: i for i in model.graph.initializer}
    found = {short(name): (i, False) for name, i in initializers.items() if name.endswith(".weight")}
    for node in model.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), None)
        if node.op_type == "MatMul" and scopes and node.input[1] in initializers:
            found[f"{short(ast.literal_eval(scopes)[-2])}.weight"] = initializers[node.input[1]], True
    if f"{TABLE}.weight" not in found and f"{HEAD}.weight" in found:  # tied, by the other name
        found[f"{TABLE}.weight"] = found.pop(f"{HEAD}.weight")
    if f"{TABLE}.weight" not in found or f"{NORM}.weight" not in found:
        raise SystemExit(f"no {TABLE}.weight and {NORM}.weight: is it torch.export's ONNX of a Llama-like decoder?")
    return found


def read(found: dict[str, tuple[Any, bool]]) -> Weights:
    """[out, in], f32."""
    from onnx import numpy_helper

    arrays = {name: (numpy_helper.to_array(i), flipped) for name, (i, flipped) in found.items()}
    return {name: np.ascontiguousarray(a.T if flipped else a) for name, (a, flipped) in arrays.items()}


def replace(model: Any, found: dict[str, tuple[Any, bool]], weights: Weights) -> None:
    """Puts the weights into the model; a head that was tied to the table reads its own matrix from now on."""
    from onnx import numpy_helper

    table = found[f"{TABLE}.weight"][0].name
    for name, value in weights.items():
        if name in found:
            initializer, flipped = found[name]
            value = np.ascontiguousarray(value.T if flipped else value)
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
            continue
        assert name == f"{HEAD}.weight"
        model.graph.initializer.append(numpy_helper.from_array(value, "untied_head"))
        for node in model.graph.node:
            if node.op_type != "Gather":
                node.input[:] = ["untied_head" if i == table else i for i in node.input]


def write_gguf(path: Path, weights: Weights, config: dict) -> None:
    from gguf import GGUFWriter

    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer = GGUFWriter(str(path), "llama", use_temp_file=True)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    top = {f"{TABLE}.weight": "token_embd", f"{HEAD}.weight": "output", f"{NORM}.weight": "output_norm"}
    for name, value in weights.items():
        if (found := LAYER.match(name)) is None:
            writer.add_tensor(f"{top[name]}.weight", value)
            continue
        layer, kind = found.groups()
        if kind in ("self_attn.q_proj", "self_attn.k_proj"):  # pairs that rotate together lie side by side there
            n = heads if kind == "self_attn.q_proj" else keys
            value = np.ascontiguousarray(value.reshape(n, 2, dim // 2, -1).swapaxes(1, 2)).reshape(value.shape)
        writer.add_tensor(f"blk.{layer}.{GGUF[kind]}.weight", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder: Path, out: Path, seed: int | None, python: str | None) -> None:
    import onnx

    model = onnx.load(folder / "model.onnx")
    found = places(model)
    weights = read(found)
    if seed is not None:
        weights = rotated(weights, seed)
        replace(model, found, weights)
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=4096)
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, out)
    if python is not None:
        np.savez(out / "weights.npz", **weights)
        subprocess.run([python, __file__, str(out), str(out), "--from-weights"], check=True)
        (out / "weights.npz").unlink()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("folder", type=Path)
    ap.add_argument("out", type=Path)
    ap.add_argument("--rotate", type=int, metavar="SEED")
    ap.add_argument("--gguf", metavar="PYTHON")
    ap.add_argument("--from-weights", action="store_true", help=argparse.SUPPRESS)  # what PYTHON is called with
    args = ap.parse_args()
    if args.from_weights:
        with np.load(args.folder / "weights.npz") as found:
            write_gguf(args.out / "model.gguf", dict(found), json.loads((args.folder / "config.json").read_text()))
    else:
        make(args.folder, args.out, args.rotate, args.gguf)


if __name__ == "__main__":
    main()
