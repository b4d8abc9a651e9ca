"""Constant folding by the ops' references. Large results are computed when they are read, not here."""

from __future__ import annotations

import weakref

import numpy as np

from edgec.ir.data import full_box
from edgec.ir.dims import product
from edgec.ir.node import SMALL, Data, Node, _hashable, constant, make
from edgec.ir.ops import OPS
from edgec.ir.types import TensorType, dtype_size
from edgec.rewrites.engine import Match, Rule, rule
from edgec.rewrites.examples import f32, i64
from edgec.rewrites.parts import part_of
from edgec.rewrites.pattern import Pattern, b, p, var

RULES: list[Rule] = []
GROWTH = 1  # a folded constant may be so many times the constants it is made of
FOLDABLE = tuple(
    name
    for name, op in OPS.items()
    if name not in ("input", "constant", "branch", "item", "pack") and op.kind != "control"
)


_transposed: weakref.WeakKeyDictionary[Data, tuple[Data, tuple[int, ...]]] = weakref.WeakKeyDictionary()


def is_constant(node: Node | None) -> bool:
    """A plain constant: not quantized, not packed."""
    return node is None or (node.op == "constant" and node.type.encoding is None and node.type.layout == "row")


def nbytes(type: TensorType) -> int | None:
    """Bytes of a tensor; None where a dim is symbolic."""
    n = product(type.shape)
    return n * dtype_size(type.dtype) if isinstance(n, int) else None


def folded(node: Node) -> Node:
    """The constant that a node over constants is. Content beyond SMALL bytes is computed each time it is read, so
    that a chain of transposes over weights on disk costs no memory."""
    op, attrs = node.op, dict(node.attrs)
    datas = [None if i is None else i["data"] for i in node.inputs]
    if (
        op == "transpose" and datas[0] is not None and datas[0] in _transposed
    ):  # twice: a tied table stays the one constant that it is
        source, perm = _transposed[datas[0]]
        perm = tuple(perm[i] for i in attrs["perm"])
        return constant(source) if perm == tuple(range(len(perm))) else folded(make(op, constant(source), perm=perm))

    def compute() -> np.ndarray:
        with np.errstate(all="ignore"):
            value = OPS[op].reference(*[None if d is None else d.array() for d in datas], **attrs)
        return np.ascontiguousarray(value).reshape(np.shape(value))

    size = nbytes(node.type)
    assert size is not None
    if size <= SMALL or op.startswith(("gather", "scatter")):  # these may refuse the indices
        return constant(compute())
    key = ("fold", op, tuple(_hashable(v) for _, v in sorted(attrs.items())), tuple(d and d.key for d in datas))
    part = part_of(op, attrs, node.type, datas)
    whole = compute if part is None else lambda: part(full_box(node.type.shape))  # the same numbers as of its parts
    new = Data(node.type, key, lambda: {"value": whole()}, part)
    if op == "transpose" and datas[0] is not None:
        _transposed[new] = (datas[0], attrs["perm"])
    return constant(new)


def const_node(op: str, *inputs: Node | None, **attrs) -> Node:
    """make(...) of constants, folded at once."""
    node = make(op, *inputs, **attrs)
    return folded(node)


def _over_constants(node: Node) -> bool:
    return all(map(is_constant, node.inputs)) and isinstance(node.type, TensorType)


@rule(
    Pattern(ops=FOLDABLE, name="node", where=_over_constants),
    examples=[
        lambda: b.add(constant([1, 2], "f32"), constant([3], "f32")),
        lambda: b.iota(size=5),
        lambda: b.dim_value(value=7),
        lambda: b.transpose(constant(np.arange(4096, dtype=np.float32).reshape(64, 64)), perm=(1, 0)),
    ],
    misses=[
        lambda: b.expand(constant(np.float32(1)), shape=(4096,)),
        lambda: b.add(f32("x", 3), constant([3], "f32")),
        lambda: b.gather(constant([1, 2], "f32"), constant(np.int64(5)), axis=0),
    ],
    into=RULES,
)
def fold(m: Match):
    node = m.node
    size = nbytes(node.type)
    if size is None:
        return "its shape is symbolic"
    if any(not isinstance(v, (int, float, str, bool, tuple)) and v is not None for v in node.attrs.values()):
        return "an attribute is symbolic"
    inputs = sum(nbytes(i.type) or 0 for i in node.operands())
    if size > max(SMALL, GROWTH * inputs):
        return "the constant would be larger than what it is made of"
    try:
        return folded(node)
    except (IndexError, ValueError, KeyError) as error:
        return f"its reference refuses: {error}"


@rule(
    p.item(Pattern(ops=FOLDABLE, name="node", where=lambda n: all(map(is_constant, n.inputs)))),
    examples=[lambda: b.item(b.topk(constant([3, 1, 2], "f32"), k=2, axis=0), index=1)],
    into=RULES,
)
def fold_item(m: Match):
    if any(not 0 <= (-1 if (n := nbytes(t)) is None else n) <= SMALL for t in m.node.type.items):
        return "its results are large or symbolic"
    values = OPS[m.node.op].reference(
        *[None if i is None else i["data"].array() for i in m.node.inputs], **m.node.attrs
    )
    return constant(values[m.root["index"]])


@rule(
    p.branch(var("pred", where=lambda n: n.op == "constant"), var("a"), var("b")),
    examples=[lambda: b.branch(constant(np.bool_(True)), f32("x", 3), b.neg(f32("x", 3)))],
    misses=[lambda: b.branch(b.eq(i64("i"), constant(np.int64(1))), f32("x", 3), b.neg(f32("x", 3)))],
    into=RULES,
)
def constant_branch(m: Match):
    return m.a if m.pred["data"].array() else m.b


@rule(
    p.branch(var("pred"), var("a"), var("a")),
    examples=[lambda: b.branch(b.eq(i64("i"), constant(np.int64(1))), f32("x", 3), f32("x", 3))],
    into=RULES,
)
def equal_branches(m: Match):
    return m.a
