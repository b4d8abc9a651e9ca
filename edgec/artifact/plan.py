"""The plan: what the compiler hands to the runtime, and its encoding (ARCHITECTURE.md, csrc/runtime/plan.cpp)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from edgec.errors import EdgecError

MAGIC = b"EDGCPLN1"
VERSION = 4
MAX_RANK = 16
MAX_CALL_ARGS = 64

DTYPES = ("bool", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "bf16", "f32", "f64", "bytes")


class ExprOp(IntEnum):
    """Words of an expression's postfix program; the first three are followed by their operand."""

    CONST = 0
    SYMBOL = 1
    EXPR = 2
    ADD = 3
    SUB = 4
    MUL = 5
    FLOORDIV = 6
    MOD = 7
    MIN = 8
    MAX = 9
    BCAST = 10
    CEILDIV = 11


class Storage(IntEnum):
    INPUT = 0
    CONSTANT = 1
    TEMP = 2
    OUTPUT = 3
    ALIAS = 4
    STATE = 5
    EXPANDED = 6


class Source(IntEnum):
    """What a symbol is read from, where that is no input."""

    PARAMETER = -1
    LENGTH = -2


class CheckKind(IntEnum):
    EQUAL = 0
    AT_LEAST = 1
    BROADCAST = 2


class StepKind(IntEnum):
    CALL = 0
    KERNEL = 1
    JUMP = 2
    JUMP_IF_FALSE = 3


class ArgKind(IntEnum):
    VALUE = 0
    DIM = 1
    INT = 2
    DOUBLE = 3
    SCRATCH = 4
    ABSENT = 5
    STRING = 6


class Arg(NamedTuple):
    """One argument of a step: `value` is an index, an int, a float or a str, as the kind says."""

    kind: ArgKind
    value: int | float | str = 0

    @staticmethod
    def of(index: int) -> Arg:
        """The value of that index."""
        return Arg(ArgKind.VALUE, index)

    @staticmethod
    def dim(expr: int) -> Arg:
        return Arg(ArgKind.DIM, expr)

    @staticmethod
    def imm(value: int) -> Arg:
        return Arg(ArgKind.INT, value)

    @staticmethod
    def double(value: float) -> Arg:
        return Arg(ArgKind.DOUBLE, value)

    @staticmethod
    def scratch(expr: int) -> Arg:
        """Bytes of a private area for each worker."""
        return Arg(ArgKind.SCRATCH, expr)

    @staticmethod
    def string(text: str) -> Arg:
        return Arg(ArgKind.STRING, text)


ABSENT = Arg(ArgKind.ABSENT)


@dataclass(frozen=True)
class Symbol:
    """A symbolic dim, read from axis `axis` of input `input_index`; hi = -1: unbounded.

    input_index Source.PARAMETER: set at run, else what the postfix program `default` over earlier symbols gives.
    Source.LENGTH: the tokens that the states hold, the most of all rows.
    """

    name: str
    input_index: int
    axis: int = 0
    lo: int = 0
    hi: int = -1
    default: tuple[int, ...] = ()


@dataclass(frozen=True)
class State:
    """What the session keeps from run to run in place of an input and an output: [batch, heads, tokens, dim].

    dtype: "f32", or "i8" with one f32 scale for each token and head. keys: laid out to be multiplied with queries.
    batch, growth: exprs, the rows of a run and the
    tokens that it adds to each.
    """

    past: str
    present: str
    dtype: str
    keys: int
    heads: int
    dim: int
    batch: int
    growth: int


@dataclass
class Value:
    """A tensor: dims are expr indices; a, b, c as ARCHITECTURE.md says for each storage."""

    dtype: str
    dims: tuple[int, ...]
    storage: Storage
    a: int = 0
    b: int = 0
    c: int = 0


@dataclass(frozen=True)
class Check:
    kind: CheckKind
    a: int
    b: int
    message: str


@dataclass
class Step:
    """`name`: a function of code.so (call) or a built-in (kernel); `extent` is an expr index, -1: none."""

    kind: StepKind
    name: str = ""
    extent: int = -1
    grain: int = 1
    args: Sequence[Arg] = ()
    origin: str = ""


@dataclass
class Plan:
    """Tables that refer to each other by index. `expr` and `const` add expressions, equal ones once."""

    symbols: list[Symbol] = field(default_factory=list)
    exprs: list[tuple[int, ...]] = field(default_factory=list)
    inputs: list[tuple[str, int]] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    outputs: list[tuple[str, int]] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    _expr_index: dict[tuple[int, ...], int] = field(default_factory=dict, repr=False, compare=False)

    def expr(self, *words: int) -> int:
        """The index of the expression with this postfix program."""
        if len(self._expr_index) != len(self.exprs):
            self._expr_index = {program: index for index, program in reversed(list(enumerate(self.exprs)))}
        index = self._expr_index.get(words)
        if index is None:
            index = self._expr_index[words] = len(self.exprs)
            self.exprs.append(words)
        return index

    def const(self, value: int) -> int:
        return self.expr(ExprOp.CONST, value)

    def symbol(self, index: int) -> int:
        return self.expr(ExprOp.SYMBOL, index)

    def value(self, value: Value) -> int:
        """Adds a value; its index."""
        self.values.append(value)
        return len(self.values) - 1

    def encode(self) -> bytes:
        """The bytes of plan.bin."""
        strings: dict[str, int] = {}

        def string(text: str) -> int:
            return strings.setdefault(text, len(strings))

        words: list[int] = []

        def table(rows: Iterable[Sequence[int]]) -> None:
            listed = list(rows)
            words.append(len(listed))
            for row in listed:
                words.extend(row)

        table((string(s.name), s.input_index, s.axis, s.lo, s.hi, len(s.default), *s.default) for s in self.symbols)
        table((len(program), *program) for program in self.exprs)
        table((string(name), value) for name, value in self.inputs)
        table(
            (DTYPES.index(v.dtype), len(v.dims), *v.dims, v.storage, v.a, v.b, v.c)  #
            for v in self.values
        )
        table((string(name), value) for name, value in self.outputs)
        table(
            (string(s.past), string(s.present), DTYPES.index(s.dtype), s.keys, s.heads, s.dim, s.batch, s.growth)
            for s in self.states
        )
        table((c.kind, c.a, c.b, string(c.message)) for c in self.checks)
        table(
            (
                s.kind,
                string(s.name),
                s.extent,
                s.grain,
                len(s.args),
                *(word for arg in s.args for word in (arg.kind, _arg_word(arg, string))),
                string(s.origin),
            )
            for s in self.steps
        )
        head: list[bytes] = [MAGIC, struct.pack("<qq", VERSION, len(strings))]
        for text in strings:
            data = text.encode()
            head += [struct.pack("<q", len(data)), data, bytes(-len(data) % 8)]
        return b"".join(head) + struct.pack(f"<{len(words)}q", *words)

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """The plan in plan.bin's bytes. Raises EdgecError EC1507; csrc/runtime/plan.cpp has all the checks."""
        try:
            return _decode(bytes(data))
        except (struct.error, IndexError, ValueError, OverflowError, MemoryError) as error:
            raise EdgecError("EC1507", f"{error}", where="plan.bin", hint="Build the artifact again") from None

    def expr_text(self, index: int, depth: int = 12) -> str:
        """An expression in infix form, symbols by name: "n", "4", "(2 * n)"."""
        if depth == 0:
            return "..."
        stack: list[str] = []
        words = iter(self.exprs[index])
        for op in words:
            if op == ExprOp.CONST:
                stack.append(str(next(words)))
            elif op == ExprOp.SYMBOL:
                stack.append(self.symbols[next(words)].name)
            elif op == ExprOp.EXPR:
                stack.append(self.expr_text(next(words), depth - 1))
            else:
                b, a = stack.pop(), stack.pop()
                sign = _INFIX.get(op)
                stack.append(f"({a} {sign} {b})" if sign else f"{ExprOp(op).name.lower()}({a}, {b})")
        return stack[-1]

    def value_text(self, index: int) -> str:
        """ "f32[n, 384]" """
        value = self.values[index]
        return f"{value.dtype}[{', '.join(self.expr_text(dim) for dim in value.dims)}]"

    def step_text(self, index: int) -> str:
        """One line for people: kind, name, arguments, origin."""
        step = self.steps[index]
        show = {
            ArgKind.VALUE: lambda v: f"%{v}:{self.value_text(v)}",
            ArgKind.DIM: self.expr_text,
            ArgKind.SCRATCH: lambda v: f"scratch({self.expr_text(v)})",
            ArgKind.ABSENT: lambda v: "-",
        }
        args = ", ".join(show.get(arg.kind, str)(arg.value) for arg in step.args)  # type: ignore[operator]
        extent = f" for {self.expr_text(step.extent)} by {step.grain}" if step.kind == StepKind.CALL else ""
        origin = f"  # {step.origin}" if step.origin else ""
        return f"{index:4d} {step.kind.name.lower()} {step.name}({args}){extent}{origin}"


_INFIX = {ExprOp.ADD: "+", ExprOp.SUB: "-", ExprOp.MUL: "*", ExprOp.FLOORDIV: "//", ExprOp.MOD: "%"}


def _arg_word(arg: Arg, string) -> int:
    if arg.kind == ArgKind.DOUBLE:
        return struct.unpack("<q", struct.pack("<d", arg.value))[0]
    if arg.kind == ArgKind.STRING:
        return string(arg.value)
    return int(arg.value)


def _decode(data: bytes) -> Plan:
    if data[:8] != MAGIC or len(data) % 8:
        raise ValueError("it is no plan")
    words = struct.unpack(f"<{len(data) // 8}q", data)
    at = 1

    def word() -> int:
        nonlocal at
        at += 1
        return words[at - 1]

    def count() -> int:
        n = word()
        if not 0 <= n <= len(words) - at:
            raise ValueError(f"a count of {n}")
        return n

    def take(n: int) -> tuple[int, ...]:
        if not 0 <= n <= len(words) - at:
            raise ValueError("it ends in the middle")
        return tuple(word() for _ in range(n))

    def read_string() -> str:
        nonlocal at
        length = word()
        text = data[at * 8 : at * 8 + length].decode()
        take((length + 7) // 8)
        return text

    if (version := word()) != VERSION:
        raise ValueError(f"version {version}, this edgec reads {VERSION}")
    strings = [read_string() for _ in range(count())]

    def read_arg() -> Arg:
        kind, raw = ArgKind(word()), word()
        if kind == ArgKind.DOUBLE:
            return Arg(kind, struct.unpack("<d", struct.pack("<q", raw))[0])
        return Arg(kind, strings[raw] if kind == ArgKind.STRING else raw)

    def read_value() -> Value:
        dtype, dims = DTYPES[word()], take(word())
        return Value(dtype, dims, Storage(word()), *take(3))

    def read_step() -> Step:
        kind, name, extent, grain = StepKind(word()), strings[word()], word(), word()
        return Step(kind, name, extent, grain, tuple(read_arg() for _ in range(count())), strings[word()])

    plan = Plan()
    plan.symbols = [Symbol(strings[word()], *take(4), take(count())) for _ in range(count())]
    plan.exprs = [take(count()) for _ in range(count())]
    plan.inputs = [(strings[word()], word()) for _ in range(count())]
    plan.values = [read_value() for _ in range(count())]
    plan.outputs = [(strings[word()], word()) for _ in range(count())]
    plan.states = [State(strings[word()], strings[word()], DTYPES[word()], *take(5)) for _ in range(count())]
    plan.checks = [Check(CheckKind(word()), *take(2), strings[word()]) for _ in range(count())]
    plan.steps = [read_step() for _ in range(count())]
    if at != len(words):
        raise ValueError("something follows the last step")
    return plan
