"""Matrix products, convolution and pooling."""

from __future__ import annotations

import numpy as np

from edgec.frontend.emit import cast, op, reduce, squeeze, unsqueeze
from edgec.frontend.registry import Call, Unsupported, onnx_op
from edgec.ir.dims import Dim, ceildiv, max_dim, product
from edgec.ir.node import Node, constant


def matmul(a: Node, b: Node) -> Node:
    """numpy.matmul: vectors are a row on the left, a column on the right."""
    if a.rank == 0 or b.rank == 0:
        raise ValueError("an operand is a scalar")
    left, right = a.rank == 1, b.rank == 1
    a, b = unsqueeze(a, 0) if left else a, unsqueeze(b, 1) if right else b
    y = op.matmul(a, b)
    y = squeeze(y, -2) if left else y
    return squeeze(y, -1) if right else y


@onnx_op("MatMul")
def matmul_(c: Call):
    return matmul(c[0], c[1])


@onnx_op("Gemm")
def gemm(c: Call):
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    y = op.matmul(c[0], c[1], trans_a=bool(c.attr("transA", 0)), trans_b=bool(c.attr("transB", 0)))
    y = y if alpha == 1 else scaled(y, alpha)
    if not c.has(2) or beta == 0:
        return y
    return op.add(y, c[2] if beta == 1 else scaled(c[2], beta))


def scaled(x: Node, factor: float) -> Node:
    if x.dtype.startswith(("i", "u")):
        return cast(op.mul(cast(x, "f64"), factor), x.dtype)
    return op.mul(x, factor)


def spatial_attrs(c: Call, kernel: tuple[int, ...]) -> tuple[tuple, tuple, tuple]:
    """strides, pads (begins, then ends), dilations; auto_pad resolved."""
    n = len(kernel)
    strides, dilations = tuple(c.attr("strides", (1,) * n)), tuple(c.attr("dilations", (1,) * n))
    if not len(strides) == len(dilations) == n or c.x.rank != n + 2:
        raise ValueError(f"strides {strides} and dilations {dilations} do not fit a kernel of {kernel} on {c.x.type}")
    auto = c.attr("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return strides, tuple(c.attr("pads", (0,) * 2 * n)), dilations
    if auto == "VALID":
        return strides, (0,) * 2 * n, dilations
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"no auto_pad {auto!r}")
    before: list[Dim] = []
    after: list[Dim] = []
    for i in range(n):
        d = c.x.shape[2 + i]
        total = max_dim((ceildiv(d, strides[i]) - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - d, 0)
        half = total // 2
        before.append(half if auto == "SAME_UPPER" else total - half)
        after.append(total - half if auto == "SAME_UPPER" else half)
    return strides, (*before, *after), dilations


def kernel_of(c: Call, w: Node) -> tuple[int, ...]:
    kernel = tuple(w.shape[2:])
    declared = c.attr("kernel_shape")
    if declared is not None and tuple(declared) != kernel:
        raise ValueError(f"kernel_shape {tuple(declared)} is not the weights' {kernel}")
    if not all(isinstance(k, int) for k in w.shape):
        raise Unsupported(f"weights of an open shape {w.type}", "Fix the sizes with --dim")
    return kernel


@onnx_op("Conv")
def conv(c: Call):
    strides, pads, dilations = spatial_attrs(c, kernel_of(c, c[1]))
    return op.conv(c[0], c[1], c.get(2), strides=strides, pads=pads, dilations=dilations, group=c.attr("group", 1))


@onnx_op("ConvTranspose")
def conv_transpose(c: Call):
    x, w = c[0], c[1]
    kernel, group = kernel_of(c, w), c.attr("group", 1)
    n = len(kernel)
    strides, dilations = tuple(c.attr("strides", (1,) * n)), tuple(c.attr("dilations", (1,) * n))
    extra = tuple(c.attr("output_padding", (0,) * n))
    auto, wanted = c.attr("auto_pad", "NOTSET"), c.attr("output_shape")
    pads: tuple[Dim, ...] = tuple(c.attr("pads", (0,) * 2 * n))
    if wanted is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
        sizes = wanted[-n:] if wanted is not None else [x.shape[2 + i] * strides[i] for i in range(n)]
        before: list[Dim] = []
        after: list[Dim] = []
        for i in range(n):
            total = strides[i] * (x.shape[2 + i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - sizes[i]
            if isinstance(total, int) and total < 0:
                extra = tuple(e - total if j == i else e for j, e in enumerate(extra))
            total = max_dim(total, 0)
            half = total // 2
            before.append(half if auto == "SAME_UPPER" else total - half)
            after.append(total - half if auto == "SAME_UPPER" else half)
        pads = (*before, *after)
    elif auto == "VALID":
        pads = (0,) * 2 * n
    return op.conv_transpose(x, w, c.get(2), strides=strides, pads=pads, dilations=dilations, group=group,
                             output_padding=extra)  # fmt: skip


def _pool_attrs(c: Call) -> dict:
    kernel = tuple(c.need_attr("kernel_shape"))
    strides, pads, dilations = spatial_attrs(c, kernel)
    return {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations,
            "ceil": bool(c.attr("ceil_mode", 0))}  # fmt: skip


@onnx_op("MaxPool")
def max_pool(c: Call):
    if c.wants(1):
        return _max_pool_with_indices(c)
    return op.max_pool(c.x, **_pool_attrs(c))


def _max_pool_with_indices(c: Call):
    """Each offset of the window in turn: where it beats what is there, its value and its flat index."""
    x, a = c.x, _pool_attrs(c)
    n, dims = x.rank - 2, x.shape
    if int(np.prod(a["kernel"], dtype=object)) > 1024:
        raise Unsupported(f"indices of the maxima of a window {a['kernel']}")
    if not all(isinstance(d, int) for d in dims):
        raise Unsupported("indices of the maxima with open sizes", "Fix the sizes with --dim")
    pooled = op.max_pool(x, **a)
    spatial = pooled.shape[2:]
    order = range(n) if not c.attr("storage_order", 0) else range(n - 1, -1, -1)
    flat = np.zeros(dims[2:], dtype=np.int64)
    weight = 1
    for axis in reversed(list(order)):
        line = np.arange(dims[2 + axis]).reshape([-1 if i == axis else 1 for i in range(n)])
        flat, weight = flat + line * weight, weight * dims[2 + axis]
    planes = np.arange(product(dims[:2])).reshape(*dims[:2], *[1] * n) * weight
    places = constant(planes + flat)
    ends = [max((spatial[i] - 1) * a["strides"][i] + a["dilations"][i] * (a["kernel"][i] - 1) + 1 - dims[2 + i]
                - a["pads"][i], 0) for i in range(n)]  # fmt: skip
    edges = {"before": (0, 0, *a["pads"][:n]), "after": (0, 0, *ends)}
    values = op.pad(x, _low(x.dtype), **edges)
    places = op.pad(places, constant(np.int64(-1)), **edges)
    best = at = None
    for offset in np.ndindex(*a["kernel"]):
        starts = (0, 0, *(int(o) * d for o, d in zip(offset, a["dilations"])))
        cut = {"starts": starts, "sizes": pooled.shape, "steps": (1, 1, *a["strides"])}
        v, p = op.slice(values, **cut), op.slice(places, **cut)
        if best is None:
            best, at = v, p
        else:
            better = op.or_(op.gt(v, best), op.and_(op.lt(at, 0), op.ge(p, 0)))
            best, at = op.where(better, v, best), op.where(better, p, at)
    return pooled, at


def _low(dtype: str) -> Node:
    from edgec.frontend.elementwise import lowest

    return constant(lowest(dtype), dtype)


@onnx_op("AveragePool")
def average_pool(c: Call):
    return op.avg_pool(c.x, **_pool_attrs(c), count_pads=bool(c.attr("count_include_pad", 0)))


@onnx_op("LpPool")
def lp_pool(c: Call):
    x, p, a = c.x, c.attr("p", 2), _pool_attrs(c)
    powers = op.mul(x, x) if p == 2 else op.pow(op.abs(x), constant(p, x.dtype))
    n = len(a["kernel"])
    edges = {"before": (0, 0, *a["pads"][:n]), "after": (0, 0, *a["pads"][n:])}
    powers = op.pad(powers, **edges)
    a["pads"] = (0,) * 2 * n
    if a["ceil"]:
        raise Unsupported("ceil_mode")
    # the padding holds zeros, so a mean over whole windows is a sum
    total = op.mul(op.avg_pool(powers, **a, count_pads=False), float(np.prod(a["kernel"])))
    return op.sqrt(total) if p == 2 else op.pow(total, constant(1 / p, x.dtype))


@onnx_op("GlobalAveragePool", "GlobalMaxPool")
def global_pool(c: Call):
    return reduce("mean" if c.op == "GlobalAveragePool" else "max", c.x, range(2, c.x.rank), True)


@onnx_op("GlobalLpPool")
def global_lp_pool(c: Call):
    x, p = c.x, c.attr("p", 2)
    powers = op.mul(x, x) if p == 2 else op.pow(op.abs(x), constant(p, x.dtype))
    total = reduce("sum", powers, range(2, x.rank), True)
    return op.sqrt(total) if p == 2 else op.pow(total, constant(1 / p, x.dtype))
