"""Output that follows a JSON schema: llguidance says which tokens may come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgec.errors import EdgecError
from edgec.runtime.generate.text import Tokenizer, need

LIMIT = 1 << 20  # characters of a schema
WHITESPACE = r"[\x20\n]?[\x20]{0,12}"  # between tokens: a line and its indent, but never an endless run


def failed(reason: str) -> EdgecError:
    return EdgecError("EC1704", reason, "schema", "Simplify the schema")


class Grammars:
    """Makes constraints for one tokenizer and model; the token tables are made once."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos: tuple[int, ...]) -> None:
        self._library = need("llguidance", "a schema")
        self._vocab, self._eos = vocab, eos
        if not eos:
            raise failed("the model has no end-of-text token")
        try:
            # fewer logits than tokens: the tokens without one are refused by the mask's length
            size = max(vocab, tokenizer.size)
            self._tokens = self._library.LLTokenizer(tokenizer.json, n_vocab=size, eos_token=eos[0])
        except Exception as error:
            raise EdgecError("EC1701", f"it does not fit schemas: {error}", "tokenizer.json") from None

    def constraint(self, schema: str | Mapping[str, Any] | bool) -> Constraint:
        """schema: a JSON schema as a dict or as text; True or {} stand for any JSON object. Raises EdgecError EC1704."""
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise failed(f"it is no JSON: {error}") from None
        if schema is True or schema == {}:
            schema = {"type": "object"}
        if not isinstance(schema, Mapping):
            raise failed("it is no JSON object")
        try:
            text = json.dumps(schema)
        except (ValueError, TypeError, RecursionError) as error:
            raise failed(str(error)) from None
        if len(text) > LIMIT:
            raise failed(f"it has more than {LIMIT} characters")
        try:
            grammar = self._library.LLMatcher.grammar_from_json_schema(
                text, overrides={"whitespace_pattern": WHITESPACE}
            )
            matcher = self._library.LLMatcher(self._tokens, grammar)
        except Exception as error:
            raise failed(str(error).strip().splitlines()[0]) from None
        if matcher.is_error():
            raise failed(matcher.get_error().strip().splitlines()[0])
        return Constraint(matcher, self._vocab, self._eos)


class Constraint:
    """What may come next in one sequence."""

    def __init__(self, matcher: Any, vocab: int, eos: tuple[int, ...]) -> None:
        self._matcher, self._eos, self._vocab = matcher, eos, vocab

    def allow(self, logits: np.ndarray) -> None:
        """Sets the logits [vocab] of tokens that may not come to -inf."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.zeros(logits.size, bool)
        known = np.unpackbits(bits, bitorder="little")[: logits.size]
        allowed[: known.size] = known
        if self._matcher.is_accepting():
            allowed[list(self._eos)] = True
        if self._matcher.is_error() or not allowed.any():
            raise failed(self._matcher.get_error() or "no token of the model can follow")
        logits[~allowed] = -np.inf

    def accept(self, token: int) -> bool:
        """Takes the token that was chosen; whether the output is whole now."""
        if token in self._eos:
            return True
        if not self._matcher.consume_token(token):
            raise failed(f"token {token} does not fit: {self._matcher.get_error()}")
        return self._matcher.is_stopped()
