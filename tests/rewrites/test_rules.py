"""One test walks all rules: each fires on its examples, keeps types, comes to rest, keeps its promise, and leaves
near misses alone."""

import numpy as np
import pytest

from edgec.ir.evaluate import run as evaluate
from edgec.ir.verify import verify
from edgec.rewrites import PHASES, Record, all_rules, apply
from edgec.rewrites.engine import may_replace
from edgec.rewrites.examples import graph_of
from edgec.testing.feeds import random_feeds

RULES = all_rules()
EXAMPLES = [pytest.param(r, e, id=f"{r.name}-{i}") for r in RULES for i, e in enumerate(r.examples)]
MISSES = [pytest.param(r, e, id=f"{r.name}-{i}") for r in RULES for i, e in enumerate(r.misses)]


def test_every_rule_has_examples_and_a_name_of_its_own():
    assert [r.name for r in RULES if not r.examples] == []
    names = [r.name for r in RULES]
    assert len(set(names)) == len(names)
    assert {r.promise.partition(":")[0] for r in RULES} <= {"exact", "ulp", "lossy"}


def assert_promise(promise: str, before, after):
    """ulp: in units in the last place of the largest finite magnitude of the tensor."""
    assert before.dtype == after.dtype and before.shape == after.shape
    if promise == "exact":
        np.testing.assert_array_equal(after, before)
    elif promise == "lossy":
        before, after = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
        assert np.linalg.norm(after - before) <= 0.25 * np.linalg.norm(before) + 1e-12
    else:
        ulps = int(promise.removeprefix("ulp:"))
        with np.errstate(all="ignore"):
            difference = np.abs(after - before)
        same = (before == after) | (np.isnan(before) & np.isnan(after))
        finite = np.abs(before[np.isfinite(before)])
        bound = ulps * np.finfo(before.dtype).eps * (finite.max() if finite.size else 0)
        assert (difference[~same] <= bound).all(), (before, after)


@pytest.mark.parametrize("rule, example", EXAMPLES)
def test_rule_fires_and_keeps_its_promise(rule, example):
    graph = graph_of(example())
    verify(graph)
    record = Record()
    after = apply(graph, [rule], record=record)
    assert record.counts().get(rule.name), record.refused
    assert may_replace(after.outputs[0][1].type, graph.outputs[0][1].type)
    verify(after)
    again = Record()
    assert apply(after, [rule], record=again).outputs == after.outputs and not again.fired
    for seed in range(5):
        feeds = random_feeds(graph, np.random.default_rng(seed))
        assert_promise(rule.promise, evaluate(graph, feeds)["y0"], evaluate(after, feeds)["y0"])


@pytest.mark.parametrize("rule, example", MISSES)
def test_rule_leaves_near_misses_alone(rule, example):
    graph = graph_of(example())
    record = Record()
    apply(graph, [rule], record=record)
    assert not record.fired


@pytest.mark.parametrize("rule, example", EXAMPLES + MISSES)
def test_all_phases_keep_every_example(rule, example):
    graph = graph_of(example())
    for phase in PHASES:
        rules = phase.rules(graph) if callable(phase.rules) else phase.rules
        after = apply(graph, rules, phase.name)
        verify(after)
        feeds = random_feeds(graph, np.random.default_rng(7))
        try:
            before = evaluate(graph, feeds)["y0"]
        except IndexError:  # a near miss with an index that is outside
            with pytest.raises(IndexError):
                evaluate(after, feeds)
            return
        assert_promise("exact" if before.dtype.kind in "iub" else "ulp:64", before, evaluate(after, feeds)["y0"])
        graph = after
