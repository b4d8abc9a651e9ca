"""Partition and order: operands first, branches lazy, every value computed once."""

from __future__ import annotations

import pytest

from edgec.errors import EdgecError
from edgec.ir import Graph, TensorType, constant, make
from edgec.lower.guards import guards
from edgec.lower.partition import partition
from edgec.lower.schedule import Branch


class Backend:
    """Fuses whatever is asked; computes nothing."""

    def supports(self, node):
        return "no square roots today" if node.op == "sqrt" else None

    def can_join(self, nodes, producer):
        return producer.op != "softmax"


def x(name="x"):
    return make("input", name=name, type=TensorType("f32", (4,)))


def graph(*outputs):
    from edgec.ir import topological

    inputs = tuple(n for n in topological(outputs) if n.op == "input")
    return Graph(inputs, tuple((f"y{i}", n) for i, n in enumerate(outputs)))


def test_a_chain_is_one_group():
    node = x()
    for _ in range(5):
        node = make("tanh", node)
    (unit,) = partition(graph(node), Backend()).items
    assert len(unit.group.nodes) == 5 and unit.outputs == (node,)


def test_a_value_of_two_users_is_kept():
    shared = make("tanh", x())
    parts = partition(
        graph(make("softmax", make("exp", shared), axis=0), make("softmax", make("neg", shared), axis=0)), Backend()
    )
    roots = [u.outputs[0].op for u in parts.items]
    assert sorted(roots) == ["softmax", "softmax", "tanh"] and roots[0] == "tanh"


def test_what_both_users_fuse_is_computed_once_inside():
    shared = make("tanh", x())
    (unit,) = partition(graph(make("add", make("exp", shared), shared)), Backend()).items
    assert [n.op for n in unit.group.nodes].count("tanh") == 1


def test_branch_sides_run_lazily_and_share_jumps():
    pred = make("gt", make("reduce_sum", x(), axes=(0,)), constant(0.0, "f32"))
    both, left, right = make("tanh", x()), make("exp", x()), make("log", x())
    a = make("branch", pred, make("add", left, both), make("sub", right, both))
    b = make("branch", pred, left, right)
    found = guards(graph(a, b))
    assert found[both] == () and found[left] == ((pred, True),) and found[right] == ((pred, False),)
    items = partition(graph(a, b), Backend()).items
    branches = [i for i in items if isinstance(i, Branch)]
    assert len(branches) == 1 and set(branches[0].nodes) == {a, b}
    assert [u.outputs[0] for u in items[: items.index(branches[0])] if not isinstance(u, Branch)]
    assert {u.outputs[0].op for u in branches[0].then} == {"exp", "add"}
    assert {u.outputs[0].op for u in branches[0].orelse} == {"log", "sub"}


def test_nested_branches_nest():
    p, q = (make("gt", make("reduce_sum", x(n), axes=(0,)), constant(0.0, "f32")) for n in "pq")
    inner = make("branch", q, make("exp", x()), make("log", x()))
    outer = make("branch", p, make("tanh", inner), make("sin", x()))
    (branch,) = [i for i in partition(graph(outer), Backend()).items if isinstance(i, Branch)]
    nested = [i for i in branch.then if isinstance(i, Branch)]
    assert len(nested) == 1 and nested[0].nodes == [inner]


def test_all_unsupported_ops_are_named_at_once():
    with pytest.raises(EdgecError) as e:
        partition(graph(make("sqrt", x("a")), make("sqrt", x("b"))), Backend())
    assert e.value.code == "EC1401" and str(e.value).count("no square roots today") == 2
