"""The pipeline: import, rewrite, quantize, lower, write."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgec.cache import Store
from edgec.errors import EdgecError
from edgec.ir.dims import evaluate, format_dim, substitute, symbol_name
from edgec.ir.node import Graph, Node
from edgec.ir.text import print_graph
from edgec.ir.types import FLOATS
from edgec.ir.verify import verify
from edgec.options import UNIFORM, BuildReport, Options
from edgec.testing.inputs import input_ranges

PHASES = ("import", "rewrite", "quantize", "lower", "write")
PROMPT = 128  # tokens before the one that is estimated, and of the prompt that is
Progress = Callable[..., None]  # (phase, seconds since the build began, share of the phase done or None)


def source_size(path: str | os.PathLike) -> int:
    """Bytes of an ONNX file and of the external data beside it."""
    from edgec.frontend import source_files

    return sum(p.stat().st_size for p in source_files(path))


class Review(Protocol):
    """What looks at a build on its way; raising EdgecError ends it, and the artifact is not written."""

    def rewritten(self, job: Build) -> None:
        """Before quantization."""

    def written(self, job: Build, path: Path) -> Mapping[str, Any]:
        """The artifact is whole, under a name that is not yet its own. What is returned goes into the manifest's report,
        as "loss"."""


class Build:
    """One build, phase by phase; `graph` is the current one."""

    def __init__(
        self,
        options: Options,
        progress: Progress | None = None,
        dump_ir: str | os.PathLike | None = None,
        store: Store | None = None,
    ):
        options.check()
        from edgec import targets

        self.options, self.progress = options, progress or (lambda phase, seconds, share=None: None)
        self.store = store or Store()
        self.target = targets.with_unit(targets.load(options.target), options.matrix_unit)
        self.dump_ir = None if dump_ir is None else Path(dump_ir)
        self.started = time.perf_counter()
        self.report = BuildReport(options=asdict(options) | {"dims": dict(options.dims)})
        self.graph: Graph | None = None
        self.source: dict[str, Any] | None = None  # the model's file name, SHA-256, and bytes with external data
        self.ranges: dict[str, tuple[int, int]] = {}
        self.lm: dict | None = None  # the manifest's key of that name
        self.calib: str | os.PathLike | None = None
        self.unquantized: Graph | None = None  # what quantize() encoded, as it was; None: nothing
        self._encoding: Any = None  # rewrites.quantize.Options
        self.files: dict[str, bytes] = {}  # tokenizer, chat template and configs: members of the artifact
        self.calibration: Any = None  # calibrate.data.Calibration
        self.parameters = 0  # float numbers that the imported graph holds
        self.distill: str | os.PathLike | None = None  # data to heal the quantized graph with
        self.source_graph: Graph | None = None  # what it is healed against
        self.onnx: str | os.PathLike | None = None  # file for the graph in floats, pruned and healed
        self.floats: Graph | None = None  # that graph
        self._dumped = 0
        if self.dump_ir is not None:
            try:
                self.dump_ir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EdgecError("EC1003", str(error), "--dump-ir") from None

    def _phase(self, name: str) -> None:
        self.progress(name, time.perf_counter() - self.started)
        self._phase_name, self._phase_at = name, time.perf_counter()

    def _share(self, done: float, total: float) -> None:
        self.progress(self._phase_name, time.perf_counter() - self.started, done / max(total, 1))

    def _done(self) -> None:
        self.report.phases[self._phase_name] = time.perf_counter() - self._phase_at

    def dump(self, name: str, graph: Graph) -> None:
        if self.dump_ir is not None:
            (self.dump_ir / f"{self._dumped:02d}-{name}.ir").write_text(print_graph(graph))
            self._dumped += 1

    def load(self, model: Any, constants: Mapping[str, np.ndarray] | None = None) -> Graph:
        """`model`: a path, a ModelProto, or a Graph."""
        from edgec import frontend

        self._phase("import")
        if isinstance(model, Graph):
            self.graph = model
        else:
            self.graph = frontend.load(model, dims=self.options.dims, constants=constants or {})
            if isinstance(model, (str, os.PathLike)):
                self.source = {"name": Path(model).name, "sha256": _sha256(model), "bytes": source_size(model)}
        verify(self.graph)
        self.ranges = input_ranges(self.graph)
        constants = (n for n in self.graph.nodes() if n.op == "constant" and n.dtype in FLOATS)
        self.parameters = sum(math.prod(n.shape) for n in constants)
        self.dump("import", self.graph)
        self._done()
        return self.graph

    def rewrite(self) -> Graph:
        from edgec import rewrites
        from edgec.rewrites.widen import widen

        assert self.graph is not None
        self._phase("rewrite")
        graph = widen(self.graph) if self.options.weights != "fp32" else self.graph
        graph = rewrites.run(rewrites.one_length(graph), rewrites.PHASES, dump=self.dump)
        if self.onnx is not None:
            from edgec.frontend import export

            export.check(graph)
        if self.distill is not None:
            self.source_graph = graph
        if self.options.prune is not None or self.options.speedup is not None:
            graph = rewrites.run(self._pruned(graph), rewrites.PHASES)
            self.dump("prune", graph)
            if self.distill is not None and ":" not in (self.options.prune or ""):  # masks' zeros would not stay
                graph = self._relearned(graph)
        self.floats = graph if self.onnx is not None else None
        self.graph, self.lm, notes = rewrites.as_decoder(graph, self.options.cached_in, self.options.max_context)
        self.report.notes += notes
        if self.lm is not None:
            from edgec.frontend.folder import text_facts

            facts = text_facts(self.files)
            facts["eos"] = [token for token in facts["eos"] if token < self.lm["vocab"]]
            facts["context"] = self.lm["context"] or facts["context"]
            self.lm |= facts
        self.dump("decoder", self.graph)
        verify(self.graph)
        self._done()
        return self.graph

    def calibrate(self, path: str | os.PathLike) -> None:
        """Reads the calibration data, for the rewritten graph. Raises EdgecError EC1302 and others of `data.load`."""
        from edgec.calibrate import data

        assert self.graph is not None
        self.calibration = data.load(path, self.graph, self.files, least=data.LEAST_SAMPLES)
        name, found = Path(path).name, self.calibration
        self.report.calibration = {"name": name, "samples": found.samples, "sha256": found.key}

    def _pruned(self, graph: Graph) -> Graph:
        """The graph with fewer channels or layers, or with zeros, as the options say."""
        from edgec.calibrate import data
        from edgec.calibrate import prune as p
        from edgec.calibrate.prune.latency import speeds
        from edgec.rewrites import decoder, states

        self._done()
        self._phase("prune")
        request = p.parse(self.options.prune, self.options.speedup)
        assert request is not None
        limit = p.SAMPLES if isinstance(decoder.roles(graph), str) else None
        load = None
        if self.calib is not None:
            load = functools.partial(data.load, self.calib, graph, self.files, limit=limit, least=data.LEAST_SAMPLES)
        if request.mask is not None:
            graph, layers = p.mask_model(graph, *request.mask, load, self._share)
            self.report.pruning = {"method": request.mask[0], "zeros": layers}
            return graph
        caches = {} if self.options.cached_in == "exposed" else {c.past["name"]: c.present for c in states.find(graph)}
        cost, rest, save = None, 0.0, None
        if request.speedup is not None:
            keep = self.store.folder is not None
            cost, rest, save = speeds(graph, self.target, self.options.weights, sample_dims(graph), keep)
        found = p.prune_model(graph, request, load, caches, cost=cost, rest=rest, tick=self._share)
        if save is not None:
            save()
        self.report.pruning = found.as_dict()
        if load is None:
            self.report.notes.append("Channels were pruned by the size of their weights alone; --calib FILE says which "
                                     "ones matter, and makes up for them.")  # fmt: skip
        return found.graph

    def _relearned(self, graph: Graph) -> Graph:
        """A pruned graph whose weights have learned from the source, before they are quantized."""
        from edgec.calibrate import data
        from edgec.distill.heal import RELEARN, WINDOWS, heal
        from edgec.rewrites import decoder

        assert self.source_graph is not None and self.distill is not None
        self._done()
        self._phase("relearn")
        limit = None if isinstance(decoder.roles(self.source_graph), str) else WINDOWS
        found = data.load(self.distill, self.source_graph, self.files, limit=limit)
        seen = lambda t: self._share(t.seconds, t.seconds + t.left)  # noqa: E731
        graph, report = heal(self.source_graph, graph, found, RELEARN, seen)
        self.report.healing = {"pruned": report.to_dict()}
        verify(graph)
        self.dump("relearn", graph)
        return graph

    def quantize(self) -> Graph:
        assert self.graph is not None
        self._phase("quantize")
        o = self.options
        if o.weights == "fp32":
            self._done()
            return self.graph
        from edgec.rewrites import quantize as q

        options = q.Options(
            weights=o.weights,
            group=o.group,
            activations=o.activations,
            embedding=o.embedding,
            scheme="table" if o.bits else "best",
            store=self.store,
            layouts=self.target.layouts,
            tick=self._share,
        )
        before, self._encoding = self.graph, options
        if o.bits is not None and o.bits > 4.25:
            options = self._mixed(options, o.bits)
        if self.calibration is not None:
            from edgec.calibrate.quantize import solve

            self.graph = q.products(self.graph, options)
            options = solve(self.graph, self.calibration, options, tick=self._share)
        self.graph, self.report.weights = q.quantize(self.graph, options)
        if any(w["bits"] < 32 for w in self.report.weights):
            self.unquantized = before
        if broken := [w["name"] for w in self.report.weights if w["reason"] == q.NOT_FINITE]:
            listed = "; ".join(broken[:3]) + ("; ..." if len(broken) > 3 else "")
            self.report.notes.append(f"Weights that hold numbers that are not finite stay as they are: {listed}. "
                                     "Check the model.")  # fmt: skip
        self.report.cached_bytes = self.store.bytes_found
        verify(self.graph)
        self.dump("quantize", self.graph)
        self._done()
        return self.graph

    def _mixed(self, options: Any, bits: float) -> Any:
        """The options with a plan of so many bits on average: by measurement where there are data, else all alike."""
        from edgec.calibrate.allocate import allocate, window
        from edgec.loss import sensitivities
        from edgec.rewrites.quantize import products

        assert self.graph is not None
        graph = products(self.graph, options)
        if self.calibration is None:
            return allocate(graph, options, bits, None)
        feed = window(graph, self.calibration.feeds[0])
        return allocate(graph, options, bits, lambda a, b: sensitivities(a, b, feed, tick=self._share))

    def unencoded(self) -> Graph:
        """A graph of the quantized one's structure with the weights as they were, for comparisons."""
        from edgec.rewrites.quantize import products

        assert self.unquantized is not None
        return products(self.unquantized, self._encoding)

    def heal(self) -> Graph:
        """Norms, biases and scales learn from the source what quantization (and a mask) cost."""
        from edgec.calibrate import data
        from edgec.distill.heal import AFTER, WINDOWS, Options, heal, of_text

        assert self.graph is not None and self.source_graph is not None and self.distill is not None
        if self.report.healing is not None and self.options.weights == "fp32":
            self.report.healing |= self.report.healing["pruned"]
            return self.graph
        self._phase("heal")
        found = data.load(self.distill, self.source_graph, self.files, limit=None if self.lm is None else WINDOWS)
        seen = lambda t: self._share(t.seconds, t.seconds + t.left)  # noqa: E731
        options = Options() if self.lm is None else of_text(found)
        if self.report.healing is not None:  # the pruned model has learned for long enough already
            options = replace(options, minutes=AFTER)
        self.graph, report = heal(self.source_graph, self.graph, found, options, seen)
        self.report.healing = (self.report.healing or {}) | report.to_dict()
        self.source_graph = None
        verify(self.graph)
        self.dump("heal", self.graph)
        self._done()
        return self.graph

    def lower(self):
        from edgec.lower.lowering import lower

        assert self.graph is not None
        self._phase("lower")
        self.lowered = lower(self.graph, self.target, lambda step: None)
        self.dump("lower", self.lowered.graph)
        self._measure()
        self._done()
        return self.lowered

    def _measure(self) -> None:
        """Fills in what the report says of the lowered graph, at a sample of the symbols."""
        assert self.graph is not None
        r = self.report
        r.sample = sample_dims(self.graph)
        tuned = untuned = 0
        for name, kind, node, count in self.lowered.work():
            value = evaluate(count, r.sample)
            if kind == "kernel" or node.op in ("conv", "conv_transpose"):
                tuned += value
            else:
                untuned += value
                if value:
                    r.untuned.append(f"{self.graph.origin(node)} ({node.op}, {name})")
        r.macs = tuned + untuned
        r.tuned_share = tuned / r.macs if r.macs else 1.0
        stored = sum(blob.nbytes for blob in self.lowered.blobs)
        r.weight_bits = 8 * stored / self.parameters if self.parameters else 0.0
        self._estimate()

    def _estimate(self) -> None:
        from edgec import rates
        from edgec.estimate import estimate, packed
        from edgec.lower import cost

        assert self.graph is not None
        costs = list(cost.steps(self.lowered.assembled, self.lowered.graph))
        found = rates.of(self.target)
        for case, dims, tokens in estimate_cases(self.graph, self.lm, self.report.sample):
            work = [c.at(dims) for c in costs]
            self.report.work.append({"case": case, "dims": dims, "tokens": tokens, "steps": packed(work)})
            if found is not None:
                self.report.estimates.append(estimate(work, found, case, dims, tokens).to_dict())

    def write(self, out: str | os.PathLike) -> BuildReport:
        import edgec
        from edgec.artifact.writer import write_artifact
        from edgec.lower.assemble import ALIGN

        self._phase("write")
        low, r, t = self.lowered, self.report, self.target
        assert self.graph is not None
        kept = {name for pair in self.graph.states for name in pair}
        manifest = {
            "edgec": edgec.__version__,
            "target": {
                "name": t.name,
                "triple": t.triple,
                "cpu": t.cpu,
                "features": list(t.requires),
                "matrix_unit": t.matrix_unit,
            },
            "source": self.source,
            "inputs": [
                _describe(n["name"], n, self.ranges.get(n["name"])) for n in self.graph.inputs if n["name"] not in kept
            ],
            "outputs": [
                _describe(name, n, dims=self.graph.parameters) for name, n in self.graph.outputs if name not in kept
            ],
            "symbols": {k: list(v) for k, v in self.graph.symbols.items()},
            "states": self.states(),
            "options": r.options,
            **({} if self.lm is None else {"lm": self.lm}),
            "report": {
                "weights": r.weights,
                "calibration": r.calibration,
                **({} if r.pruning is None else {"pruning": r.pruning}),
                "tuned_share": r.tuned_share,
                "weight_bits": r.weight_bits,
                "macs": r.macs,
                "sample": r.sample,
                **({} if r.healing is None else {"healing": r.healing}),
                "work": r.work,
            },
        }
        pieces = self._pieces(ALIGN)
        write_artifact(
            out, plan=low.plan.encode(), manifest=manifest, code=low.code or None, weights=pieces, files=self.files
        )
        self.store.prune()
        r.path, r.artifact_bytes = str(out), Path(out).stat().st_size
        self._memory(out)
        self._done()
        return r

    def states(self) -> list[dict]:
        """What the session keeps: the source's names, and the shape of a cache without a token."""
        assert self.graph is not None
        inputs, outputs = {n["name"]: n for n in self.graph.inputs}, dict(self.graph.outputs)
        found = []
        for past, present in self.graph.states:
            axis = outputs[present]["axis"]
            shape = [0 if i == axis else format_dim(d) for i, d in enumerate(inputs[past].shape)]
            found.append({"past": past, "present": present, "empty": shape})
        return found

    def _pieces(self, alignment: int) -> Iterator[tuple[int, np.ndarray]]:
        """What weights.bin holds, a piece at a time."""
        total, done = sum(blob.nbytes for blob in self.lowered.blobs), 0
        for blob in self.lowered.blobs:
            begin, align = done, alignment
            for piece in blob.pieces():
                yield align, piece
                done, align = done + piece.nbytes, 1
                self._share(done, total)
            assert done - begin == blob.nbytes, "a constant has another size than its type says"

    def _memory(self, out: str | os.PathLike) -> None:
        """The arena's size, from the runtime itself: only where the artifact is for this machine."""
        from edgec.runtime.opening import load

        try:
            memory = load(out, threads=1, check=False).memory(self.report.sample)
        except EdgecError as error:
            # for another CPU, or the sample is no size that the model takes
            if error.code not in ("EC1506", "EC1603", "EC1604"):
                raise
        else:
            self.report.arena_bytes, self.report.values_bytes = memory["arena_bytes"], memory["temp_bytes"]


def cache_folder() -> Path:
    """Where encoded weights are kept: $EDGEC_CACHE_DIR, or the platform's folder for caches."""
    import platformdirs

    return Path(os.environ.get("EDGEC_CACHE_DIR") or Path(platformdirs.user_cache_dir("edgec")) / "weights")


def peak_rss() -> int:
    """The largest resident size that this process has had, bytes, as the system counts it."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _describe(name: str, node: Node, bounds: tuple[int, int] | None = None, dims: Mapping[str, Any] = {}) -> dict:
    """A port of the manifest; range: the integers that an input can be (inside the table that it indexes)."""
    shape = [format_dim(substitute(d, dims)) for d in node.shape]
    port: dict[str, Any] = {"name": name, "dtype": node.dtype, "shape": shape}
    return port if bounds is None else port | {"range": list(bounds)}


def _sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


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


def build(
    model: Any,
    *,
    target: str = "host",
    matrix_unit: str = "auto",
    weights: str = "int4",
    group: int = 32,
    activations: str = "int8",
    kv_cache: str = "auto",
    max_context: int | None = None,
    embedding: int = 8,
    bits: float | None = None,
    prune: str | None = None,
    speedup: str | float | None = None,
    calib: str | os.PathLike | None = None,
    dims: Mapping[str, Any] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    out: str | os.PathLike | None = None,
    stop_after: str | None = None,
    dump_ir: str | os.PathLike | None = None,
    cache: bool | str | os.PathLike = False,
    tokenizer: str | os.PathLike | None = None,
    distill: str | os.PathLike | None = None,
    onnx: str | os.PathLike | None = None,
    progress: Progress | None = None,
    review: Review | None = None,
) -> BuildReport:
    """Compiles an ONNX model into an artifact.

    model: path of an .onnx file or of a folder with one (see frontend.folder), a ModelProto or an IR graph. matrix_unit:
    as targets.with_unit says. dims: symbol -> size, (low, high), or another symbol's name. constants: values of inputs that
    are fixed at build.
    kv_cache: of a decoder, "fp32", "int8" (kept by the session; "auto": int8 beside quantized weights) or "exposed"
    (inputs and outputs). max_context: tokens that a kept cache may hold. out: default the model's name with .edgec.
    stop_after: one of PHASES; nothing is written unless it is the last. tokenizer: folder whose tokenizer, chat
    template and configs the artifact takes along, default the model's own; "none" for nothing. bits: 4.25 takes int4
    weights from a table of 16 uneven values; more gives some linears 6 or 8 bits for that average, those that need it most
    by what each alone does to the outputs (with calib), or all alike; None chooses steps of equal size in 4.5 or 4.625 bits.
    embedding: bits of tables (and of the head that is tied to one) under int4. prune, speedup: what to remove, as
    calibrate.prune.request reads it ("20%", "ffn=30%,layers=2", "1.5x"). calib: a file or folder of calibration data
    (`calibrate.data`) that weights are fitted to. cache: True or a folder keeps encoded weights for later builds, so that
    one that was interrupted goes on where it was. distill: data (calibrate.data) on which norms, biases and scales learn
    from the source what quantization cost, and before that all weights of a pruned model; needs torch. onnx: a file for the
    graph as ONNX, pruned and healed, in floats (`frontend.export`). review: see `Review`. Raises EdgecError; a
    failed build leaves nothing behind but that.
    """
    for package in ("onnx", "onnx_ir", "tvm"):
        if importlib.util.find_spec(package) is None:
            raise EdgecError("EC1002", f"building needs {package}", hint="Install it: pip install 'edgec[build]'")
    if stop_after is not None and stop_after not in PHASES:
        raise EdgecError("EC1001", f"{stop_after!r} is none of {', '.join(PHASES)}", "--stop-after")
    if distill is not None:
        if importlib.util.find_spec("torch") is None:
            raise EdgecError("EC1002", "--distill needs torch", hint="Install it: pip install 'edgec[distill]'")
        if weights == "fp32" and prune is None and speedup is None:
            raise EdgecError("EC1001", "fp32 weights lose nothing that could heal", "--distill", "Leave it out")
    if bits is not None and bits not in UNIFORM and calib is None:
        hint = f"Pass --calib FILE, or one of {', '.join(map(str, UNIFORM))}"
        raise EdgecError("EC1001", f"a mix of {bits} bits is chosen on data", "--bits", hint)
    factor = None if speedup is None else str(speedup)
    options = Options(
        target,
        weights,
        group,
        activations,
        dict(dims or {}),
        kv_cache,
        max_context,
        embedding,
        bits,
        prune,
        factor,
        matrix_unit,
    )
    is_path = isinstance(model, (str, os.PathLike))
    if out is None:
        if not is_path:
            raise EdgecError("EC1001", "a model that is not a file needs a name for the artifact", "out")
        path = Path(model)
        out = path.parent / f"{path.resolve().name}.edgec" if path.is_dir() else path.with_suffix(".edgec")
    folder = cache_folder() if cache is True else Path(cache) if cache else None
    job = Build(options, progress, dump_ir, Store(folder, Path(out).parent))
    if is_path:
        from edgec.frontend.folder import model_file, text_files

        model = model_file(model)
        job.files = text_files(model, tokenizer)
    job.distill, job.onnx = distill, onnx
    job.calib = calib
    job.load(model, constants)

    def rewrite() -> None:
        job.rewrite()
        if calib is not None:
            job.calibrate(calib)

    def quantize() -> None:
        job.quantize()
        if distill is not None:
            job.heal()

    steps: dict[str, Callable] = {"import": lambda: None, "rewrite": rewrite, "quantize": quantize,
                                  "lower": job.lower, "write": lambda: _write(job, Path(out), review)}  # fmt: skip
    if onnx is not None and not Path(onnx).parent.is_dir():
        raise EdgecError("EC1003", "its folder does not exist", str(onnx), "Make the folder, or name another file")
    for phase, step in steps.items():
        step()
        if phase == "rewrite" and review is not None:
            review.rewritten(job)
        if phase == stop_after:
            break
    job.report.stopped_after = stop_after
    job.report.source_bytes = source_size(model) if is_path else 0
    job.report.peak_rss_bytes = peak_rss()
    return job.report


def _write(job: Build, out: Path, review: Review | None) -> None:
    """The artifact, under its name only when the review has passed it."""
    if review is None:
        job.write(out)
        _write_onnx(job)
        return
    from edgec.artifact.writer import replace_manifest

    aside = out.with_name(f".{out.name}.{os.getpid()}.unchecked")
    try:
        job.write(aside)
        job.report.loss = dict(review.written(job, aside))
        replace_manifest(aside, _with_loss(job.report))
        job.report.path, job.report.artifact_bytes = str(out), aside.stat().st_size
        os.replace(aside, out)
        _write_onnx(job)
    finally:
        aside.unlink(missing_ok=True)


def _write_onnx(job: Build) -> None:
    if job.onnx is not None and job.floats is not None:
        from edgec.frontend import export

        export.write(job.floats, job.onnx)


def _with_loss(report: BuildReport) -> Callable[[dict], dict]:
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


__all__ = ["PHASES", "Build", "BuildReport", "Options", "build", "sample_dims"]
