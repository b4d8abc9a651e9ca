"""A small random decoder as torch's exporter writes them, with a byte-level BPE tokenizer and a chat template beside it."""

from __future__ import annotations

import json
import pathlib

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, save_model

HIDDEN, LAYERS, HEADS, KV_HEADS, DIM, FFN, CONTEXT = 64, 2, 4, 2, 16, 96, 256
SPECIAL = ["<|end|>", "<|start|>"]
TEMPLATE = (
    "{% for message in messages %}{% if message.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('no role ' ~ message.role) }}{% endif %}"
    "<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
TEXT = [
    "The quick brown fox jumps over the lazy dog.", "Naïve cafés — déjà vu, 日本語のテキスト, emoji 🎉🎉 and ünïcödé.",
    "A language model continues a text, one token after the other; what it has seen it keeps.",
] * 4  # fmt: skip


def tokenizer_json(vocab: int = 400) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()


class _Graph:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes, self.tensors, self.names = [], [], set()

    def op(self, kind: str, *inputs: str, output: str | list[str] | None = None, **attributes) -> str:
        outputs = output if isinstance(output, list) else [output or f"{kind}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"n{len(self.nodes)}_{kind}", **attributes))
        return outputs[0]

    def const(self, value, dtype=np.int64) -> str:
        value = np.asarray(value, dtype)
        name = f"c_{value.dtype}_{value.tolist()}"
        if name not in self.names:
            self.names.add(name)
            self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        value = self.rng.standard_normal(shape).astype(np.float32) * np.float32(1.5 * shape[0] ** -0.5)
        self.tensors.append(numpy_helper.from_array(value, name))
        return name

    def norm(self, x: str, name: str) -> str:
        self.tensors.append(numpy_helper.from_array(np.ones(HIDDEN, np.float32), name))
        mean = self.op("ReduceMean", self.op("Pow", x, self.const(2, np.float32)), self.const([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.const(1e-5, np.float32)))
        return self.op("Mul", self.op("Div", x, root), name)


def write_decoder(path: pathlib.Path, vocab: int, merged: bool = False, **options) -> None:
    """The ONNX file; options as of decoder(). merged: as optimum merges decoders with and without a past."""
    model = decoder(vocab, **options)
    save_model(_merged(model, decoder(vocab, cached=False, presents=True, **options)) if merged else model, path)


def _merged(then: ModelProto, otherwise: ModelProto) -> ModelProto:
    """One model whose input use_cache_branch chooses between the two; they share inputs and weights."""
    outputs = [o.name for o in then.graph.output]

    def branch(name: str, graph: GraphProto) -> GraphProto:
        kept = {i.name for i in (*then.graph.input, *graph.initializer)} | {""}
        nodes = []
        for node in graph.node:
            nodes.append(NodeProto())
            nodes[-1].CopyFrom(node)
            for names in (nodes[-1].input, nodes[-1].output):
                names[:] = [n if n in kept else f"{name}/{n}" for n in names]
            nodes[-1].name = f"{name}/{node.name}"
        results = [helper.make_tensor_value_info(f"{name}/{o}", TensorProto.FLOAT, None) for o in outputs]
        return helper.make_graph(nodes, name, [], results)

    tensors = {t.name: t for g in (then.graph, otherwise.graph) for t in g.initializer}
    choice = helper.make_node("If", ["use_cache_branch"], outputs, name="optimum::if",
                              then_branch=branch("then", then.graph), else_branch=branch("else", otherwise.graph))  # fmt: skip
    chosen = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    graph = helper.make_graph([choice], "merged", [*then.graph.input, chosen], then.graph.output, tensors.values())
    return helper.make_model(graph, opset_imports=then.opset_import, ir_version=10)


def decoder(
    vocab: int,
    cached: bool = True,
    seed: int = 0,
    poison: int | None = None,
    presents: bool = False,
    opset: int = 18,
) -> ModelProto:
    """cached: with past and present keys and values (presents: with present ones only). poison: a token whose embedding
    is NaN. opset 23 and up: with ONNX's own Attention, RotaryEmbedding and RMSNormalization."""
    g = _Graph(seed)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])
    total = "past + seq" if cached else "seq"
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", total])
    positions = helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "seq"])
    inputs = [ids, mask, positions]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "seq", vocab])]
    batch, seq = (g.op("Shape", "input_ids", start=i, end=i + 1) for i in (0, 1))
    past = g.op("Shape", "past_key_values.0.key", start=2, end=3) if cached else g.const([0])
    length = g.op("Add", past, seq)
    table = g.rng.standard_normal((vocab, HIDDEN)).astype(np.float32)
    if poison is not None:
        table[poison] = np.nan
    g.tensors.append(numpy_helper.from_array(table, "embedding"))
    x = g.op("Gather", "embedding", "input_ids")
    keys = g.op("Range", g.const(0), g.op("Squeeze", length), g.const(1))
    queries = g.op("Unsqueeze", g.op("Range", g.op("Squeeze", past), g.op("Squeeze", length), g.const(1)), g.const([1]))
    causal = g.op("LessOrEqual", keys, queries)
    shown = g.op("Unsqueeze", g.op("Cast", "attention_mask", to=TensorProto.BOOL), g.const([1, 2]))
    seen = g.op("And", causal, shown)
    bias = g.op("Where", seen, g.const(0, np.float32), g.const(-1e9, np.float32))
    inverse = 1 / 10000.0 ** (np.arange(0, DIM, 2, dtype=np.float32) / DIM)
    g.tensors.append(numpy_helper.from_array(inverse.reshape(1, 1, -1).astype(np.float32), "inverse"))
    place = g.op("Cast", g.op("Unsqueeze", "position_ids", g.const([2])), to=TensorProto.FLOAT)
    angles = g.op("Mul", place, "inverse")
    angles = g.op("Concat", angles, angles, axis=-1)
    cos, sin = (g.op("Unsqueeze", g.op(f, angles), g.const([1])) for f in ("Cos", "Sin"))
    if opset >= 23:
        turns = np.arange(CONTEXT)[:, None] / 10000.0 ** (np.arange(0, DIM, 2) / DIM)
        for name, table in (("cos_cache", np.cos(turns)), ("sin_cache", np.sin(turns))):
            g.tensors.append(numpy_helper.from_array(table.astype(np.float32), name))

    def norm(x: str, name: str) -> str:
        if opset < 23:
            return g.norm(x, name)
        g.tensors.append(numpy_helper.from_array(np.ones(HIDDEN, np.float32), name))
        return g.op("RMSNormalization", x, name, axis=-1, epsilon=1e-5)

    def heads(y: str, n: int) -> str:
        shape = g.op("Concat", batch, seq, g.const([n, DIM]), axis=0)
        return g.op("Transpose", g.op("Reshape", y, shape), perm=[0, 2, 1, 3])

    def rotate(y: str) -> str:
        if opset >= 23:
            return g.op("RotaryEmbedding", y, "cos_cache", "sin_cache", "position_ids")
        first, second = (g.op("Slice", y, g.const([a]), g.const([a + DIM // 2]), g.const([3])) for a in (0, DIM // 2))
        turned = g.op("Concat", g.op("Neg", second), first, axis=-1)
        return g.op("Add", g.op("Mul", y, cos), g.op("Mul", turned, sin))

    def ports(name: str) -> tuple[str, str]:
        if cached:
            shape = ["batch", KV_HEADS, "past", DIM]
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{name}", TensorProto.FLOAT, shape))
        if cached or presents:
            shape = ["batch", KV_HEADS, "past + seq" if cached else "seq", DIM]
            outputs.append(helper.make_tensor_value_info(f"present.{name}", TensorProto.FLOAT, shape))
        return f"past_key_values.{name}", f"present.{name}"

    def cache(y: str, name: str) -> str:
        past, present = ports(name)
        if cached:
            y = g.op("Concat", past, y, axis=2, output=present)
        elif presents:
            y = g.op("Identity", y, output=present)
        wide = g.op("Concat", batch, g.const([KV_HEADS, HEADS // KV_HEADS]), length, g.const([DIM]), axis=0)
        flat = g.op("Concat", batch, g.const([HEADS]), length, g.const([DIM]), axis=0)
        return g.op("Reshape", g.op("Expand", g.op("Unsqueeze", y, g.const([2])), wide), flat)

    for i in range(LAYERS):
        h = norm(x, f"norm{i}")
        q = rotate(heads(g.op("MatMul", h, g.weight(f"q{i}", HIDDEN, HEADS * DIM)), HEADS))
        k = rotate(heads(g.op("MatMul", h, g.weight(f"k{i}", HIDDEN, KV_HEADS * DIM)), KV_HEADS))
        v = heads(g.op("MatMul", h, g.weight(f"v{i}", HIDDEN, KV_HEADS * DIM)), KV_HEADS)
        if opset >= 23:
            (past_k, present_k), (past_v, present_v) = ports(f"{i}.key"), ports(f"{i}.value")
            mixed = g.op("Attention", q, k, v, seen, past_k, past_v, output=[f"mixed{i}", present_k, present_v])
        else:
            k, v = cache(k, f"{i}.key"), cache(v, f"{i}.value")
            scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
            scores = g.op("Softmax", g.op("Add", g.op("Mul", scores, g.const(DIM**-0.5, np.float32)), bias), axis=-1)
            mixed = g.op("MatMul", scores, v)
        mixed = g.op("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = g.op("Reshape", mixed, g.op("Concat", batch, seq, g.const([-1]), axis=0))
        x = g.op("Add", x, g.op("MatMul", joined, g.weight(f"o{i}", HEADS * DIM, HIDDEN)))
        h = norm(x, f"post{i}")
        gate = g.op("MatMul", h, g.weight(f"gate{i}", HIDDEN, FFN))
        h = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), g.op("MatMul", h, g.weight(f"up{i}", HIDDEN, FFN)))
        x = g.op("Add", x, g.op("MatMul", h, g.weight(f"down{i}", FFN, HIDDEN)))
    g.op("MatMul", norm(x, "final"), g.weight("head", HIDDEN, vocab), output="logits")
    graph = helper.make_graph(g.nodes, "decoder", inputs, outputs, g.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def write_folder(folder: pathlib.Path, **options) -> pathlib.Path:
    """A folder as a hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_json()
    vocab = len(json.loads(tokenizer)["model"]["vocab"])
    write_decoder(folder / "model.onnx", vocab, **options)
    (folder / "tokenizer.json").write_text(tokenizer)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "bos_token": "<|start|>"}))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT, "eos_token_id": 0}))
    return folder
