#!/usr/bin/env python3
"""A 16-bit GGUF of a Llama shape with random weights, for `bench/lm.py --quantize`. Needs the package gguf.

usage: python bench/random_gguf.py CONFIG.json OUT.gguf

CONFIG.json: of the shape, as Hugging Face writes it. All matrices are runs of one pool of random numbers: fit for
speed, not accuracy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np

POOL = 1_048_583  # prime: no row length divides it


def tensors(c: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn, dim = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    yield "token_embd.weight", (c["vocab_size"], hidden)
    yield "output_norm.weight", (hidden,)
    for i in range(c["num_hidden_layers"]):
        shapes = {"attn_norm": (hidden,), "attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden),
                  "attn_output": (hidden, q), "ffn_norm": (hidden,), "ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden),
                  "ffn_down": (hidden, ffn)}  # fmt: skip
        for name, shape in shapes.items():
            yield f"blk.{i}.{name}.weight", shape


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    from gguf import GGUFWriter

    with open(sys.argv[1]) as file:
        c = json.load(file)
    pool = np.random.default_rng(0).standard_normal(POOL).astype(np.float16)
    writer = GGUFWriter(sys.argv[2], "llama", use_temp_file=True)
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])
    writer.add_rope_dimension_count(c["head_dim"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_vocab_size(c["vocab_size"])
    writer.add_tokenizer_model("none")
    for number, (name, shape) in enumerate(tensors(c)):
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        count = shape[0] * shape[1]
        scale = np.float16(shape[1] ** -0.5)
        writer.add_tensor(name, np.resize(np.roll(pool, 7919 * number), count).reshape(shape) * scale)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
