"""What exporters write is recognised in real models, and the rewritten graph keeps the source's numbers."""

import collections

import numpy as np
import pytest

from edgec.frontend import load
from edgec.ir.dims import evaluate as dim_value
from edgec.ir.evaluate import run as evaluate
from edgec.ir.types import numpy_dtype
from edgec.ir.verify import verify
from edgec.rewrites import PHASES, run

WANTED = {
    "minilm": {"attention": 6, "layer_norm": 13, "linear": 36, "softmax": 0, "erf": 0, "transpose": 0, "matmul": 0},
    "smollm2": {"attention": 30, "rms_norm": 61, "linear": 181, "softmax": 0, "sigmoid": 0, "matmul": 0},
    "smollm2-torchscript": {"attention": 30, "rms_norm": 61, "linear": 181, "softmax": 0, "sigmoid": 0, "matmul": 0},
    "ppocr-rec": {"attention": 2, "layer_norm": 5, "linear": 9, "conv": 38, "matmul": 0, "sqrt": 0, "sigmoid": 0},
    "ppocr-cls": {"conv": 53, "linear": 1, "add": 0},
    "magika": {"layer_norm": 1, "softmax": 1, "linear": 1, "gather": 1, "tanh": 0, "exp": 0},
    "nudenet": {"conv": 64, "sigmoid": 1, "silu": 0},
}


@pytest.mark.parametrize("name", WANTED)
def test_ops_after_the_rewrites(model, name):
    graph = run(load(model(name)), PHASES)
    verify(graph)
    ops = collections.Counter(n.op for n in graph.nodes())
    assert {op: ops[op] for op in WANTED[name]} == WANTED[name]


SIZES = {"ppocr-rec": 48, "ppocr-cls": 48, "silero-vad": 576, "silero-vad-sequence": 3, "mtcnn-pnet": 20}


@pytest.mark.parametrize(
    "name",
    ["minilm", "magika", "ppocr-rec", "ppocr-cls", "silero-vad-sequence", "mtcnn-pnet", "mtcnn-rnet", "tashkeel"],
)
def test_numbers_after_the_rewrites(model, name):
    graph = load(model(name))
    size = SIZES.get(name, 5)
    env = {s: min(size, hi or size) for s, (_, hi) in graph.symbols.items()}
    rng = np.random.default_rng(0)
    feeds = {}
    for i, node in enumerate(graph.inputs):
        shape = tuple(dim_value(d, env) for d in node.shape)
        if i == 0 and len(shape) == 4:
            shape = (1, *shape[1:])
            env |= {str(d): 1 for d in node.shape[:1] if not isinstance(d, int)}
        ints = rng.integers(0, 2, shape)
        feeds[node["name"]] = np.asarray(
            ints if node.dtype.startswith(("i", "u")) else rng.standard_normal(shape), numpy_dtype(node.dtype)
        )
    before, after = evaluate(graph, feeds), evaluate(run(graph, PHASES), feeds)
    for key, value in before.items():
        assert after[key].shape == value.shape and after[key].dtype == value.dtype
        assert np.abs(after[key] - value).max() <= 2e-5 * np.abs(value).max()
