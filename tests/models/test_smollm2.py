"""SmolLM2-135M in fp32: greedy text token by token as onnxruntime's with explicit caches, of both torch exporters and
in the dialects of other tools (smollm2-plain, smollm2-genai: the same weights by synth_lm.py --from).

EDGEC_SMOLLM2_PROMPTS: how many of the prompts (default 2).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
tokenizers = pytest.importorskip("tokenizers", reason="the lm extra is not installed")

MODELS = Path(os.environ.get("EDGEC_MODELS", Path.home() / ".cache/edgec-models"))
NEW = 12
PROMPTS = [
    "The capital of France is", "Once upon a time", "Water boils at", "def add(a, b):", "The first president of the",
    "To make tea, you", "In 1969,", "The sun is", "My favourite book", "A triangle has", "Photosynthesis is",
    "The stock market", "She opened the door and", "import numpy as np", "1, 2, 3, 4,", "Dear Sir or Madam,",
    "The quick brown fox", "Yesterday it rained, so", "The theory of relativity", "Bread is made of",
]  # fmt: skip


DIM = 64


def greedy(source, ids: list[int]) -> list[int]:
    """The next tokens by onnxruntime, its caches passed from step to step."""
    inputs = {i.name: i for i in source.get_inputs()}
    outputs = [o.name for o in source.get_outputs()]
    caches = {n: np.zeros((1, i.shape[1], 0, DIM), np.float32) for n, i in inputs.items() if "past" in n}
    found: list[int] = []
    step, total = ids, len(ids)
    while len(found) < NEW:
        feeds = {
            "input_ids": [step],
            "attention_mask": [[1] * total],
            "position_ids": [range(total - len(step), total)],
        }
        feeds = {n: np.array([list(v[0])], np.int64) for n, v in feeds.items() if n in inputs} | caches
        results = dict(zip(outputs, source.run(outputs, feeds)))
        found.append(int(results["logits"][0, -1].argmax()))
        caches = {n: results[n.replace("past_key_values", "present")] for n in caches}
        step, total = found[-1:], total + 1
    return found


def kept(session, ids: list[int]) -> list[int]:
    """The same by the session's own cache, and logits of the last position only."""
    session.set_length(0, 0)
    found: list[int] = []
    step, total = ids, len(ids)
    while len(found) < NEW:
        places = np.arange(total - len(step), total)[None]
        feeds = {"input_ids": np.array([step]), "attention_mask": np.ones((1, total), np.int64), "position_ids": places}
        feeds = {p.name: feeds[p.name] for p in session.inputs}
        (logits,) = session.run(["logits"], feeds, slots=[0], parameters={"logits": 1})
        found.append(int(logits[0, -1].argmax()))
        step, total = found[-1:], total + 1
    return found


@pytest.mark.parametrize("export", ("smollm2", "smollm2-torchscript", "smollm2-plain", "smollm2-genai"))
def test_greedy_text(export, tmp_path):
    import edgec

    model = MODELS / export / "model.onnx"
    if not model.is_file():
        how = (
            "make models"
            if export in ("smollm2", "smollm2-torchscript")
            else "synth_lm.py smollm2-135m --from makes it"
        )
        pytest.skip(f"{export} is not there: {how}")
    edgec.build(model, weights="fp32", out=tmp_path / "lm.edgec", max_context=64)
    session = edgec.load(tmp_path / "lm.edgec")
    session.reserve(1, 64)
    source = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    encode = tokenizers.Tokenizer.from_file(str(model.parent / "tokenizer.json")).encode
    for prompt in PROMPTS[: int(os.environ.get("EDGEC_SMOLLM2_PROMPTS", "2"))]:
        ids = encode(prompt).ids
        assert kept(session, ids) == greedy(source, ids), prompt
