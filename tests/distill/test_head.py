"""The loss of a wide head in pieces is the loss of the whole logits, and so are its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.distill import head
from edgec.distill.lesson import Lesson
from edgec.distill.losses import OutputLoss
from edgec.distill.torch_graph import TorchGraph
from edgec.errors import EdgecError
from edgec.ir.node import Graph, constant
from edgec.rewrites.examples import f32, graph_of, weights
from edgec.rewrites.pattern import b

K, VOCAB = 32, 70


def model(seed: int = 0, table: np.ndarray | None = None) -> Graph:
    """A hidden value, and logits by a product that holds the last norm."""
    w = weights(VOCAB, K, seed=seed + 2, scale=0.2) if table is None else constant(table)
    x = b.linear(f32("x", "n", "t", K), weights(K, K, seed=seed + 1, scale=0.2), weights(K, seed=seed + 5), act="tanh")
    return graph_of(
        b.linear(x, w, weights(VOCAB, seed=seed + 3), None, weights(K, seed=seed + 4), norm="rms", eps=1e-5)
    )


def lesson(source: Graph, temperature: float, masked: bool, seed: int, batch: int = 2) -> tuple[Lesson, list]:
    student = model(10)
    constants = [n for n in student.nodes() if n.op == "constant"]
    learned = {n: torch.nn.Parameter(torch.from_numpy(n["data"].array().copy())) for n in constants}
    pair = TorchGraph(source), TorchGraph(student, learned)
    rng = np.random.default_rng(seed)
    feeds = [{"x": rng.standard_normal((2, 9, K)).astype(np.float32)} for _ in range(4)]
    valid = [rng.random((2, 9)) < 0.7 if masked else None for _ in feeds]
    for mask in valid:
        if mask is not None:
            mask[:, 0] = True
    made = Lesson(*pair, [OutputLoss("y0", "kl")], temperature=temperature, batch=batch)
    made.take(feeds, valid, 8)
    return made, list(learned.values())


@given(st.sampled_from([1.0, 2.0]), st.booleans(), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_pieces_give_the_loss_and_the_gradients_of_the_whole(temperature, masked, rows, seed):
    found = []
    with pytest.MonkeyPatch.context() as m:
        for wide in (VOCAB, VOCAB + 1):
            m.setattr(head, "WIDE", wide)
            m.setattr(head, "ROWS", rows)
            made, deltas = lesson(model(), temperature, masked, seed)
            assert bool(made.heads) == (wide == VOCAB)
            loss = made.loss(1) * 0.5
            loss.backward()
            found.append((loss.detach(), [d.grad for d in deltas], made.measure()))
    (a, mine, mean), (c, theirs, want) = found
    torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)
    top = max(float(g.abs().max()) for g in theirs)
    for x, y in zip(mine, theirs):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=1e-4 * top)
    assert mean[0]["y0"] == pytest.approx(want[0]["y0"], rel=1e-4) and mean[1] == want[1]


@given(st.booleans(), st.integers(1, 40), st.sampled_from([0.3, 1.0]), st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_pieces_give_the_loss_of_the_tokens_that_follow(masked, rows, share, seed):
    found = []
    with pytest.MonkeyPatch.context() as m:
        for wide in (VOCAB, VOCAB + 1):
            m.setattr(head, "WIDE", wide)
            m.setattr(head, "ROWS", rows)
            m.setattr(head, "PIECE", 1 + rows // 3)
            made, deltas = lesson(model(), 1.0, masked, seed)
            rng = np.random.default_rng(seed)
            made.following = "ids", share
            for feed in made.feeds:
                feed["ids"] = rng.integers(0, VOCAB, feed["x"].shape[:2])
            made.loss(1).backward()
            found.append((made.loss(0).detach(), [d.grad for d in deltas], made.measure()))
    (a, mine, mean), (c, theirs, want) = found
    torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)
    top = max(float(g.abs().max()) for g in theirs)
    for x, y in zip(mine, theirs):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=1e-4 * top)
    assert mean[0]["y0"] == pytest.approx(want[0]["y0"], rel=1e-4)


def test_the_token_that_follows_is_the_next_one_of_its_row():
    made, _ = lesson(model(), 1.0, False, 0)
    made.following = "ids", 0.5
    made.feeds[0]["ids"] = np.array([[3, 1, 4, 1], [5, 9, 2, 6]])
    made.valid[0] = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    assert made._truth(0).ids.tolist() == [1, 4, -1, 9, 2, 6, -1]
    made.valid[0] = None
    assert made._truth(0).ids.tolist() == [1, 4, 1, -1, 9, 2, 6, -1]


def test_only_rows_before_the_head_are_kept_of_the_teacher(monkeypatch):
    monkeypatch.setattr(head, "WIDE", VOCAB)
    made, _ = lesson(model(), 1.0, False, 0)
    made.loss(0)
    assert made.cached == 2 * 9 * K * 4


def test_half_precision_is_near_enough_to_learn_from(monkeypatch):
    monkeypatch.setattr(head, "WIDE", VOCAB)
    made, deltas = lesson(model(), 1.0, False, 0)
    plain = made.loss(0)
    want = torch.autograd.grad(plain, deltas)
    made.half, made.cache = True, {}
    close = made.loss(0)
    got = torch.autograd.grad(close, deltas)
    assert close.item() == pytest.approx(plain.item(), rel=0.3)
    assert close.item() != plain.item()
    flat = [torch.cat([g.flatten() for g in grads]) for grads in (want, got)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.95


def test_numbers_that_are_not_finite_are_refused(monkeypatch):
    monkeypatch.setattr(head, "WIDE", VOCAB)
    made, _ = lesson(model(0, np.full((VOCAB, K), np.inf, np.float32)), 1.0, False, 0)
    with pytest.raises(EdgecError, match=r"EC1303 .*not finite"):
        made.measure()
