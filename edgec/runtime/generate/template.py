"""Chat templates, as Hugging Face's models bring them: untrusted jinja2, run in a sandbox with limits."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgec.errors import EdgecError
from edgec.runtime.generate.text import need

SOURCE_CHARS = 1 << 18  # of a template
VALUE_SIZE = 1 << 22  # characters or items of any value that a template makes
WORK = 1 << 26  # product of the sizes that go into one call
TICKS = 100_000  # loop turns and calls of one rendering
HINT = "Pass a template of your own, or use generate() with a prompt that is already in the model's format"


def failed(reason: str) -> EdgecError:
    return EdgecError("EC1702", reason, "chat template", HINT)


class ChatTemplate:
    """Renders messages to the prompt that a model was trained on."""

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None) -> None:
        """variables: bos_token and the like. Raises EdgecError EC1002, EC1702."""
        if len(source) > SOURCE_CHARS:
            raise failed(f"it has {len(source)} characters, {SOURCE_CHARS} are allowed")
        jinja2 = need("jinja2", "a chat template")
        self.variables = dict(variables or {})
        self._environment = _environment()
        try:
            self._template = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError, MemoryError) as error:
            raise failed(f"it cannot be read: {error}") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of the conversation, which ends where the answer begins. Raises EdgecError EC1702."""
        environment = self._environment
        environment.ticks = 0
        pieces, size = [], 0
        known = {"tools": None, "documents": None} | self.variables | variables
        try:
            for piece in self._template.generate(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **known
            ):
                pieces.append(piece)
                size += len(piece)
                if size > VALUE_SIZE:
                    raise failed(f"it makes more than {VALUE_SIZE} characters")
        except EdgecError:
            raise
        except RecursionError:
            raise failed("it calls itself without end") from None
        except Exception as error:  # whatever the template's code trips over, the template or the messages are at fault
            raise failed(str(error) or type(error).__name__) from None
        return "".join(pieces)


def _size(value: Any) -> int:
    """Characters and items of a value, those inside of it too; it counts no further than the limits."""
    if isinstance(value, (str, bytes)):
        return len(value)
    size, nodes, stack = 0, 0, [value]
    while stack and size <= VALUE_SIZE:
        item = stack.pop()
        nodes += 1
        if nodes > TICKS:
            return VALUE_SIZE + 1
        if isinstance(item, (str, bytes)):
            size += len(item)
        elif isinstance(item, (list, tuple, set, dict)):
            size += len(item)
            if size <= VALUE_SIZE:
                stack.extend(item)
                stack.extend(item.values() if isinstance(item, dict) else ())
    return size


def _limit(value: Any) -> Any:
    if _size(value) > VALUE_SIZE:
        raise failed(f"it makes a value of more than {VALUE_SIZE} characters or items")
    return value


def _check_arguments(args: Sequence[Any]) -> None:
    """Refuses a call whose result may be out of proportion: a width of a billion, a product of two long texts."""
    work = 1
    for value in args:
        if isinstance(value, int) and abs(value) > VALUE_SIZE:
            raise failed("it passes a number out of proportion to a function")
        work *= max(_size(_limit(value)), 1)
    if work > WORK:
        raise failed("it passes too much to a function")


@functools.cache
def _environment_class() -> type:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks the assistant's text for training: here it is what it holds."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])
        ticks = 0

        def tick(self, count: int = 1) -> None:
            self.ticks += count
            if self.ticks > TICKS:
                raise failed(f"it takes more than {TICKS} steps")

        def call_binop(self, context, operator, left, right):
            self.tick()
            if operator == "**":
                if not all(isinstance(v, (int, float)) and abs(v) < 1 << 16 for v in (left, right)) or abs(right) > 64:
                    raise failed("it raises to a power out of proportion")
            elif operator == "+":
                if _size(left) + _size(right) > VALUE_SIZE:
                    raise failed(f"it makes a value of more than {VALUE_SIZE} characters or items")
            elif operator == "*":
                for text, count in ((left, right), (right, left)):
                    if _size(text) and (not isinstance(count, int) or _size(text) * count > VALUE_SIZE):
                        raise failed(f"it makes a value of more than {VALUE_SIZE} characters or items")
                if isinstance(left, int) and isinstance(right, int) and abs(left * right) > 1 << 64:
                    raise failed("it multiplies beyond 64 bits")
            elif isinstance(left, (str, bytes)):
                _check_format(left)
                _check_arguments([left, *(right if isinstance(right, tuple) else (right,))])
            return _limit(super().call_binop(context, operator, left, right))

        def call(self, context, obj, *args, **kwargs):
            self.tick()
            owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
            if isinstance(owner, str) and getattr(obj, "__name__", "") in ("format", "format_map"):
                _check_format(owner)
            plain = owner if isinstance(owner, (str, bytes, list, tuple, dict)) else None
            _check_arguments([plain, *args, *kwargs.values()])
            return _limit(super().call(context, obj, *args, **kwargs))

        def concat_all(self, *values):
            self.tick()
            _check_arguments(values)
            return _limit("".join(map(str, values)))

        def turns(self, values):
            for value in values:
                self.tick()
                yield value

        def _parse(self, source, name, filename):
            """Counts the turns of loops and the sizes of joined texts: the calls are put into the template's tree."""
            template = super()._parse(source, name, filename)
            for loop in list(template.find_all(nodes.For)):
                tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
                loop.body.insert(0, nodes.ExprStmt(tick).set_lineno(loop.lineno))
            _replace(template, nodes)
            return template

    def _replace(node, nodes) -> None:
        for name in node.fields:
            value = getattr(node, name)
            if isinstance(value, list):
                value[:] = [_replaced(v, nodes) for v in value]
            elif isinstance(value, nodes.Node):
                setattr(node, name, _replaced(value, nodes))

    def _replaced(value, nodes):
        if not isinstance(value, nodes.Node):
            return value
        _replace(value, nodes)
        if isinstance(value, nodes.Concat):
            call = nodes.EnvironmentAttribute("concat_all")
            return nodes.Call(call, value.nodes, [], None, None).set_lineno(value.lineno)
        return value

    Environment.extensions_used = (Generation, "jinja2.ext.loopcontrols")
    return Environment


def _check_format(text: Any) -> None:
    """Refuses a format whose width or precision is out of proportion."""
    digits = 0
    for c in text.decode("latin-1") if isinstance(text, bytes) else text:
        digits = digits + 1 if c.isdigit() or c == "*" else 0
        if digits > 4 or c == "*":
            raise failed("it formats with a width out of proportion")


def _environment() -> Any:
    kind = _environment_class()
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=kind.extensions_used, finalize=_limit)
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    del environment.globals["lipsum"]
    for name in ("wordwrap", "urlize", "pprint", "striptags", "random"):  # slow on long texts, or not repeatable
        del environment.filters[name]
    environment.filters["tojson"] = _tojson
    environment.optimized = False  # nothing of the template runs while it is compiled
    for name, function in list(environment.filters.items()):
        environment.filters[name] = _guard(environment, name, function)
    return environment


def _guard(environment: Any, name: str, function: Any) -> Any:
    @functools.wraps(function)
    def guarded(*args, **kwargs):
        environment.tick()
        plain = [a for a in args if isinstance(a, (str, bytes, list, tuple, dict, int))]
        if name == "format" and plain:
            _check_format(plain[0])
        _check_arguments([*plain, *kwargs.values()])
        result = function(*args, **kwargs)
        if hasattr(result, "__next__"):
            return environment.turns(result)
        return _limit(result)

    return guarded


def _raise(message: str) -> None:
    raise failed(str(message))


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    if isinstance(indent, int) and indent > 64:
        raise failed(f"it indents by {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def find_template(members: Any, config: Mapping[str, Any], tools: bool = False) -> str | None:
    """The template's source: chat_template.jinja, or tokenizer_config's, which may be several by name."""
    data = members.get("chat_template.jinja")
    if data is not None:
        try:
            return bytes(data).decode()
        except UnicodeDecodeError as error:
            raise failed(f"it is no UTF-8: {error}") from None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = (named.get("tool_use") if tools else None) or named.get("default")
    return found if isinstance(found, str) else None


def special_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like of tokenizer_config.json and special_tokens_map.json, as templates use them."""
    found: dict[str, str] = {}
    for config in configs:
        for key, value in config.items():
            if key.endswith("_token"):
                text = value.get("content") if isinstance(value, dict) else value
                if isinstance(text, str):
                    found.setdefault(key, text)
    return found


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages with their text parts joined. Raises EdgecError EC1001."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise EdgecError(
            "EC1001",
            "messages are a list of {'role': ..., 'content': ...} that is not empty",
            "messages",
            'Such as [{"role": "user", "content": "Hello"}]',
        )
    checked = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise EdgecError("EC1001", "it has no role", where, "One of system, user, assistant, tool")
        content = message.get("content")
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, Mapping) and p.get("type") == "text" else None for p in content]
            if not all(isinstance(p, str) for p in parts):
                raise EdgecError("EC1001", "only parts of text are understood", where, "Leave images and audio out")
            content = "".join(parts)
        if (content is None and not message.get("tool_calls")) or not isinstance(content, (str, type(None))):
            raise EdgecError("EC1001", "its content is no text", where, "Pass a string")
        checked.append(dict(message) | {"content": content})
    return checked
