"""The phases in their order, and the walk over all rules."""

from __future__ import annotations

from edgec.rewrites import attention, elementwise, fold, gathers, linear, masks, merge, movement, recognise, rope
from edgec.rewrites.engine import Phase, Rule
from edgec.rewrites.quantize import Options, Quantizer

CANONICAL = (*fold.RULES, *elementwise.RULES, *movement.RULES, *gathers.RULES)
RECOGNISE = (*recognise.RULES, *attention.RULES, *masks.RULES, *rope.RULES)
FUSE = (*linear.RULES, *merge.RULES)

# Each phase keeps the rules before it, so that what a fusion leaves behind is cleaned up at once.
PHASES: list[Phase] = [
    Phase("canonicalise", CANONICAL),
    Phase("recognise", (*CANONICAL, *RECOGNISE)),
    Phase("fuse", (*CANONICAL, *RECOGNISE, *FUSE)),
]


def all_rules() -> list[Rule]:
    """Every rule once; names are unique."""
    return [*CANONICAL, *RECOGNISE, *FUSE, *Quantizer(Options()).rules()]
