"""LanguageModel: a session that generates text."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgec.errors import EdgecError
from edgec.runtime.generate.engine import Delta, Engine, Generated, Request, Token
from edgec.runtime.generate.sampler import Sampling
from edgec.runtime.generate.text import LONGEST_TOKEN, Detokenizer, Tokenizer, check_stops, member_json
from edgec.runtime.session import Session

CONTEXT = 4096  # where neither the artifact nor the caller says
SLOTS = 4
CHAT_TOKENS = 1024
SAMPLING = tuple(Sampling.__dataclass_fields__)


class Generation(Iterator):
    """One answer on its way: an iterator of its pieces, text for a prompt of text, token ids for one of ids.

    Closing it, leaving its `with`, or dropping it stops the model. Afterwards (or in between) it has `finish_reason`
    ("stop", "length", "cancelled"), `tokens` (ids so far), `prompt_tokens`, `reused` (tokens of the prompt that were
    in the cache) and `timings`. Iterating raises what went wrong: EdgecError EC1703, EC1606.
    """

    def __init__(self, model: LanguageModel, sequence: Generated, as_ids: bool) -> None:
        self._model, self._sequence, self._as_ids = model, sequence, as_ids
        self._ids: list[int] = []

    def __next__(self) -> Any:
        if self._ids:
            return self._ids.pop(0)
        while True:
            delta = self._model.advance(self._sequence)
            if self._as_ids and delta.tokens:
                self._ids = [t.id for t in delta.tokens]
                return self._ids.pop(0)
            if not self._as_ids and delta.text:
                return delta.text
            if self._sequence.done:
                if self._sequence.error is not None:
                    raise self._sequence.error.with_traceback(None)
                raise StopIteration

    def deltas(self) -> Iterator[Delta]:
        """Pieces of text with their tokens, and log probabilities where they were asked for."""
        while True:
            delta = self._model.advance(self._sequence)
            if delta.text or delta.tokens:
                yield delta
            if self._sequence.done:
                if self._sequence.error is not None:
                    raise self._sequence.error.with_traceback(None)
                return

    def close(self) -> None:
        self._model.cancel(self._sequence)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._sequence.done:
            self._sequence.cancelled = True  # the engine frees the slot before its next step

    @property
    def finish_reason(self) -> str | None:
        return self._sequence.finish_reason

    @property
    def tokens(self) -> list[int]:
        return self._sequence.generated

    @property
    def prompt_tokens(self) -> int:
        return self._sequence.prompt_tokens

    @property
    def reused(self) -> int:
        return self._sequence.reused

    @property
    def timings(self) -> dict[str, float]:
        """ttft_ms: from the call to the first token. decode_tok_s: of the tokens after it. accepted, drafted: tokens
        that prompt look-up proposed."""
        s = self._sequence
        count, seconds = s.count, s.last_at - s.first_at
        return {
            "prompt_tokens": s.prompt_tokens,
            "reused_tokens": s.reused,
            "tokens": count,
            "ttft_ms": (s.first_at - s.added_at) * 1e3 if count else 0.0,
            "decode_tok_s": (count - 1) / seconds if count > 1 and seconds > 0 else 0.0,
            "drafted": s.drafted,
            "accepted": s.accepted,
        }


class LanguageModel(Session):
    """A session of a decoder that also generates. Several generations may be under way at once, from several threads:
    they share the steps of one engine, at most `slots` of them at a time."""

    lm: dict[str, Any]
    context: int
    lock: threading.RLock  # whoever steps the engine holds it

    @classmethod
    def of(cls, session: Session, max_context: int | None = None, slots: int | None = None) -> LanguageModel:
        """The session as a language model. slots: sequences that are held at once, running or kept for their next
        turn. Raises EdgecError EC1001, EC1503."""
        if slots is not None and slots < 1:
            raise EdgecError("EC1001", f"slots={slots}", hint="Pass 1 or more")
        model = cls.__new__(cls)
        model.__dict__.update(session.__dict__)
        lm = model.lm = session.manifest["lm"]
        names = {p.name for p in session.inputs}, {p.name for p in session.outputs}
        known = lm.get("ids") in names[0] and lm.get("logits") in names[1] and isinstance(lm.get("vocab"), int)
        if not known or not all(isinstance(t, int) for t in lm.get("eos") or ()):
            raise EdgecError("EC1503", "its 'lm' does not fit the model", hint="Build the artifact again")
        model.context = max_context or lm.get("context") or CONTEXT
        model.lock = threading.RLock()
        model._slots = slots or SLOTS
        model._engine = None
        return model

    _slots: int
    _engine: Engine | None

    # The parts, made when they are first used

    @property
    def engine(self) -> Engine:
        with self.lock:
            if self._engine is None:
                from edgec.runtime.generate.decoder import make_decoder

                # a key-value cache of its own for each slot; what session(...) runs does not touch them
                decoder = make_decoder(self, self.lm, self._slots, self.context)
                self._engine = Engine(decoder, eos=self.eos, tokenizer=lambda: self.tokenizer)
            return self._engine

    @property
    def eos(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return tuple(self.lm.get("eos") or ())

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises EdgecError EC1002, EC1701."""
        data = self.artifact.members.get("tokenizer.json")
        if data is None:
            raise EdgecError(
                "EC1701",
                "the artifact has no tokenizer",
                str(self.artifact.path),
                "Build it from the folder that has tokenizer.json, or pass token ids",
            )
        return Tokenizer(data)

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return member_json(self.artifact.members, "tokenizer_config.json")

    @functools.cached_property
    def _templates(self) -> dict[bool, Any]:
        return {}

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """The text's tokens; `special`: with those that the tokenizer puts around it."""
        return self.tokenizer.encode(text, special)

    def detokenize(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.tokenizer.decode(ids, skip_special)

    def apply_template(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt that the model's chat template makes of the messages ({"role": ..., "content": ...}).

        Raises EdgecError EC1001 (no messages), EC1702 (no template, or it fails).
        """
        from edgec.runtime.generate import template as t

        messages = t.check_messages(messages)
        tools = bool(variables.get("tools"))
        if tools not in self._templates:
            source = t.find_template(self.artifact.members, self._config, tools)
            if source is None:
                raise EdgecError(
                    "EC1702",
                    "the artifact has none",
                    "chat template",
                    "Use generate(), or build the artifact from a folder that has chat_template.jinja",
                )
            names = t.special_tokens(self._config, member_json(self.artifact.members, "special_tokens_map.json"))
            self._templates[tools] = t.ChatTemplate(source, names)
        return self._templates[tools].render(messages, **variables)

    @functools.cached_property
    def _grammars(self) -> Any:
        from edgec.runtime.generate.schema import Grammars

        return Grammars(self.tokenizer, int(self.lm["vocab"]), self.eos)

    # Generation

    def request(
        self,
        prompt: str | None = None,
        max_tokens: int = 256,
        *,
        ids: Sequence[int] | None = None,
        special: bool = True,
        stop: str | Iterable[str] = (),
        schema: Any = None,
        logprobs: int | None = None,
        ignore_eos: bool = False,
        speculate: bool = True,
        **sampling: Any,
    ) -> Request:
        """What generate() asks the engine for; see there."""
        if (prompt is None) == (ids is None):
            raise EdgecError("EC1001", "pass either a prompt or ids", "prompt", "Leave one of them out")
        unknown = [name for name in sampling if name not in SAMPLING]
        if unknown:
            raise EdgecError("EC1001", "there is no such option", unknown[0], f"One of: {', '.join(SAMPLING)}")
        options = Sampling(**sampling)
        options.check(int(self.lm["vocab"]))
        stops = check_stops(stop)
        if prompt is not None:
            ids = self._encode(prompt, special)
        assert ids is not None
        return Request(
            ids=[int(i) for i in ids],
            max_tokens=max_tokens,
            sampling=options,
            stop=stops,
            text=prompt is not None,
            logprobs=logprobs,
            ignore_eos=ignore_eos,
            speculate=speculate,
            constraint=None if schema is None else self._grammars.constraint(schema),
        )

    def _encode(self, prompt: str, special: bool) -> list[int]:
        if not isinstance(prompt, str):
            raise EdgecError(
                "EC1001", f"a prompt is text, not {type(prompt).__name__}", "prompt", "Pass a str, or ids=[...]"
            )
        if not prompt:
            raise EdgecError("EC1001", "the prompt is empty", "prompt", "Give it some text")
        if len(prompt) > LONGEST_TOKEN * self.context:
            raise EdgecError(
                "EC1608",
                f"{len(prompt)} characters, the context is {self.context} tokens",
                "prompt",
                "Shorten the prompt, or load with a larger max_context",
            )
        ids = self.tokenizer.encode(prompt, special)
        vocab = int(self.lm["vocab"])
        if any(i >= vocab for i in ids):
            raise EdgecError(
                "EC1701", f"it gives token {max(ids)}, the model has {vocab}", "tokenizer.json", "It is another model's"
            )
        return ids

    def generate(self, prompt: str | None = None, max_tokens: int = 256, **options: Any) -> Generation:
        """Continues a text: an iterator of pieces of the continuation, without the token that ends it.

        prompt: taken as it is (chat() applies the template). ids: token ids instead; then token ids come out, and no
        tokenizer is needed. temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
        logit_bias, seed: see Sampling. stop: strings that end the text before them. schema: a JSON schema that the
        text follows. special: whether the tokenizer adds its own tokens, such as one for the beginning. logprobs: for
        deltas(). ignore_eos, speculate: see Request.

        Raises EdgecError EC1001 for bad values, EC1608 for a prompt beyond the context, EC1701 for the tokenizer.
        """
        return self.start(self.request(prompt, max_tokens, **options))

    def start(self, request: Request) -> Generation:
        """Hands the request to the engine. Raises EdgecError as generate() does."""
        with self.lock:
            return Generation(self, self.engine.add(request), as_ids=not request.text)

    def chat(self, messages: Sequence[Mapping[str, Any]], max_tokens: int = CHAT_TOKENS, **options: Any) -> Generation:
        """The answer to messages ({"role": "system"|"user"|"assistant", "content": text}): an iterator of its pieces.

        What the conversation shares with an earlier one is not computed again. tools: what the template offers the
        model. Other options as of generate(). Raises EdgecError EC1702 where the model has no template or it fails.
        """
        return self.start(self.chat_request(messages, max_tokens, **options))

    def chat_request(
        self, messages: Sequence[Mapping[str, Any]], max_tokens: int = CHAT_TOKENS, *, tools: Any = None, **options: Any
    ) -> Request:
        """What chat() asks the engine for."""
        variables = {} if tools is None else {"tools": tools}
        # a template writes the special tokens itself
        return self.request(self.apply_template(messages, **variables), max_tokens, special=False, **options)

    def conversation(self, system: str | None = None, **options: Any) -> Conversation:
        """A chat that keeps its messages; options as of chat()."""
        return Conversation(self, system, options)

    def generate_batch(self, prompts: Sequence[Any], max_tokens: int = 256, **options: Any) -> list[Any]:
        """The continuations of several prompts (texts, or lists of ids), run together: texts, or lists of ids."""
        running = []
        for prompt in prompts:
            given = {"prompt": prompt} if isinstance(prompt, str) else {"ids": prompt}
            running.append(self.generate(max_tokens=max_tokens, **given, **options))
        results: list[Any] = []
        for generation, prompt in zip(running, prompts):
            results.append("".join(generation) if isinstance(prompt, str) else list(generation))
        return results

    # The engine, one step at a time

    def advance(self, sequence: Generated) -> Delta:
        """Steps until the sequence has news, and takes them."""
        with self.lock:
            while not sequence.news:
                self.engine.step()
            return sequence.take()

    def cancel(self, sequence: Generated) -> None:
        with self.lock:
            if not sequence.done:
                self.engine.cancel(sequence)
                self.engine.drop_cancelled()


class Conversation:
    """Messages, and the model's answers to them; what was said before stays in the cache."""

    def __init__(self, model: LanguageModel, system: str | None, options: Mapping[str, Any]) -> None:
        self.model, self.options = model, dict(options)
        self.messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        self.last: Generation | None = None
        self.forgotten = 0

    def say(self, text: str, **options: Any) -> Iterator[str]:
        """Pieces of the answer. The answer joins the messages, also where it is cut short; after an error neither
        the question nor the answer stays. Where the context is too small for all that was said, and a quarter of it
        for the answer, the oldest messages are left out (`forgotten` counts them)."""
        question = {"role": "user", "content": text}
        options = self.options | options
        system = [m for m in self.messages[:1] if m["role"] == "system"]
        room = min(options.get("max_tokens", CHAT_TOKENS), self.model.context // 4)
        while True:
            request = self.model.chat_request([*self.messages, question], **options)
            if len(request.ids) + room <= self.model.context or len(self.messages) == len(system):
                break
            del self.messages[len(system) : len(system) + 2]
            self.forgotten += 2
        return self._answer(question, self.model.start(request))

    def _answer(self, question: dict[str, str], generation: Generation) -> Iterator[str]:
        self.last = generation
        said: list[str] = []
        failed = False
        try:
            for piece in generation:
                said.append(piece)
                yield piece
        except EdgecError:
            failed = True
            raise
        finally:
            generation.close()
            if not failed:
                self.messages += [question, {"role": "assistant", "content": "".join(said)}]

    def reset(self) -> None:
        """Forgets all but the system message."""
        del self.messages[sum(m["role"] == "system" for m in self.messages[:1]) :]
        self.forgotten = 0


__all__ = ["Conversation", "Delta", "Detokenizer", "Generation", "LanguageModel", "Request", "Sampling", "Token"]
