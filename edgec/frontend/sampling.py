"""GridSample and RoiAlign: interpolation at computed places, as gathers and weights."""

from __future__ import annotations

import itertools

from edgec.frontend.emit import cast, dim, op, reduce, reshape, take, transpose
from edgec.frontend.registry import Call, Unsupported, onnx_op
from edgec.ir.dims import Dim, product
from edgec.ir.node import Node, constant


def _denormalized(x: Node, size: Dim, align: bool) -> Node:
    """[-1, 1] to pixels."""
    n = dim(size, x.dtype)
    if align:
        return op.mul(op.div(op.add(x, 1), 2), op.sub(n, 1))
    return op.div(op.sub(op.mul(op.add(x, 1), n), 1), 2)


def _reflected(x: Node, size: Dim, align: bool) -> Node:
    """Mirrored at the borders until it is inside."""
    n = dim(size, x.dtype)
    low, high = (constant(0, x.dtype), op.sub(n, 1)) if align else (constant(-0.5, x.dtype), op.sub(n, 0.5))
    span = op.sub(high, low)
    far = op.abs(op.sub(x, low))
    turn = op.mod(far, op.mul(op.max(span, 1e-9), 2))
    return op.add(low, op.where(op.gt(turn, span), op.sub(op.mul(span, 2), turn), turn))


def _cubic(t: Node, a: float = -0.75) -> list[Node]:
    """Weights of the four neighbours at -1, 0, 1, 2 for a fraction t."""

    def near(x):
        return op.add(op.mul(op.mul(op.sub(op.mul(x, a + 2), a + 3), x), x), 1)

    def far(x):
        return op.sub(op.mul(op.add(op.mul(op.sub(op.mul(x, a), 5 * a), x), 8 * a), x), 4 * a)

    return [far(op.add(t, 1)), near(t), near(op.sub(1.0, t)), far(op.sub(2.0, t))]


@onnx_op("GridSample")
def grid_sample(c: Call):
    x, grid = c[0], c[1]
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(c.attr("mode", "linear"), c.attr("mode", "linear"))
    padding, align = c.attr("padding_mode", "zeros"), bool(c.attr("align_corners", 0))
    if mode not in ("linear", "nearest", "cubic") or padding not in ("zeros", "border", "reflection"):
        raise ValueError(f"no mode {mode!r} or padding_mode {padding!r}")
    n = x.rank - 2
    sizes, out = x.shape[2:], grid.shape[1:-1]
    grid = cast(grid, "f32") if grid.dtype != "f32" else grid
    # per axis: its neighbours' places and weights
    taps: list[list[tuple[Node, Node]]] = []
    for axis in range(n):
        u = take(grid, -1, n - 1 - axis, 1)
        u = _denormalized(reshape(u, grid.shape[:-1]), sizes[axis], align)
        if mode != "cubic":
            u = _padded(u, sizes[axis], padding, align)
        if mode == "nearest":
            taps.append([(op.round(u), constant(1.0, "f32"))])
            continue
        base = op.floor(u)
        t = op.sub(u, base)
        weights = [op.sub(1.0, t), t] if mode == "linear" else _cubic(t)
        first = 0 if mode == "linear" else -1
        taps.append([(op.add(base, float(first + i)), w) for i, w in enumerate(weights)])
    work = x.dtype if x.dtype in ("f32", "f64") else "f32"
    total = None
    for corner in itertools.product(*taps):
        value = cast(_at(x, [p for p, _ in corner], sizes, out, padding, align), work)
        weight = corner[0][1]
        for _, w in corner[1:]:
            weight = op.mul(weight, w)
        if weight.rank:
            value = op.mul(value, cast(reshape(weight, [x.shape[0], 1, *out]), work))
        total = value if total is None else op.add(total, value)
    return cast(total, x.dtype)


def _padded(u: Node, size: Dim, padding: str, align: bool) -> Node:
    if padding == "reflection":
        u = _reflected(u, size, align)
    if padding in ("border", "reflection"):
        u = op.min(op.max(u, 0.0), op.sub(dim(size, "f32"), 1.0))
    return u


def _at(x: Node, places: list[Node], sizes, out, padding: str, align: bool) -> Node:
    """x [N, C, sizes...] at integer places [N, out...] of each axis; outside 0, or as the padding says."""
    flat: Node | None = None
    inside: Node | None = None
    for p, size in zip(places, sizes):
        last = op.sub(dim(size, "f32"), 1.0)
        if padding == "zeros":
            here = op.and_(op.ge(p, 0.0), op.le(p, last))
            inside = here if inside is None else op.and_(inside, here)
        else:
            p = _padded(p, size, padding, align)
        p = cast(op.min(op.max(op.round(p), 0.0), last), "i64")
        flat = p if flat is None else op.add(op.mul(flat, dim(size)), p)
    assert flat is not None
    batch, channels, count = x.shape[0], x.shape[1], product(out)
    at = op.expand(reshape(flat, [batch, 1, count]), shape=(batch, channels, count))
    y = op.gather_elements(reshape(x, [batch, channels, product(sizes)]), at, axis=2)
    y = reshape(y, [batch, channels, *out])
    if inside is not None:
        y = op.where(reshape(inside, [batch, 1, *out]), y, constant(0, x.dtype))
    return y


@onnx_op("RoiAlign")
def roi_align(c: Call):
    x, rois, which = c[0], c[1], c[2]
    high, wide = c.attr("output_height", 1), c.attr("output_width", 1)
    ratio, scale, mode = c.attr("sampling_ratio", 0), c.attr("spatial_scale", 1.0), c.attr("mode", "avg")
    half = c.attr("coordinate_transformation_mode", "half_pixel" if c.version >= 16 else "output_half_pixel")
    if ratio <= 0:
        raise Unsupported("sampling_ratio 0: the number of samples would depend on data")
    offset = 0.5 if half == "half_pixel" else 0.0
    count, h, w = rois.shape[0], x.shape[2], x.shape[3]
    x1, y1, x2, y2 = (op.sub(op.mul(take(rois, 1, i, 1), scale), offset) for i in range(4))  # [count, 1]

    def line(start: Node, end: Node, bins: int) -> Node:
        """Sample places [count, bins * ratio]."""
        span = op.sub(end, start)
        span = span if half == "half_pixel" else op.max(span, 1.0)
        steps = constant([(i + 0.5) / (bins * ratio) for i in range(bins * ratio)], rois.dtype)
        return op.add(start, op.mul(span, reshape(steps, [1, bins * ratio])))

    def taps(u: Node, size: Dim) -> tuple[list[tuple[Node, Node]], Node]:
        n = dim(size, u.dtype)
        inside = op.and_(op.ge(u, -1.0), op.le(u, n))
        u = op.min(op.max(u, 0.0), op.sub(n, 1.0))
        base = op.floor(u)
        t = op.sub(u, base)
        return [(base, op.sub(1.0, t)), (op.min(op.add(base, 1.0), op.sub(n, 1.0)), t)], inside

    rows, ok_rows = taps(line(y1, y2, high), h)
    columns, ok_columns = taps(line(x1, x2, wide), w)
    sh, sw = high * ratio, wide * ratio
    planes = reshape(transpose(x, (0, 2, 3, 1)), [x.shape[0] * h * w, x.shape[1]])
    first = op.mul(reshape(cast(which, "i64"), [count, 1, 1]), dim(h * w))
    samples = []
    for (py, wy), (px, wx) in itertools.product(rows, columns):
        at = op.add(op.mul(reshape(cast(py, "i64"), [count, sh, 1]), dim(w)), reshape(cast(px, "i64"), [count, 1, sw]))
        value = op.gather(planes, op.add(first, at), axis=0)
        weight = op.mul(reshape(wy, [count, sh, 1, 1]), reshape(wx, [count, 1, sw, 1]))
        ok = op.and_(reshape(ok_rows, [count, sh, 1, 1]), reshape(ok_columns, [count, 1, sw, 1]))
        samples.append(op.where(ok, op.mul(value, weight), constant(0, x.dtype)))
    if mode == "max":
        y = samples[0]
        for s in samples[1:]:
            y = op.max(y, s)
    else:
        y = op.add(op.add(samples[0], samples[1]), op.add(samples[2], samples[3]))
    y = reshape(y, [count, high, ratio, wide, ratio, x.shape[1]])
    return transpose(reduce("max" if mode == "max" else "mean", y, (2, 4)), (0, 3, 1, 2))
