"""Calibration data: text, conversations or arrays in a file, as inputs of a graph.

    load(path, graph, files, length=256, limit=None, seed=0) -> Calibration

| file | holds |
|---|---|
| .txt | a text a line; where empty lines separate paragraphs, a text a paragraph |
| .jsonl | an object a line: {"text": ...}, {"messages": [...]}, or an input's name: its array as lists, without a batch axis |
| .npz | an array for each input, samples along its first axis |
| a folder | the same as NAME.npy files |

Text is tokenized by the model's own tokenizer. For a causal language model the texts are joined and cut into windows of
`length` tokens; for another model each text is a row, cut at `length`, padded and masked. Rows and samples may have true labels
(calibrate/labels.py): a field of .jsonl, or an array.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgec.calibrate import labels as truth
from edgec.calibrate.files import (
    Feeds,
    columns_of,
    conversations,
    names_of,
    paragraphs,
    read_folder,
    read_npz,
    read_text,
    records_of,
    unfit,
)
from edgec.errors import EdgecError
from edgec.ir.dims import evaluate, symbol_name, symbols_of
from edgec.ir.node import Graph, Node
from edgec.ir.types import INTS, numpy_dtype

ROWS = 8  # rows of a batch of texts or samples, where the model leaves the batch open
STEP = 32  # lengths of rows are multiples of it: each shape is compiled once
LEAST_TOKENS = 256  # of text, all in all: with fewer, statistics say little
WINDOWS = 64, 256  # of text, by default: at least, and at most
VALUE = 160 << 20  # bytes that an embedding of all their tokens may take, which bounds memory
LEAST_SAMPLES = 4  # of arrays, to fit weights to
KINDS = ".txt, .jsonl, .npz, or a folder of .npy files"


@dataclass(frozen=True)
class Calibration:
    """feeds: complete inputs of the graph (empty caches too), one dict a run. Their shapes are few: windows have one, rows of
    text a length that is a multiple of 32.

    valid: for each run which [batch, tokens] are text and no padding (bool), or None where all are or where it is not text.
    samples: windows, texts or array samples in all. key: hash of all of it; equal keys, equal data. labels: for each run those
    of its rows, where they are asked for (labels.py).
    """

    feeds: list[Feeds]
    valid: list[np.ndarray | None]
    samples: int
    key: str
    labels: list[np.ndarray] | None = None


def load(
    path: str | os.PathLike[str],
    graph: Graph,
    files: Mapping[str, bytes] | None = None,
    *,
    length: int | None = None,
    limit: int | None = None,
    least: int = 1,
    seed: int = 0,
    labels: str | None = None,
) -> Calibration:
    """Reads and checks everything before it returns.

    files: the model's text files by name (`frontend.folder.text_files`); "tokenizer.json" is needed for text. length: tokens
    of a window (default 256) or of the longest row (default 128). limit: windows (default 64 to 256, by the model's width),
    texts (default 1024) or samples (default 256) to take; which ones, and their order, comes from the seed. labels: the field
    or array that holds true labels.
    least: rows of arrays that there have to be. Raises EdgecError EC1302 for data that does not
    fit the graph (names, shapes, dtypes, too little of it, values that are not finite), EC1003 for a file that cannot be
    read, EC1701 or EC1702 where text cannot be tokenized or a conversation not be rendered, EC1001 for an argument.
    """
    for name, value in (("length", length), ("limit", limit)):
        if value is not None and value < 1:
            raise EdgecError("EC1001", f"{value} is not a positive number", name)
    path, rng = Path(path), np.random.default_rng(seed)
    if path.is_dir() or path.suffix == ".npz":
        arrays = read_folder(path) if path.is_dir() else read_npz(path)
        return _enough(_from_arrays(arrays, graph, limit, rng, str(path), labels), least, str(path))
    if path.suffix not in (".txt", ".jsonl"):
        raise EdgecError(
            "EC1302",
            f"{path.suffix or 'a file without a suffix'} is none of {KINDS}",
            str(path),
            "Rename it, or write one of these",
        )
    content = read_text(path)
    if path.suffix == ".txt":
        if labels is not None:
            raise unfit(f"a .txt has no labels {labels!r}", str(path), f'Write .jsonl: {{"text": ..., "{labels}": 0}}')
        return _from_texts(paragraphs(content), graph, files or {}, length, limit, rng, str(path))
    records = list(records_of(content, str(path)))
    if not records:
        raise unfit("it is empty", str(path), "Give it more texts")
    if all("text" in r or "messages" in r for _, r in records):
        texts = list(conversations(records, files or {}, str(path)))
        true = None if labels is None else truth.of_records(records, labels, str(path))
        return _from_texts(texts, graph, files or {}, length, limit, rng, str(path), true)
    columns = columns_of(records, graph, str(path))
    return _enough(_from_arrays(columns, graph, limit, rng, str(path), labels), least, str(path))


def _enough(found: Calibration, least: int, where: str) -> Calibration:
    rows = sum(max((len(a) for a in feed.values() if a.ndim), default=1) for feed in found.feeds)
    if rows < least:
        raise unfit(f"too few samples to fit weights to: {rows}", where, f"Give {least} or more, better 256")
    return found


# --- arrays --------------------------------------------------------------------------------------------------------


def caches(graph: Graph) -> dict[str, Node]:
    """The inputs that are caches of past tokens, which start empty."""
    from edgec.rewrites import decoder

    found = decoder.roles(graph)
    past = {p for p, _ in graph.states} | set(() if isinstance(found, str) else found.past)
    return {n["name"]: n for n in graph.inputs if n["name"] in past}


def empty_caches(graph: Graph, feeds: Feeds) -> Feeds:
    """The caches without a token, of the batch that the feeds have."""
    env: dict[str, int] = {}
    for node in graph.inputs:
        if node["name"] in feeds:
            for want, got in zip(node.shape, np.shape(feeds[node["name"]])):
                if (name := symbol_name(want)) is not None:
                    env.setdefault(name, got)
    made = {}
    for name, node in caches(graph).items():
        unknown = dict.fromkeys(set().union(*map(symbols_of, node.shape)) - env.keys(), 0)
        made[name] = np.zeros([evaluate(d, env | unknown) for d in node.shape], numpy_dtype(node.dtype))
    return made


def _from_arrays(
    arrays: Feeds, graph: Graph, limit: int | None, rng: np.random.Generator, where: str, labels: str | None = None
) -> Calibration:
    past, true = caches(graph), None
    if labels is not None:
        if labels not in arrays:
            raise unfit(f"there are no labels {labels!r}", where, f"It has {names_of(arrays)}")
        true = truth.check(arrays.pop(labels), labels, where)
    wanted = {n["name"]: n for n in graph.inputs if n["name"] not in past or n["name"] in arrays}
    if unknown := arrays.keys() - wanted.keys():
        raise unfit(f"the model has no input {names_of(unknown)}", where, f"It has {names_of(wanted)}")
    if missing := wanted.keys() - arrays.keys():
        raise unfit(f"nothing is given for {names_of(missing)}", where, f"It has {names_of(arrays)}")
    counts = {name: a.shape[0] if a.ndim else 0 for name, a in arrays.items()}
    counts |= {} if true is None or labels is None else {labels: len(true)}
    count = min(counts.values(), default=0)
    if count == 0 or len(set(counts.values())) > 1:
        listed = ", ".join(f"{n} {c}" for n, c in sorted(counts.items()))
        raise unfit(
            f"the inputs have different numbers of samples, or none: {listed}",
            where,
            "Give each input one row for each sample",
        )
    batched = all(n.rank == arrays[name].ndim for name, n in wanted.items())
    batches = {n.shape[0] for n in wanted.values() if n.rank} if batched else {None}
    for name, node in wanted.items():
        _check_array(name, node, arrays[name], batched, where)
    rows, whole = ROWS if batched else 1, 1  # without a batch axis a sample is a whole input
    if fixed := {d for d in batches if isinstance(d, int)}:
        rows = whole = max(fixed)
        if len(fixed) > 1 or count < rows:
            raise unfit(
                f"too few samples for the {rows} that the model takes at once: {count}",
                where,
                "Give a multiple of that",
            )
    take = min(count, max(whole, limit or 256))
    chosen = rng.permutation(count)[: take - take % whole]
    feeds: list[Feeds] = []
    chosen_labels: list[np.ndarray] = []
    for at in range(0, len(chosen), rows):
        index = np.sort(chosen[at : at + rows])
        chosen_labels += [] if true is None else [true[index]]
        feed = {n: np.ascontiguousarray(a[index] if batched else a[index[0]]) for n, a in arrays.items()}
        for name, value in feed.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                reason = f"input {name!r} holds numbers that are not finite, in samples {index.tolist()}"
                raise unfit(reason, where, "Leave these samples out")
        feeds.append(feed | {k: v for k, v in empty_caches(graph, feed).items() if k not in feed})
    key = _key(feeds, chosen_labels)
    return Calibration(feeds, [None] * len(feeds), len(chosen), key, chosen_labels if true is not None else None)


def _check_array(name: str, node: Node, array: np.ndarray, batched: bool, where: str) -> None:
    shape = array.shape if batched else array.shape[1:]
    fixed = [d if isinstance(d, int) else None for d in node.shape]
    same = len(shape) == len(fixed) and all(
        want is None or want == got for want, got in list(zip(fixed, shape))[1 if batched else 0 :]
    )
    if not same:
        raise unfit(f"input {name!r} is {list(shape)}, the model has {node.type}", where,
                     "The first axis counts the samples")  # fmt: skip
    if array.dtype != numpy_dtype(node.dtype):
        want = numpy_dtype(node.dtype)
        raise unfit(f"input {name!r} is {array.dtype}, the model has {node.dtype}", where, f"Save it as {want}")


# --- text ----------------------------------------------------------------------------------------------------------


def _from_texts(
    texts: Sequence[str],
    graph: Graph,
    files: Mapping[str, bytes],
    length: int | None,
    limit: int | None,
    rng: np.random.Generator,
    where: str,
    labels: np.ndarray | None = None,
) -> Calibration:
    from edgec.rewrites import decoder
    from edgec.runtime.generate.text import Tokenizer

    if "tokenizer.json" not in files:
        raise EdgecError("EC1701", "the model has no tokenizer.json for the text", where,
                         "Put it beside the model, pass --tokenizer FOLDER, or give arrays (.npz)")  # fmt: skip
    causal = decoder.roles(graph)
    names = _text_inputs(graph) if isinstance(causal, str) else None
    if isinstance(causal, str) and names is None:
        reason = "the model has inputs that are not text: " + names_of(n["name"] for n in graph.inputs)
        raise unfit(reason, where, "Give arrays (.npz)")
    tokenizer = Tokenizer(files["tokenizer.json"])
    order = rng.permutation(len(texts))
    texts = [texts[i] for i in order]
    if not isinstance(causal, str):
        if labels is not None:
            raise unfit(
                "the texts of a causal language model have no labels: they are joined", where, "Leave --labels out"
            )
        return _windows(texts, graph, causal, tokenizer, length or 256, limit, where)
    assert names is not None
    labels = None if labels is None else labels[order]
    return _padded(texts, graph, names, tokenizer, length or 128, limit or 1024, where, labels)


def _text_inputs(graph: Graph) -> tuple[str, str | None, str | None] | None:
    """Names of (ids, mask, token types) of an encoder of text; None if it has other inputs or none that are ids."""
    ids = mask = types = None
    for node in graph.inputs:
        name = node["name"].lower()
        if node.rank != 2 or node.dtype not in INTS:
            return None
        if "mask" in name:
            mask = node["name"]
        elif "type" in name or "segment" in name:
            types = node["name"]
        elif ids is None:
            ids = node["name"]
        else:
            return None
    return None if ids is None else (ids, mask, types)


def _ports(graph: Graph) -> dict[str, Node]:
    return {n["name"]: n for n in graph.inputs}


def _windows(texts, graph: Graph, roles, tokenizer, length: int, limit: int | None, where: str) -> Calibration:
    ports, ids = _ports(graph), []
    wanted = ports[roles.ids].shape
    rows = wanted[0] if isinstance(wanted[0], int) else 1
    length = wanted[1] if isinstance(wanted[1], int) else _bounded(graph, wanted[1], length)
    limit = limit or min(max(VALUE // (4 * rows * length * roles.width), WINDOWS[0]), WINDOWS[1])
    for text in texts:
        ids += tokenizer.encode(text)
        if len(ids) >= limit * length * rows:
            break
    _check_ids(ids, roles.vocab, where)
    count = min(limit, len(ids) // (length * rows))
    if count == 0 or len(ids) < min(LEAST_TOKENS, limit * length * rows):
        raise unfit(f"too few tokens for a window of {length * rows}: {len(ids)}", where, "Give more text")
    feeds: list[Feeds] = []
    for at in range(count):
        window = np.array(ids[at * rows * length : (at + 1) * rows * length], np.int64).reshape(rows, length)
        feed = {roles.ids: window}
        if roles.mask is not None:
            feed[roles.mask] = np.ones((rows, length), np.int64)
        if roles.positions is not None:
            feed[roles.positions] = np.broadcast_to(np.arange(length), (rows, length))
        feed = {n: np.ascontiguousarray(a, numpy_dtype(ports[n].dtype)) for n, a in feed.items()}
        feeds.append(feed | empty_caches(graph, feed))
    return Calibration(feeds, [None] * count, count, _key(feeds))


def _bounded(graph: Graph, dim, length: int) -> int:
    """The length within the bounds of the symbol."""
    low, high = graph.symbols.get(symbol_name(dim) or "", (0, None))
    return max(low, length if high is None else min(length, high))


def _padded(texts, graph: Graph, names, tokenizer, length: int, limit: int, where: str, labels=None) -> Calibration:
    ports, (ids, mask, types) = _ports(graph), names
    rows, steps = ports[ids].shape
    vocab = vocabulary(graph, ports[ids])
    encoded = [(e, i) for i, e in enumerate(tokenizer.encode(t) for t in texts[:limit]) if e]  # i: of the text
    _check_ids([token for e, _ in encoded for token in e], vocab, where)
    rows = rows if isinstance(rows, int) else min(ROWS, len(encoded) or 1)
    fixed = isinstance(steps, int)
    length = steps if fixed else _bounded(graph, steps, min(length, max((len(e) for e, _ in encoded), default=1)))
    encoded = sorted(((_cut(e, length), i) for e, i in encoded), key=lambda pair: len(pair[0]))
    encoded = encoded[len(encoded) % rows :]
    tokens = sum(len(e) for e, _ in encoded)
    least = min(LEAST_TOKENS, limit)
    if not encoded or tokens < least:
        raise unfit(f"too few tokens in all texts: {tokens}", where, f"Give {least} or more")
    if mask is None and not fixed:  # nothing would hide the padding: texts of one length instead
        length = len(encoded[len(encoded) // 2][0])
        encoded = [(_cut(e, length), i) for e, i in encoded if len(e) >= length]
        encoded = encoded[len(encoded) % rows :]
    feeds: list[Feeds] = []
    valid: list[np.ndarray | None] = []
    chosen: list[np.ndarray] = []
    for at in range(0, len(encoded), rows):
        batch = [e for e, _ in encoded[at : at + rows]]
        here = length if fixed or mask is None else min(length, -(-len(batch[-1]) // STEP) * STEP)
        real = np.arange(here)[None] < np.array([len(e) for e in batch])[:, None]
        feed = {ids: np.array([e + [0] * (here - len(e)) for e in batch])}
        feed |= {} if mask is None else {mask: real}
        feed |= {} if types is None else {types: np.zeros_like(real)}
        feeds.append({n: np.ascontiguousarray(a, numpy_dtype(ports[n].dtype)) for n, a in feed.items()})
        valid.append(None if real.all() else real)
        chosen += [] if labels is None else [labels[[i for _, i in encoded[at : at + rows]]]]
    return Calibration(feeds, valid, len(encoded), _key(feeds, chosen), None if labels is None else chosen)


def _cut(tokens: list[int], length: int) -> list[int]:
    """At most so many, the last one (a separator) among them."""
    return tokens if len(tokens) <= length else [*tokens[: length - 1], tokens[-1]]


def vocabulary(graph: Graph, ids: Node) -> int:
    """Rows of the smallest table that the input chooses from (0: none)."""
    sizes = [n.inputs[0].shape[0] for n in graph.nodes() if n.op == "gather" and n["axis"] == 0 and n.inputs[1] is ids]
    return min((s for s in sizes if isinstance(s, int)), default=0)


def _check_ids(ids: Sequence[int], vocab: int, where: str) -> None:
    if ids and vocab and max(ids) >= vocab:
        raise EdgecError("EC1701", f"its token {max(ids)} is beyond the model's {vocab}", where,
                         "Pass the model's own tokenizer with --tokenizer")  # fmt: skip


def _key(feeds: Iterable[Feeds], labels: Sequence[np.ndarray] = ()) -> str:
    digest = hashlib.sha256()
    for feed in (*feeds, *({"": a} for a in labels)):
        for name, array in sorted(feed.items()):
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
