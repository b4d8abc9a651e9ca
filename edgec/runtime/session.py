"""Running an artifact: numpy arrays in, numpy arrays out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgec import _core
from edgec.artifact.reader import ArtifactFile
from edgec.errors import EdgecError

_NUMPY_NAMES = {
    **{"bool": "bool", "i8": "int8", "u8": "uint8", "i16": "int16", "u16": "uint16", "i32": "int32", "u32": "uint32"},
    **{"i64": "int64", "u64": "uint64", "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"},
    "bytes": "uint8",
}


class Port(NamedTuple):
    """An input or output: a symbolic dim is a str; dtype is numpy's name for it."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class StepTime(NamedTuple):
    """One step of a profiled run: the source nodes it stands for, "call" or "kernel", the kernel, its time."""

    origin: str
    kind: str
    kernel: str
    microseconds: float


_noticed = False


def _notice_amx(manifest: Mapping[str, Any]) -> None:
    """One line, once in a process, where weights are packed for AMX and it is not there or computes something else."""
    global _noticed
    target, options = manifest["target"], manifest.get("options")
    if _noticed or target.get("matrix_unit") != "amx" or not isinstance(options, dict):
        return
    if options.get("weights") == "int4" and not any(
        k["available"] for k in _core.kernels.list() if "amx" in k["features"]
    ):
        _noticed = True
        print("edgec: AMX does not work here; products run on NEON (--matrix-unit none packs weights for that)",
              file=sys.stderr)  # fmt: skip


class Session:
    """An artifact that is loaded and ready to run. Calls from several threads take turns.

    A language model keeps its sequences in slots. session(...) and run() use none: each row starts empty and nothing
    is kept. With `slots`, one for each row of the batch, a row follows what its slot holds and is appended to it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | ArtifactFile,
        threads: int | None = None,
        max_context: int | None = None,
        check: bool = True,
    ) -> None:
        """`threads`: default, as many as affinity, cgroup quota and big cores allow. `max_context`: tokens that a
        sequence of a language model may have, default as it was built. `check`: compare the weights with their
        checksums, which reads all of them. Raises EdgecError EC15xx."""
        for name, value in (("threads", threads), ("max_context", max_context)):
            if value is not None and value < 1:
                raise EdgecError("EC1001", f"{name}={value}", hint="Pass 1 or more")
        opened = isinstance(path, ArtifactFile)
        self.artifact = path if opened else ArtifactFile(path, check_content=check, wait=False, threads=threads or 0)
        members = self.artifact.members
        _notice_amx(self.manifest)
        self._core = _core.Session(members["plan.bin"], members.get("code.so"), members["weights.bin"], threads or 0)
        self._call = self._core.call
        context = max_context or self.manifest.get("lm", {}).get("context")
        if context and self._core.states:
            self._core.reserve(1, context)
        self.inputs = [Port(name, shape, _NUMPY_NAMES[dtype]) for name, dtype, shape in self._core.inputs]
        self.outputs = [Port(name, shape, _NUMPY_NAMES[dtype]) for name, dtype, shape in self._core.outputs]
        self._output_index = {port.name: index for index, port in enumerate(self.outputs)}
        if not opened:
            self.artifact.wait()

    def __call__(self, /, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs by name. Raises EdgecError EC1601 to EC1606."""
        return self._call(feeds)

    def run(
        self,
        output_names: Iterable[str] | None,
        feeds: Mapping[str, np.ndarray],
        *,
        slots: Sequence[int] | None = None,
        parameters: Mapping[str, int] | None = None,
    ) -> list[np.ndarray]:
        """The named outputs, or all, in that order: the call of onnxruntime's InferenceSession.

        slots: see the class. parameters: values of `session.parameters`. Raises EC1608 for more tokens than the
        context has; no slot has changed then, nor after any other error.
        """
        names = None if output_names is None else list(output_names)
        for name in names or ():
            if name not in self._output_index:
                raise EdgecError(
                    "EC1607",
                    "the artifact has none of that name",
                    f"output '{name}'",
                    f"It has {', '.join(self._output_index)}",
                )
        results = self._core.run(
            feeds if type(feeds) is dict else dict(feeds),
            slots if slots is None else list(slots),
            parameters if parameters is None else dict(parameters),
        )
        return results if not names else [results[self._output_index[name]] for name in names]

    @property
    def manifest(self) -> dict[str, Any]:
        return self.artifact.manifest

    @property
    def threads(self) -> int:
        return self._core.threads

    @property
    def symbols(self) -> dict[str, tuple[int, int | None]]:
        """The symbolic dims and their bounds (None: unbounded)."""
        return {name: (lo, None if hi < 0 else hi) for name, lo, hi in self._core.symbols}

    @property
    def steps(self) -> list[tuple[str, str, str]]:
        """(origin, "call" or "kernel", kernel) of each step of the plan."""
        return self._core.steps()

    @property
    def parameters(self) -> list[str]:
        """Sizes that a run may choose, such as "logits": of how many of the last positions."""
        return self._core.parameters

    def reserve(self, slots: int, capacity: int) -> None:
        """Room for `slots` sequences of `capacity` tokens; memory is used as they grow. Another capacity than before
        empties all slots. Raises EC1001, EC1606."""
        self._core.reserve(slots, capacity)

    def length(self, slot: int) -> int:
        """The tokens that the slot holds."""
        return self._core.length(slot)

    def set_length(self, slot: int, n: int) -> None:
        """Keeps the first n tokens only."""
        self._core.set_length(slot, n)

    def copy_slot(self, source: int, target: int, n: int) -> None:
        """The first n tokens of `source` become what `target` holds."""
        self._core.copy_slot(source, target, n)

    def profile(
        self,
        feeds: Mapping[str, np.ndarray],
        *,
        slots: Sequence[int] | None = None,
        parameters: Mapping[str, int] | None = None,
    ) -> tuple[dict[str, np.ndarray], list[StepTime]]:
        """One run: its outputs, and the time of each step that ran, in order."""
        results, times_ns = self._core.profile(
            dict(feeds), None if slots is None else list(slots), None if parameters is None else dict(parameters)
        )
        steps = [
            StepTime(origin, kind, kernel, ns / 1e3)
            for (origin, kind, kernel), ns in zip(self._core.steps(), times_ns, strict=True)
            if ns >= 0
        ]
        return {port.name: result for port, result in zip(self.outputs, results, strict=True)}, steps

    def memory(self, dims: Mapping[str, int] | None = None) -> dict[str, int]:
        """Bytes needed with these symbols: arena_bytes (what is used), temp_bytes (without reuse), scratch_bytes."""
        dims = dims or {}
        missing = [name for name in self.symbols if name not in dims]
        if missing:
            raise EdgecError(
                "EC1603", f"no value for {', '.join(missing)}", hint="Pass one for each of session.symbols"
            )
        return self._core.memory([dims[name] for name in self.symbols])

    def arena_bytes(self, dims: Mapping[str, int] | None = None) -> int:
        """Peak bytes of intermediate values with these symbols."""
        return self.memory(dims)["arena_bytes"]
