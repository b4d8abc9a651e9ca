"""Which weights get 8 bits instead of 4: those that alone would cost the outputs most for the bytes they save."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from edgec.calibrate.data import Feeds
from edgec.calibrate.quantize import sites
from edgec.errors import EdgecError
from edgec.ir.node import Graph
from edgec.ir.types import Quantized
from edgec.rewrites import decoder
from edgec.rewrites.quantize import Options, Quantizer, quantize

LARGE = 1 << 29  # weights, of all linears
TOKENS = 64  # of the window that language models are measured on
LOW = Quantized(4, 32, table=True)
Measure = Callable[[Graph, Graph], Iterable[tuple[tuple, float]]]


def bits_of(encoding: Quantized) -> float:
    """Bits a weight, scales included (of long rows)."""
    scale = 8 if encoding.table else 16 + (4 if encoding.zero else 0)
    return encoding.bits + scale / (encoding.group or 1 << 20)


def choose(losses: Mapping[object, tuple[float, float]], room: float) -> set[object]:
    """The weights that get more bits: those of most loss for what they cost come first, while there is room.

    losses: key -> (loss of the weight without them, what they cost).
    """
    chosen = set()
    for key, (_, cost) in sorted(losses.items(), key=lambda item: -item[1][0] / item[1][1]):
        if cost <= room * (1 + 1e-9):
            chosen.add(key)
            room -= cost
    return chosen


def window(graph: Graph, feed: Feeds) -> Feeds:
    """The inputs to measure on: of a language model, the first tokens."""
    roles = decoder.roles(graph)
    if isinstance(roles, str):
        return feed
    return {n: a[:, :TOKENS] if a.ndim == 2 else a for n, a in feed.items()}


def allocate(graph: Graph, options: Options, bits: float, measure: Measure) -> Options:
    """The options with a plan for the linears: 4.25 bits or some 8.125 each, at most `bits` on average (tables not counted).

    measure(graph, quantized): (key of an encoded weight, what it alone changes in the outputs, root mean square), as
    `edgec.loss.sensitivities` gives them. Raises EdgecError EC1301 for a model that is too large to measure.
    """
    quantizer, weights = Quantizer(options, graph), {}
    for data in (r.inputs[1]["data"] for site in sites(graph) for r in site.readers):
        if quantizer.role_of(data)[1] == "linear" and not quantizer.keeps(data, "linear"):
            weights[data.key] = data
    low = replace(options, plan={**options.plan, **dict.fromkeys(weights, LOW)})
    high = {key: Quantized(8, quantizer.group8(data.shape[1])) for key, data in weights.items()}
    sizes = {key: math.prod(data.shape) for key, data in weights.items()}
    costs = {key: (bits_of(high[key]) - bits_of(LOW)) * size for key, size in sizes.items()}
    room = (bits - bits_of(LOW)) * sum(sizes.values())
    if room >= sum(costs.values()):
        chosen = set(weights)
    elif room < min(costs.values(), default=0):
        chosen = set()
    else:
        if sum(sizes.values()) > LARGE:
            reason = (
                f"the mix is measured on the whole model in fp32, which needs {4 * sum(sizes.values()) / 1e9:.0f} GB"
            )
            raise EdgecError("EC1301", reason, "--bits", "Use --bits 4.25, or leave it out")
        found = {key[1]: value**2 for key, value in measure(graph, quantize(graph, low)[0])}  # key[1]: the source's
        chosen = choose({key: (found.get(key, 0.0), cost) for key, cost in costs.items()}, room)
    return replace(low, plan={**low.plan, **{k: high[k] for k in chosen}})


__all__ = ["allocate", "bits_of", "choose", "window"]
