"""Text and tokens: the tokenizer of an artifact, text from tokens as they come, stop strings."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from edgec.errors import EdgecError

REPLACEMENT = "�"  # what bytes that are no whole character are decoded to
CONTEXT = 6  # tokens of the prompt that the first piece of text is decoded after
PATIENCE = 12  # tokens that may wait for the rest of a character
LONGEST_TOKEN = 512  # characters: a longer text than this for each token of the context is not even tokenized


def need(package: str, purpose: str) -> Any:
    """The module. Raises EdgecError EC1002 where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise EdgecError("EC1002", f"{purpose} needs {package}", hint="Install it: pip install 'edgec[lm]'") from None


def _guarded(call, *args, what: str):
    """The call's result; what the tokenizer's Rust code raises, panics too, becomes EC1701."""
    try:
        return call(*args)
    except (KeyboardInterrupt, SystemExit, EdgecError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise EdgecError(
            "EC1701", f"{what}: {error}", "tokenizer.json", "Build the artifact again with the model's own tokenizer"
        ) from None


class Tokenizer:
    """tokenizer.json through the `tokenizers` package."""

    def __init__(self, data: bytes) -> None:
        """Raises EdgecError EC1002, EC1701."""
        library = need("tokenizers", "text")
        self.json = _guarded(bytes(data).decode, what="it is no UTF-8")
        self._tokenizer = _guarded(library.Tokenizer.from_str, self.json, what="it cannot be read")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """`special`: with the tokens that the tokenizer puts around a text, such as a beginning-of-text token."""
        encoding = _guarded(lambda: self._tokenizer.encode(text, add_special_tokens=special), what="it cannot encode")
        return encoding.ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return _guarded(
            lambda: self._tokenizer.decode(list(ids), skip_special_tokens=skip_special), what="it cannot decode"
        )

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def token_of(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        return self._tokenizer.id_to_token(token_id)


class Detokenizer:
    """Text from tokens as they come: the pieces joined are the text of all tokens.

    A piece is what a token adds to the text of those before it, as decoders treat a token's leading space and bytes
    by what stands before; a token that ends inside a character waits for the rest of it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._decode = tokenizer.decode
        self._ids = list(prompt[-CONTEXT:])
        self._text = self._decode(self._ids) if self._ids else ""  # of the tokens whose text is out
        self._waiting = 0

    def add(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        self._waiting += 1
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) and self._waiting < PATIENCE:
            return ""
        return self._release(text)

    def finish(self) -> str:
        """What is left: the bytes of a character that never became whole, as replacement characters."""
        return self._release(self._decode(self._ids)) if self._waiting else ""

    def _release(self, text: str) -> str:
        piece = text[len(self._text) :]
        self._text, self._waiting = text, 0
        if len(self._ids) > 2 * CONTEXT:
            self._forget(text)
        return piece

    def _forget(self, text: str) -> None:
        """Drops old tokens, at a place where no character is cut in two: decoders judge runs of bytes as a whole."""
        for kept in range(CONTEXT, len(self._ids)):
            rest = self._decode(self._ids[-kept:])
            if rest and REPLACEMENT not in rest and text.endswith(rest):
                break
        else:
            if len(self._ids) < 16 * CONTEXT:
                return
            kept = CONTEXT
        del self._ids[:-kept]
        self._text = self._decode(self._ids)


class StopStrings:
    """Passes text on up to the first of the strings; what may be the beginning of one is held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self.found: str | None = None
        self._held = ""

    def add(self, piece: str) -> str:
        if not self.strings or self.found is not None:
            return "" if self.found is not None else piece
        text = self._held + piece
        hits = [(at, s) for s in self.strings if (at := text.find(s)) >= 0]
        if hits:
            at, self.found = min(hits)
            self._held = ""
            return text[:at]
        held = max(_overlap(text, s) for s in self.strings)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, where the text ends without a stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def check_stops(stop: str | Iterable[str]) -> tuple[str, ...]:
    """The stop strings as a tuple. Raises EdgecError EC1001."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(s, str) and s for s in strings):
        raise EdgecError(
            "EC1001", "a stop string must be a string that is not empty", "stop", "Leave it out, or pass text"
        )
    if len(strings) > 64 or sum(map(len, strings)) > 1 << 16:
        raise EdgecError("EC1001", "more than 64 strings or 65536 characters", "stop", "Pass fewer")
    return strings


def member_json(members: Any, name: str) -> dict[str, Any]:
    """A JSON member of an artifact; empty where there is none. Raises EdgecError EC1701."""
    data = members.get(name)
    if data is None:
        return {}
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise EdgecError("EC1701", f"it is no JSON: {error}", name, "Build the artifact again") from None
    if not isinstance(value, dict):
        raise EdgecError("EC1701", "it is no JSON object", name, "Build the artifact again")
    return value
