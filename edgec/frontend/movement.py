"""ONNX ops that move data: shapes, slices, concatenation, gathers and scatters."""

from __future__ import annotations

import numpy as np

from edgec.frontend.emit import (
    array_of,
    broadcast,
    cast,
    clamp_slice,
    dims_tensor,
    emit,
    op,
    reshape,
    squeeze,
    take,
    transpose,
    unsqueeze,
)
from edgec.frontend.registry import Call, Unsupported, onnx_op
from edgec.frontend.symbolic import UNKNOWN, content, count
from edgec.ir.dims import Dim, Expr, ceildiv, floordiv, max_dim, product
from edgec.ir.node import Node, constant
from edgec.ir.types import FLOATS


@onnx_op("Reshape")
def reshape_(c: Call):
    x = c.x
    entries = content(c[1]) if c.has(1) else None
    if entries is None or any(not isinstance(v, (int, Expr)) for v in entries.flat):
        # one size that isn't known is what is left of the elements
        blanks = [] if entries is None else [i for i, v in enumerate(entries) if v is UNKNOWN]
        if len(blanks) != 1 or any(isinstance(v, int) and v == -1 for v in entries.flat):  # type: ignore[union-attr]
            wanted: list[Dim] = list(c.dims(1, "shape"))
        else:
            wanted = [-1 if v is UNKNOWN else v for v in entries.flat]  # type: ignore[union-attr]
    else:
        wanted = list(entries.reshape(-1))
    return reshape(x, resolve_shape(x, wanted, bool(c.attr("allowzero", 0))))


def resolve_shape(x: Node, wanted: list[Dim], allow_zero: bool = False) -> list[Dim]:
    """0 copies a dim (unless allow_zero), -1 is what is left."""
    out = list(wanted)
    for i, d in enumerate(out):
        if isinstance(d, int) and d == 0 and not allow_zero:
            if i >= x.rank:
                raise ValueError(f"shape {wanted}: there is no axis {i} to copy in {x.type}")
            out[i] = x.shape[i]
    free = [i for i, d in enumerate(out) if isinstance(d, int) and d < 0]
    if len(free) > 1 or any(isinstance(d, int) and d < -1 for d in out):
        raise ValueError(f"shape {wanted} has more than one -1 or another negative size")
    if free:
        rest = product(d for i, d in enumerate(out) if i != free[0])
        total = product(x.shape)
        if isinstance(rest, int) and rest == 0:
            out[free[0]] = 0
        else:
            out[free[0]] = floordiv(total, rest)
            if isinstance(total, int) and isinstance(rest, int) and total % rest:
                raise ValueError(f"{total} elements do not divide into {wanted}")
    return out


@onnx_op("Flatten")
def flatten(c: Call):
    axis = c.attr("axis", 1)
    if not -c.x.rank <= axis <= c.x.rank:
        raise ValueError(f"axis {axis} is outside of rank {c.x.rank}")
    axis = axis + c.x.rank if axis < 0 else axis
    return reshape(c.x, [product(c.x.shape[:axis]), product(c.x.shape[axis:])])


@onnx_op("Transpose")
def transpose_(c: Call):
    return transpose(c.x, c.attr("perm", tuple(reversed(range(c.x.rank)))))


@onnx_op("Squeeze")
def squeeze_(c: Call):
    axes = c.ints_at("axes", 1)
    if axes is None:
        if any(isinstance(d, Expr) for d in c.x.shape):
            raise Unsupported("which axes vanish depends on a size", "Name the axes, or fix the size with --dim")
        axes = [i for i, d in enumerate(c.x.shape) if d == 1]
    for a in axes:
        d = c.x.shape[c.in_rank(a, c.x.rank)]
        if isinstance(d, int) and d != 1:
            raise ValueError(f"axis {a} has {d} elements, squeezing needs 1")
    return squeeze(c.x, *axes)


@onnx_op("Unsqueeze")
def unsqueeze_(c: Call):
    axes = c.ints_at("axes", 1)
    if axes is None:
        raise ValueError("axes are missing")
    rank = c.x.rank + len(axes)
    if any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) != len(axes):
        raise ValueError(f"axes {axes} do not fit rank {rank}")
    return unsqueeze(c.x, *axes)


@onnx_op("Expand")
def expand(c: Call):
    return broadcast(c.x, c.dims(1, "shape"))


@onnx_op("Shape")
def shape(c: Call):
    start, end = c.attr("start", 0), c.attr("end")
    return dims_tensor(c.x.shape[start:end])


@onnx_op("Size")
def size(c: Call):
    return reshape(dims_tensor([product(c.x.shape)]), ())


@onnx_op("ConstantOfShape")
def constant_of_shape(c: Call):
    value = c.attr("value")
    filler = constant(np.zeros((), np.float32)) if value is None else c.importer.tensor(value, "value")
    return op.expand(reshape(filler, ()), shape=c.dims(0, "shape"))


@onnx_op("Constant")
def constant_(c: Call):
    if (tensor := c.attr("value")) is not None:
        return c.importer.tensor(tensor, c.node.outputs[0].name or "value")
    for name, dtype in (("value_float", "f32"), ("value_int", "i64"), ("value_floats", "f32"), ("value_ints", "i64")):
        if c.attr(name) is not None:
            return constant(c.attr(name), dtype)
    raise Unsupported("a constant that is no dense number tensor")


@onnx_op("Slice")
def slice_(c: Call):
    x = c.x
    if c.version < 10:
        starts, ends = c.need_attr("starts"), c.need_attr("ends")
        axes, steps = c.attr("axes"), None
    else:
        starts, ends = c.dims(1, "starts"), c.dims(2, "ends")
        axes = c.ints(3, "axes") if c.has(3) else None
        steps = c.ints(4, "steps") if c.has(4) else None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ValueError(f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes, {len(steps)} steps")
    first, sizes, by = [0] * x.rank, list(x.shape), [1] * x.rank
    for start, end, axis, step in zip(starts, ends, axes, steps):
        axis = c.in_rank(axis, x.rank)
        if step == 0:
            raise ValueError("a step of 0")
        first[axis], sizes[axis] = clamp_slice(x.shape[axis], start, end, step)
        by[axis] = step
    return op.slice(x, starts=tuple(first), sizes=tuple(sizes), steps=tuple(by))


@onnx_op("Concat")
def concat(c: Call):
    parts = [c[i] for i in range(len(c.inputs))]
    axis = c.axis(None, parts[0].rank)
    kept = [p for p in parts if not (isinstance(p.shape[axis], int) and p.shape[axis] == 0)]
    return op.concat(*(kept or parts[:1]), axis=axis)


@onnx_op("Split")
def split(c: Call):
    x, axis = c.x, c.axis(0)
    d, count = x.shape[axis], len(c.node.outputs)
    if c.has(1):
        sizes = c.dims(1, "split")
    elif c.attr("split") is not None:
        sizes = c.attr("split")
    else:
        if c.attr("num_outputs", count) != count:
            raise ValueError(f"num_outputs is {c.attr('num_outputs')}, the node has {count}")
        each = ceildiv(d, count)
        sizes = [each] * (count - 1) + [d - each * (count - 1)]
    if len(sizes) < len(c.node.outputs):
        raise ValueError(f"{len(sizes)} sizes for {len(c.node.outputs)} outputs")
    parts, start = [], 0
    for s in sizes:
        parts.append(take(x, axis, start, s))
        start = start + s
    if isinstance(start, int) and isinstance(d, int) and start != d:
        raise ValueError(f"the sizes {list(sizes)} do not add up to {d}")
    return parts


@onnx_op("Pad")
def pad(c: Call):
    x, mode = c.x, c.attr("mode", "constant")
    if c.version < 11:
        amounts, value = c.need_attr("pads"), constant(c.attr("value", 0.0), x.dtype)
    else:
        amounts, value = c.dims(1, "pads"), c.get(2)
    axes = [c.in_rank(a, x.rank) for a in c.ints(3, "axes")] if c.has(3) else list(range(x.rank))
    if len(amounts) != 2 * len(axes):
        raise ValueError(f"{len(amounts)} pads for {len(axes)} axes")
    before: list[Dim] = [0] * x.rank
    after: list[Dim] = [0] * x.rank
    for i, a in enumerate(axes):
        before[a], after[a] = amounts[i], amounts[i + len(axes)]
    value = reshape(value, ()) if value is not None and mode == "constant" else None
    return op.pad(x, value, before=tuple(before), after=tuple(after), mode=mode)


@onnx_op("Gather")
def gather(c: Call):
    return op.gather(c[0], c[1], axis=c.axis(0))


@onnx_op("GatherElements")
def gather_elements(c: Call):
    return op.gather_elements(c[0], c[1], axis=c.axis(0))


@onnx_op("GatherND")
def gather_nd(c: Call):
    return op.gather_nd(c[0], c[1], batch_dims=c.attr("batch_dims", 0))


@onnx_op("ScatterElements", "Scatter")
def scatter_elements(c: Call):
    return op.scatter_elements(c[0], c[1], c[2], axis=c.axis(0), reduction=c.attr("reduction", "none"))


@onnx_op("ScatterND")
def scatter_nd(c: Call):
    return op.scatter_nd(c[0], c[1], c[2], reduction=c.attr("reduction", "none"))


@onnx_op("Tile")
def tile(c: Call):
    x, repeats = c.x, c.dims(1, "repeats")
    if len(repeats) != x.rank:
        raise ValueError(f"{len(repeats)} repeats for rank {x.rank}")
    if all(isinstance(r, int) and r == 1 for r in repeats):
        return x
    apart, wide, out = [], [], []
    for d, r in zip(x.shape, repeats):
        apart += [1, d]
        wide += [r, d]
        out.append(r * d)
    return reshape(op.expand(reshape(x, apart), shape=tuple(wide)), out)


@onnx_op("Range")
def range_(c: Call):
    start, delta = c[0], c[2]
    dtype = start.dtype
    first, last, by = (c.known(i, "a bound of Range").reshape(-1)[0] for i in range(3))
    if isinstance(by, int) and by == 0:
        raise ValueError("a step of 0")
    n = max_dim(count(first, last, by), 0)
    line = emit("iota", size=n, dtype=dtype)
    if array_of(delta) is None or array_of(delta) != 1:
        line = op.mul(line, reshape(delta, ()))
    return line if (value := array_of(start)) is not None and value == 0 else op.add(line, reshape(start, ()))


@onnx_op("OneHot")
def one_hot(c: Call):
    indices, values = c[0], c[2]
    depth = c.dims(1, "depth")[0]
    axis = c.in_rank(c.attr("axis", -1), indices.rank + 1)
    kind = indices.dtype if indices.dtype in FLOATS else "i64"
    at = cast(indices, kind)
    from edgec.frontend.emit import dim

    at = op.where(op.lt(at, 0), op.add(at, dim(depth, kind)), at)
    places = reshape(emit("iota", size=depth, dtype=kind), [depth] + [1] * (indices.rank - axis))
    hit = op.eq(unsqueeze(at, axis), places)
    off, on = (reshape(take(values, 0, i, 1), ()) for i in (0, 1))
    return op.where(hit, on, off)


@onnx_op("EyeLike")
def eye_like(c: Call):
    rows, cols = c.x.shape
    i, j = reshape(emit("iota", size=rows), [rows, 1]), reshape(emit("iota", size=cols), [1, cols])
    return cast(op.eq(j, op.add(i, c.attr("k", 0))), c.dtype("dtype", c.x.dtype) or "f32")


@onnx_op("Trilu")
def trilu(c: Call):
    x = c.x
    rows, cols = x.shape[-2:]
    i, j = reshape(emit("iota", size=rows), [rows, 1]), reshape(emit("iota", size=cols), [1, cols])
    k = reshape(c[1], ()) if c.has(1) else constant(0, "i64")
    keep = emit("ge" if c.attr("upper", 1) else "le", j, op.add(i, k))
    return op.where(keep, x, constant(0, x.dtype))


@onnx_op("DepthToSpace")
def depth_to_space(c: Call):
    x, b = c.x, c.need_attr("blocksize")
    n, ch, h, w = x.shape
    inner = ch // (b * b)
    if c.attr("mode", "DCR") == "DCR":
        y = transpose(reshape(x, [n, b, b, inner, h, w]), (0, 3, 4, 1, 5, 2))
    else:
        y = transpose(reshape(x, [n, inner, b, b, h, w]), (0, 1, 4, 2, 5, 3))
    return reshape(y, [n, inner, h * b, w * b])


@onnx_op("SpaceToDepth")
def space_to_depth(c: Call):
    x, b = c.x, c.need_attr("blocksize")
    n, ch, h, w = x.shape
    order = (0, 3, 5, 1, 2, 4) if c.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    y = transpose(reshape(x, [n, ch, h // b, b, w // b, b]), order)
    return reshape(y, [n, ch * b * b, h // b, w // b])


@onnx_op("ReverseSequence")
def reverse_sequence(c: Call):
    x, time, batch = c[0], c.attr("time_axis", 0), c.attr("batch_axis", 1)
    if {time, batch} != {0, 1}:
        raise ValueError(f"time_axis {time} and batch_axis {batch}: 0 and 1 are defined")
    steps = x.shape[time]
    place = reshape(emit("iota", size=steps), [steps, 1] if time == 0 else [1, steps])
    lengths = cast(reshape(c[1], [1, x.shape[batch]] if time == 0 else [x.shape[batch], 1]), "i64")
    at = op.where(op.lt(place, lengths), op.sub(op.sub(lengths, 1), place), place)
    at = broadcast(reshape(at, [*at.shape] + [1] * (x.rank - 2)), x.shape)
    return op.gather_elements(x, at, axis=time)


@onnx_op("CenterCropPad")
def center_crop_pad(c: Call):
    x, target = c.x, c.ints(1, "shape")
    axes = [c.in_rank(a, x.rank) for a in c.attr("axes", range(x.rank))]
    for axis, want in zip(axes, target, strict=True):
        have = x.shape[axis]
        if not isinstance(have, int):
            raise Unsupported(f"axis {axis} is {have}, which is open", "Fix the size with --dim")
        if have > want:
            x = take(x, axis, (have - want) // 2, want)
        elif have < want:
            lead, rank = (want - have) // 2, x.rank
            before, after = (tuple(n if i == axis else 0 for i in range(rank)) for n in (lead, want - have - lead))
            x = op.pad(x, before=before, after=after)
    return x


@onnx_op("Compress")
def compress(c: Call):
    x = c.x
    keep = np.flatnonzero(c.array(1, "the condition")).astype(np.int64)
    if c.attr("axis") is None:
        return op.gather(reshape(x, [product(x.shape)]), constant(keep), axis=0)
    return op.gather(x, constant(keep), axis=c.axis())


@onnx_op("NonZero", "Unique")
def of_constants(c: Call):
    x = array_of(c.x)
    if x is None:
        raise Unsupported("the size of its result depends on the values")
    if c.op == "NonZero":
        return constant(np.array(np.nonzero(np.atleast_1d(x)), dtype=np.int64))
    axis = c.attr("axis")
    y, first, inverse, counts = np.unique(x, True, True, True, axis=axis)
    order = np.arange(len(first)) if c.attr("sorted", 1) else np.argsort(first)
    rank = np.argsort(order)
    y = np.take(y, order, axis=axis or 0)
    return [constant(np.asarray(v)) for v in (y, first[order].astype(np.int64),
            rank[inverse].reshape(-1).astype(np.int64), counts[order].astype(np.int64))]  # fmt: skip


@onnx_op("TensorScatter")
def tensor_scatter(c: Call):
    past, update, axis = c[0], c[1], c.axis(-2)
    n, size = update.shape[axis], past.shape[axis]
    places = reshape(emit("iota", size=n), [n if i == axis else 1 for i in range(past.rank)])
    if c.has(2):
        places = op.add(places, reshape(c[2], [past.shape[0]] + [1] * (past.rank - 1)))
    if c.attr("mode", "linear") == "circular":
        from edgec.frontend.emit import dim

        places = op.mod(places, dim(size))
    return op.scatter_elements(past, broadcast(places, update.shape), update, axis=axis)
