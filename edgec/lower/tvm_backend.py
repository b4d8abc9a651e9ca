"""Groups of IR nodes to one relocatable object: functions with the raw C ABI int32 f(args..., int64 begin, int64 end).

Templates emit flat TIR, as LLVM's code generator takes it: no TVM pass runs, and compiling costs LLVM's time.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tvm
import tvm_ffi

from edgec.errors import EdgecError
from edgec.ir import ops as _ops  # noqa: F401  fills the op table
from edgec.ir.dims import Dim, Expr, substitute, symbol, symbols_of
from edgec.ir.node import Data, Node
from edgec.ir.types import TensorType
from edgec.lower.groups import Compiled, Group
from edgec.lower.link import MACOS
from edgec.lower.templates import TEMPLATES
from edgec.lower.templates.builder import Builder
from edgec.lower.templates.index import inline_scalar
from edgec.targets import Target

PARTS = 8


@dataclass(frozen=True)
class _Shape:
    """A compiled function in terms of its first group: numbers of its values and its symbols, renamed s0, s1, ..."""

    symbol: str
    args: tuple
    extent: Dim
    grain: int


class TvmBackend:
    """Collects groups, each structure once, and compiles them together."""

    def __init__(self, target: Target):
        self.target = target
        check_cpu(target)
        self.tvm_target = tvm.target.Target(tvm_target(target))
        self._functions: dict[str, object] = {}
        self._known: dict[str, _Shape] = {}
        self._bodies: dict[tvm_ffi.StructuralKey, str] = {}  # other groups may come to the same code

    def add(self, group: Group) -> Compiled:
        """The call of the group's function, which compile() will define.

        Raises EdgecError EC1401 where the template can't do it.
        """
        structure = _Structure(group)
        known = self._known.get(structure.key)
        if known is None:
            known = self._known[structure.key] = self._generate(group, structure)
        back = {f"s{i}": symbol(name) for name, i in structure.symbols.items()}
        values = {number: node for node, number in structure.numbers.items()}

        def bound(arg):
            if arg[0] == "packed":
                return (arg[0], tuple(values[number] for number in arg[1]), *arg[2:])
            if arg[0] == "value":
                return (arg[0], values[arg[1]], *arg[2:])
            return (arg[0], substitute(arg[1], back))

        return Compiled(known.symbol, tuple(map(bound, known.args)), substitute(known.extent, back), known.grain)

    def _generate(self, group: Group, structure: _Structure) -> _Shape:
        digest = hashlib.blake2b(structure.key.encode(), digest_size=6).hexdigest()
        name = f"{group.kind}_{group.outputs[0].op}_{digest}"
        b = Builder()
        extent, grain = TEMPLATES[group.kind](group, b, self.target)
        function = b.function("function", self.tvm_target)
        name = self._bodies.setdefault(tvm_ffi.StructuralKey(function), name)
        if name not in self._functions:
            self._functions[name] = function.with_attr("global_symbol", name)
        there = {name: symbol(f"s{i}") for name, i in structure.symbols.items()}

        def free(arg):
            if arg[0] == "packed":
                return (arg[0], tuple(structure.numbers[node] for node in arg[1]), *arg[2:])
            if arg[0] == "value":
                return (arg[0], structure.numbers[arg[1]], *arg[2:])
            return (arg[0], substitute(arg[1], there))

        return _Shape(name, tuple(map(free, b.args)), substitute(extent, there), grain)

    def compile(self) -> tuple[bytes, ...]:
        """Objects that together hold every function: the same parts whatever the machine, compiled side by side.

        Raises EdgecError EC1403 if TVM fails.
        """
        ordered = sorted(self._functions.items())
        parts = [p for p in (dict(ordered[k::PARTS]) for k in range(PARTS)) if p]
        if len(ordered) < 2 * PARTS:
            parts = [dict(ordered)] if ordered else []
        try:
            objects = [self._object(p) for p in parts[:1]]  # alone, since it sets LLVM up
            with ThreadPoolExecutor(max_workers=max(1, self.target.cores or os.cpu_count() or 1)) as pool:
                return (*objects, *pool.map(self._object, parts[1:]))
        except Exception as e:
            raise EdgecError(
                "EC1403",
                f"TVM could not compile the model's functions: {e}",
                hint="Report this model; --dump-ir DIR writes what it was given",
            ) from e

    def _object(self, functions: dict) -> bytes:
        built = tvm.get_global_func("target.build.llvm")(tvm.IRModule(functions), self.tvm_target)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "code.o"
            built.write_to_file(str(path))
            return path.read_bytes()


@cache
def check_cpu(target: Target) -> None:
    """Raises EdgecError EC1402 for a CPU or features that LLVM does not know: it would warn of them and go on."""
    from tvm.target import codegen

    where, described = f"target {target.name!r}", tvm_target(target)
    if not codegen.llvm_is_valid_cpu(target.cpu, described["mtriple"]):
        reason = f"LLVM knows no CPU {target.cpu!r} of {described['mtriple']}"
        raise EdgecError("EC1402", reason, where, "Use LLVM's names, such as generic")
    has = {str(f) for f in codegen.llvm_get_cpu_features(tvm.target.Target(described))}
    for feature in target.features:
        if feature[:1] not in ("+", "-") or (feature[0] == "+" and feature[1:] not in has):
            raise EdgecError("EC1402", f"LLVM knows no feature {feature!r} of {target.cpu}", where, "Such as +dotprod")


def tvm_target(target: Target) -> dict:
    """TVM's description of a target."""
    # level 3 doubles the time to compile and measures the same: templates vectorise and unroll themselves
    triple = re.sub("ios[0-9.]+$", f"macosx{MACOS}", target.triple)  # the same code, and the linker takes it
    found = {"kind": "llvm", "mtriple": triple, "mcpu": target.cpu, "opt-level": 2}
    return found | ({"mattr": list(target.features)} if target.features else {})


class _Structure:
    """A text that is equal for groups that differ in nothing but names: of symbols, of operands."""

    def __init__(self, group: Group):
        self.symbols: dict[str, int] = {}
        self.numbers: dict[Node, int] = {}
        inside = set(group.nodes)
        lines = [group.kind]
        for n in group.nodes:
            for i in n.operands():
                if i not in self.numbers:
                    lines.append(self._operand(i, inside))
            self.numbers[n] = len(self.numbers)
            refs = ["-" if i is None else str(self.numbers[i]) for i in n.inputs]
            attrs = [f"{k}={self._text(v)}" for k, v in sorted(n.attrs.items())]
            lines.append(f"{self.numbers[n]} {n.op}({','.join(refs)}) {' '.join(attrs)} {self._text(n.type)}")
        lines.append(f"out {[self.numbers[o] for o in group.outputs]}")
        self.key = "\n".join(lines)

    def _operand(self, node: Node, inside: set) -> str:
        assert node not in inside, "a group's nodes are in topological order"
        self.numbers[node] = len(self.numbers)
        value = inline_scalar(node)
        constant = "constant " if node.op == "constant" else ""  # its content may be packed at build
        return f"{self.numbers[node]} {constant}{self._text(node.type)} {'' if value is None else value}"

    def _text(self, value) -> str:
        if isinstance(value, Expr):
            for name in sorted(symbols_of(value)):
                self.symbols.setdefault(name, len(self.symbols))
            return str(substitute(value, {name: symbol(f"s{i}") for name, i in self.symbols.items()}))
        if isinstance(value, TensorType):
            return f"{value.dtype}[{','.join(map(self._text, value.shape))}]{value.encoding}{value.layout}"
        if isinstance(value, tuple):
            return f"({','.join(map(self._text, value))})"
        if isinstance(value, Data):
            return str(value.key)
        return repr(value)
