"""What a build does to a model's numbers: pruning, calibration, quantization, and what wins back the loss."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgec.ir.node import Graph
from edgec.ir.verify import verify
from edgec.job import Job
from edgec.summary import idle_options, sample_dims


def calibrate(job: Job, path: str | os.PathLike) -> None:
    """Reads the calibration data, for the rewritten graph. Raises EdgecError EC1302 and others of `data.load`."""
    from edgec.calibrate import data

    assert job.graph is not None
    job.calibration = data.load(path, job.graph, job.files, least=data.LEAST_SAMPLES)
    name, found = Path(path).name, job.calibration
    job.report.calibration = {"name": name, "samples": found.samples, "sha256": found.key}


def prune(job: Job, graph: Graph) -> Graph:
    """The graph with fewer channels or layers, or with zeros, as the options say."""
    from edgec.calibrate import data
    from edgec.calibrate import prune as p
    from edgec.calibrate.prune.latency import speeds
    from edgec.rewrites import decoder, states

    job.end()
    job.begin("prune")
    request = p.parse(job.options.prune, job.options.speedup)
    assert request is not None
    limit = p.SAMPLES if isinstance(decoder.roles(graph), str) else data.WINDOWS[0]
    load = None
    if job.calib is not None:
        load = functools.partial(data.load, job.calib, graph, job.files, limit=limit, least=data.LEAST_SAMPLES)
    if request.mask is not None:
        graph, layers = p.mask_model(graph, *request.mask, load, job.share)
        job.report.pruning = {"method": request.mask[0], "zeros": layers}
        return graph
    caches = {} if job.options.cached_in == "exposed" else {c.past["name"]: c.present for c in states.find(graph)}
    cost, rest, save = None, 0.0, None
    if request.speedup is not None:
        keep = job.store.folder is not None
        cost, rest, save = speeds(graph, job.target, job.options.weights, sample_dims(graph), keep)
    found = p.prune_model(graph, request, load, caches, cost=cost, rest=rest, tick=job.share)
    if save is not None:
        save()
    job.report.pruning = found.as_dict()
    if load is None:
        job.report.notes.append("Channels were pruned by the size of their weights alone; --calib FILE says which "
                                "ones matter, and makes up for them.")  # fmt: skip
    return found.graph


def relearn(job: Job, graph: Graph) -> Graph:
    """A pruned graph whose weights have learned from the source, before they are quantized."""
    from edgec.calibrate import data
    from edgec.distill.heal import RELEARN, RELEARN_TEXT, WINDOWS, heal
    from edgec.rewrites import decoder

    assert job.source_graph is not None and job.distill is not None
    job.end()
    job.begin("relearn")
    text = not isinstance(decoder.roles(job.source_graph), str)
    found = data.load(job.distill, job.source_graph, job.files, limit=WINDOWS if text else None)
    seen = lambda t: job.share(t.seconds, t.seconds + t.left)  # noqa: E731
    options = replace(RELEARN_TEXT if text else RELEARN, following=job.next_token)
    graph, report = heal(job.source_graph, graph, found, options, seen)
    job.report.healing = {"pruned": report.to_dict()}
    verify(graph)
    job.dump("relearn", graph)
    return graph


def quantize(job: Job) -> Graph:
    assert job.graph is not None
    job.begin("quantize")
    o = job.options
    from edgec.rewrites import quantize as q

    options = q.Options(
        weights=o.weights,
        **{"group8" if o.weights == "int8" else "group": o.group},
        activations=o.activations,
        embedding=o.embedding,
        scheme="table" if o.bits else "best",
        store=job.store,
        layouts=job.target.layouts,
        tick=job.share,
    )
    if o.weights != "fp32" and job.calibration is not None and job.target.int8_convs:
        from edgec.calibrate import convs

        options = convs.solve(job.graph, job.calibration, options, job.share)
    if o.rotations:  # of products: which convolutions stay none is known by now
        _rotate(job, options)
    if o.weights == "fp32":
        job.end()
        return job.graph
    before, job.encoding = job.graph, options
    if o.bits is not None and o.bits > 4.25:
        options = _mixed(job, options, o.bits)
    if job.calibration is not None:
        from edgec.calibrate.quantize import solve

        job.graph = q.products(job.graph, options)
        options = solve(job.graph, job.calibration, options, tick=job.share)
    job.graph, job.report.weights = q.quantize(job.graph, options)
    if any(w["bits"] < 32 for w in job.report.weights):
        job.unquantized = before
    job.report.notes += idle_options(job)
    if broken := [w["name"] for w in job.report.weights if w["reason"] == q.NOT_FINITE]:
        listed = "; ".join(broken[:3]) + ("; ..." if len(broken) > 3 else "")
        job.report.notes.append(f"Weights that hold numbers that are not finite stay as they are: {listed}. "
                                "Check the model.")  # fmt: skip
    job.report.cached_bytes = job.store.bytes_found
    verify(job.graph)
    job.dump("quantize", job.graph)
    job.end()
    return job.graph


def _rotate(job: Job, options: Any) -> None:
    from edgec.rewrites.quantize import products
    from edgec.rewrites.rotate import rotate

    assert job.graph is not None
    parts = job.options.rotations
    graph = products(job.graph, options) if parts != ("keys",) else job.graph
    job.graph, found = rotate(graph, parts, options)
    job.report.rotated = {name: count for name, count in found.items() if count}
    if "inputs" in parts and found.pop("down", None) is not None:
        job.report.notes.append("--rotate down changes nothing: inputs takes all that it would")
    if job.options.rotate != "auto" and (idle := [name for name, count in found.items() if not count]):
        job.report.notes.append(f"--rotate {','.join(idle)} changes nothing: the model has nothing of that kind")
    verify(job.graph)
    job.dump("rotate", job.graph)


def _mixed(job: Job, options: Any, bits: float) -> Any:
    """The options with a plan of so many bits on average: by measurement where there are data, else all alike."""
    from edgec.calibrate.allocate import allocate, window
    from edgec.loss import sensitivities
    from edgec.rewrites.quantize import products

    assert job.graph is not None
    graph = products(job.graph, options)
    if job.calibration is None:
        return allocate(graph, options, bits, None)
    feed = window(graph, job.calibration.feeds[0])
    return allocate(graph, options, bits, lambda a, b: sensitivities(a, b, feed, tick=job.share))


def heal(job: Job) -> Graph:
    """Norms, biases and scales learn from the source what quantization (and a mask) cost."""
    from edgec.calibrate import data
    from edgec.distill.heal import AFTER, WINDOWS, Options, heal, of_text

    assert job.graph is not None and job.source_graph is not None and job.distill is not None
    if job.report.healing is not None and job.options.weights == "fp32":
        job.report.healing |= job.report.healing["pruned"]
        return job.graph
    job.begin("heal")
    found = data.load(job.distill, job.source_graph, job.files, limit=None if job.lm is None else WINDOWS)
    seen = lambda t: job.share(t.seconds, t.seconds + t.left)  # noqa: E731
    options = Options() if job.lm is None else replace(of_text(found), following=job.next_token)
    if job.report.healing is not None:
        # all weights have learned for long; in another order, so that the batches that they know best don't come first
        options = replace(options, minutes=AFTER, seed=1)
    # integers learn where all weights did before
    floats = None if job.report.healing is None or job.unquantized is None else job.unencoded()
    job.graph, report = heal(job.source_graph, job.graph, found, options, seen, floats)
    job.report.healing = (job.report.healing or {}) | report.to_dict()
    job.source_graph = None
    verify(job.graph)
    job.dump("heal", job.graph)
    job.end()
    return job.graph
