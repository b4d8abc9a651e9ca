"""Rewrites: the engine, the rules, and the phases in which they run."""

from edgec.rewrites.engine import Phase, Record, Rule, apply, run
from edgec.rewrites.phases import PHASES, all_rules

__all__ = ["PHASES", "Phase", "Record", "Rule", "all_rules", "apply", "run"]
