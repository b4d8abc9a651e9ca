"""Transposed operands: square tiles loaded along the operand's contiguous dim and turned round in registers."""

from __future__ import annotations

from tvm import tirx as T

from edgec.ir.dims import Dim, ceildiv
from edgec.lower.templates import scalar
from edgec.lower.templates.builder import Builder, i64
from edgec.lower.templates.index import Load, Pick, is_zero_or_one
from edgec.lower.templates.nest import Body, Store, everything, over_units

TILES = 2  # side by side along the operand's rows: two of 8 floats read whole cache lines


def transposed(values: list, order: list[int], extents: dict[int, Dim], lanes: int) -> tuple[int, list[Load]] | None:
    """The loop along which operands are contiguous that the innermost loop jumps through, and their loads."""
    vector, expressions = order[-1], everything(values)
    if lanes < 4 or any(isinstance(e, Pick) for e in expressions):
        return None
    loads = [e for e in expressions if isinstance(e, Load) and vector in e.offset.loops()]
    crossing = [e for e in loads if not e.offset.dynamic and e.offset.coef(vector) not in (0, 1, -1)
                and not is_zero_or_one(e.offset.coef(vector))]  # fmt: skip
    along = {next((k for k in order[:-1] if e.offset.coef(k) == 1), None) for e in crossing}
    if len(along) != 1 or None in along:
        return None
    (row,) = along
    if any(isinstance(extents[k], int) and extents[k] < lanes for k in (row, vector)):
        return None
    return row, crossing


def turn(b: Builder, rows: list) -> list:
    """The square of as many rows as lanes, transposed: blocks of 1, 2, 4, ... change places."""
    n, s = len(rows), 1
    while s < n:
        new = list(rows)
        for i in range(n):
            if i & s:
                continue
            low = [k if not k & s else n + k - s for k in range(n)]
            high = [k + s if not k & s else n + k for k in range(n)]
            pair = [rows[i], rows[i + s]]
            new[i] = b.let(T.Shuffle(pair, [T.IntImm("int32", k) for k in low]))
            new[i + s] = b.let(T.Shuffle(pair, [T.IntImm("int32", k) for k in high]))
        rows, s = new, s * 2
    return rows


def build(b: Builder, buffers, order: list[int], extents: dict[int, Dim], row: int, crossing: list[Load],
          stores: list[Store], lanes: int) -> Dim:  # fmt: skip
    """Emits the loops; returns the extent: outer loops times strips of TILES tiles."""
    vector, width = order[-1], lanes * TILES
    strips = max(extents) + 1
    extents[strips] = ceildiv(extents[row], width)
    size_row, size_vector = b.dim(extents[row]), b.dim(extents[vector])

    def tile(env, at_row, at_vector):
        """One square: element (i, j) of the output tile is (j, i) of the operands' tiles."""
        turned = {}
        for e in crossing:
            loaded = []
            for k in range(lanes):
                body = Body(b, buffers, env | {row: at_row, vector: at_vector + i64(k)}, row, lanes, {})
                loaded.append(b.let(T.BufferLoad(buffers(e.node), [_ramp(body, e, lanes)])))
            turned[id(e)] = (turn(b, loaded), e.node.dtype)
        for j in range(lanes):
            known = {key: b.let(scalar.from_memory(rows[j], dtype)) for key, (rows, dtype) in turned.items()}
            body = Body(b, buffers, env | {row: at_row + i64(j), vector: at_vector}, vector, lanes, {}, known)
            for s in stores:
                body.store(s)

    def element(env, at_row, at_vector):
        body = Body(b, buffers, env | {row: at_row, vector: at_vector}, None, 1, {})
        for s in stores:
            body.store(s)

    def unit(env):
        first = b.let(env[strips] * i64(width))
        stop = b.let(T.min(first + i64(width), size_row))
        with b.block() as small, b.loop(stop - first, first, stem="r") as r, b.loop(size_vector, stem="x") as x:
            element(env, r, x)
        last_row, last_vector = b.let(size_row - i64(lanes)), b.let(size_vector - i64(lanes))
        with b.if_(T.And(size_row >= i64(lanes), size_vector >= i64(lanes)), otherwise=small):
            count = T.truncdiv(size_vector + i64(lanes - 1), i64(lanes))
            with b.loop(count, 0, lanes, stem="x") as x:
                at = b.let(T.min(x, last_vector))
                tiles = T.truncdiv(stop - first + i64(lanes - 1), i64(lanes))
                with b.loop(tiles, first, lanes, stem="r") as r:
                    tile(env, b.let(T.min(r, last_row)), at)

    return over_units(b, [*(k for k in order[:-1] if k != row), strips], extents, unit)


def _ramp(body: Body, e: Load, lanes: int):
    base, stride, varying = body.parts(e.offset)
    assert stride == 1 and varying is None
    return T.Ramp(base, i64(1), lanes)
