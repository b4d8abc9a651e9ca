"""Values inside of a graph: the evaluator's, however the graph is cut into stages."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgec.calibrate import data
from edgec.calibrate.capture import Stream, capture, stages_of
from edgec.errors import EdgecError
from edgec.ir.evaluate import run
from edgec.ir.node import Graph, constant
from edgec.ir.types import TensorType
from edgec.rewrites.examples import f32, weights
from edgec.rewrites.pattern import b
from edgec.testing.feeds import random_env, random_feeds
from edgec.testing.graphs import graphs


def evaluated(graph: Graph, feeds) -> dict:
    found = {}
    with np.errstate(all="ignore"):
        run(graph, feeds, watch=lambda node, value: found.__setitem__(node, value))
    return found


def close(got: np.ndarray, want: np.ndarray) -> bool:
    want = np.asarray(want)
    finite = np.abs(want[np.isfinite(want)]) if want.dtype.kind == "f" else np.abs(want.astype(np.float64))
    scale = finite.max(initial=1e-6)
    return got.shape == want.shape and np.allclose(got, want, rtol=1e-4, atol=1e-4 * scale, equal_nan=True)


@given(graph=graphs(max_nodes=8), seed=st.integers(0, 99), picks=st.sets(st.integers(0, 20), min_size=1, max_size=3))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
def test_stages_give_the_values_of_the_whole_graph(graph, seed, picks):
    rng = np.random.default_rng(seed)
    env = random_env(graph, rng)
    feeds = [random_feeds(graph, rng, env) for _ in range(2)]
    order = [n for n in graph.nodes() if n.op not in ("constant", "input") and isinstance(n.type, TensorType)]
    if not order:
        return
    # from order to order, so that stages start in the middle of the graph
    wanted = sorted({p % len(order) for p in picks})
    stream = Stream(graph, feeds)
    stream.expect([order[i] for i in wanted])
    want = [evaluated(graph, f) for f in feeds]
    for at in wanted:
        for number, values in stream.run([order[at]]):
            assert close(values[order[at]], want[number][order[at]])


def test_decoder_is_captured_at_all_positions(lm, tmp_path):
    graph, files = lm
    path = tmp_path / "t.txt"
    path.write_text("\n".join(f"{i}: language models continue texts, naïve cafés." for i in range(60)))
    feeds = data.load(path, graph, files, length=16, limit=3).feeds
    nodes = [n.inputs[0] for n in graph.nodes() if n.op == "linear"] + [dict(graph.outputs)["logits"]]
    want = [evaluated(graph, f) for f in feeds]
    for nbytes in (1, 1 << 30):
        seen = set()
        stages = list(stages_of(graph, nodes, nbytes))
        assert len(stages) == (1 if nbytes > 1 else len(set(nodes)))
        stream = Stream(graph, feeds)
        for stage in stages:
            for number, values in stream.run(stage):
                for node, value in values.items():
                    seen.add((node, number))
                    assert close(value, want[number][node])
        assert len(seen) == 3 * len(set(nodes))
        assert not any(stream._values), "values are kept that nothing reads"


def test_weights_can_stand_for_others():
    x = f32("x", "n", 64)
    first, second = weights(64, 64, seed=1), weights(32, 64, seed=2)
    hidden = b.linear(x, first)
    graph = Graph((x,), (("y", b.linear(hidden, second)),), {"n": (1, None)})
    from edgec.ir.types import Quantized
    from edgec.rewrites.encode import encoded

    new, _ = encoded(first["data"], Quantized(8, 32))
    feeds = [{"x": np.random.default_rng(0).standard_normal((5, 64), np.float32)}]
    got = next(v[hidden] for _, v in Stream(graph, feeds, {first["data"].key: new}).run([hidden]))
    exact = feeds[0]["x"] @ first["data"].array().T
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 2e-2


def test_feeds_that_do_not_fit():
    x = f32("x", "n", 4)
    y = b.neg(x)
    graph = Graph((x,), (("y", y),), {"n": (1, None)})

    def seen(node, value, number):
        raise AssertionError

    cases = (({}, "missing"), ({"x": np.zeros((2, 5), np.float32)}, "axis 1"), ({"x": np.zeros((2, 4))}, "float64"))
    for feed, says in cases:
        with pytest.raises(EdgecError, match=f"EC1302.*{says}"):
            capture(graph, [y], [feed], seen)
    with pytest.raises(ValueError, match="not of the graph"):
        list(stages_of(graph, [constant(1.0)]))
