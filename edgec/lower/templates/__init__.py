"""Code generators by kind of group. Each emits into a Builder and returns (extent, grain)."""

from __future__ import annotations

from collections.abc import Callable

from edgec.lower.templates import conv, conv_transpose, pool, resize, rows
from edgec.lower.templates import map as map_

TEMPLATES: dict[str, Callable] = {
    "map": map_.build,
    "rows": rows.build,
    "conv": conv.build,
    "conv_transpose": conv_transpose.build,
    "pool": pool.build,
    "resize": resize.build,
}
# why a template can't compute a node of its kind, or None
SUPPORTS: dict[str, Callable] = {
    "conv": conv.supports,
    "conv_transpose": conv_transpose.supports,
    "pool": pool.supports,
    "resize": resize.supports,
}
