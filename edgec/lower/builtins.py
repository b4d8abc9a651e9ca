"""Which ops run as built-in kernels of the runtime, and with which arguments (csrc/runtime/kernel_registry.h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgec.ir.dims import Dim
from edgec.ir.node import Node

Param = Dim | float | str


@dataclass(frozen=True)
class Builtin:
    """A call of the kernel `name`: operands (None: absent), then results, then parameters, in the signature's order."""

    name: str
    operands: tuple[Node | None, ...]
    params: tuple[Param, ...] = ()


def _linear(n: Node) -> Builtin:
    w = n.inputs[1]
    assert w is not None and w.op == "pack"
    params = (n["act"], n["norm"], float(n["eps"]), w["format"], *w.shape, int(n["rotate"]))
    return Builtin("linear", n.inputs, params)


def _rope(n: Node) -> Builtin:
    return Builtin("rope", n.inputs, (n["heads"], n["dim"], n["start"], int(n["interleaved"]), n["rotate"]))


def _gather(n: Node) -> Builtin:
    table = n.inputs[0]
    assert table is not None
    if table.op == "pack":
        return Builtin("gather_quantized", n.inputs, (table["format"], *table.shape))
    return Builtin("gather", n.inputs, (n["axis"],))


def _attention(n: Node) -> Builtin:
    layouts = (n["q_layout"], n["k_layout"], n["v_layout"], n["out_layout"])
    k, v = n.inputs[1:3]
    assert k is not None and v is not None
    cached = k.op == "cache_append"  # of a state, and so is v
    name = "attention_cached" if cached else "attention"
    return Builtin(name, n.inputs, (n["scale"], int(n["causal"]), n["window"], n["softcap"], *layouts))


def _recurrent(n: Node) -> Builtin:
    extra = {"lstm": ("input_forget", "quantize_state"), "gru": ("linear_before_reset",)}.get(n.op, ())
    functions = tuple(f"{a},{alpha!r},{beta!r}" for a, alpha, beta in zip(n["activations"], n["alphas"], n["betas"]))
    params = (n["hidden"], n["direction"], ";".join(functions), n["clip"]) + tuple(int(n[e]) for e in extra)
    return Builtin(n.op, n.inputs, params)


# op -> its call. Names and parameter orders are those of the runtime's signatures, checked by a test.
BUILTINS: dict[str, Callable[[Node], Builtin]] = {
    "linear": _linear,
    "hadamard": lambda n: Builtin("hadamard", n.inputs, (n["block"],)),
    "matmul": lambda n: Builtin("matmul", n.inputs, (int(n["trans_a"]), int(n["trans_b"]))),
    "matmul_int": lambda n: Builtin("matmul_int", n.inputs),
    "attention": _attention,
    "rope": _rope,
    "cache_append": lambda n: Builtin("cache_append", n.inputs, (n["layout"],)),
    "lstm": _recurrent,
    "gru": _recurrent,
    "rnn": _recurrent,
    "topk": lambda n: Builtin("topk", n.inputs, (n["k"], n["axis"], int(n["largest"]), int(n["sorted"]))),
    "gather": _gather,
    "gather_elements": lambda n: Builtin("gather_elements", n.inputs, (n["axis"],)),
    "gather_nd": lambda n: Builtin("gather_nd", n.inputs, (n["batch_dims"],)),
    "scatter_elements": lambda n: Builtin("scatter_elements", n.inputs, (n["axis"], n["reduction"])),
    "scatter_nd": lambda n: Builtin("scatter_nd", n.inputs, (n["reduction"],)),
    "cumsum": lambda n: Builtin("cumsum", n.inputs, (n["axis"], int(n["exclusive"]), int(n["reverse"]))),
    "argmax": lambda n: Builtin("argmax", n.inputs, (n["axis"], int(n["last"]))),
    "argmin": lambda n: Builtin("argmin", n.inputs, (n["axis"], int(n["last"]))),
}
