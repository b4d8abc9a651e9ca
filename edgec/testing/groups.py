"""Compiles groups of nodes and calls them through ctypes, beside the numpy references: the oracle of code templates."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgec.ir.dims import evaluate
from edgec.ir.evaluate import Evaluator
from edgec.ir.node import Node, topological
from edgec.ir.types import numpy_dtype
from edgec.lower.groups import Compiled, Group
from edgec.lower.link import link
from edgec.lower.tvm_backend import TvmBackend
from edgec.targets import Target, host

GUARD = 64  # bytes before every array, whose content must survive
_libc = ctypes.CDLL(None, use_errno=True)


def group_of(kind: str, outputs: Sequence[Node], inputs: Sequence[Node] | None = None) -> Group:
    """The group of all nodes under the outputs, up to `inputs` (default: the leaves)."""
    order = topological(outputs)
    if inputs is None:
        inputs = [n for n in order if n.op in ("input", "constant")]
    needed, stack = set(), list(outputs)
    while stack:
        n = stack.pop()
        if n not in needed and n not in inputs:
            needed.add(n)
            stack.extend(n.operands())
    return Group(kind, tuple(n for n in order if n in needed), tuple(inputs), tuple(outputs))


class CompiledGroups:
    """Groups added one by one, compiled together at the first call."""

    def __init__(self, target: Target | None = None):
        self.target = target or host()
        self.backend = TvmBackend(self.target)
        self.groups: list[tuple[Group, Compiled]] = []
        self._library: ctypes.CDLL | None = None

    def add(self, group: Group) -> int:
        self.groups.append((group, self.backend.add(group)))
        return len(self.groups) - 1

    def loaded(self) -> ctypes.CDLL:
        if self._library is None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "code.so"
                path.write_bytes(link(self.backend.compile(), self.target))
                self._library = ctypes.CDLL(str(path))
        return self._library

    def call(self, index: int, feeds: Mapping[Node, np.ndarray], dims: Mapping[str, int] | None = None,
             cuts: Sequence[float] = ()) -> list[np.ndarray]:  # fmt: skip
        """The outputs; the work in slices cut at these fractions of the extent. AssertionError for a written guard."""
        group, compiled = self.groups[index]
        dims = dims or {}
        held: dict[Node, np.ndarray] = {}
        raw: list[np.ndarray] = []
        args: list = []
        for kind, what, *packing in compiled.args:
            if kind == "dim":
                args.append(ctypes.c_int64(evaluate(what, dims)))
                continue
            if kind == "packed":
                packed = packing[0].packed(*(node["data"] for node in what)).array()
                memory, array = _guarded(packed.shape, packed.dtype)
                array[...] = packed
            elif kind == "scratch":
                memory, _ = _guarded((evaluate(what, dims),), np.dtype(np.uint8))
            else:
                shape = tuple(evaluate(d, dims) for d in what.shape)
                memory, array = _guarded(shape, numpy_dtype(what.dtype))
                held[what] = array
                if what not in group.outputs:
                    array[...] = feeds[what] if what in feeds else what["data"].array()
            raw.append(memory)
            args.append(ctypes.c_void_p(memory.ctypes.data + GUARD))
        extent = evaluate(compiled.extent, dims)
        at = [0, *sorted(int(c * extent) for c in cuts), extent]
        function = getattr(self.loaded(), compiled.symbol)
        for begin, end in itertools.pairwise(at):
            assert function(*args, ctypes.c_int64(begin), ctypes.c_int64(end)) == 0
        for memory in raw:
            assert (memory[:GUARD] == 0xA5).all(), "written outside of an array"
        # A function without work takes no arguments.
        return [held[o] if o in held else np.zeros([evaluate(d, dims) for d in o.shape], numpy_dtype(o.dtype))
                for o in group.outputs]  # fmt: skip


def _guarded(shape, dtype) -> tuple[np.ndarray, np.ndarray]:
    """GUARD bytes to be left alone, and an array that starts there and ends at a page that can't be touched."""
    size, page = int(np.prod(shape)) * dtype.itemsize, mmap.PAGESIZE
    body = -(-(size + GUARD) // page) * page
    area = mmap.mmap(-1, body + page)
    end = ctypes.addressof(ctypes.c_char.from_buffer(area)) + body
    if _libc.mprotect(ctypes.c_void_p(end), page, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    memory = np.frombuffer(area, np.uint8, size + GUARD, body - size - GUARD)
    memory[...] = 0xA5
    return memory, memory[GUARD:].view(dtype).reshape(shape)


def reference(outputs: Sequence[Node], feeds: Mapping[Node, np.ndarray], dims: Mapping[str, int] | None = None):
    """The outputs by the ops' numpy references."""
    evaluator = Evaluator({}, dims or {})
    evaluator.values.update(feeds)
    with np.errstate(all="ignore"):
        return [evaluator(o) for o in outputs]
