"""Scores, masks and requests: against slow oracles."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.calibrate.prune import mask, parse
from edgec.calibrate.prune.allocate import Allocator, step_of
from edgec.calibrate.prune.latency import GRID, Latency, Table
from edgec.calibrate.prune.masks import keep_largest
from edgec.calibrate.prune.request import Request
from edgec.calibrate.prune.scores import Order, by_inverse, by_size, correction, damped, fit
from edgec.calibrate.prune.sites import Moments
from edgec.calibrate.prune.structured import macs_of
from edgec.errors import EdgecError
from edgec.rewrites.examples import f32, graph_of, weights
from edgec.rewrites.pattern import b
from edgec.rewrites.prune import analyse


def data(seed, rows=60, k=8, n=5):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k)) @ rng.standard_normal((k, k))
    return x, rng.standard_normal((n, k)).astype(np.float32)


def best_error(w, h, gone):
    """The least error of W when columns are gone and all others may change."""
    kept = [i for i in range(len(h)) if i not in gone]
    hd = damped(h)
    new = np.linalg.solve(hd[np.ix_(kept, kept)], hd[kept] @ w.T.astype(np.float64)).T
    d = w.astype(np.float64).copy()
    d[:, kept] -= new
    return float(np.sum((d @ hd) * d))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 2))
def test_the_error_of_removed_columns_is_that_of_the_best_weights_without_them(seed, width):
    x, w = data(seed)
    columns = np.arange(8).reshape(-1, width)
    order = by_inverse([w], [x.T @ x], [columns], most=len(columns) - 1)
    for count in range(len(order.error)):
        gone = columns[order.units[:count]].reshape(-1).tolist()
        assert np.isclose(order.error[count], best_error(w, x.T @ x, gone), rtol=1e-6, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16))
def test_the_first_column_that_goes_is_the_cheapest(seed):
    x, w = data(seed)
    order = by_inverse([w], [x.T @ x], [np.arange(8)[:, None]], most=1)
    errors = [best_error(w, x.T @ x, [i]) for i in range(8)]
    assert np.isclose(errors[order.units[0]], min(errors))


def test_units_of_several_readers_are_judged_together():
    x, w = data(0)
    _, v = data(1)
    columns = np.arange(8)[:, None]
    both = by_inverse([w, v], [x.T @ x] * 2, [columns] * 2, most=1)
    errors = [best_error(w, x.T @ x, [i]) + best_error(v, x.T @ x, [i]) for i in range(8)]
    assert both.units[0] == np.argmin(errors)


def test_by_size_orders_by_norms_of_columns_and_inputs():
    w = np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 0.0]], np.float32)
    columns = np.arange(3)[:, None]
    assert by_size([w], [columns], [None]).units.tolist() == [1, 2, 0]
    assert by_size([w], [columns], [np.array([0.1, 1.0, 1.0])]).units.tolist() == [0, 1, 2]
    np.testing.assert_allclose(by_size([w], [columns], [None]).error, [0, 2, 6, 15])


def test_correction_is_ridge_regression():
    x, w = data(3)
    kept = np.array([0, 2, 3, 5, 7])
    residue = x @ w.T.astype(np.float64)
    d = correction(x.T @ x, residue.T @ x, kept, ridge=1e-9)
    want, *_ = np.linalg.lstsq(x[:, kept], residue, rcond=None)
    np.testing.assert_allclose(d[:, kept], want.T, rtol=1e-4, atol=1e-6)
    assert not d[:, [1, 4, 6]].any()


def moments(x, residue):
    found = Moments(x.shape[1], residue.shape[1])
    found.add(x.astype(np.float32), residue.astype(np.float32))
    return found


def test_what_is_left_to_explain_is_fitted_and_noise_is_not():
    rng = np.random.default_rng(8)
    x, kept = rng.standard_normal((400, 12)), np.arange(10)
    truth = rng.standard_normal((3, 12)) * (np.arange(12) < 10)
    d = fit(moments(x[:300], x[:300] @ truth.T), moments(x[300:], x[300:] @ truth.T), kept)
    np.testing.assert_allclose(d, truth, atol=2e-3)
    noise = rng.standard_normal((400, 3))
    few = fit(moments(x[:14], noise[:14]), moments(x[300:], noise[300:]), kept)
    plain = correction(x[:14].T @ x[:14], noise[:14].T @ x[:14], kept, 1e-4)
    assert np.abs(few).max() < 0.5 * np.abs(plain).max()


def test_numbers_that_are_not_finite_are_refused():
    h = np.eye(8)
    h[0, 0] = np.nan
    with pytest.raises(EdgecError, match=r"EC1302.*not finite"):
        mask("sparsegpt", np.ones((2, 8), np.float32), h, 0.5)


def test_weights_that_are_not_finite_are_refused():
    x, w = data(0)
    w[1, 2] = np.inf
    columns = np.arange(8)[:, None]
    with pytest.raises(EdgecError, match=r"EC1305.*not finite"):
        by_size([w], [columns], [None])
    with pytest.raises(EdgecError, match=r"EC1305.*not finite"):
        by_inverse([w], [x.T @ x], [columns], most=2)


# --- masks -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(("magnitude", "wanda", "sparsegpt")),
       st.sampled_from(((2, 4), (1, 4), (4, 8))))  # fmt: skip
def test_patterns_hold_in_each_block(seed, method, pattern):
    x, w = data(seed, k=16)
    sparse = mask(method, w, x.T @ x, pattern)
    counts = (sparse.reshape(len(w), -1, pattern[1]) != 0).sum(2)
    assert (counts == pattern[0]).all()
    if method != "sparsegpt":
        assert ((sparse == 0) | (sparse == w)).all()


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_shares_hold(method):
    x, w = data(5, k=16, n=8)
    assert np.isclose((mask(method, w, x.T @ x, 0.25) == 0).mean(), 0.25, atol=0.02)


def test_wanda_keeps_the_largest_products_of_each_row():
    x, w = data(6, k=16)
    sparse = mask("wanda", w, x.T @ x, 0.5)
    for row, new in zip(w, sparse):
        score = np.abs(row) * np.linalg.norm(x, axis=0)
        assert set(np.flatnonzero(new)) == set(np.argsort(score)[8:])


def sparsegpt_slow(w, h, pattern):
    """Column by column, each time with the inverse of what is left."""
    w, h = w.astype(np.float64).copy(), damped(h)
    chosen = np.ones(w.shape, bool)
    for i in range(w.shape[1]):
        inverse = np.linalg.inv(h[i:, i:])
        if i % pattern[1] == 0:
            # diagonals of the factor are those of the inverses of what is left at each column
            diagonals = [np.linalg.inv(h[j:, j:])[0, 0] for j in range(i, i + pattern[1])]
            chosen[:, i : i + pattern[1]] = keep_largest(w[:, i : i + pattern[1]] ** 2 / diagonals, pattern)
        gone = np.where(chosen[:, i], 0, w[:, i]) / inverse[0, 0]
        w[:, i:] -= np.outer(gone, inverse[0])
        w[:, i] = np.where(chosen[:, i], w[:, i], 0)
    return w


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16))
def test_sparsegpt_equals_the_slow_one(seed):
    x, w = data(seed, k=16)
    np.testing.assert_allclose(
        mask("sparsegpt", w, x.T @ x, (2, 4)), sparsegpt_slow(w, x.T @ x, (2, 4)), rtol=1e-3, atol=1e-4
    )


def test_a_pattern_that_does_not_fit_is_refused():
    with pytest.raises(EdgecError, match=r"EC1305.*10 columns are no multiple of 4"):
        mask("magnitude", np.ones((2, 10), np.float32), None, (2, 4))


# --- requests ----------------------------------------------------------------------------------------------------------


def test_what_may_be_asked_for():
    assert parse(None, None) is None
    assert parse("20%", None) == Request(share=0.2)
    assert parse("20%,allocation=uniform,layers=1", None) == Request(share=0.2, layers=1, allocation="uniform")
    assert parse("ffn=30%,layers=2,heads=12.5%", None) == Request(kinds={"ffn": 0.3, "heads": 0.125}, layers=2)
    assert parse("layers=2,attention=3", None) == Request(layers=2, attention=3)
    assert parse("wanda:2:4", None) == Request(mask=("wanda", (2, 4)))
    assert parse("magnitude:50%", None) == Request(mask=("magnitude", 0.5))
    assert parse(None, "1.5x") == parse(None, 1.5) == Request(speedup=1.5)


@pytest.mark.parametrize(
    "text", ["", "20", "0%", "100%", "-5%", "ffn", "ffn=", "ffn=30", "rows=3%", "layers=0", "layers=x", "attention=5%",
             "ffn=1%,ffn=2%",
             "20%,ffn=30%", "20%,30%", "wanda:", "wanda:4:2", "wanda:0:4", "lasso:50%", "allocation=uniform", "nan%"],
)  # fmt: skip
def test_what_says_nothing_is_refused(text):
    with pytest.raises(EdgecError, match="EC1001"):
        parse(text, None)


@pytest.mark.parametrize("text", ["", "1", "0.5x", "x", "1000x", "inf", "nan"])
def test_factors_are_above_one(text):
    with pytest.raises(EdgecError, match="EC1001"):
        parse(None, text)


def test_a_share_and_a_speedup_exclude_each_other():
    with pytest.raises(EdgecError, match="EC1001"):
        parse("20%", "1.5x")


# --- allocation --------------------------------------------------------------------------------------------------------


def network(widths=(64, 128), width=32):
    x = f32("x", "s", width)
    for i, n in enumerate(widths):
        hidden = b.linear(x, weights(n, width, seed=2 * i), act="relu")
        x = b.linear(hidden, weights(width, n, seed=2 * i + 1), None, x)
    return graph_of(x)


def allocator():
    channels = analyse(network())
    return Allocator(channels, channels.groups, macs_of)


def straight(a, slopes):
    """Errors that grow evenly."""
    return [Order(np.arange(len(g.units)), s * np.arange(len(g.units) + 1)) for g, s in zip(a.groups, slopes)]


def test_widths_stay_multiples_of_the_kernels_tile():
    a = allocator()
    assert a.steps == [16, 32] == [step_of(g) for g in a.groups]
    counts = a.choose(Request(kinds={"ffn": 0.4}), 0, straight(a, (1, 1)), [1, 1])
    assert sum(counts) >= 0.4 * 192 and all((len(g.units) - n) % s == 0 for g, n, s in zip(a.groups, counts, a.steps))


def test_what_costs_little_goes_first():
    a = allocator()
    assert a.choose(Request(share=0.2), 0.2 * a.base, straight(a, (1, 100)), [1, 1]) == [48, 0]
    assert a.choose(Request(share=0.2), 0.2 * a.base, straight(a, (100, 1)), [1, 1]) == [0, 64]


def test_uniform_takes_the_same_share_everywhere():
    a = allocator()
    request = Request(kinds={"ffn": 0.5}, allocation="uniform")
    assert a.choose(request, 0, straight(a, (1, 100)), [1, 1]) == [32, 64]


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 0.6))
def test_as_much_is_saved_as_is_asked_for(share):
    a = allocator()
    counts = a.choose(Request(share=share), share * a.base, straight(a, (1, 1)), [1, 1])
    left = sum(2 * 32 * (len(g.units) - n) for g, n in zip(a.groups, counts))
    assert left <= (1 - share) * a.base + 1e-6
    assert left > (1 - share) * a.base - 2 * 32 * max(a.steps)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [(Request(kinds={"ffn": 0.95}), "95% of 192 ffn channels cannot go: 144 can at most"),
     (Request(kinds={"heads": 0.5}), "the model has no heads that can be removed.*It has ffn"),
     (Request(share=0.9), "90% of the products' work is to go, 75% can at most")],
)  # fmt: skip
def test_what_cannot_be_met_is_said(request_, reason):
    a = allocator()
    with pytest.raises(EdgecError, match=rf"EC1305.*{reason}"):
        a.check(request_, (request_.share or 0) * a.base)


# --- latencies ---------------------------------------------------------------------------------------------------------


def test_measured_shapes_are_kept(tmp_path):
    table = Table("int4", 1, tmp_path / "latency.json")
    assert table(1, 64, 64) > 0
    table.save()
    again = Table("int4", 1, tmp_path / "latency.json")
    assert again.known == table.known and again(1, 64, 64) == table(1, 64, 64)
    (tmp_path / "latency.json").write_text("[1]")
    assert Table("int4", 1, tmp_path / "latency.json").known == {}


def test_between_measured_widths_latency_is_linear():
    seen = set()

    def table(m, n, k):
        seen.add((n, k))
        return n * k / 1000

    for rows, columns in itertools.product((0.1, 0.25, 0.6, 1.0), (0.3, 0.5, 0.95, 1.0)):
        assert np.isclose(Latency._between(table, 4, 1024, 2048, rows, columns), 1024 * rows * 2048 * columns / 1000)
    assert seen <= {(1024 * a, 2048 * c) for a in GRID for c in GRID}


def test_of_equal_columns_one_stays():
    x, w = data(7, rows=200, k=32, n=4)
    x[:, 16:] = x[:, :16]
    order = by_inverse([w], [x.T @ x], [np.arange(32)[:, None]], most=16, step=16)
    assert sorted(order.units % 16) == list(range(16))
