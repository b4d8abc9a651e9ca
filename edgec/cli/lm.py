"""What the commands for language models share: options of generation, loading, reading prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from edgec.cli.common import existing
from edgec.errors import EdgecError
from edgec.options import idle

if TYPE_CHECKING:
    from edgec.runtime.generate.model import LanguageModel


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """How tokens are chosen, and what the model runs with."""

    max_tokens: Annotated[int | None, Parameter(name=["--max-tokens", "-n"])] = None
    "At most so many tokens are generated."
    temperature: float | None = None
    "0 takes the likeliest token; larger values make the choice more random."
    top_k: int | None = None
    "Choose among the K likeliest tokens only."
    top_p: float | None = None
    "Choose among the likeliest tokens that together have this share."
    min_p: float | None = None
    "Choose among tokens that have at least this share of the likeliest one's."
    repetition_penalty: float | None = None
    "Above 1: tokens that were there before become less likely."
    seed: int | None = None
    "The same seed gives the same text."
    stop: tuple[str, ...] = ()
    "End the text before this string; repeat it for several."
    schema: str | None = None
    "A JSON schema that the output follows: a file, JSON text, or 'json' for any object."
    no_speculation: bool = False
    "Do not try tokens that followed the same words before."
    threads: int | None = None
    "Threads; by default as many as the machine allows this process."
    max_context: int | None = None
    "Tokens of prompt and answer together; by default what the artifact says."

    def given(self) -> dict[str, Any]:
        """Keyword arguments of LanguageModel.generate()."""
        names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        options: dict[str, Any] = {n: v for n in names if (v := getattr(self, n)) is not None}
        if self.stop:
            options["stop"] = self.stop
        if self.schema is not None:
            options["schema"] = read_schema(self.schema)
        return options | {"speculate": not self.no_speculation}


OFF = {"top_k": (0, 1), "top_p": (1,), "min_p": (0,)}


def check_sampling(given: Mapping[str, Any], temperature: float = 0) -> None:
    """temperature: where none is given. Raises EdgecError EC1001 for options of a choice that is not made."""
    if not given.get("temperature", temperature):
        for name, off in OFF.items():
            if given.get(name, off[0]) not in off:
                option = f"--{name.replace('_', '-')} {given[name]}"
                raise idle(
                    option, "at temperature 0 the likeliest token is taken", "Add --temperature 0.8, or leave it out"
                )


def read_schema(text: str) -> Any:
    if text == "json":
        return True
    if not text.lstrip().startswith("{"):
        text = read_text(existing(Path(text), "--schema"))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EdgecError(
            "EC1704", f"it is no JSON: {error}", "--schema", "Give a file, JSON text, or json for any object"
        ) from None


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EdgecError("EC1003", f"it is no UTF-8: {error}", str(path), "Write it as UTF-8") from None


def load(path: Path, options: Options, **more: Any) -> LanguageModel:
    """Raises EdgecError EC1001 for an artifact that is no language model."""
    import edgec

    model = edgec.load(existing(path), threads=options.threads, max_context=options.max_context, **more)
    if not hasattr(model, "generate"):
        raise EdgecError(
            "EC1001", "it is no language model", str(path), "Run it with `edgec run`, or build it from a decoder"
        )
    return model  # type: ignore[return-value]
