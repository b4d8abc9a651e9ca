"""The engine and its patterns."""

import time

import numpy as np
import pytest

from edgec import EdgecError
from edgec.ir import Graph, constant
from edgec.ir.evaluate import run as evaluate
from edgec.rewrites import PHASES, Phase, Record, Rule, apply, run
from edgec.rewrites.engine import rule
from edgec.rewrites.examples import f32, graph_of, i64, num, weights
from edgec.rewrites.pattern import b, const, either, match, maybe, number, optional, p, scalar_value, var

X, Y = f32("x", 3), f32("y", 3)


def matches(pattern, node, single=lambda n: True):
    return list(match(pattern, node, single, {}))


def test_commutative_operands_match_in_both_orders():
    pattern = p.add(p.neg(var("x")), var("y"))
    for node in (b.add(b.neg(X), Y), b.add(Y, b.neg(X))):
        assert [(m["x"], m["y"]) for m in matches(pattern, node)] == [(X, Y)]
    assert matches(p.sub(p.neg(var("x")), var("y")), b.sub(Y, b.neg(X))) == []
    assert len(matches(p.add(p.neg(var("x")), var("y")), b.add(b.neg(X), b.neg(Y)))) == 2


def test_one_name_is_one_node():
    pattern = p.mul(var("x"), p.sigmoid(var("x")))
    assert matches(pattern, b.mul(b.sigmoid(X), X))
    assert not matches(pattern, b.mul(b.sigmoid(Y), X))


def test_operands_that_may_be_absent():
    w = weights(2, 3)
    pattern = p.linear(var("x"), const("w"), optional("bias"))
    (found,) = matches(pattern, b.linear(X, w))
    assert found["bias"] is None
    bias = weights(2)
    assert matches(pattern, b.linear(X, w, bias))[0]["bias"] is bias
    assert not matches(pattern, b.linear(X, w, bias, f32("r", 2)))  # operands that the pattern leaves out are absent
    assert matches(p.linear(name="any"), b.linear(X, w, bias, f32("r", 2)))
    assert not matches(p.linear(var("x"), const("w"), var("bias")), b.linear(X, w))


def test_attributes_numbers_and_choices():
    assert matches(p.transpose(var("x"), perm=(0,)), b.transpose(X, perm=(0,)))
    assert not matches(p.transpose(var("x"), perm=lambda v: len(v) > 1), b.transpose(X, perm=(0,)))
    assert matches(number(0.5, rtol=0.1), num(0.52)) and not matches(number(0.5), num(0.52))
    assert matches(number(name="c", where=lambda c: c > 1), constant(np.full((2, 2), 3.0, np.float32)))
    assert scalar_value(constant(np.float32([1, 2]))) is None and scalar_value(X) is None
    assert scalar_value(constant(np.zeros(0, np.float32))) is None
    assert scalar_value(constant(np.bool_(True))) == 1
    either_way = either(p.relu(var("a")), p.neg(var("b")))
    assert "b" in matches(either_way, b.neg(X))[0] and either_way.roots() == {"relu", "neg"}
    assert len(matches(p.exp(maybe("neg", var("a"))), b.exp(b.neg(X)))) == 2


def test_single_asks_who_reads():
    pattern = p.relu(p.neg(var("x")).single())
    assert matches(pattern, b.relu(b.neg(X))) and not matches(pattern, b.relu(b.neg(X)), lambda n: False)


@rule(p.relu(p.linear(var("x"), var("w"), act="none", name="linear").single()))
def fuse(m):
    return b.linear(m.x, m.w, act="relu")


def test_what_is_read_twice_is_not_fused():
    y = b.linear(f32("x", 2, 3), f32("w", 4, 3))
    once = apply(graph_of(b.relu(y)), [fuse])
    assert [n.op for n in once.nodes() if n.op != "input"] == ["linear"]
    for roots in ([b.relu(y), b.neg(y)], [b.relu(y), y], [b.add(b.relu(y), y)]):
        graph = graph_of(*roots)
        assert apply(graph, [fuse]).outputs == graph.outputs


def test_counts_follow_the_graph_as_it_changes():
    """neg(neg(y)) reads y once more until it is gone; then relu is y's only reader."""

    @rule(p.sub(p.neg(p.neg(var("y"))), var("y")))
    def gone(m):
        return b.reduce_sum(f32("z", 2, 4, 1), axes=(2,))

    y = b.linear(f32("x", 2, 3), f32("w", 4, 3))
    graph = graph_of(b.sub(b.neg(b.neg(y)), y), b.relu(y), f32("z", 2, 4, 1))
    after = apply(graph, [gone, fuse])
    assert after.outputs[1][1]["act"] == "relu"


def test_origins_and_record():
    y = b.linear(f32("x", 2, 3), f32("w", 4, 3))
    graph = graph_of(b.neg(b.relu(y)))
    graph.origins.update(
        {y: ("MatMul_1",), graph.outputs[0][1].inputs[0]: ("Relu_2",), graph.outputs[0][1]: ("Neg_3",)}
    )
    record = Record()
    after = apply(graph, [fuse], "p", record)
    neg = after.outputs[0][1]
    assert after.origin(neg) == "Neg_3" and after.origin(neg.inputs[0]) == "Relu_2, MatMul_1"
    assert record.counts() == {"fuse": 1}
    (fired,) = record.fired
    assert (fired.phase, fired.rule, fired.origins) == ("p", "fuse", ("Relu_2", "MatMul_1"))


def test_refusals_are_counted_by_reason():
    @rule(p.neg(var("x")))
    def never(m):
        return "not today"

    record = Record()
    apply(graph_of(b.neg(X), b.neg(Y)), [never], "p", record)
    assert record.refused == {("p", "never", "not today"): 2} and not record.fired


def test_a_rule_that_changes_the_type_is_a_fault():
    @rule(p.neg(var("x")))
    def wrong(m):
        return b.reshape(m.x, shape=(1, 3))

    with pytest.raises(EdgecError, match=r"EC1901.*wrong"):
        apply(graph_of(b.neg(X)), [wrong])


def test_rules_that_never_end_are_a_fault():
    @rule(p.neg(var("x")))
    def there(m):
        return b.sub(num(0), m.x)

    @rule(p.sub(number(0), var("x")))
    def back(m):
        return b.neg(m.x)

    with pytest.raises(EdgecError, match=r"EC1901.*end"):
        apply(graph_of(b.neg(X)), [there, back])

    @rule(p.relu(var("x")))
    def grows(m):
        return b.neg(b.neg(b.relu(b.abs(m.x))))

    with pytest.raises(EdgecError, match="EC1901"):
        apply(graph_of(b.relu(X)), [grows])


def test_phases_run_in_order_and_may_look_at_the_graph():
    seen = []

    def rules(graph: Graph) -> list[Rule]:
        seen.append([n.op for n in graph.nodes()])
        return []

    graph = graph_of(b.relu(b.linear(f32("x", 2, 3), f32("w", 4, 3))))
    run(graph, [Phase("a", [fuse]), Phase("b", rules)], dump=lambda name, g: seen.append((name, g.outputs[0][1].op)))
    assert seen == [("a", "linear"), ["input", "input", "linear"], ("b", "linear")]


def test_outputs_keep_names_and_inputs_stay():
    unused = f32("unused", 2)
    graph = Graph((unused, X), (("first", b.neg(b.neg(X))), ("second", b.mul(X, num(1)))), {})
    after = run(graph, PHASES)
    assert after.inputs == (unused, X) and after.outputs == (("first", X), ("second", X))


def test_deep_and_wide_graphs_take_no_recursion_and_little_time():
    x = f32("x", 1, 8)
    for i in range(1500):
        x = b.add(b.neg(b.neg(x)), b.mul(x, num(1.0 if i % 2 else 0.5)))
    graph = graph_of(x)
    assert len(graph.nodes()) > 6000
    start = time.process_time()
    after = run(graph, PHASES)
    assert time.process_time() - start < 20  # 2 s on a quiet machine
    assert "neg" not in {n.op for n in after.nodes()}


def test_a_branch_is_rewritten_inside_and_stays_lazy():
    table = constant(np.float32([1, 2]))
    row = b.gather(table, i64("i"), axis=0)
    inner = b.add(b.mul(row, num(1)), num(0))
    graph = graph_of(b.branch(b.lt(i64("i"), constant(np.int64(2))), inner, num(-1)))
    after = run(graph, PHASES)
    assert after.outputs[0][1].inputs[1].op == "gather"
    assert evaluate(after, {"i": np.int64(9)})["y0"] == -1


def test_a_transposed_table_stays_one_constant():
    """embedding and head of a tied model: gather(w), matmul(x, transpose(w))."""
    w = weights(300, 40)
    x = b.gather(w, i64("i", 2, "s"), axis=0)
    graph = graph_of(b.matmul(b.rms_norm(x, axis=2, eps=1e-5), b.transpose(w, perm=(1, 0))))
    after = run(graph, PHASES)
    assert [n.op for n in after.nodes() if n.op != "constant"] == ["input", "gather", "rms_norm", "linear"]
    assert after.outputs[0][1].inputs[1] is w
