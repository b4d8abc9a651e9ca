"""Builds one function's body as flat TIR: pointers, int64s, nested loops, vectors of fixed lanes, cells in registers.

What is built here is already what LLVM gets, so no TVM pass runs over it and a function costs LLVM's time alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx as T
from tvm.ir import PointerType, PrimType

from edgec.ir.dims import Dim, Expr

_NAMES = {"bool": "uint8", "i8": "int8", "u8": "uint8", "i16": "int16", "u16": "uint16", "i32": "int32",
          "u32": "uint32", "i64": "int64", "u64": "uint64", "f16": "float16", "bf16": "uint16", "f32": "float32",
          "f64": "float64"}  # fmt: skip


def tvm_dtype(dtype: str, lanes: int = 1) -> str:
    """TVM's name of a dtype as it lies in memory: bool as bytes, bf16 as its bits."""
    return _NAMES[dtype] + (f"x{lanes}" if lanes > 1 else "")


def lanes_of(e) -> int:
    return e.ty.dtype.lanes


def scalar_of(e) -> str:
    """The dtype of one lane."""
    return str(e.ty.dtype.with_lanes(1))


def i64(value: int):
    return T.IntImm("int64", value)


def const(value, dtype: str, lanes: int = 1):
    scalar = T.const(value, dtype)
    return T.Broadcast(scalar, lanes) if lanes > 1 else scalar


def ramp(base, lanes: int, stride=1):
    if lanes == 1:
        return base
    return T.Ramp(base, i64(stride) if isinstance(stride, int) else stride, lanes)


def spread(e, lanes: int):
    """The value in every lane; as it is where it has its lanes already."""
    return T.Broadcast(e, lanes) if lanes > 1 and lanes_of(e) == 1 else e


def llvm(name: str, *args):
    """An LLVM intrinsic on floats, by its name without the prefix: sqrt, floor, fabs, ..."""
    return T.call_llvm_pure_intrin(str(args[0].ty.dtype), f"llvm.{name}", *args)


def part(x, first: int, lanes: int):
    """Lanes of a vector."""
    return T.Shuffle([x], [T.IntImm("int32", k) for k in range(first, first + lanes)])


def differ(a, b):
    """a != b, true for NaN: TVM's NE on floats is the ordered comparison."""
    return T.Not(T.EQ(a, b))


def is_nan(x):
    return differ(x, x)


def floordiv(a, b):
    """Toward minus infinity, for b > 0; TVM's own node would need a pass that also "simplifies" x != x."""
    lanes = lanes_of(a)
    negative = a < spread(i64(0), lanes)
    shifted = T.Select(negative, a - b + spread(i64(1), lanes), a)
    return T.truncdiv(shifted, b)


def floormod(a, b):
    return a - floordiv(a, b) * b


class Cell:
    """A mutable vector (or scalar) that LLVM keeps in a register."""

    def __init__(self, buffer, lanes: int):
        self.buffer, self.lanes = buffer, lanes

    def get(self):
        return T.BufferLoad(self.buffer, [ramp(i64(0), self.lanes)])

    def set(self, value):
        return T.BufferStore(self.buffer, value, [ramp(i64(0), self.lanes)])


class Builder:
    """Parameters in the order they are asked for; statements into the innermost open block."""

    def __init__(self):
        self.args: list[tuple] = []  # of the call: ("value", Node) | ("dim", Dim) | ("scratch", bytes)
        self._params: list = []
        self._buffers: list = []
        self._blocks: list[list] = [[]]
        self._atoms: dict = {}
        self._names = 0
        self.begin, self.end = T.Var("begin", "int64"), T.Var("end", "int64")

    def name(self, stem: str) -> str:
        self._names += 1
        return f"{stem}{self._names}"

    # parameters
    def pointer(self, arg: tuple, dtype: str):
        """A parameter that points to elements of dtype (edgec's name), as a flat buffer."""
        data = T.Var(self.name("p"), PointerType(PrimType(_NAMES[dtype])))
        size = T.Var(self.name("n"), "int64")
        buffer = T.decl_buffer((size,), _NAMES[dtype], data.name + "_", data=data, data_alignment=1, layout=None)
        self._params.append(data)
        self._buffers.append(T.DeclBuffer(buffer, data=data))
        self.args.append(arg)
        return buffer

    def dim(self, d: Dim):
        """A dim as an int64: a literal, or computed from parameters that the executor fills in."""
        if isinstance(d, int):
            return i64(d)
        total = None
        for atoms, factor in d.terms:
            term = i64(factor) if factor != 1 or not atoms else None
            for atom in atoms:
                value = self._atom(atom)
                term = value if term is None else term * value
            total = term if total is None else total + term
        return total

    def _atom(self, atom):
        if atom.op == "nonunit":  # of the code generator alone: the plan's expressions lack it
            return T.Select(T.EQ(self.dim(atom.args[0]), i64(1)), i64(0), i64(1))
        if atom not in self._atoms:
            self._atoms[atom] = T.Var(self.name("d"), "int64")
            self._params.append(self._atoms[atom])
            self.args.append(("dim", Expr((((atom,), 1),))))
        return self._atoms[atom]

    # statements
    def emit(self, stmt) -> None:
        self._blocks[-1].append(stmt)

    @contextmanager
    def block(self) -> Iterator[list]:
        self._blocks.append([])
        yield self._blocks[-1]
        self._blocks.pop()

    def let(self, value, stem: str = "v"):
        """The value, computed once here.

        Through a cell: a Bind would have TVM's analyzer simplify the value, which takes ten times as long as LLVM.
        """
        if isinstance(value, (T.Var, T.IntImm, T.FloatImm)):
            return value
        if scalar_of(value) == "bool":
            lanes = lanes_of(value)
            cell = self.cell(T.Cast(f"uint8x{lanes}" if lanes > 1 else "uint8", value))
            return T.NE(cell.get(), const(0, "uint8", lanes))
        return self.cell(value).get()

    def cell(self, init) -> Cell:
        lanes = lanes_of(init)
        buffer = T.decl_buffer((i64(lanes),), scalar_of(init), self.name("cell"), layout=None)
        self.emit(T.AllocBuffer(buffer))
        cell = Cell(buffer, lanes)
        self.emit(cell.set(init))
        return cell

    @contextmanager
    def loop(self, extent, start=0, step: int = 1, stem: str = "i"):
        """for i in range(start, start + extent * step, step); yields i."""
        var = T.Var(self.name(stem), "int64")
        with self.block() as body:
            if step == 1 and isinstance(start, int) and start == 0:
                yield var
            else:
                start = i64(start) if isinstance(start, int) else start
                yield self.let(start + var * i64(step), stem)
        extent = i64(extent) if isinstance(extent, int) else extent
        self.emit(T.For(var, i64(0), extent, T.ForKind.SERIAL, sequence(body)))

    @contextmanager
    def while_(self, condition):
        with self.block() as body:
            yield
        self.emit(T.While(condition, sequence(body)))

    @contextmanager
    def if_(self, condition, otherwise: Sequence | None = None):
        with self.block() as body:
            yield
        self.emit(T.IfThenElse(condition, sequence(body), sequence(otherwise) if otherwise else None))

    def function(self, symbol: str, target):
        body = [*self._buffers, *self._blocks[0], T.Return(T.IntImm("int32", 0))]
        func = T.PrimFunc([*self._params, self.begin, self.end], sequence(body), PrimType("int32"))
        return func.with_attrs({"global_symbol": symbol, "tirx.noalias": True, "target": target, "calling_conv": 0})


def sequence(stmts: Sequence):
    if not stmts:
        return T.Evaluate(T.IntImm("int32", 0))
    return stmts[0] if len(stmts) == 1 else T.SeqStmt(list(stmts))
