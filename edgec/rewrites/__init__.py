"""Rewrites: the engine, the rules, and the phases in which they run."""

from edgec.rewrites.decoder import as_decoder
from edgec.rewrites.engine import Phase, Record, Rule, apply, run
from edgec.rewrites.phases import PHASES, all_rules
from edgec.rewrites.states import one_length

__all__ = ["PHASES", "Phase", "Record", "Rule", "all_rules", "apply", "as_decoder", "one_length", "run"]
