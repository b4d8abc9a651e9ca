"""edgec chat: a conversation with a language model, in the terminal or line by line from a pipe."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgec.cli import lm
from edgec.cli.common import COMMON, Common, console
from edgec.errors import EdgecError

if TYPE_CHECKING:
    from edgec.runtime.generate.model import Conversation

OPTIONS = lm.Options()
HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends, Ctrl-C stops an answer."


def chat(
    model: Path,
    /,
    *,
    system: str | None = None,
    options: lm.Options = OPTIONS,
    common: Common = COMMON,
) -> int:
    """Talk with a language model.

    Each line is a message; where stdin is no terminal the answers alone are printed, --json gives an object a line.

    Parameters
    ----------
    model
        The artifact (.edgec).
    system
        The system message.
    """
    given = options.given()
    model_ = lm.load(model, options, slots=1)
    suggested = model_.lm.get("sampling") or {}
    lm.check_sampling(given, suggested.get("temperature", 0))
    talk = model_.conversation(system, **({k: v for k, v in suggested.items() if k not in given} | given))
    model_.apply_template([*talk.messages, {"role": "user", "content": "?"}])  # says now that there is none
    if sys.stdin.isatty() and sys.stdout.isatty() and not common.json:
        return _terminal(talk, f"{model.name}, {model_.threads} threads")
    return _pipe(talk, common.json)


@contextlib.contextmanager
def _interruptible() -> Iterator[list[bool]]:
    """Ctrl-C fills the list instead of raising in the middle of a step; a second one raises."""
    pressed: list[bool] = []

    def note(*_: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread
        yield pressed
        return
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _command(talk: Conversation, line: str) -> str | None:
    """What a /command says; None for a message; "exit" ends."""
    word, _, rest = line.partition(" ")
    if word in ("/exit", "/quit"):
        return "exit"
    if word == "/reset":
        talk.reset()
        return "The conversation is forgotten."
    if word == "/system":
        talk.messages = [{"role": "system", "content": rest.strip()}] if rest.strip() else []
        return "The system message is set; the conversation is forgotten."
    if word == "/help":
        return HELP
    return f"There is no {word}. {HELP}" if word.startswith("/") and word[1:].isalpha() else None


def _terminal(talk: Conversation, title: str) -> int:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() gets a history by it)
    with contextlib.suppress(ValueError):  # also where the parent had it ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    out = console()
    out.print(f"{title}. {HELP}", style="dim")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            out.print("\nCtrl-D or /exit ends.", style="dim")
            continue
        if not line:
            continue
        said = _command(talk, line)
        if said == "exit":
            return 0
        if said is not None:
            out.print(said, style="dim")
            continue
        try:
            _answer(talk, line, out)
        except EdgecError as error:
            out.print(f"error: {error}", style="red")


def _answer(talk: Conversation, line: str, out) -> None:
    with _interruptible() as pressed:
        with out.status("reading", spinner="dots"):
            pieces = talk.say(line)
            first = next(pieces, None)
        with contextlib.closing(pieces):
            if first is not None:
                out.print(first, end="", style="cyan")
                for piece in pieces:
                    if pressed:
                        break
                    out.print(piece, end="", style="cyan")
    print()
    assert talk.last is not None
    t = talk.last.timings
    parts = [f"{t['tokens']:.0f} tokens", f"{t['decode_tok_s']:.1f}/s", f"first after {t['ttft_ms']:.0f} ms"]
    if talk.forgotten:
        parts.append(f"{talk.forgotten} earlier messages left out")
    if talk.last.finish_reason == "length":
        parts.append("cut at its longest")
    out.print(", ".join(parts) + (", stopped" if pressed else ""), style="dim")


def _pipe(talk: Conversation, as_json: bool) -> int:
    status = 0
    for raw in sys.stdin:
        line = raw.strip()
        if not line:
            continue
        said = _command(talk, line)
        if said == "exit":
            break
        if said is not None:
            print(said, file=sys.stderr, flush=True)
            continue
        try:
            pieces = []
            for piece in talk.say(line):
                pieces.append(piece)
                if not as_json:
                    print(piece, end="", flush=True)
        except EdgecError as error:
            status = 1
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        assert talk.last is not None
        if as_json:
            import json

            row = {"text": "".join(pieces), "finish_reason": talk.last.finish_reason, **talk.last.timings}
            print(json.dumps(row), flush=True)
        else:
            print(flush=True)
    return status
