"""What --prune and --speedup ask for.

20%                          of the multiply-accumulates of products, wherever it costs least
ffn=30%,heads=25%,conv=20%   of the channels of a kind
layers=2                     whole layers
attention=4                  the attention of layers that are left, which keep their feed-forward
wanda:2:4, magnitude:50%     zeros, for comparison: shapes stay
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from edgec.calibrate.prune.masks import MASKS
from edgec.errors import EdgecError
from edgec.rewrites.prune.channels import KINDS

ALLOCATIONS = ("global", "uniform")
HINT = "Such as 20%, ffn=30%,layers=2, or wanda:2:4"


@dataclass(frozen=True)
class Request:
    """share: of all products' work (0.2). kinds: "ffn", "heads", "conv" -> share of their units. layers, attention: to drop.
    mask: (method, pattern). speedup: 1.5 for a latency of 1 / 1.5. allocation: how a share is spread over layers."""

    share: float | None = None
    kinds: dict[str, float] = field(default_factory=dict)
    layers: int = 0
    attention: int = 0
    mask: tuple[str, float | tuple[int, int]] | None = None
    speedup: float | None = None
    allocation: str = "global"


def parse(prune: str | None, speedup: str | float | None) -> Request | None:
    """The request of the two options; None where nothing is asked for. Raises EC1001 for text that says nothing."""
    if speedup is not None:
        if prune is not None:
            raise EdgecError("EC1001", "--prune says how much already", "--speedup", "Give one of the two")
        return Request(speedup=_factor(str(speedup)))
    if prune is None:
        return None
    if ":" in prune:
        return Request(mask=_mask(prune))
    kinds: dict[str, float] = {}
    found: dict = {}
    for part in prune.split(","):
        name, _, value = part.strip().partition("=")
        if name in kinds or name in found or ("=" not in part and "share" in found):
            raise _wrong(f"{name} is given twice")
        if "=" not in part:
            found["share"] = _share(part)
        elif name in ("layers", "attention"):
            if not value.isdecimal() or not 0 < int(value) < 10**6:
                raise _wrong(f"{value!r} is no number of layers")
            found[name] = int(value)
        elif name == "allocation":
            if value not in ALLOCATIONS:
                raise _wrong(f"{value!r} is none of {', '.join(ALLOCATIONS)}")
            found["allocation"] = value
        elif name in KINDS:
            kinds[name] = _share(value)
        else:
            raise _wrong(f"{name!r} is none of {', '.join((*KINDS, 'layers', 'attention', 'allocation'))}")
    if kinds and "share" in found:
        raise _wrong("a share of all work and shares of a kind do not go together")
    if not kinds and not found.keys() & {"share", "layers", "attention"}:
        raise _wrong("it says nothing to remove")
    return Request(kinds=kinds, **found)


def _wrong(reason: str) -> EdgecError:
    return EdgecError("EC1001", reason, "--prune", HINT)


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip())
    if not match or not 0 < float(match[1]) < 100:
        raise _wrong(f"{text!r} is no share between 0% and 100%")
    return float(match[1]) / 100


def _factor(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x?", text.strip())
    if not match or not 1 < float(match[1]) <= 100 or not math.isfinite(float(match[1])):
        raise EdgecError("EC1001", f"{text!r} is no factor above 1", "--speedup", "Such as 1.5x")
    return float(match[1])


def _mask(text: str) -> tuple[str, float | tuple[int, int]]:
    method, _, pattern = text.partition(":")
    if method not in MASKS:
        raise _wrong(f"{method!r} is none of {', '.join(MASKS)}")
    blocks = re.fullmatch(r"(\d+):(\d+)", pattern)
    if blocks is None:
        return method, _share(pattern)
    n, m = int(blocks[1]), int(blocks[2])
    if not 0 < n < m <= 64:
        raise _wrong(f"{pattern!r} is no pattern of n of each m weights")
    return method, (n, m)
