"""One thread for each language model: it alone steps the engine, and hands news to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from edgec.errors import EdgecError
from edgec.runtime.generate.engine import Delta, Generated, Request
from edgec.runtime.generate.model import LanguageModel
from edgec.serve.errors import ApiError


class Answer:
    """A sequence as the event loop sees it: an asynchronous iterator of deltas. Its memory is bounded by max_tokens."""

    def __init__(self, worker: Worker, request: Request) -> None:
        self.worker, self.request = worker, request
        self.loop = asyncio.get_running_loop()
        self.sequence: Generated | None = None
        self.finish_reason: str | None = None
        self.error: EdgecError | None = None
        self._news: deque[Delta] = deque()
        self._ready = asyncio.Event()

    def deliver(self, delta: Delta, reason: str | None, error: EdgecError | None) -> None:
        """Called by the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            self.loop.call_soon_threadsafe(self._take, delta, reason, error)

    def _take(self, delta: Delta, reason: str | None, error: EdgecError | None) -> None:
        self._news.append(delta)
        self.finish_reason, self.error = self.finish_reason or reason, self.error or error
        self._ready.set()

    async def deltas(self) -> AsyncIterator[Delta]:
        """Raises ApiError where generation failed."""
        while True:
            while self._news:
                yield self._news.popleft()
            if self.error is not None:
                raise ApiError.of(self.error)
            if self.finish_reason is not None:
                return
            self._ready.clear()
            await self._ready.wait()

    def cancel(self) -> None:
        if self.finish_reason is None:
            self.worker.cancel(self)

    @property
    def usage(self) -> tuple[int, int, int]:
        """Tokens of the prompt, those of them that were in the cache, and of the answer."""
        s = self.sequence
        return (len(self.request.ids), 0, 0) if s is None else (s.prompt_tokens, s.reused, s.count)


@dataclass
class Counters:
    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Worker:
    """Runs the engine of one model. `queue`: requests that may wait for a slot."""

    def __init__(self, name: str, model: LanguageModel, queue: int) -> None:
        self.name, self.model, self.queue = name, model, queue
        self.slots = model.engine.decoder.slots
        self.counters = Counters()
        self.prepare = threading.Lock()  # templates and grammars are made one at a time
        self._commands: deque[tuple[str, Answer]] = deque()
        self._running: dict[int, Answer] = {}
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Sequences that run or wait."""
        return len(self._running) + sum(kind == "add" for kind, _ in tuple(self._commands))

    def submit(self, requests: list[Request]) -> list[Answer]:
        """Queues the requests. Raises ApiError 429, 503."""
        if self._closing:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        if self.load + len(requests) > self.slots + self.queue:
            self.counters.refused += 1
            raise ApiError(429, "too many requests are waiting", code="queue_full", headers={"Retry-After": "1"})
        self.counters.requests += len(requests)
        answers = [Answer(self, r) for r in requests]
        self._send("add", answers)
        return answers

    def cancel(self, answer: Answer) -> None:
        self._send("cancel", [answer])

    def _send(self, kind: str, answers: list[Answer]) -> None:
        with self._wake:
            self._commands.extend((kind, a) for a in answers)
            self._wake.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Cancels what runs, and ends the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        engine = self.model.engine
        while True:
            with self._wake:
                while not self._commands and not engine.busy and not self._closing:
                    self._wake.wait()
                commands = list(self._commands)
                self._commands.clear()
                closing = self._closing
            with self.model.lock:
                for kind, answer in commands:
                    self._add(answer) if kind == "add" else self._drop(answer)
                if closing:
                    engine.close()
                try:
                    engine.step()
                except Exception as error:
                    self._fail(error)
            # whatever moved, cancelled ones too
            for number, answer in list(self._running.items()):
                self._deliver(number, answer)
            if closing and not self._running:
                return

    def _add(self, answer: Answer) -> None:
        try:
            sequence = answer.sequence = self.model.engine.add(answer.request)
        except EdgecError as error:
            answer.deliver(Delta("", []), "error", error)
            return
        self._running[sequence.number] = answer

    def _drop(self, answer: Answer) -> None:
        if answer.sequence is not None and not answer.sequence.done:
            self.model.engine.cancel(answer.sequence)

    def _deliver(self, number: int, answer: Answer) -> None:
        sequence = answer.sequence
        assert sequence is not None
        if not sequence.news:
            return
        delta = sequence.take()
        if sequence.done:
            del self._running[number]
            self.counters.prompt_tokens += sequence.prompt_tokens
            self.counters.generated_tokens += sequence.count
        answer.deliver(delta, sequence.finish_reason, sequence.error)

    def _fail(self, error: Exception) -> None:
        """A fault inside: every sequence ends with it, and the engine goes on."""
        fault = EdgecError("EC1901", f"{type(error).__name__}: {error}")
        for answer in self._running.values():
            assert answer.sequence is not None
            answer.sequence.finish("error", fault)
        self.model.engine.close()
        self.model.engine.active.clear()
        self.model.engine.waiting.clear()
