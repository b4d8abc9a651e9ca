"""A build on its way: what it was asked for, the current graph, what it has found so far, and its progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgec import targets
from edgec.cache import Store
from edgec.errors import EdgecError
from edgec.ir.dims import format_dim
from edgec.ir.node import Graph
from edgec.ir.text import print_graph
from edgec.options import BuildReport, Options

Progress = Callable[..., None]  # (phase, seconds since the build began, share of the phase done or None)


class Job:
    """What a build's stages work on; `graph` is the current one."""

    def __init__(
        self,
        options: Options,
        progress: Progress | None = None,
        dump_ir: str | os.PathLike | None = None,
        store: Store | None = None,
    ):
        options.check()
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
        self.encoding: Any = None  # rewrites.quantize.Options
        self.files: dict[str, bytes] = {}  # tokenizer, chat template and configs: members of the artifact
        self.calibration: Any = None  # calibrate.data.Calibration
        self.parameters = 0  # float numbers that the imported graph holds
        self.distill: str | os.PathLike | None = None  # data to heal the quantized graph with
        self.next_token = 0.0  # share of a text's own next tokens in the loss of healing
        self.source_graph: Graph | None = None  # what it is healed against
        self.given: frozenset[str] = frozenset()  # options that were not left to their defaults
        self.choose_bits = False  # whether Options.bits is the build's own choice
        self.onnx: str | os.PathLike | None = None  # file for the graph in floats, pruned and healed
        self.floats: Graph | None = None  # that graph
        self.lowered: Any = None  # lower.lowering.Lowered
        self._dumped = 0
        if self.dump_ir is not None:
            try:
                self.dump_ir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EdgecError("EC1003", str(error), "--dump-ir", "Name a folder that can be made") from None

    def begin(self, name: str) -> None:
        self.progress(name, time.perf_counter() - self.started)
        self._phase_name, self._phase_at = name, time.perf_counter()

    def share(self, done: float, total: float) -> None:
        self.progress(self._phase_name, time.perf_counter() - self.started, done / max(total, 1))

    def end(self) -> None:
        self.report.phases[self._phase_name] = time.perf_counter() - self._phase_at

    def dump(self, name: str, graph: Graph) -> None:
        if self.dump_ir is not None:
            (self.dump_ir / f"{self._dumped:02d}-{name}.ir").write_text(print_graph(graph))
            self._dumped += 1

    def unencoded(self) -> Graph:
        """A graph of the quantized one's structure with the weights as they were, for comparisons."""
        from edgec.rewrites.quantize import products

        assert self.unquantized is not None
        return products(self.unquantized, self.encoding)

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
