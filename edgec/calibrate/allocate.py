"""Which weights get 6 or 8 bits instead of 4: those that alone would cost the outputs most for the bytes they save."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from edgec.calibrate.data import Feeds
from edgec.calibrate.quantize import sites
from edgec.errors import EdgecError
from edgec.ir.node import Data, Graph
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


def choose(steps: Mapping[object, Sequence[tuple[float, float]]], room: float) -> dict[object, int]:
    """How many steps up each weight goes: the steps that gain most for what they cost come first, while there is room.

    steps: key -> (what it gains, what it costs) of each step; a later one gains less for its cost than those before it.
    """
    taken = dict.fromkeys(steps, 0)
    ranked = [(gain / cost, -at, key, cost) for key, some in steps.items() for at, (gain, cost) in enumerate(some)]
    for _, at, key, cost in sorted(ranked, key=lambda item: item[:2], reverse=True):
        if cost <= room * (1 + 1e-9) and taken[key] == -at:
            taken[key] += 1
            room -= cost
    return taken


def window(graph: Graph, feed: Feeds) -> Feeds:
    """The inputs to measure on: of a language model, the first tokens."""
    roles = decoder.roles(graph)
    if isinstance(roles, str):
        return feed
    return {n: a[:, :TOKENS] if a.ndim == 2 else a for n, a in feed.items()}


def levels(quantizer: Quantizer, data: Data) -> tuple[Quantized, ...]:
    """The encodings that a weight may have, from 4.25 bits up."""
    group = quantizer.group8(data.shape[1])
    return LOW, Quantized(6, min(64, group)), Quantized(8, group)


def allocate(graph: Graph, options: Options, bits: float, measure: Measure | None) -> Options:
    """The options with a plan for the linears: 4.25 bits, some 6.25 or some 8.125 each, at most `bits` on average (tables
    not counted).

    measure(graph, quantized): (key of an encoded weight, what it alone changes in the outputs, root mean square), as
    `edgec.loss.sensitivities` gives them. None: all alike, as many as fit. Raises EdgecError EC1301 for a model that is
    too large to measure.
    """
    quantizer, weights = Quantizer(options, graph), {}
    for data in (r.inputs[1]["data"] for site in sites(graph) for r in site.readers):
        if quantizer.role_of(data)[1] == "linear" and not quantizer.keeps(data, "linear"):
            weights[data.key] = data
    choices = {key: levels(quantizer, data) for key, data in weights.items()}
    low = replace(options, plan={**options.plan, **dict.fromkeys(weights, LOW)})
    sizes = {key: math.prod(data.shape) for key, data in weights.items()}
    total = sum(sizes.values())
    fit = [
        at for at in range(1, 3) if sum(bits_of(c[at]) * sizes[k] for k, c in choices.items()) <= bits * total + 1e-6
    ]
    if len(fit) == 2 or measure is None:
        taken = dict.fromkeys(weights, max(fit, default=0))
    else:
        if total > LARGE:
            reason = f"the mix is measured on the whole model in fp32, which needs {4 * total / 1e9:.0f} GB"
            raise EdgecError("EC1301", reason, "--bits", "Use --bits 4.25, or leave it out")
        found = {key[1]: value**2 for key, value in measure(graph, quantize(graph, low)[0])}  # key[1]: the source's
        steps = {key: list(_steps(found.get(key, 0.0), choices[key], sizes[key])) for key in weights}
        taken = choose(steps, (bits - bits_of(LOW)) * total)
    return replace(low, plan={**low.plan, **{k: choices[k][at] for k, at in taken.items()}})


def _steps(loss: float, choices: Sequence[Quantized], size: int) -> Iterator[tuple[float, float]]:
    """What each encoding gains over the one before it, and costs: each bit more leaves a quarter of the squared error."""
    for a, b in itertools.pairwise(choices):
        yield loss * (4.0 ** (4 - a.bits) - 4.0 ** (4 - b.bits)), (bits_of(b) - bits_of(a)) * size


__all__ = ["allocate", "bits_of", "choose", "window"]
