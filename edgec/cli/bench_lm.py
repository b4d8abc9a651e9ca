"""edgec bench of a language model: prefill, decode, time to the first token."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.cli.common import bytes_text, fields, print_json, step_table, table
from edgec.errors import EdgecError

if TYPE_CHECKING:
    from edgec.runtime.generate.model import LanguageModel

FIRST = 16  # tokens of the prompt whose time to the first token is measured
PREFILLS = (128, 512)  # llama-bench's pp128, pp512


def bench_lm(
    model: LanguageModel,
    path: Path,
    *,
    prompt_tokens: int,
    decode_tokens: int,
    context: int | None,
    repeats: int,
    profile: bool,
    seed: int,
    as_json: bool,
) -> int:
    depth = prompt_tokens if context is None else context
    for name, value in (("--prompt-tokens", prompt_tokens), ("--decode-tokens", decode_tokens), ("--runs", repeats)):
        if value < 1:
            raise EdgecError("EC1001", f"{value} is not a positive number", name)
    if depth < 1 or max(depth + decode_tokens, prompt_tokens + 1) > model.context:
        raise EdgecError(
            "EC1001",
            f"{max(depth, prompt_tokens)} + {decode_tokens} tokens do not fit into the context of {model.context}",
            "--context",
            "Pass smaller sizes, or a larger --max-context",
        )
    ids = _ids(model, max(depth, prompt_tokens, FIRST, *(n for n in PREFILLS if n < model.context)), seed)
    prefills = [prompt_tokens] if as_json else sorted({prompt_tokens, *(n for n in PREFILLS if n < model.context)})
    tests = {f"pp{n}": prefill_rates(model, ids[:n], repeats) for n in prefills}
    decoded, first = decode_rates(model, ids[:depth], decode_tokens, repeats), first_token_ms(model, ids, repeats)
    at = "" if context is None else f" @ d{depth}"
    tests[f"tg{decode_tokens}{at}"] = decoded
    out: dict[str, Any] = {
        "model": str(path),
        "threads": model.threads,
        "size_bytes": model.artifact.size,
        "parameters": parameters(model),
        "prefill_tokens": prompt_tokens,
        "prefill_tok_s": _median(tests[f"pp{prompt_tokens}"]),
        "decode_tokens": decode_tokens,
        "decode_context": depth,
        "decode_tok_s": _median(decoded),
        "ttft_tokens": min(FIRST, len(ids)),
        "ttft_ms": _median(first),
        "weight_bytes_per_token": weight_bytes(model),
        "peak_rss_mb": peak_rss() / 1e6,
        "repeats": repeats,
        "tests": [{"test": name, "tok_s": _mean(r), "sd": _deviation(r)} for name, r in tests.items()],
    }
    out["decode_weights_gb_s"] = out["weight_bytes_per_token"] * out["decode_tok_s"] / 1e9
    if profile:
        out["steps"] = _profile(model, ids[:depth])
    if as_json:
        print_json(out)
    else:
        _show(out, path)
    return 0


def _ids(model: LanguageModel, count: int, seed: int) -> list[int]:
    import numpy as np

    return np.random.default_rng(seed).integers(0, int(model.lm["vocab"]), count).tolist()


def prefill_rates(model: LanguageModel, ids: list[int], repeats: int) -> list[float]:
    """Tokens a second of a prompt that is run at once into an empty slot, each time anew; one run to warm up."""
    from edgec.runtime.generate.decoder import Row

    decoder, rates = model.engine.decoder, []
    for turn in range(repeats + 1):
        decoder.truncate(0, 0)
        start = time.perf_counter()
        for at in range(0, len(ids), decoder.run_limit):
            piece = ids[at : at + decoder.run_limit]
            decoder.forward([Row(0, piece, int(at + len(piece) == len(ids)))])
        took = time.perf_counter() - start
        if turn:
            rates.append(len(ids) / took)
    decoder.truncate(0, 0)
    return rates


def decode_rates(model: LanguageModel, ids: list[int], count: int, repeats: int) -> list[float]:
    """Tokens a second after the first one, greedy, at the depth of `ids` and on; through the engine, one sequence."""
    rates = []
    for _ in range(repeats):
        generation = model.generate(ids=ids, max_tokens=count + 1, ignore_eos=True, speculate=False)
        for _token in generation:
            pass
        rates.append(generation.timings["decode_tok_s"])
    return rates


def first_token_ms(model: LanguageModel, ids: list[int], repeats: int) -> list[float]:
    """From the call to the first token of FIRST tokens that no slot holds."""
    times = []
    for turn in range(repeats + 1):
        # another first token each time: nothing is reused
        prompt = [(ids[0] + 1 + turn) % int(model.lm["vocab"]), *ids[1:FIRST]]
        generation = model.generate(ids=prompt, max_tokens=1, ignore_eos=True, speculate=False)
        for _token in generation:
            pass
        if turn:
            times.append(generation.timings["ttft_ms"])
    return times


def weight_bytes(model: LanguageModel) -> int:
    """Bytes of weights that decoding one token reads: all constants but tables of which it looks up a row."""
    from edgec.artifact.plan import ArgKind, Plan, Storage

    plan = Plan.decode(bytes(model.artifact.members["plan.bin"]))
    read = set()
    for step in plan.steps:
        if step.name.startswith("gather"):
            continue
        for arg in step.args:
            if arg.kind == ArgKind.VALUE and plan.values[arg.value].storage == Storage.CONSTANT:
                read.add((plan.values[arg.value].a, plan.values[arg.value].b))
    return sum(size for _, size in read)


def parameters(model: LanguageModel) -> int:
    """Numbers in the weights that the build looked at."""
    import math

    weights = (model.manifest.get("report") or {}).get("weights") or []
    return sum(math.prod(w.get("shape") or [0]) for w in weights)


def peak_rss() -> int:
    """Bytes of memory that this process had at most, mapped weights counted, as the system says."""
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _profile(model: LanguageModel, ids: list[int]) -> list[dict[str, Any]]:
    """The median time of each step of decoding one token behind `ids`."""
    import numpy as np

    from edgec.runtime.generate.decoder import Row

    if not model.lm.get("states"):
        raise EdgecError(
            "EC1001", "the cache is not kept by the session", "--profile", "Build without --kv-cache exposed"
        )
    decoder = model.engine.decoder
    decoder.truncate(0, 0)
    for at in range(0, len(ids), 512):
        decoder.forward([Row(0, ids[at : at + 512], 1)])
    seen = []
    for turn in range(12):
        steps = model.profile(decoder.feeds([[ids[-1]]], [decoder.length(0)]), slots=[0], parameters=decoder.kept(1))[1]
        decoder.truncate(0, len(ids))
        if turn > 1:
            seen.append(steps)
    return [
        {
            "origin": of_one[0].origin,
            "kind": of_one[0].kind,
            "kernel": of_one[0].kernel,
            "us": float(np.median([s.microseconds for s in of_one])),
        }
        for of_one in zip(*seen)
    ]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _median(values: list[float]) -> float:
    import statistics

    return statistics.median(values)


def _deviation(values: list[float]) -> float:
    import statistics

    return statistics.stdev(values) if len(values) > 1 else 0.0


def _show(out: dict[str, Any], path: Path) -> None:
    count = out["parameters"]
    size = f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
    table(
        ("model", "size>", "params>", "threads>", "test>", "t/s>"),
        [
            (path.stem, f"{out['size_bytes'] / 2**20:.2f} MiB", size, out["threads"], t["test"],
             f"{t['tok_s']:.2f} ± {t['sd']:.2f}")
            for t in out["tests"]
        ],
    )  # fmt: skip
    fields(
        (
            ("first token", f"{out['ttft_ms']:.1f} ms after {out['ttft_tokens']} tokens"),
            ("weights", f"{bytes_text(out['weight_bytes_per_token'])} a token, {out['decode_weights_gb_s']:.1f} GB/s"),
            ("memory", f"{out['peak_rss_mb']:.0f} MB at most"),
        )
    )
    if "steps" in out:
        step_table(out["steps"], "decode: ")
