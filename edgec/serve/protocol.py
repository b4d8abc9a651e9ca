"""OpenAI's requests: every field checked, and turned into what the engine takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgec.serve.errors import ApiError, invalid

MAX_CHOICES = 8
MAX_PROMPTS = 64
MAX_LOGPROBS = 20
DEFAULT_TOKENS = 1024
# fields that are taken and change nothing here
_IGNORED = {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key"}
# fields of which only these values (or null) are had
_ONLY = {"echo": (False,), "suffix": ("",), "best_of": (1,), "tools": ([],), "functions": ([],), "audio": (),
         "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "modalities": (["text"],),
         "prediction": (), "web_search_options": (), "reasoning_effort": (), "verbosity": ()}  # fmt: skip
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


@dataclass
class Completion:
    """One request for text, of /v1/completions or /v1/chat/completions.

    options: for LanguageModel.request. prompts: texts or lists of ids; empty for a chat, which has messages.
    """

    model: str
    chat: bool
    prompts: list[Any] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


class Fields:
    """The members of a JSON object, taken one by one; null counts as absent."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise invalid("the body must be a JSON object")
        self.rest = {k: v for k, v in body.items() if v is not None}

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = self.rest.pop(name, default)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is default:
            return value
        wrong = isinstance(value, bool) and bool not in kinds
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            raise invalid(f"{name} is too large", name)
        if wrong or not isinstance(value, kinds):
            names = " or ".join(k.__name__ for k in kinds)
            raise invalid(f"{name} must be of type {names}", name)
        return value

    def number(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        value = self.take(name, int, default)
        if value is not default and not low <= value <= high:
            raise invalid(f"{name} must be from {low} to {high}", name)
        return value

    def finish(self) -> None:
        """Raises ApiError for what is asked for and not had."""
        for name, values in _ONLY.items():
            if name in self.rest and self.rest.pop(name) not in values:
                raise ApiError(400, f"{name} is not supported", code="unsupported_parameter", param=name)
        if unknown := self.rest.keys() - _IGNORED:
            name = min(unknown)
            raise ApiError(400, f"there is no parameter {name}", code="unknown_parameter", param=name)


def completion(body: Any, chat: bool) -> Completion:
    """Raises ApiError 400 with the field at fault."""
    fields = Fields(body)
    found = Completion(model_name(fields), chat)
    if chat:
        found.messages = _messages(fields.take("messages", list))
    else:
        found.prompts = _prompts(fields.take("prompt", (str, list)))
    found.n = fields.number("n", 1, MAX_CHOICES, 1) or 1
    found.stream = fields.take("stream", bool, False)
    stream_options = fields.take("stream_options", dict, {})
    found.include_usage = bool(stream_options.get("include_usage"))
    for name in ("max_completion_tokens", "max_tokens"):
        limit = fields.number(name, 1, 1 << 30)
        found.max_tokens = found.max_tokens or limit
    found.options = _sampling(fields)
    stop = fields.take("stop", (str, list), [])
    if not isinstance(stop, str) and not all(isinstance(s, str) and s for s in stop):
        raise invalid("stop must be a string or a list of strings that are not empty", "stop")
    found.options["stop"] = stop
    logprobs = _logprobs(fields, chat)
    if logprobs is not None:
        found.options["logprobs"] = logprobs
    schema = _schema(fields.take("response_format", dict))
    if schema is not None:
        found.options["schema"] = schema
    fields.finish()
    return found


def model_name(fields: Fields) -> str:
    name = fields.take("model", str)
    if not name:
        raise invalid("model is missing", "model")
    return name


def _sampling(fields: Fields) -> dict[str, Any]:
    options: dict[str, Any] = {"temperature": 1.0}
    for name in _SAMPLING:
        value = fields.take(name, int if name in ("top_k", "seed") else (float, int))
        if value is not None:
            options[name] = value
    bias = fields.take("logit_bias", dict, {})
    try:
        options["logit_bias"] = {int(token): float(value) for token, value in bias.items()}
    except (TypeError, ValueError):
        raise invalid("logit_bias must map token ids to numbers", "logit_bias") from None
    return options


def _logprobs(fields: Fields, chat: bool) -> int | None:
    """How many of the likeliest tokens are wanted beside each one; None: no log probabilities."""
    if not chat:
        return fields.number("logprobs", 0, MAX_LOGPROBS)
    wanted, top = fields.take("logprobs", bool, False), fields.number("top_logprobs", 0, MAX_LOGPROBS)
    if top is not None and not wanted:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    return (top or 0) if wanted else None


def _schema(form: Mapping[str, Any] | None) -> Any:
    kind = None if form is None else form.get("type")
    if kind in (None, "text"):
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        schema = (form or {}).get("json_schema")
        schema = schema.get("schema") if isinstance(schema, dict) else None
        if isinstance(schema, dict):
            return schema
        raise invalid("response_format.json_schema.schema must be a JSON schema", "response_format")
    raise invalid("response_format.type must be text, json_object or json_schema", "response_format")


def _messages(given: Any) -> list[dict[str, str]]:
    if not given:
        raise invalid("messages must be a list with at least one message", "messages")
    found = []
    for i, message in enumerate(given):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise invalid(f"{where} must be an object", where)
        role, content = message.get("role"), message.get("content")
        if role == "developer":
            role = "system"
        if role not in ("system", "user", "assistant"):
            raise invalid(f"{where}.role must be system, developer, user or assistant", f"{where}.role")
        found.append({"role": role, "content": _content(content, f"{where}.content")})
    return found


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{where} must be a string or a list of parts", where)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise invalid(f"{where} may have parts of type text only", where)
        texts.append(text)
    return "".join(texts)


def _prompts(given: Any) -> list[Any]:
    """Texts, or lists of token ids."""
    if isinstance(given, str) or (isinstance(given, list) and given and _is_ids(given)):
        return [given]
    if not isinstance(given, list) or not given or not all(isinstance(p, str) or _is_ids(p) for p in given):
        raise invalid("prompt must be a string, a list of token ids, or a list of these", "prompt")
    if len(given) > MAX_PROMPTS:
        raise invalid(f"prompt may have {MAX_PROMPTS} entries", "prompt")
    return given


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)


@dataclass
class Embedding:
    """A request of /v1/embeddings. inputs: texts or lists of ids."""

    model: str
    inputs: list[Any]
    base64: bool
    dimensions: int | None


def embedding(body: Any) -> Embedding:
    """Raises ApiError 400 with the field at fault."""
    fields = Fields(body)
    name, given = model_name(fields), fields.take("input", (str, list))
    single = isinstance(given, str) or (isinstance(given, list) and given and _is_ids(given))
    inputs = [given] if single else given
    if not inputs or not all(isinstance(i, str) or (_is_ids(i) and i) for i in inputs):
        raise invalid("input must be a string, a list of token ids, or a list of these", "input")
    if len(inputs) > 2048:
        raise invalid("input may have 2048 entries", "input")
    form = fields.take("encoding_format", str, "float")
    if form not in ("float", "base64"):
        raise invalid("encoding_format must be float or base64", "encoding_format")
    dimensions = fields.number("dimensions", 1, 1 << 20)
    fields.finish()
    return Embedding(name, inputs, form == "base64", dimensions)
