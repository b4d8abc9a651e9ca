"""Random ONNX graphs give the same numbers in the numpy reference, compiled, and in onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from hypothesis import HealthCheck, given, settings
from property.onnx_graphs import onnx_graphs

import edgec
from edgec import frontend
from edgec.ir import evaluate


def close(got: np.ndarray, want: np.ndarray, who: str) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype, (
        f"{who}: {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
    )
    scale = max(1.0, float(np.max(np.abs(want), initial=0)))
    worst = float(np.max(np.abs(got.astype(np.float64) - want), initial=0))
    assert worst <= 2e-4 * scale, f"{who}: departs by {worst} where the largest value is {scale}"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(onnx_graphs())
def test_reference_compiled_and_onnxruntime_agree(tmp_path_factory, case):
    model, runs = case
    onnx.checker.check_model(model)
    peer = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    path = tmp_path_factory.mktemp("random") / "model.edgec"
    edgec.build(model, weights="fp32", out=path)
    session = edgec.load(path, threads=2)
    graph = frontend.load(model)
    for feeds in runs:
        want = dict(zip([o.name for o in model.graph.output], peer.run(None, feeds)))
        reference, compiled = evaluate.run(graph, feeds), session(**feeds)
        assert list(reference) == list(compiled) == list(want)
        for name, value in want.items():
            close(reference[name], value, f"reference {name}")
            close(compiled[name], value, f"compiled {name}")
