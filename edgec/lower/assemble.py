"""Units in order -> the plan: values with their storage and lifetimes, steps with their arguments, run-time checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgec.artifact.plan import (
    ABSENT,
    Arg,
    Check,
    CheckKind,
    Plan,
    Source,
    State,
    Step,
    StepKind,
    Storage,
    Symbol,
    Value,
)
from edgec.errors import EdgecError
from edgec.ir.dims import Dim, Expr, max_dim, postfix, product, symbol_name
from edgec.ir.node import Data, Graph, Node, infer
from edgec.ir.ops.registry import collect_assumptions
from edgec.ir.types import TensorType, TupleType, dtype_size
from edgec.lower.builtins import Builtin
from edgec.lower.groups import Compiled
from edgec.lower.guards import Guard
from edgec.lower.schedule import Branch, Unit

ALIGN = 64
_KINDS = {"equal": CheckKind.EQUAL, "at_least": CheckKind.AT_LEAST, "broadcast": CheckKind.BROADCAST}
_SAYS = {
    "equal": "{0} and {1} must be equal",
    "at_least": "{0} must be at least {1}",
    "broadcast": "{0} and {1} must be equal, or one of them 1",
}


@dataclass
class Blob:
    """One constant of weights.bin: pieces() gives its bytes, in order, when they are written."""

    offset: int
    nbytes: int
    pieces: Callable[[], Iterator[np.ndarray]]


@dataclass
class Assembled:
    plan: Plan
    blobs: list[Blob] = field(default_factory=list)
    steps: list[tuple[object, str]] = field(default_factory=list)  # what each step of the plan runs, for reports


def base_of(node: Node) -> Node:
    """The node whose memory an alias shares."""
    while node.op == "reshape":
        assert node.inputs[0] is not None
        node = node.inputs[0]
    return node


@dataclass
class States:
    """What the session keeps: the inputs, and the nodes that append to them, in the graph's order of states."""

    pasts: list[Node] = field(default_factory=list)
    appends: dict[Node, int] = field(default_factory=dict)  # node -> index of its state
    presents: list[str] = field(default_factory=list)  # the outputs' names
    axis: dict[Node, int] = field(default_factory=dict)  # past -> its axis of tokens
    dtypes: list[str] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)


def find_states(graph: Graph) -> States:
    """Raises EdgecError EC1401 where a state is read by anything but its append, or that by anything but attention."""
    found, users = States(), graph.users()
    inputs, outputs = {n["name"]: n for n in graph.inputs}, dict(graph.outputs)
    for past_name, present in graph.states:
        past, append = inputs[past_name], outputs[present]
        reason = None
        if append.op != "cache_append" or append.inputs[0] is not past or users.get(past) != [append]:
            reason = f"{present!r} is not what is appended to it"
        roles = [tuple(i is append for i in u.inputs) if u.op == "attention" else None for u in users.get(append, ())]
        if reason is None and any(r is None or r[0] or r[3] or r != roles[0] for r in roles):
            reason = "something else than attention reads it, or both as keys and as values"
        elif sum(n in (past, append) for _, n in graph.outputs) > 1 or append in found.appends:
            reason = "two outputs show it"
        if reason:
            raise EdgecError("EC1401", f"it cannot be kept in the session: {reason}", f"state {past_name!r}")
        found.appends[append] = len(found.pasts)
        found.pasts.append(past)
        found.presents.append(present)
        found.axis[past] = append["axis"]
        found.dtypes.append(append["dtype"])
        found.keys.append(bool(roles) and roles[0] is not None and roles[0][1])
    return found


class Assembler:
    def __init__(self, graph: Graph, pack: Callable[[Node], Data]):
        """pack: the packed bytes of a `pack` node."""
        self.graph, self.pack = graph, pack
        self.out = Assembled(Plan())
        self.plan = self.out.plan
        self.index: dict[Node, int] = {}  # value of each node in memory
        self.blob_at: dict[object, int] = {}
        self.offset = 0
        self.guarded = False  # inside of a branch's side
        self.owner: dict[Node, int] = {}  # node -> graph output whose memory it is written to
        self.first: dict[int, int] = {}  # temp value -> first and last step that touches it
        self.last: dict[int, int] = {}
        self.states = find_states(graph)
        self.inputs = [n for n in graph.inputs if n not in self.states.pasts]
        self.outputs = [(name, n) for name, n in graph.outputs if name not in self.states.presents]
        self._symbols()

    # Dims

    def _symbols(self) -> None:
        self.symbol_index: dict[str, int] = {}
        for position, node in enumerate(self.inputs):
            for axis, dim in enumerate(node.shape):
                if (name := symbol_name(dim)) is not None:
                    self._symbol(name, position, axis)
        for past in self.states.pasts:
            if (name := symbol_name(past.shape[self.states.axis[past]])) is not None:
                self._symbol(name, Source.LENGTH)
        for name, default in self.graph.parameters.items():
            self._symbol(name, Source.PARAMETER, default=tuple(self._words(default)))

    def _symbol(self, name: str, source: int, axis: int = 0, default: tuple[int, ...] = ()) -> None:
        if name not in self.symbol_index:
            lo, hi = self.graph.symbols.get(name, (0, None))
            self.plan.symbols.append(Symbol(name, source, axis, lo, -1 if hi is None else hi, default))
            self.symbol_index[name] = len(self.plan.symbols) - 1

    def dim(self, d: Dim) -> int:
        return self.plan.expr(*self._words(d))

    def _words(self, d: Dim) -> list[int]:
        def sym(name: str) -> int:
            if name not in self.symbol_index:
                raise EdgecError("EC1203", f"no input has a dim that is just {name!r}", hint=f"Fix it: --dim {name}=N")
            return self.symbol_index[name]

        return postfix(d, sym)

    def _kept(self, past: Node, append: Node, number: int) -> State:
        axis = append["axis"]
        heads, dim = past.shape[3 - axis], past.shape[3]
        if not isinstance(heads, int) or not isinstance(dim, int):
            raise EdgecError("EC1203", f"a state of {past.type}", f"input {past['name']!r}", "Fix its sizes: --dim")
        growth = append.shape[axis] - past.shape[axis]
        batch, grown = self.dim(past.shape[0]), self.dim(growth)
        present, keys = self.states.presents[number], self.states.keys[number]
        return State(past["name"], present, append["dtype"], keys, heads, dim, batch, grown)

    # Values

    def _value(self, type: TensorType, storage: Storage, a=0, b=0, c=0) -> int:
        # A side that is not taken may have sizes that make no sense; all sizes are bound before it is known.
        dims = tuple(self.dim(max_dim(d, 0) if self.guarded else d) for d in type.shape)
        return self.plan.value(Value(type.dtype, dims, storage, a, b, c))

    def _bytes_of(self, type: TensorType) -> int:
        size = product(type.shape) * dtype_size(type.dtype)
        return self.dim(max_dim(size, 0) if self.guarded else size)

    def value(self, node: Node) -> int:
        """The index of the node's value; constants are placed when they are first asked for."""
        if node in self.index:
            return self.index[node]
        if node.op == "constant":
            index = self._constant(node["data"], node.type)
        elif node.op == "pack":
            data = self.pack(node)
            index = self._constant(data, data.type)
        elif node.op == "reshape":
            assert node.inputs[0] is not None
            below = self.value(node.inputs[0])
            base = base_of(node)
            if base in self.owner:
                index = self._value(node.type, Storage.OUTPUT, self.owner[base])
            else:
                index = self._value(node.type, Storage.ALIAS, below, self.plan.const(0))
        else:
            raise AssertionError(f"{node} is not in memory")
        self.index[node] = index
        return index

    def _constant(self, data: Data, type: TensorType) -> int:
        nbytes = int(np.prod(type.shape, dtype=np.int64)) * dtype_size(type.dtype)
        storage = Storage.CONSTANT
        if data.expands is not None:
            storage, nbytes = Storage.EXPANDED, data.expands
        if data.key not in self.blob_at:
            self.blob_at[data.key] = self.offset
            self.out.blobs.append(Blob(self.offset, nbytes, data.pieces))
            self.offset += -(-nbytes // ALIGN) * ALIGN
        return self._value(type, storage, self.blob_at[data.key], nbytes)

    def _state(self, node: Node, index: int, axis: int) -> int:
        """A state as a value, always [batch, heads, tokens, dim]."""
        b, *middle, d = node.shape
        heads, tokens = middle if axis == 2 else middle[::-1]
        dims = tuple(map(self.dim, (b, heads, tokens, d)))
        return self.plan.value(Value(self.states.dtypes[index], dims, Storage.STATE, index))

    def _define(self, node: Node, type: TensorType) -> int:
        if node in self.states.appends:
            return self._state(node, self.states.appends[node], node["axis"])
        if node in self.owner:
            return self._value(type, Storage.OUTPUT, self.owner[node])
        return self._value(type, Storage.TEMP, self._bytes_of(type))

    def _touch(self, index: int, step: int) -> None:
        value = self.plan.values[index]
        while value.storage == Storage.ALIAS:
            index = value.a
            value = self.plan.values[index]
        if value.storage == Storage.TEMP:
            self.first.setdefault(index, step)
            self.last[index] = max(self.last.get(index, step), step)

    # Steps

    def _step(self, step: Step, what: object = None) -> int:
        self.plan.steps.append(step)
        self.out.steps.append((what, step.origin))
        number = len(self.plan.steps) - 1
        for arg in step.args:
            if arg.kind == 0:
                self._touch(int(arg.value), number)
        return number

    def _param(self, p) -> Arg:
        if isinstance(p, str):
            return Arg.string(p)
        if isinstance(p, float):
            return Arg.double(p)
        return Arg.dim(self.dim(p)) if isinstance(p, Expr) else Arg.imm(int(p))

    def _copy(self, source: int, target: int, origin: str) -> None:
        self._step(Step(StepKind.KERNEL, "copy", args=(Arg.of(source), Arg.of(target)), origin=origin))

    def _emit(self, items: Sequence[Unit | Branch]) -> None:
        for item in items:
            if self.guarded and isinstance(item, Unit):
                self._check_here(item)
            if isinstance(item, Branch):
                self._branch(item)
            elif isinstance(item.what, Compiled):
                self._call(item)
            elif isinstance(item.what, Builtin):
                self._kernel(item, item.what)
            else:
                self.value(item.outputs[0])

    def _check_here(self, unit: Unit) -> None:
        for kind, a, b, message in self._assumptions(unit.nodes):
            args = (Arg.imm(kind), self._param(a), self._param(b), Arg.string(message))
            self._step(Step(StepKind.KERNEL, "check", args=args, origin=self._origin(unit)))

    def _call(self, unit: Unit) -> None:
        compiled = unit.what
        assert isinstance(compiled, Compiled)
        for node in unit.outputs:
            self.index[node] = self._define(node, node.type)
        args = []
        for kind, arg, *packing in compiled.args:
            if kind == "value":
                args.append(Arg.of(self.value(arg)))
            elif kind == "packed":
                data = packing[0].packed(*(node["data"] for node in arg))
                args.append(Arg.of(self._constant(data, data.type)))
            elif kind == "dim":
                args.append(Arg.dim(self.dim(arg)))
            else:
                args.append(Arg.scratch(self.dim(arg)))
        origin = self._origin(unit)
        extent = self.dim(compiled.extent)
        self._step(Step(StepKind.CALL, compiled.symbol, extent, compiled.grain, tuple(args), origin), unit)

    def _kernel(self, unit: Unit, builtin: Builtin) -> None:
        node = unit.outputs[0]
        types = node.type.items if isinstance(node.type, TupleType) else (node.type,)
        args = [ABSENT if o is None else Arg.of(self.value(o)) for o in builtin.operands]
        items = {u["index"]: u for u in self.users.get(node, []) if u.op == "item"}
        for i, type in enumerate(types):
            target = items.get(i) if isinstance(node.type, TupleType) else node
            if target is None:
                index = self._value(type, Storage.TEMP, self._bytes_of(type))
            else:
                index = self.index[target] = self._define(target, type)
            args.append(Arg.of(index))
        args += map(self._param, builtin.params)
        self._step(Step(StepKind.KERNEL, builtin.name, args=tuple(args), origin=self._origin(unit)), unit)

    def _origin(self, unit: Unit) -> str:
        return self.graph.origin(unit.outputs[0])

    def _branch(self, branch: Branch) -> None:
        for node in branch.nodes:
            self.index[node] = self._define(node, node.type)
        origin = self.graph.origin(branch.nodes[0])
        self._step(Step(StepKind.JUMP_IF_FALSE, args=(Arg.of(self.value(branch.pred)), Arg.imm(0)), origin=origin))
        skip = len(self.plan.steps) - 1
        outside, self.guarded = self.guarded, True
        for side, items in ((1, branch.then), (2, branch.orelse)):
            self._emit(items)
            for node in branch.nodes:
                source = node.inputs[side]
                assert source is not None
                self._copy(self.value(source), self.index[node], self.graph.origin(node))
            if side == 1:
                self._step(Step(StepKind.JUMP, args=(Arg.imm(0),), origin=origin))
                end = len(self.plan.steps) - 1
                pred = self.plan.steps[skip].args[0]
                self.plan.steps[skip].args = (pred, Arg.imm(len(self.plan.steps)))
        self.plan.steps[end].args = (Arg.imm(len(self.plan.steps)),)
        self.guarded = outside

    def _assumptions(self, nodes: Iterable[Node]) -> Iterator[tuple[CheckKind, Dim, Dim, str]]:
        """What the nodes' inference takes for granted, each thing once."""
        seen = set()
        for node in nodes:
            if node.op in ("input", "constant"):
                continue
            with collect_assumptions() as assumed:
                infer(node)
            for kind, a, b in assumed:
                if (kind, a, b) not in seen:
                    seen.add((kind, a, b))
                    yield _KINDS[kind], a, b, f"{self.graph.origin(node)}: {_SAYS[kind].format(a, b)}"

    def run(self, items: Sequence[Unit | Branch], guard: Callable[[Node], Guard]) -> Assembled:
        """Everything; `items` as schedule.order gives them."""
        self.users = self.graph.users()
        for number, (past, append) in enumerate(zip(self.states.pasts, self.states.appends)):
            self.index[past] = self._state(past, number, append["axis"])
            self.plan.states.append(self._kept(past, append, number))
        for position, node in enumerate(self.inputs):
            self.index[node] = self._value(node.type, Storage.INPUT, position)
            self.plan.inputs.append((node["name"], self.index[node]))
        for position, (_, node) in enumerate(self.outputs):
            base = base_of(node)
            if base.op not in ("input", "constant", "pack") and base not in self.owner:
                self.owner[base] = position
        for kind, a, b, message in self._assumptions(n for n in self.graph.nodes() if not guard(n)):
            self.plan.checks.append(Check(kind, self.dim(a), self.dim(b), message))
        self._emit(items)
        for position, (name, node) in enumerate(self.outputs):
            if self.owner.get(base_of(node)) == position:
                index = self.value(node)
            else:
                index = self._value(node.type, Storage.OUTPUT, position)
                self._copy(self.value(node), index, name)
            self.plan.outputs.append((name, index))
        for index, value in enumerate(self.plan.values):
            if value.storage == Storage.TEMP:
                value.b, value.c = self.first.get(index, 0), self.last.get(index, 0)
        return self.out
