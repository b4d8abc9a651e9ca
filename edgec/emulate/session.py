"""An artifact for another CPU, called as a session is: every call runs its own code under an emulator."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgec import targets
from edgec.artifact.reader import ArtifactFile
from edgec.emulate import runner
from edgec.errors import EdgecError
from edgec.runtime.session import _NUMPY_NAMES, Port

_DTYPES = list(_NUMPY_NAMES.values())
TIMEOUT_S = 3600


class EmulatedSession:
    """inputs, outputs, symbols, manifest and a call, as edgec.runtime.session.Session has them."""

    def __init__(self, path: str | os.PathLike[str], threads: int = 1, vector_bits: int = 512, progress=lambda text: None):
        """vector_bits: of SME's streaming mode, where the target has it.

        Raises EdgecError EC15xx for a damaged artifact, EC1701 where the emulator or the compiler is missing.
        """
        self.artifact = ArtifactFile(path, check_target=False)
        found = self.manifest["target"]
        self.target = targets.load(str(found.get("name")))
        if self.target.triple != found.get("triple"):
            raise EdgecError("EC1701", f"it is for {found.get('triple')}, and the target {self.target.name} is now "
                             f"{self.target.triple}", str(path), "Build the artifact again")  # fmt: skip
        self.threads = threads
        self._command, self._environment = runner.command(self.target, vector_bits)
        self._program = runner.program(self.target.arch, progress)
        self.inputs = [_port(p) for p in self.manifest["inputs"]]
        self.outputs = [_port(p) for p in self.manifest["outputs"]]

    @property
    def manifest(self) -> dict[str, Any]:
        return self.artifact.manifest

    @property
    def symbols(self) -> dict[str, tuple[int, int | None]]:
        return {k: (v[0], v[1]) for k, v in self.manifest.get("symbols", {}).items()}

    def __call__(self, /, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs by name. Raises EdgecError EC16xx as a session does, EC1702 where the emulator fails."""
        return self.run_counted(feeds, count=False)[0]

    def run_counted(self, feeds: Mapping[str, np.ndarray], count: bool = True) -> tuple[dict[str, np.ndarray], int]:
        """Outputs by name, and instructions executed in compiled functions and kernels (0: not counted)."""
        with tempfile.TemporaryDirectory() as folder:
            request, result = Path(folder) / "request", Path(folder) / "result"
            request.write_bytes(b"".join(self._words(feeds)))
            program = [str(self._program), self.artifact.path, str(self.threads), str(request), str(result)]
            try:
                done = subprocess.run([*self._command, *program], capture_output=True, text=True, timeout=TIMEOUT_S,
                                      env=self._environment)  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                raise EdgecError("EC1702", f"the emulator: {error}", self.artifact.path) from None
            if done.returncode:
                raise self._failure(done)
            return self._read(result.read_bytes()), 0

    def _words(self, feeds: Mapping[str, np.ndarray]):
        yield np.int64(0).tobytes()  # parameters
        if unknown := feeds.keys() - {p.name for p in self.inputs}:
            raise EdgecError("EC1601", "the artifact has none of that name", f"input '{min(unknown)}'")
        for port in self.inputs:
            if port.name not in feeds:
                raise EdgecError("EC1601", "it is missing", f"input '{port.name}'")
            array = np.ascontiguousarray(feeds[port.name])
            if array.dtype != np.dtype(port.dtype):
                raise EdgecError("EC1602", f"dtype {array.dtype}, expected {port.dtype}", f"input '{port.name}'")
            data = array.tobytes()
            yield np.array([array.ndim, *array.shape], np.int64).tobytes() + data + bytes(-len(data) % 8)

    def _read(self, data: bytes) -> dict[str, np.ndarray]:
        outputs, at = {}, 0
        for port in self.outputs:
            code, rank = np.frombuffer(data, np.int64, 2, at)
            shape = np.frombuffer(data, np.int64, rank, at + 16)
            at += 16 + 8 * int(rank)
            dtype = np.dtype(_DTYPES[code] if _DTYPES[code] != "bfloat16" else "uint16")
            size = int(np.prod(shape))
            outputs[port.name] = np.frombuffer(data, dtype, size, at).reshape(shape).copy()
            at += -(-size * dtype.itemsize // 8) * 8
        return outputs

    def _failure(self, done: subprocess.CompletedProcess[str]) -> EdgecError:
        lines = done.stderr.strip().splitlines()
        last = lines[-1] if lines else f"it ended with status {done.returncode}"
        if last.startswith("EC") and last.count("|") == 3:
            code, where, reason, hint = last.split("|")
            return EdgecError(code, reason, where or None, hint or None)
        return EdgecError("EC1702", f"the emulated program failed: {last[:500]}", self.artifact.path,
                          "Is the artifact for this target's CPU?")  # fmt: skip


def _port(port: Mapping[str, Any]) -> Port:
    shape = tuple(int(d) if str(d).isdigit() else str(d) for d in port["shape"])
    return Port(port["name"], shape, _NUMPY_NAMES[port["dtype"]])
