"""An artifact for another CPU, called as a session is: every call runs its own code under an emulator."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgec import targets
from edgec.artifact.reader import ArtifactFile
from edgec.emulate import macho, runner
from edgec.emulate.smoke import Smoke, read, smoke
from edgec.errors import EdgecError
from edgec.runtime.session import _NUMPY_NAMES, Port

_DTYPES = list(_NUMPY_NAMES.values())
TIMEOUT_S = 3600
# of qemu's log: "Trace 0: 0x7f.. [00000000/00000000004005c0/...]", and blocks of lines "0x004005c0:  d503201f  nop"
_TRACE = re.compile(rb"Trace [^[]*\[[0-9a-f]+/0*([0-9a-f]+)/")
_BLOCK = re.compile(rb"IN:[^\n]*\n(.*?\n)\n", re.S)
_INSTRUCTION = re.compile(rb"^0x0*([0-9a-f]+):", re.M)


class EmulatedSession:
    """inputs, outputs, symbols, manifest and a call, as edgec.runtime.session.Session has them."""

    def __init__(
        self, path: str | os.PathLike[str], threads: int = 1, vector_bits: int = 512, progress=lambda text: None
    ):
        """vector_bits: of SME's streaming mode, where the target has it.

        Raises EdgecError EC15xx for a damaged artifact, EC1801 where the emulator or the compiler is missing.
        """
        self.artifact = ArtifactFile(path, check_target=False)
        found = self.manifest["target"]
        self.target = targets.load(str(found.get("name")))
        if self.target.triple != found.get("triple"):
            raise EdgecError("EC1801", f"it is for {found.get('triple')}, and the target {self.target.name} is now "
                             f"{self.target.triple}", str(path), "Build the artifact again")  # fmt: skip
        self.threads = threads
        self._command, self._environment = runner.command(self.target, vector_bits)
        self._program = runner.program(self.target.arch, progress)
        self.inputs = [_port(p) for p in self.manifest["inputs"]]
        self.outputs = [_port(p) for p in self.manifest["outputs"]]

    @property
    def cpu(self) -> str:
        """qemu's name of the CPU, and what kernels are told that it lacks."""
        missing = self._environment["EDGEC_DISABLE"]
        return self._command[self._command.index("-cpu") + 1] + (f" without {missing}" if missing else "")

    @property
    def manifest(self) -> dict[str, Any]:
        return self.artifact.manifest

    @property
    def symbols(self) -> dict[str, tuple[int, int | None]]:
        return {k: (v[0], v[1]) for k, v in self.manifest.get("symbols", {}).items()}

    def __call__(self, /, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs by name. Raises EdgecError EC16xx as a session does, EC1802 where the emulator fails."""
        return self.run_counted(feeds, count=False)[0]

    def run_counted(self, feeds: Mapping[str, np.ndarray], count: bool = True) -> tuple[dict[str, np.ndarray], int]:
        """Outputs by name, and the instructions that one run executes (0: not counted).

        What loading takes is left out: it is the difference between two runs and one.
        """
        with tempfile.TemporaryDirectory() as folder:
            request, result = Path(folder) / "request", Path(folder) / "result"
            request.write_bytes(b"".join(self._words(feeds)))

            def run(repeats: int, counted: bool) -> int:
                program = [self._program, self.artifact.path, self.threads, repeats, request, result]
                return self._emulate([str(word) for word in program], Path(folder) / "trace" if counted else None)

            instructions = run(2, True) - run(1, True) if count else run(1, False)
            return self._read(result.read_bytes()), instructions

    def smoke(self, feeds: Mapping[str, np.ndarray], progress=lambda text: None) -> Smoke | None:
        """Each function of a macOS artifact's own Mach-O, called under Unicorn with what it is given under qemu here;
        None for other systems. Raises as a call does, and EC1802 for a library that macOS would not load."""
        if self.target.link != "macho":
            return None
        if reason := macho.missing():
            return Smoke(skipped=reason)
        code = bytes(self.artifact.members.get("code.so", b""))
        if not code:
            return Smoke(skipped="it has no compiled function")
        with tempfile.TemporaryDirectory() as folder:
            request, result, record = (Path(folder) / name for name in ("request", "result", "record"))
            request.write_bytes(b"".join(self._words(feeds)))
            program = [self._program, self.artifact.path, self.threads, 1, request, result, record]
            self._emulate([str(word) for word in program], None)
            return smoke(code, read(record.read_bytes()), progress)

    def _emulate(self, program: list[str], trace: Path | None) -> int:
        try:
            done, instructions = emulate(self._command, program, self._environment, trace)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EdgecError("EC1802", f"the emulator: {error}", self.artifact.path) from None
        if done.returncode:
            raise self._failure(done)
        return instructions

    def _words(self, feeds: Mapping[str, np.ndarray]):
        yield np.int64(0).tobytes()  # parameters
        if unknown := feeds.keys() - {p.name for p in self.inputs}:
            raise EdgecError(
                "EC1601",
                "the artifact has none of that name",
                f"input '{min(unknown)}'",
                "edgec inspect lists its inputs",
            )
        for port in self.inputs:
            if port.name not in feeds:
                raise EdgecError("EC1601", "it is missing", f"input '{port.name}'", "Give an array for each input")
            array = np.asarray(feeds[port.name], order="C")  # ascontiguousarray gives scalars an axis
            if array.dtype != np.dtype(port.dtype):
                raise EdgecError(
                    "EC1602",
                    f"dtype {array.dtype}, expected {port.dtype}",
                    f"input '{port.name}'",
                    "Convert the array to that dtype",
                )
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
        return EdgecError("EC1802", f"the emulated program failed: {last[:500]}", self.artifact.path,
                          "Is the artifact for this target's CPU?")  # fmt: skip


def emulate(
    command: list[str], program: list[str], environment: Mapping[str, str], trace: Path | None = None
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Runs a program by an emulator's command. trace: a pipe to make for counting the instructions that it executes;
    without one they are not counted (0). Raises OSError and subprocess.TimeoutExpired."""
    options: list[str] = []
    found: list[int] = []
    if trace is not None:
        os.mkfifo(trace)
        options = ["-d", "in_asm,exec,nochain", "-D", str(trace)]
        reader = threading.Thread(target=lambda: found.append(count_trace(trace)), daemon=True)
        reader.start()
    done = subprocess.run([*command, *options, *program], capture_output=True, text=True, timeout=TIMEOUT_S,
                          env=environment)  # fmt: skip
    if trace is not None:
        reader.join()
        trace.unlink()
    return done, found[0] if found else 0


def count_trace(path: Path) -> int:
    """Instructions executed by qemu's log of translated blocks (IN:) and of each block's execution (Trace)."""
    lengths: dict[bytes, int] = {}
    executed: Counter[bytes] = Counter()
    rest = b""
    with path.open("rb", buffering=0) as log:
        while chunk := log.read(1 << 20):
            chunk = rest + chunk
            # cut between entries, so that a block's text is never split
            cut = max(chunk.rfind(b"\nTrace "), chunk.rfind(b"\n----"))
            cut = cut + 1 if cut >= 0 else 0
            rest, chunk = chunk[cut:], chunk[:cut]
            executed.update(_TRACE.findall(chunk))
            lengths |= {block[0]: len(block) for text in _BLOCK.findall(chunk) if (block := _INSTRUCTION.findall(text))}
    executed.update(_TRACE.findall(rest))
    return sum(times * lengths.get(start, 0) for start, times in executed.items())


def _port(port: Mapping[str, Any]) -> Port:
    shape = tuple(int(d) if str(d).isdigit() else str(d) for d in port["shape"])
    return Port(port["name"], shape, _NUMPY_NAMES[port["dtype"]])
