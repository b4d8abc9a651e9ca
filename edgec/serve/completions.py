"""Text from the engine in OpenAI's forms: chat completions and completions, whole and as events."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from edgec.errors import EdgecError
from edgec.runtime.generate.engine import Delta, Request, Token
from edgec.serve.errors import ApiError
from edgec.serve.protocol import DEFAULT_TOKENS, Completion
from edgec.serve.worker import Answer, Worker

# the engine's reasons, as OpenAI calls them
_REASONS = {"stop": "stop", "length": "length", "cancelled": "length"}


def make_requests(worker: Worker, wanted: Completion) -> list[Request]:
    """What the engine is asked for: n times each prompt. Slow (tokenizer, template, grammar): not for the event loop.

    Raises ApiError.
    """
    model, options = worker.model, dict(wanted.options)
    try:
        with worker.prepare:
            if wanted.chat:
                made = [model.chat_request(wanted.messages, 1, **options)]
            else:
                given = ({"prompt": p} if isinstance(p, str) else {"ids": p} for p in wanted.prompts)
                made = [replace(model.request(max_tokens=1, **g, **options), text=True) for g in given]
            requests = []
            for request in made:
                room = max(model.context - len(request.ids), 1)
                count = min(wanted.max_tokens or (DEFAULT_TOKENS if wanted.chat else 16), room)
                for k in range(wanted.n):
                    seed = request.sampling.seed
                    sampling = replace(request.sampling, seed=None if seed is None else seed + k)
                    constraint = request.constraint if k == 0 or request.constraint is None else None
                    if k and request.constraint is not None:  # it has a state: one for each choice
                        constraint = model._grammars.constraint(options["schema"])
                    requests.append(replace(request, max_tokens=count, sampling=sampling, constraint=constraint))
            return requests
    except EdgecError as error:
        raise ApiError.of(error) from None


class Form:
    """The JSON of one request's answers."""

    def __init__(self, wanted: Completion, worker: Worker) -> None:
        self.wanted, self.tokenizer = wanted, worker.model.tokenizer
        kind = "chatcmpl" if wanted.chat else "cmpl"
        self.base = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": wanted.model}
        self.offsets: dict[int, int] = {}

    def whole(self, answers: list[Answer], texts: list[str], tokens: list[list[Token]]) -> dict:
        choices = []
        for i, (answer, text, found) in enumerate(zip(answers, texts, tokens)):
            choice: dict[str, Any] = {"index": i, "logprobs": self._logprobs(i, found),
                                      "finish_reason": _REASONS.get(answer.finish_reason or "", "stop")}  # fmt: skip
            if self.wanted.chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = text
            choices.append(choice)
        kind = "chat.completion" if self.wanted.chat else "text_completion"
        return self.base | {"object": kind, "choices": choices, "usage": usage(answers, self.wanted.n)}

    def chunk(self, index: int, delta: Delta | None, reason: str | None = None, first: bool = False) -> dict:
        text, tokens = ("", []) if delta is None else delta
        choice: dict[str, Any] = {"index": index, "logprobs": self._logprobs(index, tokens) if tokens else None,
                                  "finish_reason": reason and _REASONS.get(reason, "stop")}  # fmt: skip
        if self.wanted.chat:
            content: dict[str, Any] = {"role": "assistant"} if first else {}
            choice["delta"] = content | ({"content": text} if reason is None else {})
        else:
            choice["text"] = text
        return self._event([choice], None)

    def totals(self, answers: list[Answer]) -> dict:
        return self._event([], usage(answers, self.wanted.n))

    def _event(self, choices: list[dict], totals: dict | None) -> dict:
        kind = "chat.completion.chunk" if self.wanted.chat else "text_completion"
        event = self.base | {"object": kind, "choices": choices}
        return event | {"usage": totals} if self.wanted.include_usage else event

    def _logprobs(self, index: int, tokens: list[Token]) -> dict | None:
        if "logprobs" not in self.wanted.options:
            return None
        if self.wanted.chat:
            return {"content": [self._entry(t.id, t.logprob) | {"top_logprobs": [self._entry(*o) for o in t.top]}
                                for t in tokens], "refusal": None}  # fmt: skip
        texts = [self._text(t.id) for t in tokens]
        start = self.offsets.get(index, 0)
        ends = list(itertools.accumulate(map(len, texts), initial=start))
        self.offsets[index] = ends[-1]
        return {"tokens": texts, "token_logprobs": [t.logprob for t in tokens], "text_offset": ends[:-1],
                "top_logprobs": [{self._text(i): p for i, p in t.top} for t in tokens]}  # fmt: skip

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token], False)

    def _entry(self, token: int, logprob: float | None) -> dict:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(answers: list[Answer], n: int) -> dict:
    """Tokens of all choices; a prompt counts once whatever n."""
    found = [a.usage for a in answers]
    prompt = sum(p for p, _, _ in found[::n])
    generated = sum(g for _, _, g in found)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": sum(c for _, c, _ in found[::n])}}  # fmt: skip


async def gather(form: Form, answers: list[Answer]) -> dict:
    """The whole answer. Whoever cancels it ends the generation."""

    async def collect(answer: Answer) -> tuple[str, list[Token]]:
        pieces, tokens = [], []
        async for delta in answer.deltas():
            pieces.append(delta.text)
            tokens += delta.tokens
        return "".join(pieces), tokens

    try:
        found = await asyncio.gather(*map(collect, answers))
    finally:
        for answer in answers:
            answer.cancel()
    return form.whole(answers, [text for text, _ in found], [tokens for _, tokens in found])


async def events(form: Form, answers: list[Answer]) -> AsyncIterator[dict]:
    """The chunks of all choices as they come."""
    news: asyncio.Queue = asyncio.Queue()

    async def follow(index: int, answer: Answer) -> None:
        try:
            async for delta in answer.deltas():
                if delta.text or delta.tokens:
                    await news.put(form.chunk(index, delta))
            await news.put(form.chunk(index, None, answer.finish_reason))
        except ApiError as error:
            await news.put(error)
        finally:
            news.put_nowait(None)

    tasks = [asyncio.ensure_future(follow(i, a)) for i, a in enumerate(answers)]
    try:
        if form.wanted.chat:
            for i in range(len(answers)):
                yield form.chunk(i, None, first=True)
        left = len(tasks)
        while left:
            event = await news.get()
            if isinstance(event, ApiError):
                raise event
            if event is None:
                left -= 1
            else:
                yield event
        if form.wanted.include_usage:
            yield form.totals(answers)
    finally:
        for task, answer in zip(tasks, answers):
            task.cancel()
            answer.cancel()
