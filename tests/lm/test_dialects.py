"""Decoders as different tools write them: each keeps its cache in the session and gives the same text."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from lm_tools import write_folder

PROMPTS = ["The quick brown", "A language model"]


@pytest.mark.parametrize("options", ({"merged": True}, {"opset": 23}, {"opset": 24}), ids=("merged", "23", "24"))
def test_the_cache_becomes_state(options, load, tmp_path):
    import edgec

    folder = write_folder(tmp_path / "other", **options)
    edgec.build(folder, weights="fp32", out=tmp_path / "lm.edgec")
    lm, plain = edgec.load(tmp_path / "lm.edgec", threads=1), load("state")
    assert lm.lm["states"] and [p.name for p in lm.inputs] == [p.name for p in plain.inputs]
    for prompt in PROMPTS:
        assert "".join(lm.generate(prompt, 24)) == "".join(plain.generate(prompt, 24))


def test_merged_and_exposed(load, tmp_path):
    """Beside onnxruntime: with the branch that has a past, and without one."""
    import edgec
    from edgec.cli.compare import Source

    folder = write_folder(tmp_path / "merged", merged=True)
    edgec.build(folder, weights="fp32", kv_cache="exposed", out=tmp_path / "lm.edgec")
    lm, plain = edgec.load(tmp_path / "lm.edgec", threads=1), load("state")
    for prompt in PROMPTS:
        assert "".join(lm.generate(prompt, 24)) == "".join(plain.generate(prompt, 24))
    source = Source(folder)
    feeds = {
        "input_ids": np.array([[5, 6, 7]]),
        "attention_mask": np.ones((1, 3), np.int64),
        "position_ids": np.arange(3)[None],
    }
    feeds |= {i: np.zeros((1, 2, 0, 16), np.float32) for i in source.inputs if "past" in i}
    want = source.run(feeds)["logits"]
    np.testing.assert_allclose(lm.run(["logits"], feeds)[0], want, atol=1e-4)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (other,) = session.run(["logits"], feeds | {"use_cache_branch": np.array([False])})
    np.testing.assert_allclose(other, want, atol=1e-4)
