"""What an engine needs of a model: rows of new tokens in, logits of their last positions out, a cache behind it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgec.errors import EdgecError

PADDED = 16  # rows whose numbers of new tokens differ run as one batch up to this many, padded on the right
LOGIT_BYTES = 64 << 20  # a run whose logits cannot be cut to the last positions holds at most this much of them


class Row(NamedTuple):
    """New tokens of the sequence in a slot; logits are wanted for the last `keep` of them."""

    slot: int
    tokens: Sequence[int]
    keep: int


class Decoder:
    """A model and the caches of `slots` sequences, each of up to `context` tokens.

    forward() appends each row's tokens to its slot and gives float32 [keep, vocab] for each. A slot holds the first
    length(slot) tokens of its sequence; truncate() forgets those behind, copy() makes another slot start the same.
    """

    batched = False  # whether rows run as one batch, so that several cost little more than one

    def __init__(self, session: Any, lm: Mapping[str, Any], slots: int, context: int) -> None:
        self.core = session._core
        self.slots, self.context, self.vocab = slots, context, int(lm["vocab"])
        self.ids, self.mask, self.positions = lm["ids"], lm.get("mask"), lm.get("positions")
        self.last = bool(lm.get("last"))
        self.dtypes = {p.name: np.dtype(p.dtype) for p in session.inputs}
        names = [p.name for p in session.outputs]
        self.logits_index = names.index(lm["logits"])
        # most new tokens in one run: bounded by what their logits take where all of them are computed
        self.run_limit = context if self.last else max(LOGIT_BYTES // (4 * self.vocab), 1)

    def length(self, slot: int) -> int:
        raise NotImplementedError

    def truncate(self, slot: int, length: int) -> None:
        raise NotImplementedError

    def copy(self, source: int, target: int, length: int) -> None:
        raise NotImplementedError

    def forward(self, rows: Sequence[Row]) -> list[np.ndarray]:
        raise NotImplementedError

    def feeds(self, tokens: Any, starts: Any) -> dict[str, np.ndarray]:
        """Inputs of a run. tokens: integers [rows, new]; starts: each row's number of tokens before."""
        tokens, starts = np.asarray(tokens, np.int64), np.asarray(starts, np.int64)
        new = tokens.shape[1]
        ends = starts + new
        feeds = {self.ids: tokens.astype(self.dtypes[self.ids], copy=False)}
        if self.mask is not None:
            seen = np.arange(ends.max()) < ends[:, None]
            feeds[self.mask] = seen.astype(self.dtypes[self.mask])
        if self.positions is not None:
            positions = starts[:, None] + np.arange(new)
            feeds[self.positions] = positions.astype(self.dtypes[self.positions])
        return feeds

    def kept(self, count: int) -> dict[str, int]:
        """Parameters of a run whose logits of the last `count` positions are wanted."""
        return {"logits": count} if self.last else {}

    def _last(self, logits: np.ndarray, keep: int) -> np.ndarray:
        """float32 [keep, vocab] of one row's logits [positions, vocab]."""
        return logits[logits.shape[0] - keep :].astype(np.float32, copy=False)


class StateDecoder(Decoder):
    """The session holds the caches (slots); rows run as one batch where the model takes rows of different lengths."""

    def __init__(self, session: Any, lm: Mapping[str, Any], slots: int, context: int) -> None:
        super().__init__(session, lm, slots, context)
        self.batched = bool(lm.get("ragged"))
        self.core.reserve(slots, context)

    def length(self, slot: int) -> int:
        return self.core.length(slot)

    def truncate(self, slot: int, length: int) -> None:
        self.core.set_length(slot, length)

    def copy(self, source: int, target: int, length: int) -> None:
        self.core.copy_slot(source, target, length)

    def forward(self, rows: Sequence[Row]) -> list[np.ndarray]:
        if len(rows) > 1 and not (self.batched and _similar(rows)):
            return [logits for row in rows for logits in self.forward([row])]
        new = max(len(row.tokens) for row in rows)
        tokens = np.zeros((len(rows), new), np.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row.tokens)] = row.tokens
        slots = [row.slot for row in rows]
        starts = np.array([self.core.length(slot) for slot in slots], np.int64)
        # padding stands behind a row's tokens, so its own last positions are further from the end
        kept = max(new - len(row.tokens) + max(row.keep, 1) for row in rows)
        feeds = self.feeds(tokens, starts)
        logits = self.core.run(feeds, slots=slots, parameters=self.kept(kept))[self.logits_index]
        results = []
        for index, row in enumerate(rows):
            pad = new - len(row.tokens)
            if pad:
                self.core.set_length(row.slot, int(starts[index]) + len(row.tokens))
            own = logits[index, : logits.shape[1] - pad]
            results.append(self._last(own, row.keep))
        return results


def _similar(rows: Sequence[Row]) -> bool:
    """Whether the rows' numbers of new tokens are near enough to pad them to the largest."""
    longest, shortest = max(len(r.tokens) for r in rows), min(len(r.tokens) for r in rows)
    return longest == shortest or longest <= PADDED


class CacheDecoder(Decoder):
    """The model's caches are inputs and outputs: the arrays of each slot are kept here. One row at a time."""

    def __init__(self, session: Any, lm: Mapping[str, Any], slots: int, context: int) -> None:
        super().__init__(session, lm, slots, context)
        names = [p.name for p in session.outputs]
        self.past = list(lm["past"])
        self.present = [names.index(name) for name in lm["present"]]
        ports = {p.name: p for p in session.inputs}
        grown = session.outputs[self.present[0]].shape
        # the axis that grows is the one whose size is another afterwards
        self.axis = next(a for a, d in enumerate(ports[self.past[0]].shape) if isinstance(d, str) and d != grown[a])
        self.empty = []
        for name in self.past:
            shape = [d if isinstance(d, int) else 1 for d in ports[name].shape]
            shape[self.axis] = 0
            self.empty.append(np.zeros(shape, self.dtypes[name]))
        self.held: list[list[np.ndarray]] = [self.empty] * slots

    def length(self, slot: int) -> int:
        return self.held[slot][0].shape[self.axis]

    def truncate(self, slot: int, length: int) -> None:
        if length < self.length(slot):
            self.held[slot] = [self._cut(a, length) for a in self.held[slot]]

    def copy(self, source: int, target: int, length: int) -> None:
        self.held[target] = self.held[source]  # no run writes into them
        self.truncate(target, length)

    def _cut(self, array: np.ndarray, length: int) -> np.ndarray:
        return np.ascontiguousarray(array[(slice(None),) * self.axis + (slice(length),)])

    def forward(self, rows: Sequence[Row]) -> list[np.ndarray]:
        return [self._run(row) for row in rows]

    def _run(self, row: Row) -> np.ndarray:
        start = self.length(row.slot)
        feeds = self.feeds([row.tokens], [start])
        feeds |= zip(self.past, self.held[row.slot])
        outputs = self.core.run(feeds, parameters=self.kept(max(row.keep, 1)))
        self.held[row.slot] = [outputs[index] for index in self.present]
        return self._last(outputs[self.logits_index][0], row.keep)


class RecomputeDecoder(Decoder):
    """A model without a cache: every run goes over the whole sequence."""

    def __init__(self, session: Any, lm: Mapping[str, Any], slots: int, context: int) -> None:
        super().__init__(session, lm, slots, context)
        self.held: list[list[int]] = [[] for _ in range(slots)]
        warnings.warn(
            "this model has no key-value cache: each token costs a run over the whole text. "
            "Export it with one (past_key_values)",
            RuntimeWarning,
            stacklevel=4,
        )

    def length(self, slot: int) -> int:
        return len(self.held[slot])

    def truncate(self, slot: int, length: int) -> None:
        del self.held[slot][length:]

    def copy(self, source: int, target: int, length: int) -> None:
        self.held[target] = self.held[source][:length]

    def forward(self, rows: Sequence[Row]) -> list[np.ndarray]:
        results = []
        for row in rows:
            tokens = [*self.held[row.slot], *row.tokens]
            logits = np.zeros((1, 0, self.vocab), np.float32)
            if row.keep:
                feeds = self.feeds([tokens], [0])
                logits = self.core.run(feeds, parameters=self.kept(row.keep))[self.logits_index]
            self.held[row.slot] = tokens
            results.append(self._last(logits[0], row.keep))
        return results


def make_decoder(session: Any, lm: Mapping[str, Any], slots: int, context: int) -> Decoder:
    """The decoder for what the artifact's manifest says under "lm". Raises EdgecError EC1503 if that is malformed."""
    try:
        if lm.get("states"):
            return StateDecoder(session, lm, slots, context)
        return (CacheDecoder if lm.get("past") else RecomputeDecoder)(session, lm, slots, context)
    except (KeyError, ValueError, TypeError, StopIteration, IndexError) as error:
        raise EdgecError(
            "EC1503", f"its 'lm' does not fit the model ({type(error).__name__}: {error})", hint="Build it again"
        ) from None
