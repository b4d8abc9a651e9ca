"""Structured pruning: which channels hang together, and the graph without some of them."""

from edgec.rewrites.prune.blocks import Branch, branches, drop, layers
from edgec.rewrites.prune.channels import Channels, Group, analyse
from edgec.rewrites.prune.slicing import prune, with_weights

__all__ = ["Branch", "Channels", "Group", "analyse", "branches", "drop", "layers", "prune", "with_weights"]
