"""edgec generate: a language model continues a prompt."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from edgec.cli import lm
from edgec.cli.common import COMMON, Common, print_json
from edgec.errors import EdgecError

OPTIONS = lm.Options()


def generate(
    model: Path,
    prompt: str | None = None,
    /,
    *,
    chat: bool = False,
    system: str | None = None,
    ids: str | None = None,
    options: lm.Options = OPTIONS,
    common: Common = COMMON,
) -> int:
    """Continue a prompt with a language model.

    Parameters
    ----------
    model
        The artifact (.edgec).
    prompt
        The text to continue, as it is; from stdin where it is left out or -.
    chat
        Take the prompt as a user's message: the model's chat template is put around it.
    system
        The system message of --chat.
    ids
        Token ids such as 1,2,3 instead of a prompt: ids come out.
    """
    given = options.given()
    if ids is not None and (prompt is not None or chat):
        raise EdgecError("EC1001", "pass either a prompt or --ids", "--ids", "Leave one of them out")
    if system is not None and not chat:
        raise EdgecError("EC1001", "a system message needs --chat", "--system", "Add --chat")
    if ids is not None:
        given["ids"] = _parse(ids)
    elif prompt is None or prompt == "-":
        prompt = sys.stdin.read()
    lm.check_sampling(given)
    start = time.perf_counter()
    model_ = lm.load(model, options, slots=1)
    loaded = time.perf_counter() - start
    if chat:
        messages = [{"role": "system", "content": system}] if system is not None else []
        generation = model_.chat([*messages, {"role": "user", "content": prompt}], **given)
    else:
        generation = model_.generate(prompt, **given)
    pieces = []
    with generation:
        for piece in generation:
            pieces.append(piece)
            if not common.json:
                print(piece, end=" " if ids is not None else "", flush=True)
    if not common.json:
        print()
        return 0
    result = {"text": "".join(pieces)} if ids is None else {}
    result |= {
        "ids": generation.tokens,
        "finish_reason": generation.finish_reason,
        "threads": model_.threads,
        "load_ms": loaded * 1e3,
        **generation.timings,
    }
    print_json(result)
    return 0


def _parse(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise EdgecError("EC1001", f"{text!r} is no list of token ids", "--ids", "Such as 1,2,3") from None
