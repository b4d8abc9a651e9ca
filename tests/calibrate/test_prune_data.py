"""Structured pruning of small networks with data: what is redundant goes without loss, the rest loses less than without it."""

import numpy as np
import pytest

from edgec.calibrate.data import Calibration
from edgec.calibrate.prune import mask_model, parse, prune_model
from edgec.calibrate.prune.depth import Outputs, change
from edgec.calibrate.prune.sites import Site
from edgec.errors import EdgecError
from edgec.ir.evaluate import run as evaluate
from edgec.ir.node import constant
from edgec.ir.verify import verify
from edgec.rewrites.examples import f32, graph_of, weights
from edgec.rewrites.pattern import b
from edgec.rewrites.prune import branches, drop, layers

WIDTH, HIDDEN = 16, 64


def outputs_of(graph, names, feeds):
    return [[evaluate(graph, feed)[name] for name in names] for feed in feeds]


def c(*shape, seed):
    return weights(*shape, seed=seed, scale=1 / np.sqrt(shape[-1]))


def encoder(layers=3, seed=0, idle=None, norm=True):
    """Attention and feed-forward on tokens [2, 6, 16]; layer `idle` adds next to nothing."""
    x = f32("x", 2, 6, WIDTH)
    layout = dict.fromkeys(("q_layout", "k_layout", "v_layout", "out_layout"), "bshd")
    for i in range(layers):
        s, small = seed + 10 * i, 1e-3 if i == idle else 1.0
        h = b.layer_norm(x, axis=2, eps=1e-5) if norm else x
        q, k, v = (b.reshape(b.linear(h, c(WIDTH, WIDTH, seed=s + j)), shape=(2, 6, 4, 4)) for j in range(3))
        y = b.reshape(b.attention(q, k, v, scale=0.5, **layout), shape=(2, 6, WIDTH))
        x = b.linear(y, weights(WIDTH, WIDTH, seed=s + 3, scale=small / 4), c(WIDTH, seed=s + 6), x)
        h = b.layer_norm(x, axis=2, eps=1e-5) if norm else x
        hidden = b.linear(h, c(HIDDEN, WIDTH, seed=s + 4), act="gelu")
        x = b.linear(hidden, weights(WIDTH, HIDDEN, seed=s + 5, scale=small / 8), None, x)
    return graph_of(x)


def calibration(graph, runs=6, seed=0):
    rng = np.random.default_rng(seed)
    shape = [d for d in graph.inputs[0].shape]
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(runs)]
    return Calibration(feeds, [None] * runs, runs, "test")


def loss(graph, pruned, seed=1):
    """1 - cosine of the output on data that nothing was fitted to."""
    feeds = calibration(graph, 2, seed).feeds
    want, got = ([[evaluate(g, f)["y0"]] for f in feeds] for g in (graph, pruned))
    return change(want, got, [None] * len(feeds), False)


def test_fitted_weights_lose_less_than_plain_removal():
    graph = encoder()
    found = prune_model(graph, parse("ffn=50%,heads=25%", None), lambda: calibration(graph))
    plain = prune_model(graph, parse("ffn=50%,heads=25%", None), lambda: calibration(graph), refit=False)
    verify(found.graph)
    assert found.method == "least squares"
    assert sum(r["before"] - r["after"] for r in found.removed if r["kind"] == "ffn") == 96
    assert sum(r["before"] - r["after"] for r in found.removed if r["kind"] == "heads") == 3
    assert loss(graph, found.graph) < 0.7 * loss(graph, plain.graph)


def test_hidden_channels_that_depend_on_others_go_without_loss():
    x = f32("x", 1, 8, WIDTH)
    up = c(HIDDEN, WIDTH, seed=0)["data"].array().copy()
    up[HIDDEN // 2 :] = up[: HIDDEN // 2]
    graph = graph_of(b.linear(b.linear(x, constant(up), act="relu"), c(WIDTH, HIDDEN, seed=1), None, x))
    found = prune_model(graph, parse("ffn=50%", None), lambda: calibration(graph, 60))
    magnitude = prune_model(graph, parse("ffn=50%", None))
    assert magnitude.method == "magnitude"
    assert loss(graph, found.graph) < min(2e-3, 0.05 * loss(graph, magnitude.graph))


def test_the_layer_that_does_least_is_dropped():
    graph = encoder(idle=1)
    found = prune_model(graph, parse("layers=1", None), lambda: calibration(graph, 30))
    assert len(found.dropped) == 2 and found.removed == []
    assert sum(n.op == "attention" for n in found.graph.nodes()) == 2
    assert loss(graph, found.graph) < 1e-3
    assert abs(found.work - 2 / 3) < 1e-6


def test_outputs_without_branches_are_those_of_the_graph_that_dropped_them():
    graph = encoder(layers=3)
    found = calibration(graph, 3)
    runs, names = layers(branches(graph)), [n for n, _ in graph.outputs]
    outputs = Outputs(graph, [b for run in runs for b in run], names, found.feeds)
    for gone in ([], runs[1], [runs[0][0], runs[1][1]], [*runs[1], *runs[2]]):
        want = [evaluate(drop(graph, gone), feed) for feed in found.feeds]
        for got, w in zip(outputs.without(gone), want, strict=True):
            for name, value in zip(names, got, strict=True):
                np.testing.assert_allclose(value, w[name], rtol=0, atol=1e-4 * np.abs(w[name]).max())
    assert len(outputs.calls) == 1


def test_attention_alone_goes_where_it_does_least():
    graph = encoder(idle=1)
    found = prune_model(graph, parse("attention=1", None), lambda: calibration(graph, 30))
    assert len(found.dropped) == 1 and found.removed == []
    assert sum(n.op == "attention" for n in found.graph.nodes()) == 2
    assert len(branches(found.graph)) == len(branches(graph)) - 1
    assert loss(graph, found.graph) < 1e-3


def test_attentions_go_beside_whole_layers():
    graph = encoder(layers=4, idle=2)
    found = prune_model(graph, parse("layers=1,attention=2", None), lambda: calibration(graph), refit=False)
    assert len(found.dropped) == 4
    assert sum(n.op == "attention" for n in found.graph.nodes()) == 1 and len(branches(found.graph)) == 4
    runs = layers(branches(graph))
    both = {
        i: loss(graph, drop(graph, [*runs[2], *(runs[j][0] for j in (0, 1, 3) if j != i)]), seed=0) for i in (0, 1, 3)
    }
    assert loss(graph, found.graph, seed=0) <= 1.2 * min(both.values())


def test_layers_that_do_least_go_one_after_the_other():
    graph = encoder(layers=4, idle=2)
    found = prune_model(graph, parse("layers=2", None), lambda: calibration(graph), refit=False)
    assert len(found.dropped) == 4
    runs = layers(branches(graph))
    lost = {
        i: loss(graph, drop(graph, runs[min(i, 2)] + runs[max(i, 2)]), seed=0) for i in range(4) if i != 2
    }  # beside the idle one
    assert loss(graph, found.graph, seed=0) <= 1.2 * min(lost.values())


def test_a_dropped_layer_is_made_up_for_by_the_one_before():
    graph = encoder()
    found = prune_model(graph, parse("layers=1", None), lambda: calibration(graph, 20))
    plain = prune_model(graph, parse("layers=1", None), lambda: calibration(graph, 20), refit=False)
    assert found.dropped == plain.dropped
    assert loss(graph, found.graph) < 0.9 * loss(graph, plain.graph)


def image(seed=0):
    conv = {"strides": (1, 1), "dilations": (1, 1)}
    x = f32("x", 2, 3, 8, 8)
    y = b.conv(x, c(16, 3, 3, 3, seed=seed), None, None, pads=(1,) * 4, act="relu", **conv)
    y = b.conv(y, c(16, 1, 3, 3, seed=seed + 1), None, None, pads=(1,) * 4, act="relu", group=16, **conv)
    y = b.conv(y, c(8, 16, 1, 1, seed=seed + 2), weights(8, seed=9), None, pads=(0,) * 4, **conv)
    return graph_of(b.conv(y, c(4, 8, 3, 3, seed=seed + 3), None, None, pads=(1,) * 4, **conv))


def test_convolutions_shrink_through_depthwise_ones():
    graph = image()
    request = parse("conv=40%,allocation=uniform", None)
    found = prune_model(graph, request, lambda: calibration(graph, 8))
    plain = prune_model(graph, request, lambda: calibration(graph, 8), refit=False)
    assert [n.shape[1] for n in found.graph.nodes() if n.op == "conv"] == [8, 8, 4, 4]
    assert loss(graph, found.graph) < 0.8 * loss(graph, plain.graph)


def test_rows_of_a_convolution_are_its_patches():
    graph = image()
    feeds = calibration(graph, 1).feeds
    values = {}
    evaluate(graph, feeds[0], lambda node, value: values.__setitem__(node, value))
    node = graph.outputs[0][1]
    s = Site(node)
    x = values[node.inputs[0]]
    rows, out = s.rows_in(x, None, 3), s.rows_out(values[node], x.shape, None, 3)
    np.testing.assert_allclose(rows @ s.matrix().T, out, rtol=1e-4, atol=1e-5)


def test_masks_keep_shapes_and_data_helps():
    graph = encoder()
    lost = {}
    for method in ("magnitude", "wanda", "sparsegpt"):
        sparse, report = mask_model(graph, method, (2, 4), lambda: calibration(graph))
        assert [n.type for n in sparse.nodes() if n.op == "linear"] == [
            n.type for n in graph.nodes() if n.op == "linear"
        ]
        assert len(report) == 18 and all(row["zeros"] == 0.5 for row in report)
        lost[method] = loss(graph, sparse)
    assert lost["sparsegpt"] < lost["wanda"] and lost["sparsegpt"] < lost["magnitude"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("layers=3", "layers=3 is too many: the model has 3"),
     ("layers=1,attention=2", "attention=2 and layers=1 are too many: 3 layers have attention"),
     ("conv=20%", "no conv that can be removed"),
     ("ffn=99%", "99% of 192 ffn channels cannot go")],
)  # fmt: skip
def test_nothing_is_read_for_a_request_that_cannot_be_met(text, reason):
    def load():
        raise AssertionError("it was read")

    with pytest.raises(EdgecError, match=rf"EC1305.*{reason}"):
        prune_model(encoder(), parse(text, None), load)


@pytest.mark.parametrize("text", ["layers=1", "wanda:2:4"])
def test_what_needs_data_says_so(text):
    graph, request = encoder(), parse(text, None)
    with pytest.raises(EdgecError, match=r"EC1305.*--calib"):
        if request.mask:
            mask_model(graph, *request.mask, None)
        else:
            prune_model(graph, request)


def test_activations_that_are_not_finite_are_named():
    graph = encoder(norm=False)
    feeds = calibration(graph).feeds
    feeds[0]["x"][:] = 1e38
    broken = Calibration(feeds, [None] * len(feeds), len(feeds), "test")
    with pytest.raises(EdgecError, match=r"EC1302.*not finite"):
        prune_model(graph, parse("ffn=50%", None), lambda: broken)


def test_outputs_are_those_asked_for():
    graph = encoder(1)
    feeds = calibration(graph, 1).feeds
    np.testing.assert_allclose(
        outputs_of(graph, ["y0"], feeds)[0][0], evaluate(graph, feeds[0])["y0"], rtol=1e-4, atol=1e-4
    )
