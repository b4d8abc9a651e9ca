"""Calibrated quantization of whole graphs: outputs nearer to fp32's, the report, and the cache."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from edgec.cache import Store
from edgec.calibrate import data
from edgec.calibrate.capture import Stream, capture, stages_of
from edgec.calibrate.quantize import sites, solve
from edgec.errors import EdgecError
from edgec.ir.node import Graph, constant
from edgec.rewrites.examples import f32, i64, weights
from edgec.rewrites.pattern import b
from edgec.rewrites.quantize import Options, products, quantize

STEPS = 64


def chain(width: int = 96, layers: int = 3) -> Graph:
    """Linears with residuals behind each other; what they are given is correlated."""
    x = f32("x", "n", STEPS, width)
    mixed = b.matmul(x, weights(width, width, seed=99, scale=0.4))
    y = b.add(x, mixed)
    for i in range(layers):
        hidden = b.linear(y, weights(2 * width, width, seed=3 * i, scale=0.1), act="gelu")
        y = b.linear(hidden, weights(width, 2 * width, seed=3 * i + 1, scale=0.1), None, y)
    return Graph((x,), (("y", y),), {"n": (1, None)})


def calibration(graph: Graph, tmp_path, samples: int = 24, seed: int = 0) -> data.Calibration:
    shape = graph.inputs[0].shape[1:]
    x = np.random.default_rng(seed).standard_normal((samples, *shape)).astype(np.float32)
    np.savez(tmp_path / f"c{seed}.npz", x=x)
    return data.load(tmp_path / f"c{seed}.npz", graph, limit=samples)


def output_error(graph: Graph, quantized: Graph, feeds) -> float:
    values: list[list[np.ndarray]] = [[], []]
    for found, g in zip(values, (graph, quantized)):
        capture(g, [g.outputs[0][1]], feeds, lambda node, value, number, found=found: found.append(value))
    want, got = (np.concatenate([v.reshape(-1) for v in found]) for found in values)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("scheme", ["best", "table"])
def test_outputs_come_nearer(tmp_path, scheme):
    graph = chain()
    options = Options(scheme=scheme)
    options = replace(
        options, plan={s.readers[0].inputs[1]["data"].key: e for s in sites(graph) for e in [_int4(scheme)]}
    )
    made, held = calibration(graph, tmp_path), calibration(graph, tmp_path, 8, seed=1)
    errors = {}
    for name, o in {
        "none": options,
        "alone": solve(graph, made, options, correction=0),
        "whole": solve(graph, made, options),
    }.items():
        quantized, report = quantize(graph, o)
        assert len(report) == 6 and all(c["bits"] == 4 for c in report)
        assert all((c["output_snr_db"] is None) == (name == "none") for c in report)
        errors[name] = output_error(graph, quantized, held.feeds)
    assert errors["whole"] < errors["alone"] < errors["none"]
    assert errors["whole"] < 0.8 * errors["none"], errors


def test_corrections_do_not_follow_chance(tmp_path):
    """Many layers behind each other, few rows a column: each one's chance would add up to what the rest gains."""
    graph = chain(96, 12)
    plan = {s.readers[0].inputs[1]["data"].key: _int4("table") for s in sites(graph)}
    options = Options(scheme="table", plan=plan)
    made, held = calibration(graph, tmp_path, 16), calibration(graph, tmp_path, 8, seed=1)
    alone, whole = (
        output_error(graph, quantize(graph, solve(graph, made, options, **o))[0], held.feeds)
        for o in ({"correction": 0}, {})
    )
    assert whole < 0.9 * alone


def _int4(scheme: str):
    from edgec.ir.types import Quantized

    return Quantized(4, 32, table=scheme == "table", zero=scheme != "table")


def test_a_second_build_finds_the_weights(tmp_path, monkeypatch):
    graph = chain(64, 2)
    made = calibration(graph, tmp_path, 8)
    folder = tmp_path / "cache"
    first = quantize(graph, solve(graph, made, Options(store=Store(folder))))
    monkeypatch.setattr(Stream, "run", None)  # nothing is computed again
    store = Store(folder)
    again = quantize(graph, solve(graph, made, Options(store=store)))
    assert store.hits == 4 and again[1] == first[1]
    for a, c in zip(first[0].nodes(), again[0].nodes()):
        assert a.op == c.op
        if a.op == "constant":
            assert np.array_equal(a["data"].array(), c["data"].array())
    other = calibration(graph, tmp_path, 8, seed=1)
    with pytest.raises(TypeError):  # other data: the stream runs
        solve(graph, other, Options(store=Store(folder)))


def test_decoder_is_calibrated(lm, tmp_path):
    graph, files = lm
    path = tmp_path / "t.txt"
    path.write_text("\n".join(f"{i * i}: language models continue naïve cafés {i}." for i in range(900)))
    found = data.load(path, graph, files, length=64, limit=20)
    options = Options(scheme="table", plan={s.readers[0].inputs[1]["data"].key: _int4("table") for s in sites(graph)})
    _, report = quantize(graph, solve(graph, found, options))
    fitted = [c for c in report if c["output_snr_db"] is not None]
    assert len(fitted) >= 8 and all(c["output_snr_db"] > 10 for c in fitted)


def test_products_of_convolutions_are_calibrated():
    x, w = f32("x", 1, 256, 4, 5), weights(256, 256, 1, 1, scale=0.1)
    graph = Graph((x,), (("y", b.conv(x, w, strides=(1, 1), pads=(0,) * 4, dilations=(1, 1))),))
    graph = products(graph, Options())
    assert len(sites(graph)) == 1


def test_values_that_are_no_numbers(tmp_path):
    x = f32("x", "n", STEPS, 64)
    big = b.exp(b.mul(x, weights(64, scale=1e6)))
    graph = Graph((x,), (("y", b.linear(big, weights(128, 64))),), {"n": (1, None)})
    with pytest.raises(EdgecError, match=r"EC1302.*too large or no number"):
        solve(graph, calibration(graph, tmp_path, 40), Options())


def test_a_tied_table_of_4_bits_is_fitted_to_the_head(tmp_path):
    ids, rng = i64("ids", "n", STEPS), np.random.default_rng(0)
    table = rng.standard_normal((1200, 64)).astype(np.float32)
    mix = weights(64, 64, seed=5, scale=0.3)
    x = b.rms_norm(b.matmul(b.gather(constant(table), ids, axis=0), mix), weights(64, seed=6), axis=2, eps=1e-5)
    y = b.linear(x, constant(table))
    graph = Graph((ids,), (("y", y),), {"n": (1, None)})
    np.savez(tmp_path / "c.npz", ids=rng.integers(0, 1200, (16, STEPS)))
    found = data.load(tmp_path / "c.npz", graph)
    options = Options(embedding=4, scheme="table")
    plainly, fitted = (quantize(graph, o) for o in (options, solve(graph, found, options)))
    for quantized, report in (plainly, fitted):
        assert [(c["role"], c["bits"]) for c in report] == [("tied", 4)]
        tables = {n["data"].key for n in quantized.nodes() if n.op == "constant" and n.type.encoding is not None}
        assert len(tables) == 1
    errors = [output_error(graph, q, found.feeds) for q, _ in (plainly, fitted)]
    assert errors[1] < 0.95 * errors[0], errors


def test_an_interrupted_calibration_goes_on_where_it_was(tmp_path, monkeypatch):
    small = functools.partial(stages_of, nbytes=1)
    monkeypatch.setattr("edgec.calibrate.quantize.stages_of", small)  # several stages on the way back
    graph = chain(64, 3)
    made = calibration(graph, tmp_path, 8)
    whole = quantize(graph, solve(graph, made, Options(store=Store(tmp_path / "whole"))))
    runs, real, left = [], Stream._compile, 5

    def stop(done, total):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(
        Stream, "_compile", lambda self, outputs, env: runs.append(len(outputs)) or real(self, outputs, env)
    )
    store = Store(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        solve(graph, made, Options(store=store), tick=stop)
    first, store = len(runs), Store(tmp_path / "cut")
    ticks: list[tuple[int, int]] = []
    again = quantize(graph, solve(graph, made, Options(store=store), tick=lambda *share: ticks.append(share)))
    assert ticks[4][0] == 0 and ticks[-1][0] == ticks[-1][1] == 2 * 64 * 64  # what was found is no part of the work
    assert store.hits == 5 and len(runs) > first + 4
    assert again[1] == whole[1]
    for a, c in zip(whole[0].nodes(), again[0].nodes(), strict=True):
        if a.op == "constant":
            assert np.array_equal(a["data"].array(), c["data"].array())


def same(a: Options, c: Options) -> bool:
    return all(np.array_equal(x.data.array(), y.data.array()) for x, y in zip(a.solved.values(), c.solved.values()))


def test_few_rows_leave_the_fp32_stream_alone(tmp_path, monkeypatch):
    """Where corrections would fit noise, nothing is computed for them; a layer that has the rows finds its values."""
    graph, runs, real = chain(96, 2), [], Stream.run
    monkeypatch.setattr(Stream, "run", lambda self, nodes: runs.append(self) or real(self, nodes))
    few = calibration(graph, tmp_path, 4)  # 256 rows for 96 and 192 columns
    one = solve(graph, few, Options())
    assert len(set(map(id, runs))) == 1 and len(runs) == 4
    assert same(one, solve(graph, few, Options(), correction=0))
    assert not same(one, solve(graph, few, Options(), damp=0.5))
    runs.clear()
    more = calibration(graph, tmp_path, 8)  # 512 rows: enough for 96 columns only
    two = solve(graph, more, Options())
    counts = sorted(runs.count(r) for r in set(runs))
    assert counts == [3, 4]  # the fp32 one passes what lies between its sites
    runs.clear()
    monkeypatch.setattr("edgec.calibrate.quantize.stages_of", functools.partial(stages_of, nbytes=1))
    assert same(two, solve(graph, more, Options()))
