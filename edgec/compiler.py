"""The pipeline: import, rewrite, quantize, lower, write."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgec import stages, summary
from edgec.cache import Store
from edgec.errors import EdgecError
from edgec.ir.node import Graph
from edgec.ir.types import FLOATS
from edgec.ir.verify import verify
from edgec.job import Job, Progress
from edgec.options import DEFAULTS, UNIFORM, BuildReport, Options, check_used, idle
from edgec.summary import estimate_cases, sample_dims
from edgec.testing.inputs import input_ranges

PHASES = ("import", "rewrite", "quantize", "lower", "write")


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


class Build(Job):
    """One build, phase by phase; `graph` is the current one."""

    def load(self, model: Any, constants: Mapping[str, np.ndarray] | None = None) -> Graph:
        """`model`: a path, a ModelProto, or a Graph."""
        from edgec import frontend

        self.begin("import")
        if isinstance(model, Graph):
            self.graph = model
        else:
            self.graph = frontend.load(model, dims=self.options.dims, constants=constants or {})
            if isinstance(model, (str, os.PathLike)):
                self.source = {"name": Path(model).name, "sha256": _sha256(model), "bytes": source_size(model)}
        verify(self.graph)
        _check_sizes(self.graph, self.options.dims)
        self.ranges = input_ranges(self.graph)
        constants = (n for n in self.graph.nodes() if n.op == "constant" and n.dtype in FLOATS)
        self.parameters = sum(math.prod(n.shape) for n in constants)
        self.dump("import", self.graph)
        self.end()
        return self.graph

    def rewrite(self) -> Graph:
        from edgec import rewrites
        from edgec.rewrites import decoder
        from edgec.rewrites.widen import widen

        assert self.graph is not None
        self.begin("rewrite")
        graph = widen(self.graph) if self.options.weights != "fp32" else self.graph
        graph = rewrites.run(rewrites.one_length(graph), rewrites.PHASES, dump=self.dump)
        if self.onnx is not None:
            from edgec.frontend import export

            export.check(graph)
        if self.distill is not None:
            self.source_graph = graph
            if self.next_token and isinstance(reason := decoder.roles(graph), str):
                self.report.notes.append(f"--next-token {self.next_token} changes nothing: {reason}")
                self.next_token = 0.0
        if self.options.prune is not None or self.options.speedup is not None:
            graph = rewrites.run(stages.prune(self, graph), rewrites.PHASES)
            self.dump("prune", graph)
            if self.distill is not None and ":" not in (self.options.prune or ""):  # masks' zeros would not stay
                graph = stages.relearn(self, graph)
        self.floats = graph if self.onnx is not None else None
        self.graph, self.lm, notes = rewrites.as_decoder(graph, self.options.cached_in, self.options.max_context)
        self.report.notes += [*notes, *summary.idle_cache(self.options, graph, self.lm)]
        if self.lm is not None:
            from edgec.frontend.folder import text_facts

            self._decide_bits()

            facts = text_facts(self.files)
            facts["eos"] = [token for token in facts["eos"] if token < self.lm["vocab"]]
            facts["context"] = self.lm["context"] or facts["context"]
            self.lm |= facts
        self.dump("decoder", self.graph)
        verify(self.graph)
        self.end()
        return self.graph

    def _decide_bits(self) -> None:
        """A language model's weights are of 4.25 bits where that costs no time: they lose less than those of 4.5 to 4.625."""
        if self.choose_bits and self.target.tables_cost_nothing:
            self.options = replace(self.options, bits=4.25)
            self.report.options["bits"] = 4.25

    def calibrate(self, path: str | os.PathLike) -> None:
        """Reads the calibration data, for the rewritten graph. Raises EdgecError EC1302 and others of `data.load`."""
        stages.calibrate(self, path)

    def quantize(self) -> Graph:
        return stages.quantize(self)

    def heal(self) -> Graph:
        """Norms, biases and scales learn from the source what quantization (and a mask) cost."""
        return stages.heal(self)

    def lower(self):
        from edgec.lower.lowering import lower

        assert self.graph is not None
        self.begin("lower")
        self.lowered = lower(self.graph, self.target, lambda step: None)
        self.dump("lower", self.lowered.graph)
        summary.measure(self)
        self.end()
        return self.lowered

    def write(self, out: str | os.PathLike) -> BuildReport:
        from edgec.artifact.writer import write_artifact
        from edgec.lower.assemble import ALIGN

        self.begin("write")
        low, r = self.lowered, self.report
        pieces = self._pieces(ALIGN)
        manifest = summary.manifest(self)
        write_artifact(
            out, plan=low.plan.encode(), manifest=manifest, code=low.code or None, weights=pieces, files=self.files
        )
        self.store.prune()
        r.path, r.artifact_bytes = str(out), Path(out).stat().st_size
        summary.memory(self, out)
        self.end()
        return r

    def _pieces(self, alignment: int) -> Iterator[tuple[int, np.ndarray]]:
        """What weights.bin holds, a piece at a time."""
        total, done = sum(blob.nbytes for blob in self.lowered.blobs), 0
        for blob in self.lowered.blobs:
            begin, align = done, alignment
            for piece in blob.pieces():
                yield align, piece
                done, align = done + piece.nbytes, 1
                self.share(done, total)
            assert done - begin == blob.nbytes, "a constant has another size than its type says"


def _check_sizes(graph: Graph, dims: Mapping[str, Any]) -> None:
    """Raises EdgecError EC1001 where a size of 0 leaves an output without any number, whatever the inputs."""
    zeros = [name for name, size in dims.items() if size in (0, (0, 0))]
    for name, node in graph.outputs if zeros else ():
        if 0 in node.shape:
            raise EdgecError("EC1001", f"the output {name} would never hold a number", f"--dim {zeros[0]}=0",
                             "Give a size of 1 or more")  # fmt: skip


def cache_folder() -> Path:
    """Where encoded weights are kept: $EDGEC_CACHE_DIR, or the platform's folder for caches."""
    import platformdirs

    return Path(os.environ.get("EDGEC_CACHE_DIR") or Path(platformdirs.user_cache_dir("edgec")) / "weights")


def peak_rss() -> int:
    """The largest resident size that this process has had, bytes, as the system counts it."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def build(
    model: Any,
    *,
    target: str = "host",
    matrix_unit: str = "auto",
    weights: str | None = None,
    group: int | None = None,
    activations: str | None = None,
    kv_cache: str = "auto",
    max_context: int | None = None,
    embedding: int | None = None,
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
    next_token: float | None = None,
    onnx: str | os.PathLike | None = None,
    rotate: str = "auto",
    progress: Progress | None = None,
    review: Review | None = None,
) -> BuildReport:
    """Compiles an ONNX model into an artifact.

    model: path of an .onnx file or of a folder with one (see frontend.folder), a ModelProto or an IR graph. matrix_unit:
    as targets.with_unit says. dims: symbol -> size, (low, high), or another symbol's name. constants: values of inputs that
    are fixed at build.
    weights: "int4" (default), "int8" or "fp32". group: weights that share a scale, default 32, of int8 ones 128 (of their
    tables always). activations: "int8" goes with quantized weights, "fp32" with fp32 ones. kv_cache: of a decoder, "fp32",
    "int8" (kept by the session; "auto": int8 beside quantized weights) or "exposed" (inputs and outputs). max_context: tokens
    that a kept cache may hold. out: default the model's name with .edgec.
    stop_after: one of PHASES; nothing is written unless it is the last. tokenizer: folder whose tokenizer, chat
    template and configs the artifact takes along, default the model's own; "none" for nothing. bits: 4.25 takes int4
    weights from a table of 16 uneven values; more gives some linears 6 or 8 bits for that average, those that need it most
    by what each alone does to the outputs (with calib), or all alike; None chooses steps of equal size in 4.5 or 4.625 bits,
    and 4.25 for a language model where the target takes those as fast and no group is given.
    embedding: bits of tables (and of the head that is tied to one) under int4, default 8. prune, speedup: what to remove, as
    calibrate.prune.request reads it ("20%", "ffn=30%,layers=2", "1.5x"). calib: a file or folder of calibration data
    (`calibrate.data`) that weights are fitted to. cache: True or a folder keeps encoded weights for later builds, so that
    one that was interrupted goes on where it was. distill: data (calibrate.data) on which norms, biases and scales learn
    from the source what quantization cost, and before that all weights of a pruned model; it takes calib's place too where
    that is None; needs torch. next_token: of a language model, the share of that loss that is the cross entropy with the data's
    own next tokens. onnx: a file for the graph as ONNX, pruned and healed, in floats (`frontend.export`).
    rotate: "auto", "none", or some of `options.ROTATIONS` with commas: what passes a Hadamard matrix before it is rounded to
    8 bits at run time (auto: keys of an int8 cache, and inputs of products under int8 weights or bits from 6.25 on). review:
    see `Review`. Raises EdgecError, EC1001 for options of which one leaves another without effect; a failed build leaves nothing
    behind but that.
    """
    for package in ("onnx", "onnx_ir", "tvm"):
        if importlib.util.find_spec(package) is None:
            raise EdgecError("EC1002", f"building needs {package}", hint="Install it: pip install 'edgec[build]'")
    if stop_after is not None and stop_after not in PHASES:
        raise EdgecError("EC1001", f"{stop_after!r} is none of {', '.join(PHASES)}", "--stop-after")
    given = {"weights": weights, "group": group, "activations": activations, "embedding": embedding, "bits": bits,
             "calib": calib, "prune": prune, "speedup": speedup, "onnx": onnx, "stop_after": stop_after}  # fmt: skip
    check_used(given)
    if next_token is not None:
        if distill is None:
            raise idle("--next-token", "nothing is healed", "Leave it out, or pass --distill TEXTS")
        if not 0 < next_token < 1:
            raise EdgecError("EC1001", f"{next_token} is no share of a loss", "--next-token", "Use one between 0 and 1")
    if distill is not None:
        if importlib.util.find_spec("torch") is None:
            raise EdgecError("EC1002", "--distill needs torch", hint="Install it: pip install 'edgec[distill]'")
        if weights == "fp32" and prune is None and speedup is None:
            raise EdgecError("EC1001", "fp32 weights lose nothing that could heal", "--distill", "Leave it out")
        calib = distill if calib is None else calib
    if bits is not None and bits not in UNIFORM and calib is None:
        hint = f"Pass --calib FILE, or one of {', '.join(map(str, UNIFORM))}"
        raise EdgecError("EC1001", f"a mix of {bits} bits is chosen on data", "--bits", hint)
    factor = None if speedup is None else str(speedup)
    chosen = {k: v for k, v in given.items() if k in DEFAULTS and v is not None}
    options = Options(
        target=target,
        dims=dict(dims or {}),
        kv_cache=kv_cache,
        max_context=max_context,
        bits=bits,
        prune=prune,
        speedup=factor,
        matrix_unit=matrix_unit,
        rotate=rotate,
        **DEFAULTS | chosen,
    )
    is_path = isinstance(model, (str, os.PathLike))
    if out is None:
        if not is_path:
            raise EdgecError(
                "EC1001", "a model that is not a file needs a name for the artifact", "out", 'Pass out="model.edgec"'
            )
        path = Path(model)
        out = path.parent / f"{path.resolve().name}.edgec" if path.is_dir() else path.with_suffix(".edgec")
    folder = cache_folder() if cache is True else Path(cache) if cache else None
    job = Build(options, progress, dump_ir, Store(folder, Path(out).parent))
    if is_path:
        from edgec.frontend.folder import model_file, text_files

        model = model_file(model)
        job.files = text_files(model, tokenizer)
    job.distill, job.onnx, job.next_token = distill, onnx, next_token or 0.0
    job.given = frozenset(name for name, value in given.items() if value is not None)
    job.calib = calib
    job.choose_bits = options.weights == "int4" and bits is None and group is None
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
        replace_manifest(aside, summary.with_loss(job.report))
        job.report.path, job.report.artifact_bytes = str(out), aside.stat().st_size
        os.replace(aside, out)
        _write_onnx(job)
    finally:
        aside.unlink(missing_ok=True)


def _write_onnx(job: Build) -> None:
    if job.onnx is not None and job.floats is not None:
        from edgec.frontend import export

        export.write(job.floats, job.onnx)


__all__ = ["PHASES", "Build", "BuildReport", "Options", "build", "estimate_cases", "sample_dims"]
