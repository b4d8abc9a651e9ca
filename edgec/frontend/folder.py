"""A model's folder: which file is the model, and what stands beside it for text (tokenizer, chat template, configs)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError

# what an artifact takes along, and the largest size of each in bytes
FILES = {
    "tokenizer.json": 128 << 20,
    "tokenizer_config.json": 16 << 20,
    "special_tokens_map.json": 1 << 20,
    "chat_template.jinja": 1 << 20,
    "config.json": 4 << 20,
    "generation_config.json": 1 << 20,
    "genai_config.json": 4 << 20,
}
NAMES = ("model.onnx", "decoder_model_merged.onnx", "decoder_with_past_model.onnx", "decoder_model.onnx")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")


def model_file(path: str | os.PathLike) -> Path:
    """The ONNX file that a path stands for: itself, or of a folder the model in it or in its folder onnx/.

    model.onnx comes first, then what genai_config.json names, a decoder as optimum names it, the only .onnx file.
    Raises EdgecError EC1003 where there is none or several.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise EdgecError("EC1003", "no such file", str(path), "Check the path")
        return path
    several: list[Path] = []
    for folder in (path, path / "onnx"):
        found = sorted(folder.glob("*.onnx"))
        named = [_genai_model(folder), *(folder / name for name in NAMES)]
        for candidate in named:
            if candidate in found:
                return candidate
        if len(found) == 1:
            return found[0]
        several += found
    if several:
        listed = ", ".join(str(p.relative_to(path)) for p in several[:8])
        raise EdgecError("EC1003", f"several models: {listed}", str(path), "Give the path of one of them")
    raise EdgecError("EC1003", "no model.onnx in the folder", str(path), "Give the path of the .onnx file")


def _genai_model(folder: Path) -> Path | None:
    config = folder / "genai_config.json"
    if not config.is_file() or config.stat().st_size > FILES[config.name]:
        return None
    try:
        name = json.loads(config.read_bytes())["model"]["decoder"]["filename"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return folder / Path(name).name if isinstance(name, str) else None


def text_files(model: Path, source: str | os.PathLike | None = None) -> dict[str, bytes]:
    """What an artifact takes along for text, name -> content: from the folder `source`, by default the model's own
    (of a folder onnx/ the one above, too); "none": nothing. Raises EdgecError EC1003, EC1701 (a file is malformed)."""
    if source is not None and os.fspath(source) == "none":
        return {}
    if source is not None:
        given = Path(source)
        folder = given.parent if given.name == "tokenizer.json" else given
        if not folder.is_dir() or not any((folder / name).is_file() for name in FILES):
            raise EdgecError("EC1003", "it has no tokenizer.json", str(given), "Pass the folder that has it, or none")
        folders = [folder]
    else:
        folders = [model.parent, *([model.parent.parent] if model.parent.name == "onnx" else [])]
    files: dict[str, bytes] = {}
    for name, limit in FILES.items():
        path = next((f / name for f in folders if (f / name).is_file()), None)
        if path is None:
            continue
        if path.stat().st_size > limit:
            raise _malformed(path, f"it has {path.stat().st_size} bytes, {limit} are allowed")
        try:
            files[name] = path.read_bytes()
            text = files[name].decode()
            if name.endswith(".json") and not isinstance(json.loads(text), dict):
                raise ValueError("it is no JSON object")
        except OSError as error:
            raise EdgecError("EC1003", error.strerror or str(error), str(path)) from None
        except (ValueError, RecursionError) as error:
            raise _malformed(path, str(error)) from None
    return files


def _malformed(path: Path, reason: str) -> EdgecError:
    return EdgecError("EC1701", reason, str(path), "Mend it, or build with --tokenizer none")


def text_facts(files: Mapping[str, bytes]) -> dict[str, Any]:
    """What the files say of a language model: eos (ids that end a text), bos (id or None), context (tokens or None),
    sampling (how its authors would have it sampled). Values that make no sense are left out."""
    config, generation, genai, tokens = (
        json.loads(files.get(name, b"{}"))
        for name in ("config.json", "generation_config.json", "genai_config.json", "tokenizer_config.json")
    )
    inner = _dict(config.get("text_config"))
    model = _dict(genai.get("model"))
    eos: list[int] = []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id"), inner.get("eos_token_id"),
                  model.get("eos_token_id")):  # fmt: skip
        eos += [i for i in (value if isinstance(value, list) else [value]) if _count(i, 0)]
    ids = _added(files)
    eos += [i for i in [_id_of(tokens.get("eos_token"), ids)] if i is not None]
    bos = [generation.get("bos_token_id"), config.get("bos_token_id"), model.get("bos_token_id")]
    contexts = [_first(c, CONTEXT_KEYS) for c in (config, inner)] + [model.get("context_length")]
    facts: dict[str, Any] = {
        "eos": sorted(set(eos)),
        "bos": next((b for b in bos if _count(b, 0)), None),
        "context": next((c for c in contexts if _count(c, 1)), None),
    }
    if generation.get("do_sample"):
        wanted = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        facts["sampling"] = {k: generation[k] for k in wanted if isinstance(generation.get(k), (int, float))}
    return facts


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31


def _first(config: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((config[k] for k in keys if _count(config.get(k), 1)), None)


def _added(files: Mapping[str, bytes]) -> dict[str, int]:
    """The ids of the tokenizer's added tokens, end-of-text ones among them."""
    added = json.loads(files.get("tokenizer.json", b"{}")).get("added_tokens")
    entries = [a for a in added if isinstance(a, dict)] if isinstance(added, list) else []
    return {str(a.get("content")): a["id"] for a in entries if _count(a.get("id"), 0)}


def _id_of(token: Any, ids: Mapping[str, int]) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return ids.get(text) if isinstance(text, str) else None
