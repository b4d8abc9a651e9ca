"""What a build says of its artifact: work, memory and estimates, and the manifest."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgec.errors import EdgecError
from edgec.ir.dims import evaluate, format_dim, substitute, symbol_name
from edgec.ir.node import Graph, Node
from edgec.job import Job
from edgec.options import BuildReport, Options

PROMPT = 128  # tokens before the one that is estimated, and of the prompt that is


def measure(job: Job) -> None:
    """Fills in what the report says of the lowered graph, at a sample of the symbols."""
    assert job.graph is not None
    r = job.report
    r.sample = sample_dims(job.graph)
    tuned = untuned = 0
    for name, kind, node, count in job.lowered.work():
        value = evaluate(count, r.sample)
        if kind == "kernel" or node.op in ("conv", "conv_transpose"):
            tuned += value
        else:
            untuned += value
            if value:
                r.untuned.append(f"{job.graph.origin(node)} ({node.op}, {name})")
    r.macs = tuned + untuned
    r.tuned_share = tuned / r.macs if r.macs else 1.0
    stored = sum(blob.nbytes for blob in job.lowered.blobs)
    r.weight_bits = 8 * stored / job.parameters if job.parameters else 0.0
    _estimate(job)


def _estimate(job: Job) -> None:
    from edgec import rates
    from edgec.estimate import estimate, packed
    from edgec.lower import cost

    assert job.graph is not None
    costs = list(cost.steps(job.lowered.assembled, job.lowered.graph))
    found = rates.of(job.target)
    for case, dims, tokens in estimate_cases(job.graph, job.lm, job.report.sample):
        work = [c.at(dims) for c in costs]
        job.report.work.append({"case": case, "dims": dims, "tokens": tokens, "steps": packed(work)})
        if found is not None:
            job.report.estimates.append(estimate(work, found, case, dims, tokens).to_dict())


def memory(job: Job, out: str | os.PathLike) -> None:
    """The arena's size, from the runtime itself: only where the artifact is for this machine."""
    from edgec.runtime.opening import load

    try:
        found = load(out, threads=1, check=False).memory(job.report.sample)
    except EdgecError as error:
        # for another CPU, or the sample is no size that the model takes
        if error.code not in ("EC1506", "EC1603", "EC1604"):
            raise
    else:
        job.report.arena_bytes, job.report.values_bytes = found["arena_bytes"], found["temp_bytes"]


def _describe(name: str, node: Node, bounds: tuple[int, int] | None = None, dims: Mapping[str, Any] = {}) -> dict:
    """A port of the manifest; range: the integers that an input can be (inside the table that it indexes)."""
    shape = [format_dim(substitute(d, dims)) for d in node.shape]
    port: dict[str, Any] = {"name": name, "dtype": node.dtype, "shape": shape}
    return port if bounds is None else port | {"range": list(bounds)}


def sample_dims(graph: Graph, size: int = 64) -> dict[str, int]:
    """A size for each symbol within its bounds, for figures that need one: 1 for batches, else `size`."""
    sample = {}
    for name, (low, high) in graph.symbols.items():
        leading = any(n.rank and substitute(n.shape[0], {name: 0}) != n.shape[0] for n in graph.inputs)
        value = 1 if leading else size
        sample[name] = max(low, value if high is None else min(value, high))
    return sample


def estimate_cases(
    graph: Graph, lm: Mapping[str, Any] | None, sample: Mapping[str, int]
) -> list[tuple[str, dict[str, int], int]]:
    """(case, sizes of the symbols, tokens) to estimate: a run at `sample`, or a language model's decode and prefill."""
    if lm is None:
        return [("run", dict(sample), 1)]
    inputs = {n["name"]: n for n in graph.inputs}
    cases = []
    for case, past, new in (("decode", PROMPT, 1), ("prefill", 0, PROMPT)):
        dims = dict(sample) | dict.fromkeys(graph.parameters, 1)
        wanted = {lm["ids"]: (1, new), lm.get("mask"): (1, past + new), lm.get("positions"): (1, new)}
        for name, sizes in wanted.items():
            for dim, size in zip(inputs[name].shape if name in inputs else (), sizes):
                dims |= {s: size for s in (symbol_name(dim),) if s is not None}
        for name, present in graph.states:
            axis = dict(graph.outputs)[present]["axis"]
            dims |= {s: past for s in (symbol_name(inputs[name].shape[axis]),) if s is not None}
            dims |= {s: 1 for s in (symbol_name(inputs[name].shape[0]),) if s is not None}
        cases.append((case, dims, new))
    return cases


def manifest(job: Job) -> dict[str, Any]:
    """What the artifact says of itself, but for its members: ports, target, options and report."""
    import edgec

    r, t = job.report, job.target
    assert job.graph is not None
    kept = {name for pair in job.graph.states for name in pair}
    return {
        "edgec": edgec.__version__,
        "target": {
            "name": t.name,
            "triple": t.triple,
            "cpu": t.cpu,
            "features": list(t.requires),
            "matrix_unit": t.matrix_unit,
        },
        "source": job.source,
        "inputs": [
            _describe(n["name"], n, job.ranges.get(n["name"])) for n in job.graph.inputs if n["name"] not in kept
        ],
        "outputs": [_describe(name, n, dims=job.graph.parameters) for name, n in job.graph.outputs if name not in kept],
        "symbols": {k: list(v) for k, v in job.graph.symbols.items()},
        "states": job.states(),
        "options": r.options,
        **({} if job.lm is None else {"lm": job.lm}),
        "report": {
            "weights": r.weights,
            "calibration": r.calibration,
            **({} if r.pruning is None else {"pruning": r.pruning}),
            **({"rotated": r.rotated} if r.rotated else {}),
            "tuned_share": r.tuned_share,
            "weight_bits": r.weight_bits,
            "macs": r.macs,
            "sample": r.sample,
            **({} if r.healing is None else {"healing": r.healing}),
            "work": r.work,
        },
    }


def idle_cache(options: Options, graph: Graph, lm: Mapping[str, Any] | None) -> list[str]:
    """A note for options of a cache that the rewritten graph does not have; lm: what `as_decoder` made of it."""
    from edgec.rewrites import states

    given = [] if options.kv_cache == "auto" or states.find(graph) else [f"--kv-cache {options.kv_cache}"]
    given += [f"--max-context {options.max_context}"] if options.max_context is not None and lm is None else []
    return [_idle(given, "the model keeps no keys and values from one run to the next")] if given else []


def idle_options(job: Job) -> list[str]:
    """Notes for the options that changed nothing, as the report of the quantized weights tells."""
    rows = [w for w in job.report.weights if w["bits"] < 32]
    products = [w for w in rows if w["role"] in ("linear", "tied")]
    notes = []
    if "embedding" in job.given and all(w["role"] not in ("embedding", "tied") for w in rows):
        notes.append(_idle([f"--embedding {job.options.embedding}"], "no embedding table is quantized"))
    fitted = any(w["output_snr_db"] is not None or (w["role"] == "conv" and w["activations"] == 8) for w in rows)
    useless = {
        "weights": not rows,
        "bits": not products,
        "group": all(w["bits"] > 4 for w in products) if job.options.weights == "int4" else not products,
        "calib": not fitted and job.report.pruning is None,
    }
    values = {k: getattr(job.options, k, None) for k in useless} | {"calib": "FILE"}
    if given := [f"--{k} {values[k]}" for k, idle in useless.items() if idle and k in job.given]:
        notes.append(
            _idle(given, "there are no products of weights that it could go to (edgec inspect MODEL lists all)")
        )
    return notes


def _idle(options: Sequence[str], reason: str) -> str:
    *most, last = options
    listed = f"{', '.join(most)} and {last} change" if most else f"{last} changes"
    return f"{listed} nothing: {reason}"


def with_loss(report: BuildReport) -> Callable[[dict], dict]:
    """A change of the manifest: what the review found goes in."""

    def change(manifest: dict) -> dict:
        more = {"loss": _rounded(report.loss), "weights": report.weights}
        return manifest | {"report": manifest["report"] | more}

    return change


def _rounded(value: Any) -> Any:
    """Floats with four digits: the last ones depend on the machine. What is not finite becomes None."""
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
