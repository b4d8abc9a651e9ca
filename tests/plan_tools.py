"""Hand-made plans and artifacts: what the compiler would hand over, small enough to reason about."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgec.artifact.plan import (
    ABSENT,
    Arg,
    Check,
    CheckKind,
    ExprOp,
    Plan,
    Source,
    State,
    Step,
    StepKind,
    Storage,
    Symbol,
    Value,
)
from edgec.artifact.writer import write_artifact

CODE = """
#include <stdint.h>
int32_t scale(const float* x, float* y, int64_t factor, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) y[i] = x[i] * (float)factor;
  return 0;
}
int32_t add(const float* a, const float* b, float* y, float* scratch, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) { scratch[0] = a[i]; y[i] = scratch[0] + b[i]; }
  return 0;
}
int32_t positive(const float* x, uint8_t* y, int64_t begin, int64_t end) { y[0] = x[0] > 0; return 0; }
int32_t fails(int64_t begin, int64_t end) { return 7; }
int32_t wide(A0_63 int64_t* y, int64_t begin, int64_t end) { *y = 0; SUM; return 0; }
"""


def compile_c(folder: Path) -> bytes:
    """code.so from CODE, by the system's C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    parameters = "".join(f"int64_t a{i}, " for i in range(63))
    total = "".join(f"*y += a{i} * {i + 1};" for i in range(63))
    source = folder / "code.c"
    source.write_text(CODE.replace("A0_63", parameters).replace("SUM", total))
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", folder / "code.so", source], check=True)
    return (folder / "code.so").read_bytes()


class PlanMaker:
    """A Plan with shorthands; dims are ints, symbol names, or expr indices made with `plan.expr` (as Expr)."""

    def __init__(self) -> None:
        self.plan = Plan()

    def dim(self, dim: int | str) -> int:
        if isinstance(dim, str):
            return self.plan.symbol([s.name for s in self.plan.symbols].index(dim))
        return self.plan.const(dim)

    def size(self, shape, item: int) -> int:
        words = [ExprOp.CONST, item]
        for dim in shape:
            words += [ExprOp.EXPR, self.dim(dim), ExprOp.MUL]
        return self.plan.expr(*words)

    def input(self, name: str, dtype: str, shape, lo: int = 0, hi: int = -1) -> int:
        index = len(self.plan.inputs)
        for axis, dim in enumerate(shape):
            if isinstance(dim, str) and dim not in [s.name for s in self.plan.symbols]:
                self.plan.symbols.append(Symbol(dim, index, axis, lo, hi))
        value = self.plan.value(Value(dtype, tuple(map(self.dim, shape)), Storage.INPUT, index))
        self.plan.inputs.append((name, value))
        return value

    def output(self, name: str, dtype: str, shape) -> int:
        value = self.plan.value(Value(dtype, tuple(map(self.dim, shape)), Storage.OUTPUT, len(self.plan.outputs)))
        self.plan.outputs.append((name, value))
        return value

    def temp(self, dtype: str, shape, first: int, last: int, item: int = 4) -> int:
        dims = tuple(map(self.dim, shape))
        return self.plan.value(Value(dtype, dims, Storage.TEMP, self.size(shape, item), first, last))

    def constant(self, dtype: str, shape, offset: int, nbytes: int) -> int:
        return self.plan.value(Value(dtype, tuple(map(self.dim, shape)), Storage.CONSTANT, offset, nbytes))

    def alias(self, value: int, dtype: str, shape, offset: int = 0) -> int:
        return self.plan.value(Value(dtype, tuple(map(self.dim, shape)), Storage.ALIAS, value, self.plan.const(offset)))

    def call(self, name: str, extent, *args: Arg, grain: int = 1, origin: str = "") -> None:
        self.plan.steps.append(Step(StepKind.CALL, name, self.dim(extent), grain, args, origin))

    def kernel(self, name: str, *args: Arg, origin: str = "") -> None:
        self.plan.steps.append(Step(StepKind.KERNEL, name, -1, 0, args, origin))


def scale_add_plan() -> Plan:
    """y = 3 x + w for x f32[n, 4], w f32[n broadcast: 4]... through a temp; z = x as f32[4 n] (an alias, copied)."""
    m = PlanMaker()
    x = m.input("x", "f32", ("n", 4), hi=1000)
    y = m.output("y", "f32", ("n", 4))
    z = m.output("z", "f32", ("n", 4))
    w = m.constant("f32", (4000,), 64, 16000)
    t = m.temp("f32", ("n", 4), 0, 1)
    elements = m.plan.expr(ExprOp.SYMBOL, 0, ExprOp.CONST, 4, ExprOp.MUL)
    m.plan.steps.append(Step(StepKind.CALL, "scale", elements, 16, (Arg.of(x), Arg.of(t), Arg.imm(3)), "Mul_0"))
    m.plan.steps.append(
        Step(
            StepKind.CALL, "add", elements, 16, (Arg.of(t), Arg.of(w), Arg.of(y), Arg.scratch(m.plan.const(4))), "Add_1"
        )
    )
    m.kernel("copy", Arg.of(m.alias(x, "f32", ("n", 4))), Arg.of(z), origin="Reshape_2")
    m.plan.checks.append(Check(CheckKind.AT_LEAST, m.plan.symbol(0), m.plan.const(0), "node Mul_0"))
    return m.plan


def cache_plan(dtype: str = "f32") -> Plan:
    """y f32[b, s, 4, 6] = attention of q over two states of 2 heads; z = the last k tokens of q, k a parameter."""
    m = PlanMaker()
    q = m.input("q", "f32", ("b", "s", 4, 6), lo=1)
    new = [m.input(name, "f32", ("b", "s", 2, 6)) for name in "kv"]
    m.plan.symbols.append(Symbol("p", Source.LENGTH))
    m.plan.symbols.append(Symbol("last", Source.PARAMETER, lo=1, default=(ExprOp.SYMBOL, 1)))
    total = m.plan.expr(ExprOp.EXPR, m.dim("p"), ExprOp.EXPR, m.dim("s"), ExprOp.ADD)
    presents = []
    for i, name in enumerate("kv"):
        m.plan.states.append(State(f"past.{name}", f"present.{name}", dtype, name == "k", 2, 6, m.dim("b"), m.dim("s")))
        past, present = (
            m.plan.value(Value(dtype, (m.dim("b"), m.dim(2), length, m.dim(6)), Storage.STATE, i))
            for length in (m.dim("p"), total)
        )
        m.kernel("cache_append", Arg.of(past), Arg.of(new[i]), Arg.of(present), Arg.string("bshd"))
        presents.append(present)
    y = m.output("y", "f32", ("b", "s", 4, 6))
    z = m.output("z", "f32", ("last",))
    operands = (Arg.of(q), *map(Arg.of, presents), ABSENT, Arg.of(y))
    layouts = (Arg.string("bshd"), Arg.string("bhsd"), Arg.string("bhsd"), Arg.string("bshd"))
    m.kernel("attention_cached", *operands, Arg.double(0.5), Arg.imm(1), Arg.imm(0), Arg.double(0.0), *layouts)
    m.kernel("fill_int", Arg.of(z), Arg.imm(0))
    m.plan.checks.append(Check(CheckKind.AT_LEAST, m.dim("s"), m.dim("last"), "z"))
    return m.plan


WEIGHTS = np.arange(4000, dtype=np.float32)


def scale_add_artifact(folder: Path, name: str = "model.edgec", **changes) -> Path:
    path = folder / name
    shape = [{"name": "x", "dtype": "f32", "shape": ["n", "4"]}]
    manifest = {
        "edgec": "0",
        "target": {"name": "host", "triple": "", "features": []},
        "inputs": shape,
        "outputs": shape,
    }
    manifest |= changes.pop("manifest", {})
    parts = {
        "plan": scale_add_plan().encode(),
        "code": changes.pop("code", None) or compile_c(folder),
        "weights": iter([(64, b"abc"), (64, WEIGHTS)]),
    }
    write_artifact(path, manifest=manifest, **(parts | changes))
    return path


__all__ = [n for n in dir() if not n.startswith("_")] + ["ABSENT"]
