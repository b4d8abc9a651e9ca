"""Calibration data: what files hold as inputs of a graph, and one clear error for what does not fit."""

import json

import numpy as np
import pytest

from edgec.calibrate import data
from edgec.errors import EdgecError
from edgec.ir.node import Graph
from edgec.rewrites.examples import f32, i64, weights
from edgec.rewrites.pattern import b

TEXT = "The quick brown fox jumps over the lazy dog, and it does so again. "
SYMBOLS = {"n": (1, None), "t": (1, 64)}


def encoder(rows="n", steps="t", mask=True, types=True, vocab=600) -> Graph:
    ids = i64("input_ids", rows, steps)
    x = b.gather(weights(vocab, 16), ids, axis=0)
    inputs = [ids]
    if mask:
        inputs.append(i64("attention_mask", rows, steps))
        x = b.mul(x, b.reshape(b.cast(inputs[-1], dtype="f32"), shape=(*inputs[-1].shape, 1)))
    if types:
        inputs.append(i64("token_type_ids", rows, steps))
        x = b.add(x, b.gather(weights(2, 16), inputs[-1], axis=0))
    return Graph(tuple(inputs), (("y", x),), SYMBOLS)


def images(rows="n") -> Graph:
    x, scale = f32("x", rows, 3, 4), f32("scale", rows, 1, 1)
    return Graph((x, scale), (("y", b.mul(x, scale)),), SYMBOLS)


def write(path, lines) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_windows_hold_the_texts_of_the_model(lm, tmp_path):
    graph, files = lm
    path = write(tmp_path / "t.txt", [f"{i} {TEXT}" for i in range(60)])
    found = data.load(path, graph, files, length=32, limit=8)
    assert len(found.feeds) == found.samples == 8 and found.valid == [None] * 8
    feed = found.feeds[0]
    assert set(feed) == {n["name"] for n in graph.inputs}
    assert feed["input_ids"].shape == feed["position_ids"].shape == (1, 32)
    assert all(a.shape[0] == 1 and 0 in a.shape for n, a in feed.items() if n.startswith("past"))
    from edgec.runtime.generate.text import Tokenizer

    text = Tokenizer(files["tokenizer.json"]).decode(np.concatenate([f["input_ids"][0] for f in found.feeds]).tolist())
    assert TEXT.strip() in text
    again = data.load(path, graph, files, length=32, limit=8)
    assert again.key == found.key != data.load(path, graph, files, length=32, limit=8, seed=1).key


def test_texts_are_rows_that_are_padded_and_masked(lm, tmp_path):
    files, graph = lm[1], encoder()
    path = write(tmp_path / "t.txt", [TEXT * (1 + i % 3) for i in range(24)])
    found = data.load(path, graph, files, length=40)
    assert found.samples == 24 and len(found.feeds) == 3
    for feed, valid in zip(found.feeds, found.valid):
        ids, mask = feed["input_ids"], feed["attention_mask"]
        assert ids.shape == mask.shape == feed["token_type_ids"].shape and ids.shape[1] in (32, 40)
        assert mask.all() if valid is None else (mask == valid).all()
        assert (ids[mask == 0] == 0).all()


def test_texts_without_a_mask_have_one_length(lm, tmp_path):
    path = write(tmp_path / "t.txt", [TEXT * (1 + i % 3) for i in range(24)])
    found = data.load(path, encoder(mask=False, types=False), lm[1])
    assert len({f["input_ids"].shape[1] for f in found.feeds}) == 1 and found.valid == [None] * len(found.feeds)


def test_paragraphs():
    assert data.paragraphs("one\n two \nthree\n") == ["one", "two", "three"]
    assert data.paragraphs("one\ntwo\n\n\nthree\n") == ["one two", "three"]


def test_conversations_go_through_the_template(lm, tmp_path):
    graph, files = lm
    lines = [json.dumps({"messages": [{"role": "user", "content": TEXT}]}) for _ in range(20)]
    path = write(tmp_path / "t.jsonl", [*lines, json.dumps({"text": TEXT})])
    found = data.load(path, graph, files, length=64, limit=6)
    start = json.loads(files["tokenizer.json"])["model"]["vocab"]["<|start|>"]
    assert sum((f["input_ids"] == start).sum() for f in found.feeds) > 3


@pytest.mark.parametrize("kind", ["npz", "folder", "jsonl"])
@pytest.mark.parametrize("rows", ["n", 2])
def test_arrays(tmp_path, kind, rows):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((10, 3, 4), np.float32), "scale": np.ones((10, 1, 1), np.float32)}
    if kind == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, **arrays)
    elif kind == "folder":
        path = tmp_path
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
    else:
        path = tmp_path / "a.jsonl"
        write(path, [json.dumps({n: a[i].tolist() for n, a in arrays.items()}) for i in range(10)])
    found = data.load(path, images(rows), limit=6)
    assert found.samples == 6 and all(f["x"].dtype == np.float32 for f in found.feeds)
    rows_seen = np.concatenate([f["x"] for f in found.feeds])
    assert all((np.abs(arrays["x"] - r).max((1, 2)) < 1e-6).any() for r in rows_seen)
    assert rows == "n" or all(f["x"].shape[0] == 2 for f in found.feeds)


def arrays_with(**changes):
    def make(tmp_path):
        arrays = {"x": np.zeros((4, 3, 4), np.float32), "scale": np.ones((4, 1, 1), np.float32)} | changes
        np.savez(tmp_path / "a.npz", **{n: a for n, a in arrays.items() if a is not None})
        return tmp_path / "a.npz"

    return make


def lines_of(*lines, name="a.jsonl"):
    return lambda tmp_path: write(tmp_path / name, lines)


def bytes_in(name, content):
    def make(tmp_path):
        (tmp_path / name).write_bytes(content)
        return tmp_path if name.endswith(".npy") else tmp_path / name

    return make


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (arrays_with(y=np.zeros((4, 1))), "EC1302", "no input y"),
        (arrays_with(scale=None), "EC1302", "nothing is given for scale"),
        (arrays_with(x=np.zeros((4, 3, 5), np.float32)), "EC1302", "'x' is [4, 3, 5]"),
        (arrays_with(x=np.zeros((4, 3, 4))), "EC1302", "'x' is float64"),
        (arrays_with(x=np.zeros((5, 3, 4), np.float32)), "EC1302", "different numbers of samples"),
        (arrays_with(x=np.zeros((0, 3, 4), np.float32), scale=np.ones((0, 1, 1), np.float32)), "EC1302", "or none"),
        (arrays_with(x=np.full((4, 3, 4), np.nan, np.float32)), "EC1302", "not finite"),
        (arrays_with(x=np.array(["a"] * 4)), "EC1302", "'x' is"),
        (arrays_with(x=np.array([None] * 4)), "EC1003", "no .npz file of plain arrays"),
        (bytes_in("a.npz", b"rubbish"), "EC1003", "such a file is a zip. Write it with numpy.savez"),
        (bytes_in("x.npy", b"rubbish"), "EC1003", "such a file begins with NUMPY. Write it with numpy.save"),
        (lines_of("{"), "EC1302", "line 1 is no JSON"),
        (lines_of("[1]"), "EC1302", "line 1 is no JSON object"),
        (lines_of("", name="a.jsonl"), "EC1302", "it is empty"),
        (lines_of('{"x": [[1, 2], [3]], "scale": 1}'), "EC1302", "is no array"),
        (lines_of('{"x": "a"}'), "EC1302", "something else than numbers"),
        (lines_of('{"x": [1]}', '{"y": [1]}'), "EC1302", "line 2 has y"),
        (lines_of('{"text": 3}'), "EC1302", "text is no string"),
        (lines_of('{"text": "a"}', '{"messages": 3}'), "EC1302", "line 2: messages: messages are a list"),
        (lines_of("a text", name="a.txt"), "EC1701", "no tokenizer.json"),
        (lines_of("a text", name="a.csv"), "EC1302", ".csv is none of"),
        (lambda tmp_path: tmp_path, "EC1302", "no .npy files"),
        (lambda tmp_path: tmp_path / "missing.npz", "EC1003", "missing.npz"),
        (lambda tmp_path: tmp_path / "missing.txt", "EC1003", "missing.txt"),
    ],
)
def test_what_does_not_fit_is_one_error(tmp_path, make, code, says):
    with pytest.raises(EdgecError) as caught:
        data.load(make(tmp_path), images())
    assert caught.value.code == code and says in str(caught.value)


def test_text_that_does_not_fit(lm, tmp_path):
    graph, files = lm
    short = write(tmp_path / "short.txt", ["too little"])
    for wanted in (graph, encoder()):
        with pytest.raises(EdgecError, match=r"EC1302.*too few"):
            data.load(short, wanted, files)
    path = write(tmp_path / "t.txt", [TEXT * 9] * 9)
    with pytest.raises(EdgecError, match=r"EC1701.*beyond the model's 20"):
        data.load(path, encoder(vocab=20), files)
    with pytest.raises(EdgecError, match=r"EC1302.*inputs that are not text"):
        data.load(path, images(), files)
    with pytest.raises(EdgecError, match="EC1701"):
        data.load(path, graph, {"tokenizer.json": b"{}"})
    with pytest.raises(EdgecError, match=r"EC1001.*limit"):
        data.load(path, graph, files, limit=0)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(EdgecError, match=r"EC1302.*no UTF-8"):
        data.load(tmp_path / "bytes.txt", graph, files)


def test_labels_go_with_their_texts(lm, tmp_path):
    files, graph = lm[1], encoder()
    rng = np.random.default_rng(3)
    texts = [" ".join(TEXT.split()[: int(n)]) + f" {i}" for i, n in enumerate(rng.integers(4, 14, 50))]
    records = [{"text": t, "stars": i} if i % 4 else {"text": t} for i, t in enumerate(texts)]
    path = write(tmp_path / "t.jsonl", [json.dumps(r) for r in records])
    found = data.load(path, graph, files, labels="stars", limit=40)
    from edgec.runtime.generate.text import Tokenizer

    tokenizer, seen = Tokenizer(files["tokenizer.json"]), 0
    for feed, labels in zip(found.feeds, found.labels, strict=True):
        for ids, mask, label in zip(feed["input_ids"], feed["attention_mask"], labels, strict=True):
            i = next(i for i, t in enumerate(texts) if tokenizer.encode(t) == ids[mask == 1].tolist())
            assert label == (i if i % 4 else -1)
            seen += 1
    assert seen == 40 and data.load(path, graph, files).labels is None
    assert found.key != data.load(path, graph, files, limit=40).key


def test_labels_may_be_shares_and_go_with_their_samples(tmp_path):
    x = np.random.default_rng(0).standard_normal((20, 3, 4)).astype(np.float32)
    x[:, 0, 0] = np.arange(20)
    shares = np.stack([np.arange(20) / 20, 1 - np.arange(20) / 20], 1).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, scale=np.ones((20, 1, 1), np.float32), p=shares)
    found = data.load(tmp_path / "a.npz", images(), labels="p")
    for feed, labels in zip(found.feeds, found.labels, strict=True):
        np.testing.assert_array_equal(labels, shares[feed["x"][:, 0, 0].astype(int)])
    rows = [{"x": x[i].tolist(), "scale": [[1.0]], "p": int(i % 2)} for i in range(20)]
    path = write(tmp_path / "a.jsonl", [json.dumps(r) for r in rows])
    found = data.load(path, images(), labels="p")
    for feed, labels in zip(found.feeds, found.labels, strict=True):
        np.testing.assert_array_equal(labels, feed["x"][:, 0, 0] % 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("good", "line 2: 'y' is neither a class nor a list of shares"),
        (True, "line 2: 'y' is neither"),
        (1.5, "line 2: 'y' is neither"),
        ([0.5, 0.2, 0.3], "lists of [2, 3] shares"),
        ([0.5, 0.7], "do not sum to 1"),
        ([-0.5, 1.5], "negative"),
    ],
)
def test_what_is_no_label(lm, tmp_path, value, text):
    rows = [{"text": TEXT, "y": [0.5, 0.5]}, {"text": TEXT, "y": value}, *[{"text": TEXT}] * 20]
    path = write(tmp_path / "t.jsonl", [json.dumps(r) for r in rows])
    with pytest.raises(EdgecError) as error:
        data.load(path, encoder(), lm[1], labels="y")
    assert error.value.code == "EC1302" and text in str(error.value)


def test_texts_without_labels_are_refused_where_labels_are_asked_for(lm, tmp_path):
    path = write(tmp_path / "t.txt", [TEXT] * 20)
    with pytest.raises(EdgecError, match=r"a \.txt has no labels 'y'"):
        data.load(path, encoder(), lm[1], labels="y")
    path = write(tmp_path / "t.jsonl", [json.dumps({"text": TEXT, "y": 1})] * 20)
    with pytest.raises(EdgecError, match="no sample has a label 'z'"):
        data.load(path, encoder(), lm[1], labels="z")
    with pytest.raises(EdgecError, match="causal language model have no labels"):
        data.load(path, lm[0], lm[1], labels="y")


def test_too_few_samples_to_fit_weights_to(tmp_path):
    path = arrays_with(x=np.zeros((3, 3, 4), np.float32), scale=np.ones((3, 1, 1), np.float32))(tmp_path)
    assert data.load(path, images()).samples == 3
    with pytest.raises(EdgecError, match=r"EC1302.*too few samples to fit weights to: 3.*Give 4 or more"):
        data.load(path, images(), least=data.LEAST_SAMPLES)
