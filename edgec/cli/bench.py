"""edgec bench: how fast an artifact runs, beside a peer in the same run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from edgec.cli.common import (
    COMMON,
    Common,
    bytes_text,
    existing,
    fields,
    need,
    parse_dims,
    print_json,
    step_table,
    table,
)
from edgec.errors import EdgecError
from edgec.options import idle


def bench(
    model: Path,
    /,
    *,
    compare: Literal["onnxruntime"] | None = None,
    source: Path | None = None,
    dim: tuple[str, ...] = (),
    input: tuple[str, ...] = (),
    threads: int | None = None,
    seconds: float | None = None,
    runs: int | None = None,
    profile: bool = False,
    prompt_tokens: int | None = None,
    decode_tokens: int | None = None,
    context: int | None = None,
    max_context: int | None = None,
    seed: int = 0,
    common: Common = COMMON,
) -> int:
    """Measure an artifact's latency; of a language model, tokens a second.

    Parameters
    ----------
    model
        The artifact (.edgec).
    compare
        Run this peer alternately with the artifact, on the same inputs and number of threads.
    source
        The ONNX model for --compare; by default the file that the artifact was built from, beside the artifact.
    dim
        NAME=SIZE of a symbolic dim; repeat it for several.
    input
        NAME=FILE.npy, NAME=JSON or FILE.npz; inputs that are not given are made up.
    threads
        Threads; by default as many as the machine allows this process.
    seconds
        Time to measure for, for each of the two, by default 3; a language model has --runs instead.
    runs
        Calls to measure, instead of --seconds; of a language model, repetitions of each test (default 5).
    profile
        Show the time of each step (of a language model: of one token).
    prompt_tokens
        Of a language model: tokens of the prompt whose rate is measured, by default 128.
    decode_tokens
        Of a language model: tokens to generate, by default 64.
    context
        Of a language model: tokens before those that are generated, by default as many as --prompt-tokens.
    max_context
        Of a language model: tokens that a sequence may have; by default what the artifact says.
    seed
        Seed of the inputs that are made up.
    """
    import edgec
    from edgec.cli import sampling

    existing(model)
    peer_model = None
    if source is not None and compare is None:
        raise idle("--source", "it is what --compare runs", "Add --compare onnxruntime")
    if seconds is not None and runs is not None:
        raise idle("--seconds", "--runs says how often", "Leave one of them out")
    if runs is not None and runs < 1:
        raise EdgecError("EC1001", f"{runs} is no number of 1 or more", "--runs", "Such as --runs 100")
    if seconds is not None and not 0 < seconds < math.inf:
        raise EdgecError("EC1001", f"{seconds:g} is no time to measure for", "--seconds", "Such as --seconds 3")
    if compare is not None:
        need("onnxruntime", "--compare onnxruntime", "onnxruntime")
        peer_model = existing(source, "--source") if source else None
    session = edgec.load(model, threads=threads, max_context=max_context)
    of_text = {"--prompt-tokens": prompt_tokens, "--decode-tokens": decode_tokens, "--context": context}
    if hasattr(session, "generate") and not (compare or dim or input):
        from edgec.cli.bench_lm import bench_lm

        if seconds is not None:
            raise idle("--seconds", "of a language model tokens are counted", "Use --runs")
        return bench_lm(
            session,
            model,
            prompt_tokens=128 if prompt_tokens is None else prompt_tokens,
            decode_tokens=64 if decode_tokens is None else decode_tokens,
            context=context,
            repeats=5 if runs is None else runs,
            profile=profile,
            seed=seed,
            as_json=common.json,
        )
    if not hasattr(session, "generate"):
        of_text["--max-context"] = max_context
    for option, value in of_text.items():
        if value is not None:
            reason = (
                "single calls are measured: the model is no language model, or --compare, --dim or --input is given"
            )
            raise idle(f"{option} {value}", reason)
    if compare is not None and peer_model is None:
        peer_model = sampling.find_source(model, session.manifest)
    sizes, feeds = sampling.feeds_for(session, input, parse_dims(dim), seed)
    calls: dict[str, Callable[[], Any]] = {"edgec": lambda: session(**feeds)}
    if peer_model is not None:
        calls["onnxruntime"] = _onnxruntime(peer_model, feeds, session.threads)
    times = measure(calls, 3.0 if seconds is None else seconds, runs)
    results = {name: summarise(t) for name, t in times.items()}
    out: dict[str, Any] = {
        "model": str(model),
        "dims": sizes,
        "threads": session.threads,
        "arena_bytes": session.arena_bytes(sizes),
        **results["edgec"],
    }
    if "onnxruntime" in results:
        out["onnxruntime"] = results["onnxruntime"]
        out["speedup"] = results["onnxruntime"]["median_ms"] / results["edgec"]["median_ms"]
    if profile:
        out["steps"] = _profile(session, feeds)
    if common.json:
        print_json(out)
    else:
        _show(out, results)
    return 0


def _onnxruntime(path: Path, feeds: dict, threads: int) -> Callable[[], Any]:
    from edgec.cli.sampling import onnxruntime_session

    peer = onnxruntime_session(path, threads)
    wanted = {i.name for i in peer.get_inputs()}
    if lacking := sorted(wanted - feeds.keys()):
        reason = f"its input {lacking[0]!r} is none of the artifact's"
        raise EdgecError("EC1001", reason, f"--source {path}", "Give the model that the artifact was built from")
    mine = {k: v for k, v in feeds.items() if k in wanted}
    return lambda: peer.run(None, mine)


def measure(calls: dict[str, Callable[[], Any]], seconds: float, runs: int | None) -> dict[str, list[float]]:
    """Seconds of each call. The contestants alternate in short bursts: a slow spell of the machine meets both."""
    burst = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-7)
        burst[name] = max(1, min(int(0.05 / once), 1000))
        for _ in range(min(int(0.2 / once), 20)):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)

    def done(name: str) -> bool:
        return len(times[name]) >= runs if runs is not None else spent[name] >= seconds and len(times[name]) >= 5

    while not all(map(done, calls)):
        for name, call in calls.items():
            for i in range(burst[name] + 1):
                start = time.perf_counter()
                call()
                took = time.perf_counter() - start
                if i or burst[name] == 1:  # the first call after a change of contestant finds cold caches
                    times[name].append(took)
                    spent[name] += took
    return {name: t if runs is None else t[:runs] for name, t in times.items()}


def summarise(seconds: Sequence[float]) -> dict[str, float | int]:
    import numpy as np

    ms = np.array(seconds) * 1e3
    median, p99 = np.percentile(ms, [50, 99])
    return {
        "runs": len(ms),
        "median_ms": float(median),
        "p50_ms": float(median),
        "p99_ms": float(p99),
        "min_ms": float(ms.min()),
        "mean_ms": float(ms.mean()),
        "throughput_per_s": float(1e3 / ms.mean()),
    }


def _profile(session, feeds: dict) -> list[dict[str, Any]]:
    """The median time of each step over several runs, in the plan's order."""
    import numpy as np

    seen = [session.profile(feeds)[1] for _ in range(12)][2:]
    steps = []
    for of_one in zip(*seen):
        first = of_one[0]
        us = float(np.median([s.microseconds for s in of_one]))
        steps.append({"origin": first.origin, "kind": first.kind, "kernel": first.kernel, "us": us})
    return steps


def _show(out: dict, results: dict) -> None:
    dims = ", ".join(f"{k}={v}" for k, v in out["dims"].items())
    fields(
        (
            ("model", out["model"]),
            ("dims", dims or None),
            ("threads", out["threads"]),
            ("arena", bytes_text(out["arena_bytes"])),
        )
    )
    table(
        ("", "median ms>", "p99 ms>", "min ms>", "calls a second>", "calls>"),
        [
            (
                n,
                f"{r['median_ms']:.3f}",
                f"{r['p99_ms']:.3f}",
                f"{r['min_ms']:.3f}",
                f"{r['throughput_per_s']:.1f}",
                r["runs"],
            )
            for n, r in results.items()
        ],
    )
    if "speedup" in out:
        print(f"onnxruntime takes {out['speedup']:.2f}x edgec's time")
    if "steps" in out:
        step_table(out["steps"])
