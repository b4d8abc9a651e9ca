"""What the partitioner hands to the code generators, and what they hand back."""

from __future__ import annotations

from dataclasses import dataclass

from edgec.ir.dims import Dim
from edgec.ir.node import Node


@dataclass(frozen=True)
class Group:
    """Nodes that one compiled function computes.

    kind: the template's name: "map", "rows", "conv", ... nodes: in topological order, all computed inside. inputs:
    operands from outside, row-major and contiguous in memory. outputs: the nodes that are written to memory.
    """

    kind: str
    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]


@dataclass(frozen=True)
class Compiled:
    """How to call a group's function: f(*args, begin, end) over slices of [0, extent).

    symbol: the function's name; equal groups share one. args: ("value", Node) | ("dim", Dim) | ("scratch", Dim
    bytes, for each worker) | ("packed", constant Nodes, packing): packing.packed(*data of the constants), a handle
    of what is stored instead of them. grain: the least units that make a slice of about 10 us.
    """

    symbol: str
    args: tuple
    extent: Dim
    grain: int
