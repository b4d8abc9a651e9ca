"""Einsum, determinants, col2im and unpooling, as products, reshapes and scatters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from edgec.frontend.emit import STATIC, emit, full, op, reduce, reshape, take, transpose
from edgec.frontend.registry import Call, Unsupported, onnx_op
from edgec.ir.dims import Dim, product
from edgec.ir.node import Node, constant
from edgec.ir.ops.registry import broadcast_dims


@onnx_op("Einsum")
def einsum(c: Call):
    operands = [c[i] for i in range(len(c.inputs))]
    terms, out = parse_einsum(c.need_attr("equation"), [o.rank for o in operands])
    sizes: dict[str, Dim] = {}
    for o, labels in zip(operands, terms):
        for label, d in zip(labels, o.shape):
            sizes[label] = broadcast_dims(sizes.get(label, 1), d, "Einsum")
    pairs = [_diagonals(o, t) for o, t in zip(operands, terms)]
    x, labels = pairs[0]
    for i, (y, other) in enumerate(pairs[1:], 1):
        later = set(out).union(*(t for _, t in pairs[i + 1 :]))
        x, labels = _contract(x, labels, y, other, later, sizes)
    x, labels = _sum_out(x, labels, set(out))
    x = op.expand(x, shape=tuple(sizes[label] for label in labels))
    return transpose(x, [labels.index(label) for label in out])


def parse_einsum(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Labels of each operand and of the result; an ellipsis becomes digits, right-aligned. ValueError if malformed."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(ranks):
        raise ValueError(f"the equation {equation!r} has {len(parts)} terms for {len(ranks)} operands")
    terms, widest = [], 0
    for part, rank in zip(parts, ranks):
        dots = rank - len(part.replace("...", ""))
        if dots < 0 or (dots and "..." not in part) or part.count("...") > 1:
            raise ValueError(f"the term {part!r} of {equation!r} does not fit rank {rank}")
        if "..." in part:
            if dots > 10:
                raise Unsupported("an ellipsis of more than 10 axes")
            widest = max(widest, dots)
            part = part.replace("...", "".join(str(i) for i in reversed(range(dots))))
        terms.append(part)
    rest = "".join(str(i) for i in reversed(range(widest)))
    if arrow:
        out = right.replace("...", rest)
    else:
        counts = "".join(terms)
        out = rest + "".join(sorted(ch for ch in set(counts) if counts.count(ch) == 1 and not ch.isdigit()))
    known = set("".join(terms))
    if len(set(out)) != len(out) or not set(out) <= known or not all(ch.isalnum() for ch in known):
        raise ValueError(f"the equation {equation!r} is malformed")
    return terms, out


def _diagonals(x: Node, labels: str) -> tuple[Node, str]:
    while len(set(labels)) < len(labels):
        label = next(ch for ch in labels if labels.count(ch) > 1)
        i = labels.index(label)
        j = labels.index(label, i + 1)
        n = x.shape[i]
        if not isinstance(n, int):
            raise Unsupported(f"the diagonal of an open size {n}", "Fix the size with --dim")
        rest = [k for k in range(x.rank) if k not in (i, j)]
        y = transpose(x, [*rest, i, j])
        y = reshape(y, [*y.shape[:-2], n * n])
        x = take(y, -1, 0, n, n + 1) if n > 1 else y
        labels = "".join(labels[k] for k in rest) + label
    return x, labels


def _sum_out(x: Node, labels: str, kept: set[str]) -> tuple[Node, str]:
    gone = [i for i, label in enumerate(labels) if label not in kept]
    return reduce("sum", x, gone), "".join(label for label in labels if label in kept)


def _arranged(x: Node, labels: str, order: str) -> Node:
    """x with one axis for each label of `order`, size 1 where it has none."""
    y = transpose(x, [labels.index(label) for label in order if label in labels])
    sizes = iter(y.shape)
    return reshape(y, [next(sizes) if label in labels else 1 for label in order])


def _contract(a: Node, la: str, b: Node, lb: str, later: set[str], sizes: dict[str, Dim]) -> tuple[Node, str]:
    a, la = _sum_out(a, la, later | set(lb))
    b, lb = _sum_out(b, lb, later | set(la))
    inner = [label for label in la if label in lb and label not in later]
    batch = [label for label in la if label in lb and label in later]
    left, right = [x for x in la if x not in lb], [x for x in lb if x not in la]
    order = "".join(batch + left + right)
    if not inner:
        return op.mul(_arranged(a, la, order), _arranged(b, lb, order)), order
    k, m, n = (product(sizes[x] for x in group) for group in (inner, left, right))
    lead = [sizes[x] for x in batch]

    def matrix(x: Node, labels: str, rows: list[str], columns: list[str], shape: list[Dim]) -> Node:
        y = transpose(x, [labels.index(label) for label in (*batch, *rows, *columns)])
        y = op.expand(y, shape=tuple(sizes[label] for label in (*batch, *rows, *columns)))
        return reshape(y, [*lead, *shape])

    y = op.matmul(matrix(a, la, left, inner, [m, k]), matrix(b, lb, inner, right, [k, n]))
    return reshape(y, [sizes[label] for label in order]), order


@onnx_op("Det")
def determinant(c: Call):
    """Laplace expansion along the first row, for the small matrices that models have."""
    n = c.x.shape[-1]
    if not isinstance(n, int) or n > 5 or n < 1:
        raise Unsupported(f"the determinant of {c.x.type}; up to 5 x 5 are supported")
    entries = [[_entry(c.x, i, j) for j in range(n)] for i in range(n)]
    return _laplace(entries)


def _entry(x: Node, i: int, j: int) -> Node:
    y = take(take(x, -2, i, 1), -1, j, 1)
    return reshape(y, y.shape[:-2])


def _laplace(m: list[list[Node]]) -> Node:
    if len(m) == 1:
        return m[0][0]
    total = None
    for j, head in enumerate(m[0]):
        term = op.mul(head, _laplace([[v for k, v in enumerate(row) if k != j] for row in m[1:]]))
        total = term if total is None else op.sub(total, term) if j % 2 else op.add(total, term)
    assert total is not None
    return total


@onnx_op("Col2Im")
def col2im(c: Call):
    x, image, block = c.x, c.ints(1, "image_shape"), c.ints(2, "block_shape")
    n = len(image)
    strides, dilations = c.attr("strides", (1,) * n), c.attr("dilations", (1,) * n)
    pads = c.attr("pads", (0,) * 2 * n)
    count = int(np.prod(block, dtype=object))
    if count * int(np.prod(image, dtype=object)) > STATIC or min((*image, *block, *strides, *dilations)) < 1:
        raise Unsupported(f"blocks {block} of an image {image}")
    channels = x.shape[1] // count
    counts = [
        (image[i] + pads[i] + pads[n + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(n)
    ]
    padded = [image[i] + pads[i] + pads[n + i] for i in range(n)]
    places = np.zeros((count, int(np.prod(counts))), np.int64)
    for b, offset in enumerate(itertools.product(*map(range, block))):
        at = np.zeros(counts, np.int64)
        for i in range(n):
            line = np.arange(counts[i]) * strides[i] + offset[i] * dilations[i]
            at = at * padded[i] + line.reshape([-1 if j == i else 1 for j in range(n)])
        places[b] = at.reshape(-1)
    size = int(np.prod(padded))
    shape = [x.shape[0], channels, places.size]
    values = reshape(x, shape)
    at = op.expand(constant(places.reshape(1, 1, -1)), shape=tuple(shape))
    zero = full([x.shape[0], channels, size], 0, x.dtype)
    y = op.scatter_elements(zero, at, values, axis=2, reduction="add")
    y = reshape(y, [x.shape[0], channels, *padded])
    return op.slice(y, starts=(0, 0, *pads[:n]), sizes=(x.shape[0], channels, *image), steps=(1,) * (n + 2))


@onnx_op("MaxUnpool")
def max_unpool(c: Call):
    x, at = c[0], c[1]
    kernel = c.need_attr("kernel_shape")
    n = len(kernel)
    strides, pads = c.attr("strides", (1,) * n), c.attr("pads", (0,) * 2 * n)
    natural = [(x.shape[2 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[n + i] for i in range(n)]
    out = list(c.dims(2, "output_shape")) if c.has(2) else [*x.shape[:2], *natural]
    total = product(x.shape)
    # the indices count in the unpooled tensor of the natural shape
    flat = full([product([*x.shape[:2], *natural])], 0, x.dtype)
    y = op.scatter_elements(flat, reshape(at, [total]), reshape(x, [total]), axis=0)
    y = reshape(y, [*x.shape[:2], *natural])
    after = tuple(o - d for o, d in zip(out, y.shape))
    return op.pad(y, before=(0,) * x.rank, after=after)


@onnx_op("BitCast")
def bit_cast(c: Call):
    dtype = c.dtype("to")
    if dtype == c.x.dtype:
        return c.x
    signed = {"u": "i", "i": "u"}
    if dtype and dtype[1:] == c.x.dtype[1:] and signed.get(dtype[0]) == c.x.dtype[0]:
        return emit("cast", c.x, dtype=dtype)
    raise Unsupported(f"the bits of {c.x.dtype} as {dtype}")
