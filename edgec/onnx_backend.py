"""edgec as a backend of onnx.backend: prepare, run_model, run_node, supports_device.

import edgec.onnx_backend as backend
outputs = backend.run_model(model, [x])
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.base

from edgec.compiler import build
from edgec.errors import EdgecError
from edgec.frontend import ConstantsNeeded, load
from edgec.ir.node import Graph
from edgec.runtime.session import Session


class Rep(onnx.backend.base.BackendRep):
    """A model that runs. Inputs whose values decide shapes are baked in; another value of them compiles again."""

    def __init__(self, model: onnx.ModelProto, options: Mapping[str, Any]):
        self.model, self.options = model, dict(options)
        initialized = {i.name for i in model.graph.initializer}
        self.names = [i.name for i in model.graph.input if i.name not in initialized]
        self.baked: list[str] = []
        self.compiled: tuple[tuple, Session] | None = None
        try:
            self.compiled = ((), _compile(load(model), self.options))
        except ConstantsNeeded as error:
            self.baked = error.needs_constants

    def run(self, inputs: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        """The outputs in the model's order. inputs: arrays in the model's order, or name -> array."""
        feeds = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(self.names, inputs, strict=True))
        while True:
            constants = {n: np.asarray(feeds[n]) for n in self.baked}
            key = tuple((n, a.dtype.str, a.shape, a.tobytes()) for n, a in constants.items())
            if self.compiled is None or self.compiled[0] != key:
                try:
                    self.compiled = (key, _compile(load(self.model, constants=constants), self.options))
                except ConstantsNeeded as error:
                    self.baked += error.needs_constants
                    continue
            outputs = self.compiled[1].run(None, {n: a for n, a in feeds.items() if n not in constants})
            return tuple(outputs)


def _compile(graph: Graph, options: Mapping[str, Any]) -> Session:
    from edgec.runtime.opening import load as load_artifact

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.edgec"
        build(graph, out=out, **{"weights": "fp32", **options})
        return load_artifact(out)


class EdgecBackend(onnx.backend.base.Backend):
    """onnx.backend.base.Backend over edgec."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Rep:
        """kwargs: options of edgec.build (weights, target). Raises EdgecError."""
        if not cls.supports_device(device):
            raise EdgecError("EC1001", f"there is no device {device!r}", "device", "Use CPU")
        return Rep(model, kwargs)

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple:
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Sequence | None = None, **kwargs: Any
    ) -> tuple:
        """Runs one node; its outputs' types are not needed."""
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        given = dict(zip((n for n in node.input if n), map(np.asarray, inputs)))
        graph = onnx.helper.make_graph(
            [node], "node",
            [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for n, a in given.items()],
            [onnx.helper.make_empty_tensor_value_info(n) for n in node.output if n],
        )  # fmt: skip
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid(node.domain, opset)])
        return cls.run_model(model, list(given.values()), device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device.split(":")[0].upper() == "CPU"

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        try:
            load(model)
        except ConstantsNeeded:
            return True
        except EdgecError:
            return False
        return cls.supports_device(device)


prepare = EdgecBackend.prepare
run_model = EdgecBackend.run_model
run_node = EdgecBackend.run_node
supports_device = EdgecBackend.supports_device
is_compatible = EdgecBackend.is_compatible
