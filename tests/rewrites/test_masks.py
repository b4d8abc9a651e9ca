"""Masks taken apart: the attributes and the mask that is left hide what the mask hid, in every form exporters write."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.ir.dims import symbol
from edgec.ir.evaluate import Evaluator
from edgec.ir.node import constant, make
from edgec.rewrites.examples import f32, i64, num
from edgec.rewrites.masks import HIDDEN, parts_of
from edgec.rewrites.pattern import b

B, S, P, TOTAL = (symbol(n) for n in ("b", "s", "past", "total"))
T = P + S
SHAPE = (B, 4, S, T)
LOW = float(np.finfo(np.float32).min)
MASK = i64("attention_mask", "b", "total")
both, either, no = (lambda op: lambda *x: make(op, *x))("and"), lambda x, y: make("or", x, y), lambda x: make("not", x)


def line(n, *shape):
    return b.reshape(b.iota(size=n), shape=shape or (n,))


def keys():
    return line(T, 1, 1, 1, T)


def queries():
    return b.reshape(b.add(b.iota(size=S), b.dim_value(value=P)), shape=(1, 1, S, 1))


def padding():
    """attention_mask[b, t], T of its columns."""
    return b.slice(MASK, starts=(0, 0), sizes=(B, T), steps=(1, 1))


def unfolded(x):
    return b.reshape(x, shape=(B, 1, 1, T))


def full(value, *shape):
    return b.expand(num(value), shape=shape)


def before_4_36():
    """transformers' _make_causal_mask + _expand_mask: two masks of the least number, added."""
    causal = b.where(b.lt(line(S), b.reshape(b.add(b.iota(size=S), constant(1)), shape=(S, 1))), num(0), num(LOW))
    causal = b.concat(full(0, S, P), causal, axis=1)
    causal = b.expand(b.reshape(causal, shape=(1, 1, S, T)), shape=(B, 1, S, T))
    inverted = b.sub(num(1), b.cast(b.expand(unfolded(padding()), shape=(B, 1, S, T)), dtype="f32"))
    return b.add(b.where(b.cast(inverted, dtype="bool"), num(LOW), inverted), causal)


def from_4_40_to_4_47():
    """_update_causal_mask: a full matrix, its upper triangle, times what lies ahead, padding written into a slice."""
    upper = b.ge(line(T, 1, T), b.add(line(S, S, 1), constant(1)))
    mask = b.where(upper, full(LOW, S, T), num(0))
    ahead = b.gt(line(T, 1, T), b.reshape(queries(), shape=(S, 1)))
    mask = b.mul(mask, b.cast(ahead, dtype="f32"))
    mask = b.expand(b.reshape(mask, shape=(1, 1, S, T)), shape=(B, 1, S, T))
    length = T
    cut = b.slice(mask, starts=(0,) * 4, sizes=(B, 1, S, length), steps=(1,) * 4)
    padded = b.eq(b.add(cut, b.cast(unfolded(padding()), dtype="f32")), num(0))
    updates = b.where(padded, num(LOW), cut)
    axes = [b.expand(line(n, *(n if i == j else 1 for j in range(4))), shape=(B, 1, S, length))
            for i, n in enumerate((B, 1, S, length))]  # fmt: skip
    places = b.concat(*(b.reshape(a, shape=(B, 1, S, length, 1)) for a in axes), axis=4)
    return b.scatter_nd(mask, places, updates)


def of_now():
    return b.where(both(b.le(keys(), queries()), unfolded(b.cast(padding(), dtype="bool"))), num(0), num(LOW))


def gathered():
    """attention_mask[batch, key] by a gather over the flattened mask, as the TorchScript exporter writes it."""
    flat = b.reshape(MASK, shape=(B * TOTAL, 1))
    at = b.add(keys(), b.mul(line(B, B, 1, 1, 1), b.dim_value(value=TOTAL)))
    keep = b.reshape(b.cast(b.gather(flat, at, axis=0), dtype="bool"), shape=(B, 1, 1, T))
    return b.where(both(b.le(keys(), queries()), keep), num(0), num(-math.inf))


def of_a_buffer():
    """GPT-2: rows and columns cut out of a constant triangle; padding as (1 - mask) * low."""
    table = constant(np.tril(np.ones((1, 1, 32, 32), bool)))
    cut = b.slice(table, starts=(0, 0, P, 0), sizes=(1, 1, S, T), steps=(1,) * 4)
    scores = b.where(cut, num(0), num(LOW))
    return b.add(scores, b.mul(b.sub(num(1), b.cast(unfolded(padding()), dtype="f32")), num(LOW)))


def sliding(width=3):
    near = b.gt(keys(), b.sub(queries(), constant(width)))
    seen = both(both(b.le(keys(), queries()), near), unfolded(b.cast(padding(), dtype="bool")))
    return b.where(seen, num(0), num(LOW))


def negated_pieces(width=2):
    """What is hidden by or, as some exporters have it."""
    ahead, far = b.gt(keys(), queries()), b.le(keys(), b.sub(queries(), constant(width)))
    hidden = either(either(ahead, far), unfolded(b.eq(padding(), constant(0))))
    return b.mul(b.cast(hidden, dtype="f32"), num(-65504))


FORMS = [(before_4_36, 0), (from_4_40_to_4_47, 0), (of_now, 0), (gathered, 0), (of_a_buffer, 0), (sliding, 3),
         (negated_pieces, 2)]  # fmt: skip


def value_of(node, env, mask):
    return np.asarray(Evaluator({"attention_mask": mask}, env)(node))


def check(original, parts, env, mask):
    """The same pairs of query and key are seen."""
    s, t = env["s"], env["past"] + env["s"]
    shape = (env["b"], 1, s, t)
    seen = np.broadcast_to(value_of(original, env, mask) == 0, shape)
    position, key = np.arange(s)[:, None] + t - s, np.arange(t)
    ours = np.ones((s, t), bool)
    if parts.causal:
        ours &= key <= position
    if parts.window:
        ours &= key > position - parts.window
    left = np.zeros((1, 1, 1, 1)) if parts.mask is None else value_of(parts.mask, env, mask)
    assert left.shape[1] == left.shape[2] == 1 and set(np.unique(left)) <= {0.0, *left[left <= HIDDEN]}
    np.testing.assert_array_equal(np.broadcast_to(ours & (left == 0), shape), seen)


@pytest.mark.parametrize("form, window", FORMS, ids=[f.__name__ for f, _ in FORMS])
def test_forms_of_exporters(form, window):
    parts = parts_of(form(), SHAPE)
    assert not isinstance(parts, str), parts
    assert parts.causal and parts.window == window and parts.mask is not None
    rng = np.random.default_rng(1)
    for batch, s, past in [(1, 1, 0), (2, 5, 0), (3, 1, 7), (2, 4, 3)]:
        mask = rng.integers(0, 2, (batch, past + s))
        check(form(), parts, {"b": batch, "s": s, "past": past, "total": past + s}, mask)


@pytest.mark.parametrize(
    "mask",
    [
        lambda: f32("bias", 1, 1, "s", "t"),
        lambda: b.where(b.le(keys(), queries()), num(0), num(-1)),
        lambda: b.where(b.le(keys(), b.mul(queries(), constant(2))), num(0), num(LOW)),
        lambda: b.where(b.le(keys(), queries()), b.cast(keys(), dtype="f32"), num(LOW)),  # as ALiBi
        lambda: b.where(b.le(keys(), b.add(queries(), constant(1))), num(0), num(LOW)),
        lambda: b.where(b.eq(keys(), queries()), num(0), num(LOW)),
        lambda: b.where(b.le(b.expand(keys(), shape=(1, 4, S, T)), queries()), num(0), num(LOW)),
    ],
)
def test_other_masks_stay(mask):
    assert isinstance(parts_of(mask(), SHAPE), str)


@st.composite
def conditions(draw, depth=3):
    """Bool nodes over the indices and the padding, made of what masks are made of."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        k = draw(st.integers(-2, 3))
        atoms = {
            "causal": lambda: b.le(keys(), queries()),
            "ahead": lambda: b.gt(keys(), queries()),
            "near": lambda: b.gt(keys(), b.sub(queries(), constant(abs(k) + 1))),
            "shifted": lambda: b.le(keys(), b.add(queries(), constant(k))),
            "first": lambda: b.lt(keys(), constant(k)),
            "padding": lambda: unfolded(b.ne(padding(), constant(0))),
            "hidden": lambda: unfolded(b.lt(padding(), constant(1))),
            "sometimes": lambda: constant(np.full((1, 1, 1, 1), k > 0)),
        }
        return atoms[draw(st.sampled_from(sorted(atoms)))]()
    kind = draw(st.sampled_from(("and", "and", "or", "not", "where", "cast", "xor")))
    x = draw(conditions(depth=depth - 1))
    if kind == "not":
        return no(x)
    if kind == "cast":
        return b.gt(b.mul(b.cast(x, dtype="i64"), constant(draw(st.integers(1, 3)))), constant(0))
    y = draw(conditions(depth=depth - 1))
    if kind == "where":
        return b.where(x, y, draw(conditions(depth=depth - 1)))
    return make(kind, x, y)


@settings(max_examples=150, deadline=None)
@given(conditions(), st.sampled_from((LOW, -math.inf, -1e4)), st.integers(1, 2), st.integers(1, 4), st.integers(0, 4),
       st.integers(0, 2**31))  # fmt: skip
def test_random_masks(condition, low, batch, s, past, seed):
    """Whatever comes apart hides the same; a conjunction of causal, a window and padding always does."""
    node = b.where(condition, num(0), num(low))
    parts = parts_of(node, SHAPE)
    if isinstance(parts, str):
        return
    mask = np.random.default_rng(seed).integers(0, 2, (batch, past + s))
    check(node, parts, {"b": batch, "s": s, "past": past, "total": past + s}, mask)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(4)), st.booleans(), st.integers(0, 4), st.booleans(), st.integers(0, 2**31))
def test_conjunctions_come_apart(order, causal, window, padded, seed):
    terms = [b.le(keys(), queries())] if causal else []
    terms += [b.gt(keys(), b.sub(queries(), constant(window)))] if window else []
    terms += [unfolded(b.cast(padding(), dtype="bool"))] if padded else []
    terms += [b.ge(keys(), constant(0))]
    terms = [terms[i] for i in order if i < len(terms)]
    node = terms[0]
    for term in terms[1:]:
        node = both(node, term)
    node = b.where(node, num(0), num(LOW))
    parts = parts_of(node, SHAPE)
    assert not isinstance(parts, str), parts
    assert (parts.causal, parts.window, parts.mask is not None) == (causal, window, padded)
    check(node, parts, {"b": 2, "s": 3, "past": 4, "total": 7}, np.random.default_rng(seed).integers(0, 2, (2, 7)))
