"""Resize and its older forms."""

from __future__ import annotations

from edgec.frontend.emit import array_of, op
from edgec.frontend.registry import Call, Unsupported, onnx_op
from edgec.frontend.symbolic import Ratio
from edgec.ir.dims import Dim, Expr, floordiv


def _scaled(d: Dim, scale) -> Dim:
    """floor(d * scale)."""
    num, den = (scale.num, scale.den) if isinstance(scale, Ratio) else (scale, 1)
    return floordiv(d * num, den)


def _number(scale) -> float:
    """A scale as a number; 0.0 (size / operand's size) where it depends on a size."""
    if isinstance(scale, Ratio):
        return scale.num / scale.den if isinstance(scale.num, int) and isinstance(scale.den, int) else 0.0
    return float(scale) if isinstance(scale, int) else 0.0


@onnx_op("Upsample")
def upsample(c: Call):
    x = c.x
    scales = c.known(1, "scales") if c.has(1) else None
    numbers = array_of(c[1]) if c.has(1) else c.need_attr("scales")
    from edgec.frontend.symbolic import of_number

    entries = list(scales) if scales is not None else [of_number(s) for s in numbers]
    exact = [float(s) for s in numbers] if numbers is not None else [_number(s) for s in entries]
    mode = {"nearest": "nearest", "linear": "linear", "bilinear": "linear"}.get(c.attr("mode", "nearest"))
    if mode is None:
        raise ValueError(f"no mode {c.attr('mode')!r}")
    sizes = tuple(_scaled(d, s) for d, s in zip(x.shape, entries))
    return op.resize(x, sizes=sizes, scales=tuple(exact), mode=mode, coordinates="asymmetric", nearest="floor")


@onnx_op("Resize")
def resize(c: Call):
    x = c.x
    if c.version < 11:
        c.inputs = [c[0], None, c[1]]
    axes = [c.in_rank(a, x.rank) for a in c.attr("axes", range(x.rank))]
    coordinates = c.attr("coordinate_transformation_mode", "asymmetric" if c.version < 11 else "half_pixel")
    mode, antialias = c.attr("mode", "nearest"), bool(c.attr("antialias", 0))
    sizes: list[Dim] = list(x.shape)
    scales = [1.0] * x.rank
    empty = c.has(2) and c[2].shape == (0,)
    if c.has(2) and not empty:
        entries = c.known(2, "scales")
        numbers = array_of(c[2])
        for i, a in enumerate(axes):
            scales[a] = float(numbers[i]) if numbers is not None else _number(entries[i])
            sizes[a] = _scaled(x.shape[a], entries[i])
    else:
        wanted = c.dims(3, "sizes")
        if len(wanted) != len(axes):
            raise ValueError(f"{len(wanted)} sizes for {len(axes)} axes")
        policy = c.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            wanted = _keep_aspect(c, axes, wanted, policy, scales)
        for a, want in zip(axes, wanted):
            sizes[a] = want
            if policy == "stretch":
                scales[a] = 1.0 if want == x.shape[a] else _quotient(want, x.shape[a])
    roi: list[float] = []
    if coordinates == "tf_crop_and_resize":
        given = [float(v) for v in c.array(1, "roi").reshape(-1)]
        roi = [0.0] * x.rank + [1.0] * x.rank
        for i, a in enumerate(axes):
            roi[a], roi[x.rank + a] = given[i], given[i + len(axes)]
    nearest = c.attr("nearest_mode", "floor" if c.version < 11 else "round_prefer_floor")
    shrunk = [s != 0 and s < 1 for s in scales]
    if c.version < 11 and mode == "nearest" and any(shrunk):
        # opset 10 leaves the rounding open; onnxruntime rounds up where it shrinks and down elsewhere
        how = {"mode": mode, "coordinates": coordinates}
        half, part = zip(*((s, k) if s_ else (d, 1.0) for s, k, d, s_ in zip(sizes, scales, x.shape, shrunk)))
        x = op.resize(x, sizes=half, scales=part, nearest="ceil", **how)
        scales = [1.0 if s_ else k for k, s_ in zip(scales, shrunk)]
    return op.resize(x, sizes=tuple(sizes), scales=tuple(scales), roi=tuple(roi), mode=mode, coordinates=coordinates,
                     nearest=nearest, cubic_a=c.attr("cubic_coeff_a", -0.75), antialias=antialias,
                     exclude_outside=bool(c.attr("exclude_outside", 0)),
                     extrapolation=float(c.attr("extrapolation_value", 0.0)))  # fmt: skip


def _quotient(out: Dim, size: Dim) -> float:
    """out / size if it is a number, else 0.0 (decided at run time)."""
    if isinstance(size, Expr):
        whole = floordiv(out, size)
        return float(whole) if isinstance(whole, int) and whole * size - out == 0 else 0.0
    return out / size if isinstance(out, int) and size else 0.0


def _keep_aspect(c: Call, axes, wanted, policy: str, scales: list[float]) -> list[Dim]:
    shape = [c.x.shape[a] for a in axes]
    if not all(isinstance(d, int) for d in (*shape, *wanted)):
        raise Unsupported(f"keep_aspect_ratio_policy {policy!r} with open sizes", "Fix the sizes with --dim")
    if policy not in ("not_larger", "not_smaller"):
        raise ValueError(f"no keep_aspect_ratio_policy {policy!r}")
    ratios = [w / d for w, d in zip(wanted, shape)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    for a in axes:
        scales[a] = scale
    return [int(scale * d + 0.5) for d in shape]
