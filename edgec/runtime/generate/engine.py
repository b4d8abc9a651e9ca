"""Runs many sequences through one decoder: each step is one batch of all that are active (continuous batching, Yu 2022).

An engine is driven by one thread at a time:

    sequence = engine.add(Request(ids, max_tokens=64))
    while not sequence.done:
        engine.step()
        delta = sequence.take()        # what is new: text, tokens
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from edgec.errors import EdgecError
from edgec.runtime.generate.decoder import Decoder, Row
from edgec.runtime.generate.lookup import DRAFTS, Acceptance, Pace, PromptLookup
from edgec.runtime.generate.sampler import Sampler, Sampling, log_probabilities
from edgec.runtime.generate.text import Detokenizer, StopStrings, Tokenizer, check_stops

STALL = 0.15  # seconds that a piece of a long prompt may hold up other sequences
STRETCH = 1.0  # seconds of one piece where nobody waits: until then nobody can cancel
PIECES = (16, 32, 64, 128, 256, 512)
WORTH = 16  # tokens of a common prefix that are worth a copy from one slot to another


@dataclass
class Request:
    """One sequence to generate.

    ids: the prompt's tokens. max_tokens: at most so many are generated. stop: strings that end the text, not part of
    it. text: whether text is made of the tokens, which takes a tokenizer, as stop does. logprobs: None, or how many of
    the likeliest tokens to report beside each. ignore_eos: go on after end-of-text tokens. constraint: of
    schema.Grammars. speculate: draft tokens by prompt look-up; the output is the same.
    """

    ids: Sequence[int]
    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    text: bool = True
    logprobs: int | None = None
    ignore_eos: bool = False
    constraint: Any = None
    speculate: bool = True


class Token(NamedTuple):
    """A generated token; logprob and top ((token, logprob) of the likeliest) where the request asked for them."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Delta(NamedTuple):
    """What came since the last take(): text that is certain, and tokens (which may be ahead of the text)."""

    text: str
    tokens: list[Token]


class Generated:
    """A request on its way. finish_reason: "stop" (end of text, stop string, whole schema), "length", "cancelled",
    "error" (then `error` says why) or None while it runs. Times are of time.perf_counter()."""

    def __init__(self, request: Request, number: int, tokenizer: Tokenizer | None, vocab: int) -> None:
        self.request, self.number = request, number
        self.prompt_tokens = len(request.ids)
        self.tokens: list[int] = [int(t) for t in request.ids]
        self.slot: int | None = None
        self.reused = 0  # tokens of the prompt that the cache held already
        self.finish_reason: str | None = None
        self.error: EdgecError | None = None
        self.cancelled = False
        self.added_at, self.first_at, self.last_at = time.perf_counter(), 0.0, 0.0
        self.sampler = Sampler(request.sampling, self.tokens, vocab)
        self.text = Detokenizer(tokenizer, self.tokens) if tokenizer else None
        self.stops = StopStrings(check_stops(request.stop))
        self.lookup: PromptLookup | None = None
        self.acceptance = Acceptance()
        self.accepted = self.drafted = 0
        self._pieces: list[str] = []
        self._new: list[Token] = []

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def count(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt, without the one that ended the text."""
        return self.tokens[self.prompt_tokens :]

    @property
    def news(self) -> bool:
        return bool(self._pieces or self._new or self.done)

    def take(self) -> Delta:
        """What is new since the last call."""
        delta = Delta("".join(self._pieces), self._new)
        self._pieces, self._new = [], []
        return delta

    def append(self, token: Token) -> None:
        """A token that belongs to the output."""
        self.last_at = time.perf_counter()
        self.first_at = self.first_at or self.last_at
        self.tokens.append(token.id)
        self._new.append(token)
        if self.lookup is not None:
            self.lookup.extend((token.id,))
        if self.text is not None and (piece := self.stops.add(self.text.add(token.id))):
            self._pieces.append(piece)

    def finish(self, reason: str, error: EdgecError | None = None) -> None:
        if self.done:
            return
        self.finish_reason, self.error = reason, error
        if self.text is not None and self.stops.found is None:
            rest = self.stops.add(self.text.finish())
            rest += self.stops.finish()
            if rest:
                self._pieces.append(rest)


class Engine:
    """Sequences in the slots of a decoder. Memory is bounded by the slots, the context and `queue` waiting requests."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        eos: Iterable[int] = (),
        tokenizer: Callable[[], Tokenizer] | None = None,
        queue: int = 1024,
    ) -> None:
        """tokenizer: called for the first request that needs text; it raises EdgecError where there is none."""
        self.decoder, self.eos, self.tokenizer, self.queue = decoder, frozenset(eos), tokenizer, queue
        self.waiting: deque[Generated] = deque()
        self.active: list[Generated] = []
        self.held: list[list[int]] = [[] for _ in range(decoder.slots)]  # tokens of idle slots, for reuse
        self.used = [0] * decoder.slots  # when each was last given back
        self._numbers = itertools.count(1)
        self._pace = Pace()
        self._prefill_seconds = 0.0  # of one token, running mean

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.active)

    def add(self, request: Request) -> Generated:
        """Queues the request. Raises EdgecError EC1001, EC1608 (longer than the context); EC1606 for a full queue."""
        ids, vocab = request.ids, self.decoder.vocab
        if len(ids) == 0:
            raise EdgecError("EC1001", "the prompt is empty", "prompt", "Give at least one token")
        if len(ids) >= self.decoder.context:
            raise EdgecError(
                "EC1608",
                f"the prompt has {len(ids)} tokens, the context {self.decoder.context}",
                "prompt",
                "Shorten it, or load the model with a larger max_context",
            )
        if min(ids) < 0 or max(ids) >= vocab:
            bad = next(i for i in ids if not 0 <= i < vocab)
            raise EdgecError(
                "EC1001",
                f"token {bad} is not among the model's {vocab}",
                "prompt",
                "Take ids of the model's own tokenizer",
            )
        for name, least in (("max_tokens", 1), ("logprobs", 0)):
            value = getattr(request, name)
            if value is None and name == "logprobs":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise EdgecError("EC1001", f"{value!r} is no number of {least} or more", name)
        tokenizer = None
        if request.text or request.stop:
            if self.tokenizer is None:
                raise EdgecError(
                    "EC1701",
                    "text and stop strings need the model's tokenizer",
                    "stop",
                    "Build with --tokenizer FOLDER, or pass ids",
                )
            tokenizer = self.tokenizer()
        if len(self.waiting) >= self.queue:
            raise EdgecError("EC1606", f"{self.queue} requests are waiting", "queue", "Try again later")
        sequence = Generated(request, next(self._numbers), tokenizer, vocab)
        self.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Generated) -> None:
        """Ends the sequence before the next step; its slot is free then. Other threads may call it."""
        sequence.cancelled = True

    def close(self) -> None:
        for sequence in [*self.waiting, *self.active]:
            sequence.cancelled = True
        self.drop_cancelled()

    def step(self) -> list[Generated]:
        """One batch: a token (or several) for each sequence that generates, a piece of one prompt. The sequences that
        have news. An error of one run ends the sequences of that run; the engine goes on."""
        stepped = self.drop_cancelled()
        self._admit()
        ready, prefilling = [], []
        for s in self.active:
            (ready if len(s.tokens) - self._length(s) == 1 else prefilling).append(s)
        if ready:
            self._decode(ready)
        if prefilling:
            self._prefill(prefilling, alone=not ready)
        stepped += [s for s in (*ready, *prefilling) if s.news]
        for s in [s for s in self.active if s.done]:
            self._release(s)
        return stepped

    # Slots

    def _length(self, s: Generated) -> int:
        assert s.slot is not None
        return self.decoder.length(s.slot)

    def drop_cancelled(self) -> list[Generated]:
        dropped = [s for s in (*self.waiting, *self.active) if s.cancelled and not s.done]
        for s in dropped:
            s.finish("cancelled")
            if s.slot is None:
                self.waiting.remove(s)
            else:
                self._release(s)
        return dropped

    def _release(self, s: Generated) -> None:
        assert s.slot is not None
        if s.error is not None:
            self.decoder.truncate(s.slot, 0)  # what led to an error may be in its keys and values
        self.held[s.slot] = s.tokens[: self.decoder.length(s.slot)]
        self.used[s.slot] = s.number
        self.active.remove(s)
        s.slot = None

    def _admit(self) -> None:
        while self.waiting and len(self.active) < self.decoder.slots:
            s = self.waiting.popleft()
            try:
                s.reused = self._place(s)
            except EdgecError as error:
                s.slot = None
                s.finish("error", error)
                continue
            self.active.append(s)
            if s.request.speculate:
                s.lookup = PromptLookup()
                s.lookup.extend(s.tokens)

    def _place(self, s: Generated) -> int:
        """Gives the sequence a slot that begins as much like it as can be had; the number of tokens kept."""
        busy = {a.slot: a for a in self.active}
        idle = [slot for slot in range(self.decoder.slots) if slot not in busy]
        prompt = np.array(s.tokens[:-1], np.int64)  # the last one is run in any case, for its logits
        common = {}
        for slot in range(self.decoder.slots):
            length = self.decoder.length(slot)
            tokens = busy[slot].tokens if slot in busy else self.held[slot]
            common[slot] = _common(prompt, tokens[:length])
        best = max(common, key=lambda slot: (common[slot], slot in idle))
        kept = common[best]
        lost = self.decoder.length(best) - kept
        others = [slot for slot in idle if slot != best]
        if best in idle and (lost <= kept or not others):
            target = best
        else:
            # the emptiest, else the one that was used longest ago
            target = min(others or idle, key=lambda slot: (self.decoder.length(slot) > 0, self.used[slot]))
            if kept >= WORTH:
                self.decoder.copy(best, target, kept)
            else:
                kept = common[target]
        self.decoder.truncate(target, kept)
        s.slot = target
        return kept

    # Runs

    def _run(self, sequences: Sequence[Generated], rows: Sequence[Row]) -> list[np.ndarray] | None:
        """The rows' logits. After an error, or an interrupt, every slot is as before; an error ends the sequences."""
        before = [self.decoder.length(row.slot) for row in rows]
        try:
            return self.decoder.forward(rows)
        except BaseException as error:
            for row, length in zip(rows, before):
                self.decoder.truncate(row.slot, length)
            if not isinstance(error, EdgecError):
                raise
            for s in sequences:
                s.finish("error", error)
            return None

    def _decode(self, ready: Sequence[Generated]) -> None:
        drafts = [self._draft(s) if len(ready) == 1 else [] for s in ready]
        rows = [Row(s.slot, [s.tokens[-1], *d], 1 + len(d)) for s, d in zip(ready, drafts)]  # type: ignore[arg-type]
        start = time.perf_counter()
        results = self._run(ready, rows)
        if results is None:
            return
        if len(ready) == 1:
            self._pace.add(len(rows[0].tokens), time.perf_counter() - start)
        for s, draft, logits in zip(ready, drafts, results):
            self._choose(s, draft, logits)

    def _prefill(self, prefilling: Sequence[Generated], alone: bool) -> None:
        """Runs pieces of prompts, first come first served, until the time is used up."""
        seconds = STRETCH if alone and len(prefilling) == 1 else STALL
        budget = self._piece(seconds)
        for s in prefilling:
            length = self._length(s)
            count = min(len(s.tokens) - length, budget, self.decoder.run_limit)
            whole = length + count == len(s.tokens)
            start = time.perf_counter()
            assert s.slot is not None
            results = self._run([s], [Row(s.slot, s.tokens[length : length + count], int(whole))])
            if results is not None:
                each = (time.perf_counter() - start) / count
                if count >= PIECES[0]:
                    old = self._prefill_seconds
                    self._prefill_seconds = each if not old else 0.7 * old + 0.3 * each
                if whole:
                    self._choose(s, [], results[0])
            budget -= count
            if budget <= 0:
                return

    def _piece(self, seconds: float) -> int:
        """How many tokens of prompts run in that time."""
        if not self._prefill_seconds:
            return 128
        most = seconds / self._prefill_seconds
        return max((p for p in PIECES if p <= most), default=PIECES[0])

    def _draft(self, s: Generated) -> list[int]:
        """Tokens to try, as many as pay off."""
        if s.lookup is None or s.lookup.start is None:
            return []
        room = min(self.decoder.context - len(s.tokens), s.request.max_tokens - s.count - 1, DRAFTS[-1])
        return s.lookup.draft(self._pace.draft_length(s.acceptance.share, min(room, self.decoder.run_limit - 1)))

    def _choose(self, s: Generated, draft: Sequence[int], logits: np.ndarray) -> None:
        """Takes tokens from the logits [1 + len(draft), vocab] as long as the draft is what was chosen anyway: so the
        output is that of steps of one token, and its distribution too."""
        try:
            for at in range(len(draft) + 1):
                guess = s.lookup.draft(1) if s.lookup is not None else []
                token = self._take(s, logits[at])
                if guess:
                    s.acceptance.add(guess[0] == token)
                if s.done or at == len(draft) or token != draft[at]:
                    break
                s.accepted += 1
        except EdgecError as error:
            s.finish("error", error)
        s.drafted += len(draft)
        assert s.slot is not None
        # the last token is never in the cache: the next step runs it
        self.decoder.truncate(s.slot, min(self.decoder.length(s.slot), len(s.tokens) - 1))

    def _take(self, s: Generated, logits: np.ndarray) -> int:
        request = s.request
        constraint = request.constraint
        token = s.sampler.choose(logits, constraint.allow if constraint is not None else None)
        if token in self.eos and not request.ignore_eos:
            s.finish("stop")
            return token
        logprob, top = (None, ()) if request.logprobs is None else log_probabilities(logits, token, request.logprobs)
        s.append(Token(token, logprob, top))
        if s.stops.found is not None or (constraint is not None and constraint.accept(token)):
            s.finish("stop")
        elif s.count >= request.max_tokens or len(s.tokens) >= self.decoder.context:
            s.finish("length")
        return token


def _common(prompt: np.ndarray, tokens: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    n = min(prompt.size, len(tokens))
    differ = np.flatnonzero(prompt[:n] != np.array(tokens[:n], np.int64))
    return int(differ[0]) if differ.size else n
