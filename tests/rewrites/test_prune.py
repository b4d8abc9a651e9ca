"""A pruned graph computes what the graph with zeros in place of the pruned channels does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from edgec.errors import EdgecError
from edgec.ir.evaluate import run as evaluate
from edgec.ir.node import Data, Graph, constant, make, topological
from edgec.ir.text import print_graph
from edgec.ir.verify import verify
from edgec.rewrites.examples import f32, graph_of, weights
from edgec.rewrites.pattern import b
from edgec.rewrites.prune import analyse, branches, drop, layers, prune, with_weights
from edgec.testing.feeds import random_feeds
from edgec.testing.graphs import graphs
from edgec.testing.networks import networks

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def chosen(channels, draw):
    """Units to remove: of each group all but at least one, in whole steps."""
    gone = set()
    for group in channels.groups:
        most = (len(group.units) - 1) // group.step
        count = draw(st.integers(0, most)) * group.step
        gone.update(draw(st.permutations(group.units))[:count])
    return gone


def zeroed(channels, gone):
    """The graph in which products read zeros of the units, an oracle that changes no shape."""
    new = {}
    for node, operand, axis in channels.contracts:
        w = node.inputs[operand]
        units = channels.units(w, axis)
        mask = np.isin(units, sorted(gone))
        if mask.any():
            value = w["data"].array().copy()
            np.moveaxis(value, axis, 0)[mask] = 0
            new[node, operand] = constant(value)
    into = {}
    for node in topological([n for _, n in channels.graph.outputs]):
        inputs = [new.get((node, i), into.get(x)) for i, x in enumerate(node.inputs)]
        into[node] = node if node.op in ("input", "constant") else make(node.op, *inputs, **node.attrs)
    return channels.graph.with_outputs([into[n] for _, n in channels.graph.outputs])


def check(graph, draw, seed):
    channels = analyse(graph)
    gone = chosen(channels, draw)
    pruned, _ = prune(channels, gone)
    verify(pruned)
    note(print_graph(graph))
    note(print_graph(pruned))
    feeds = random_feeds(graph, np.random.default_rng(seed))
    before, after = evaluate(zeroed(channels, gone), feeds), evaluate(pruned, feeds)
    for name, value in before.items():
        assert value.shape == after[name].shape and value.dtype == after[name].dtype
        if value.dtype == np.float32:
            finite = np.isfinite(value)
            scale = max(1.0, float(np.abs(value[finite]).max(initial=0)))
            assert np.abs(after[name] - value)[finite].max(initial=0) <= 1e-5 * scale
    return gone


@settings(max_examples=120, deadline=None, suppress_health_check=SLOW)
@given(networks(), st.data(), st.integers(0, 2**16))
def test_networks_equal_the_zeroed_ones(graph, data, seed):
    check(graph, data.draw, seed)


def between_linears(graph):
    """The graph's f32 inputs are results of linears, its outputs are read by some: what is between has free channels."""
    into = {}
    for node in topological([n for _, n in graph.outputs]):
        if node.op == "input" and node.dtype == "f32" and node.rank > 1 and isinstance(node.shape[-1], int):
            into[node] = b.linear(node, weights(node.shape[-1], node.shape[-1], seed=len(into)))
        elif node.op in ("input", "constant"):
            into[node] = node
        else:
            into[node] = make(node.op, *[None if i is None else into[i] for i in node.inputs], **node.attrs)
    outputs = []
    for name, n in graph.outputs:
        y = into[n]
        fits = y.dtype == "f32" and y.rank > 1 and isinstance(y.shape[-1], int)
        outputs.append((name, b.linear(y, weights(2, y.shape[-1], seed=7)) if fits else y))
    return dataclasses.replace(graph, outputs=tuple(outputs))


UNBOUNDED = {"exp", "pow", "div", "sqrt"}  # infinite where a zeroed channel need not be: zero times infinity is no zero


@settings(max_examples=100, deadline=None, suppress_health_check=SLOW)
@given(graphs(max_nodes=8), st.data(), st.integers(0, 2**16))
def test_random_graphs_equal_the_zeroed_ones(graph, data, seed):
    assume(not UNBOUNDED & {n.op for n in graph.nodes()})
    graph = between_linears(graph)
    assume(analyse(graph).groups)
    check(graph, data.draw, seed)


def axes_of(group):
    return sorted((n.shape, a) for n, a in group.axes)


def attention(heads, groups, dim=4, width=8):
    x = f32("x", 1, "s", width)
    q, k, v = (b.linear(x, weights(n * dim, width, seed=i)) for i, n in enumerate((heads, groups, groups)))
    q, k, v = (b.reshape(t, shape=(1, x.shape[1], t.shape[2] // dim, dim)) for t in (q, k, v))
    layout = dict.fromkeys(("q_layout", "k_layout", "v_layout", "out_layout"), "bshd")
    y = b.reshape(b.attention(q, k, v, scale=0.5, **layout), shape=(1, x.shape[1], heads * dim))
    return graph_of(b.linear(y, weights(width, heads * dim, seed=9), None, x))


def test_a_key_head_goes_with_all_queries_that_read_it():
    (group,) = analyse(attention(6, 3)).groups
    assert group.kind == "heads" and len(group.units) == 3
    pruned, _ = prune(analyse(attention(6, 3)), group.units[:1])
    assert sorted(n.inputs[1].shape for n in pruned.nodes() if n.op == "linear") == [(8, 8), (8, 8), (8, 16), (16, 8)]


def test_attention_of_matmuls_has_heads_too():
    x = f32("x", 1, "s", 8)
    q, k, v = (b.reshape(b.linear(x, weights(8, 8, seed=i)), shape=(1, x.shape[1], 2, 4)) for i in range(3))
    q, k, v = (b.transpose(t, perm=(0, 2, 1, 3)) for t in (q, k, v))
    y = b.transpose(b.matmul(b.softmax(b.matmul(q, k, trans_b=True), axis=3), v), perm=(0, 2, 1, 3))
    graph = graph_of(b.linear(b.reshape(y, shape=(1, x.shape[1], 8)), weights(8, 8, seed=4)))
    assert [(g.kind, len(g.units)) for g in analyse(graph).groups] == [("heads", 2)]


def cached(heads=4, groups=2, dim=4, width=8, layers=2):
    """A decoder with its caches as inputs and outputs."""
    x = f32("x", 1, "s", width)
    steps, ports, inputs, stream = x.shape[1], [], [x], x
    layout = {"q_layout": "bshd", "k_layout": "bhsd", "v_layout": "bhsd", "out_layout": "bshd"}
    for layer in range(layers):
        q, k, v = (b.linear(stream, weights(n * dim, width, seed=10 * layer + i))
                   for i, n in enumerate((heads, groups, groups)))  # fmt: skip
        q, k, v = (b.reshape(t, shape=(1, steps, t.shape[2] // dim, dim)) for t in (q, k, v))
        both = []
        for name, new in (("key", k), ("value", v)):
            past = f32(f"past.{layer}.{name}", 1, groups, "t", dim)
            inputs.append(past)
            both.append(b.concat(past, b.transpose(new, perm=(0, 2, 1, 3)), axis=2))
            ports.append((f"present.{layer}.{name}", both[-1]))
        y = b.reshape(b.attention(q, *both, scale=0.5, causal=True, **layout), shape=(1, steps, heads * dim))
        stream = b.linear(y, weights(width, heads * dim, seed=10 * layer + 9), None, stream)
        hidden = b.linear(stream, weights(16, width, seed=10 * layer + 5), act="gelu")
        stream = b.linear(hidden, weights(width, 16, seed=10 * layer + 6), None, stream)
    return Graph(tuple(inputs), (("y", stream), *ports), {"s": (1, None), "t": (0, None)}, "decoder")


CACHES = {f"past.{i}.{n}": f"present.{i}.{n}" for i in range(2) for n in ("key", "value")}


def test_caches_shrink_with_their_heads_where_they_may():
    graph = cached()
    assert {g.kind for g in analyse(graph).groups} == {"ffn"}
    channels = analyse(graph, [*CACHES, *CACHES.values()])
    heads = [g for g in channels.groups if g.kind == "heads"]
    assert len(heads) == 2
    pruned, _ = prune(channels, heads[0].units[:1])
    shapes = {n["name"]: n.shape[1] for n in pruned.inputs if n.rank == 4}
    assert shapes == {n["name"]: 1 if n["name"].startswith("past.0") else 2 for n in graph.inputs if n.rank == 4}
    feeds = random_feeds(graph, np.random.default_rng(0), {"s": 3, "t": 2})
    kept = heads[0].units.index(heads[0].units[1])
    small = {k: v[:, kept : kept + 1] if k.startswith("past.0") else v for k, v in feeds.items()}
    want = evaluate(zeroed(channels, {heads[0].units[0]}), feeds)
    np.testing.assert_allclose(evaluate(pruned, small)["y"], want["y"], rtol=1e-4, atol=1e-5)


def test_what_is_frozen_says_why():
    x = f32("x", "s", 4)
    hidden = b.softmax(b.linear(x, weights(5, 4)), axis=1)
    graph = graph_of(b.linear(hidden, weights(3, 5)))
    channels = analyse(graph)
    assert channels.groups == []
    w = next(n for n in graph.nodes() if n.op == "constant" and n.shape == (5, 4))
    assert channels.frozen(w, 0) == "softmax runs over it"
    assert channels.frozen(w, 1) == "the input 'x' has it"
    with pytest.raises(EdgecError, match=r"EC1305.*softmax runs over it"):
        prune(channels, [int(channels.units(w, 0)[0])])


def ffn(act="relu", rows=16, seed=0):
    x = f32("x", "s", 4)
    hidden = b.linear(x, weights(rows, 4, seed=seed), act=act)
    return graph_of(b.linear(hidden, weights(4, hidden.shape[-1], seed=seed + 1), None, x))


def test_no_axis_is_left_empty_or_of_a_width_that_its_op_cannot_have():
    channels = analyse(ffn())
    with pytest.raises(EdgecError, match=r"EC1305.*nothing would be left of an axis of 16"):
        prune(channels, channels.groups[0].units)
    channels = analyse(ffn("swiglu", 32))
    with pytest.raises(EdgecError, match=r"EC1305.*13 gated columns"):
        prune(channels, channels.groups[0].units[:3])


def test_large_weights_are_read_when_they_are_needed():
    graph = ffn(rows=4096)
    reads = []
    node = next(n for n in graph.nodes() if n.op == "constant" and n.shape == (4096, 4))
    data = node["data"]
    watched = constant(Data(data.type, "watched", data.parts, lambda box: reads.append(box) or data.part(box)))
    graph, _ = with_weights(
        graph, {n: (watched, None) for n in graph.nodes() if n.op == "linear" and n.inputs[1] is node}
    )
    channels = analyse(graph)
    pruned, _ = prune(channels, channels.groups[0].units[:1024])
    assert not reads
    small = next(n for n in pruned.nodes() if n.op == "constant" and n.shape == (3072, 4))
    np.testing.assert_array_equal(small["data"].part((slice(0, 2), slice(1, 3))), data.array()[1024:1026, 1:3])
    assert reads == [(slice(1024, 1026), slice(1, 3))]


def test_layers_are_an_attention_and_what_follows():
    found = branches(cached())
    assert [br.attends for br in found] == [True, False, True, False]
    assert [len(layer) for layer in layers(found)] == [2, 2]


def test_a_dropped_layer_takes_its_caches_along():
    graph = cached()
    smaller = drop(graph, layers(branches(graph))[1], CACHES)
    assert [n["name"] for n in smaller.inputs] == ["x", "past.0.key", "past.0.value"]
    assert [name for name, _ in smaller.outputs] == ["y", "present.0.key", "present.0.value"]
    feeds = random_feeds(graph, np.random.default_rng(0), {"s": 3, "t": 2})
    want = evaluate(cached(layers=1), feeds)
    np.testing.assert_array_equal(evaluate(smaller, feeds)["y"], want["y"])


def test_a_layer_that_others_read_stays():
    graph = cached()
    with pytest.raises(EdgecError, match=r"EC1305.*outside of the branch"):
        drop(graph, layers(branches(graph))[1])


def test_norms_on_the_stream_stay_behind_a_dropped_layer():
    x = f32("x", 1, "s", 4)
    norm = lambda y, seed: b.layer_norm(y, weights(4, seed=seed), axis=2, eps=1e-5)  # noqa: E731
    first = norm(x, 0)
    second = norm(b.linear(b.linear(first, weights(8, 4), act="gelu"), weights(4, 8), None, first), 1)
    graph = graph_of(second)
    (branch,) = branches(graph)
    assert branch.source is x
    assert drop(graph, [branch]).outputs[0][1] is norm(x, 1)


def test_with_weights_changes_what_it_names_alone():
    graph = ffn()
    last = graph.outputs[0][1]
    other, into = with_weights(graph, {last: (weights(4, 16, seed=5), weights(4, seed=6))})
    assert into == {last: other.outputs[0][1]}
    assert other.outputs[0][1].inputs[0] is last.inputs[0]
