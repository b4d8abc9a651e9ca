"""Runs a graph in torch, with gradients for the constants that are chosen as parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import torch

from edgec.distill.ops import DTYPES, TORCH, refuses
from edgec.errors import EdgecError
from edgec.ir.dims import evaluate
from edgec.ir.evaluate import Evaluator, FeedError, bind_attrs, bind_symbols
from edgec.ir.node import Graph, Node
from edgec.ir.ops import OPS
from edgec.ir.types import TensorType, dtype_of

Tensor = torch.Tensor


def tensor_of(array: np.ndarray, dtypes: Mapping[str, torch.dtype] = DTYPES) -> Tensor:
    """A tensor of the array's content; bfloat16, which numpy has no type for, by way of f32."""
    name = dtype_of(array.dtype)
    source = array.astype(np.float32) if name == "bf16" else np.ascontiguousarray(array).reshape(array.shape)
    return torch.from_numpy(source.copy() if not source.flags.writeable else source).to(dtypes[name])


class TorchGraph(torch.nn.Module):
    """A graph as a torch module.

    learned: node (a constant, or an input that is not fed) -> its value as a Parameter, or a module that gives it. What
    does not depend on one of these needs no gradient and may be any op: what torch does not have runs in its numpy
    reference. double: f32 becomes f64, for checks of gradients.
    Raises EdgecError EC1303 for a node between a learned value and an output that has no gradient.
    """

    def __init__(
        self,
        graph: Graph,
        learned: Mapping[Node, torch.nn.Parameter | torch.nn.Module] | None = None,
        double: bool = False,
    ):
        super().__init__()
        self.graph = graph
        self.learned = dict(learned or {})
        self.dtypes = DTYPES | ({"f32": torch.float64} if double else {})
        nodes = graph.nodes()
        self.moving: set[Node] = set()  # nodes whose value depends on a learned one
        problems = []
        for node in nodes:
            if node in self.learned or any(i in self.moving for i in node.operands()):
                self.moving.add(node)
                if node not in self.learned and (reason := refuses(node)):
                    problems.append(f"{graph.origin(node)} ({node.op}): {reason}")
        if problems:
            raise EdgecError("EC1303", "; ".join(problems), None, "Train a model without these nodes")
        self.inputs = tuple(n for n in graph.inputs if n not in self.learned)
        self.counts: dict[Node, int] = {}
        for node in [i for n in nodes for i in n.operands()] + [n for _, n in graph.outputs]:
            self.counts[node] = self.counts.get(node, 0) + 1
        self.constants: dict[Node, Tensor] = {
            n: tensor_of(n["data"].array(), self.dtypes) for n in nodes if n.op == "constant" and n not in self.learned
        }
        self.halves: dict[Node, Tensor] = {}
        self.weights = {n.inputs[1] for n in nodes if n.op == "linear"}
        for i, value in enumerate(self.learned.values()):
            if isinstance(value, torch.nn.Parameter):
                self.register_parameter(f"learned{i}", value)
            else:
                self.add_module(f"learned{i}", value)

    def forward(
        self,
        feeds: Mapping[str, np.ndarray | Tensor],
        keep: Iterable[Node] = (),
        parameters: Mapping[str, int] | None = None,
        outputs: Collection[str] | None = None,
    ) -> tuple[dict[str, Tensor], dict[Node, Tensor]]:
        """The outputs by name (all, or those asked for), and the values of the nodes in `keep`. parameters: as
        evaluate.run's.

        Raises EdgecError EC1601, EC1603 (inputs that do not fit), EC1605 (a value that an op cannot take)."""
        given = {
            name: v if isinstance(v, Tensor) else tensor_of(np.asarray(v), self.dtypes) for name, v in feeds.items()
        }
        try:
            env = bind_symbols(self.inputs, given)  # type: ignore[arg-type]
        except FeedError as error:
            raise EdgecError("EC1603", str(error)) from None
        for name, default in self.graph.parameters.items():
            env[name] = (parameters or {}).get(name, evaluate(default, env))
        run = _Run(self, given, env, keep)
        wanted = [(name, node) for name, node in self.graph.outputs if outputs is None or name in outputs]
        return {name: run(node) for name, node in wanted}, {node: run(node) for node in run.keep}

    def apply(self, node: Node, args: Sequence[Tensor | None], env: Mapping[str, int] = {}):
        """What the node's op makes of these values."""
        return TORCH[node.op](*args, **bind_attrs(node.attrs, env))

    def constant(self, node: Node) -> Tensor:
        """The value of a constant that does not learn; under autocast that of a product's weight is halved once."""
        value = self.constants[node]
        if not torch.is_autocast_enabled("cpu") or node not in self.weights or value.dtype != torch.float32:
            return value
        if node not in self.halves:
            self.halves[node] = value.to(torch.get_autocast_dtype("cpu"))
        return self.halves[node]


class _Run(Evaluator):
    """One evaluation; a value goes when its last user has it."""

    def __init__(self, module: TorchGraph, feeds: Mapping[str, Tensor], env: Mapping[str, int], keep: Iterable[Node]):
        super().__init__(feeds, env)  # type: ignore[arg-type]
        self.module, self.keep = module, tuple(keep)
        self.left = dict(module.counts)
        for node in self.keep:
            self.left[node] = self.left.get(node, 0) + 1

    def _compute(self, node: Node):
        try:
            value = self._value(node)
        except EdgecError:
            raise
        except (IndexError, RuntimeError, ValueError) as error:
            origin = self.module.graph.origin(node)
            raise EdgecError("EC1605", f"{node.op}: {str(error).splitlines()[0]}", origin) from error
        for i in node.operands():
            self.left[i] -= 1
            if not self.left[i]:
                self.values.pop(i, None)
        return value

    def _value(self, node: Node):
        m = self.module
        if node in m.learned:
            value = m.learned[node]
            return value() if isinstance(value, torch.nn.Module) else value
        if node.op == "constant":
            return m.constants[node]
        if node.op == "input":
            return self.feeds[node["name"]].to(m.dtypes[node.dtype])  # type: ignore[attr-defined]
        if node.op == "branch":
            pred, a, b = node.operands()
            return self.values[a if self.values[pred] else b]
        attrs = bind_attrs(node.attrs, self.env)
        args = [None if i is None else self.values[i] for i in node.inputs]
        if node.op == "linear" and node.inputs[1] in m.constants:
            args[1] = m.constant(node.inputs[1])
        if node.op == "cast":
            return args[0].to(m.dtypes[attrs["dtype"]])
        if node.op == "iota":
            return torch.arange(attrs["size"]).to(m.dtypes[attrs["dtype"]])
        if node.op == "dim_value":
            return torch.tensor(attrs["value"]).to(m.dtypes[attrs["dtype"]])
        if node in m.moving or _in_torch(node):
            return TORCH[node.op](*args, **attrs)
        return self._by_reference(node, args, attrs)

    def _by_reference(self, node: Node, args: list, attrs: dict):
        found = OPS[node.op].reference(*[None if a is None else a.numpy() for a in args], **attrs)
        if isinstance(found, tuple):
            return tuple(tensor_of(f, self.module.dtypes) for f in found)
        return tensor_of(np.asarray(found), self.module.dtypes)


_SLOW = ("u16", "u32", "u64")  # torch has these types, but few ops of them


def _in_torch(node: Node) -> bool:
    types = [
        t for n in (node, *node.operands()) for t in ((n.type,) if isinstance(n.type, TensorType) else n.type.items)
    ]
    return refuses(node) is None and not any(t.dtype in _SLOW for t in types)
