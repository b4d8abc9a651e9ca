"""If, Loop and Scan; sequences whose tensors are known one by one."""

from __future__ import annotations

from edgec.frontend.emit import array_of, emit, index, op, reshape, split, unsqueeze
from edgec.frontend.registry import Call, Sequence_, Unsupported, onnx_op
from edgec.ir.node import Node, constant
from edgec.ir.ops.registry import same_dims

TRIPS = 1024  # unrolled at most


@onnx_op("If")
def if_(c: Call):
    condition = c[0]
    known = array_of(condition)
    label = c.node.name or c.op
    if known is not None:
        branch = c.need_attr("then_branch" if known.reshape(-1)[0] else "else_branch")
        return c.importer.subgraph(branch, [], label)
    sides = [c.importer.subgraph(c.need_attr(f"{side}_branch"), [], f"{label}.{side}") for side in ("then", "else")]
    return [_branch(c, reshape(condition, ()), a, b) for a, b in zip(*sides)]


def _branch(c: Call, condition: Node, a, b):
    if not isinstance(a, Node) or not isinstance(b, Node):
        raise Unsupported("a branch yields a sequence or an optional, and which one runs is known at run time only")
    if a.type != b.type:
        if a.dtype != b.dtype:
            raise ValueError(f"the branches yield {a.dtype} and {b.dtype}")
        if a.rank != b.rank or not all(same_dims(p, q) for p, q in zip(a.shape, b.shape)):
            raise c.blame(condition, f"the condition (the branches yield {a.type} and {b.type})")
        b = reshape(b, a.shape)
    return emit("branch", condition, a, b)


@onnx_op("Loop")
def loop(c: Call):
    body = c.need_attr("body")
    trips = _scalar(c, 0, "the trip count", (1 << 62))
    condition = c.get(1)
    if condition is not None and array_of(condition) is None:
        raise c.blame(condition, "the loop's condition")
    going = condition is None or bool(array_of(condition).reshape(-1)[0])
    carried = list(c.inputs[2:])
    scans: list[list[Node]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    trip = 0
    while going and trip < trips:
        if trip == TRIPS:
            raise Unsupported(f"the loop runs more than {TRIPS} times")
        flag = constant(True, "bool")
        outputs = c.importer.subgraph(body, [constant(trip, "i64"), flag, *carried], f"{c.node.name or c.op}[{trip}]")
        decided = array_of(outputs[0])
        if decided is None:
            raise Unsupported("whether the loop goes on is known at run time only")
        going = bool(decided.reshape(-1)[0])
        carried = outputs[1 : 1 + len(carried)]
        for scan, value in zip(scans, outputs[1 + len(carried) :]):
            scan.append(unsqueeze(value, 0))
        trip += 1
    if not trip and scans:
        raise Unsupported("the loop never runs but collects outputs")
    return [*carried, *(op.concat(*s, axis=0) for s in scans)]


def _scalar(c: Call, i: int, what: str, default: int) -> int:
    return int(c.ints(i, what)[0]) if c.has(i) else default


@onnx_op("Scan")
def scan(c: Call):
    body, count = c.need_attr("body"), c.need_attr("num_scan_inputs")
    values = list(c.inputs)
    if c.version < 9:
        raise Unsupported("Scan of opset 8", "Convert the model with onnx.version_converter")
    states, sequences = values[: len(values) - count], values[len(values) - count :]
    axes = c.attr("scan_input_axes", [0] * count)
    backwards = c.attr("scan_input_directions", [0] * count)
    outs = len(body.outputs) - len(states)
    out_axes, out_backwards = c.attr("scan_output_axes", [0] * outs), c.attr("scan_output_directions", [0] * outs)
    steps = sequences[0].shape[axes[0] % sequences[0].rank]
    if not isinstance(steps, int):
        raise Unsupported(f"the number of steps is {steps}, which is open", "Fix the size with --dim")
    if not 0 < steps <= TRIPS:
        raise Unsupported(f"{steps} steps, unrolled are 1 to {TRIPS}")
    collected: list[list[Node]] = [[] for _ in range(outs)]
    for t in range(steps):
        now = [index(s, a, steps - 1 - t if d else t) for s, a, d in zip(sequences, axes, backwards)]
        results = c.importer.subgraph(body, [*states, *now], f"{c.node.name or c.op}[{t}]")
        states = results[: len(states)]
        for column, value in zip(collected, results[len(states) :]):
            column.append(value)
    joined = []
    for column, axis, reverse in zip(collected, out_axes, out_backwards):
        axis = axis % (column[0].rank + 1)
        column = [unsqueeze(v, axis) for v in (reversed(column) if reverse else column)]
        joined.append(op.concat(*column, axis=axis))
    return [*states, *joined]


# sequences


def _sequence(c: Call, i: int) -> Sequence_:
    value = c.inputs[i]
    if not isinstance(value, Sequence_):
        raise Unsupported("a sequence that comes from outside of the model")
    return value


def _place(c: Call, i: int, n: int, default: int) -> int:
    at = _scalar(c, i, "the position", default)
    if not -n <= at <= n:
        raise ValueError(f"position {at} of a sequence of {n}")
    return at + n if at < 0 else at


@onnx_op("SequenceConstruct")
def sequence_construct(c: Call):
    return (Sequence_(c.inputs),)


@onnx_op("SequenceEmpty")
def sequence_empty(c: Call):
    return (Sequence_(),)


@onnx_op("SequenceAt")
def sequence_at(c: Call):
    items = _sequence(c, 0)
    at = _place(c, 1, len(items), 0)
    if at == len(items):
        raise ValueError(f"position {at} of a sequence of {at}")
    return items[at]


@onnx_op("SequenceInsert")
def sequence_insert(c: Call):
    items = list(_sequence(c, 0))
    items.insert(_place(c, 2, len(items), len(items)), c[1])
    return (Sequence_(items),)


@onnx_op("SequenceErase")
def sequence_erase(c: Call):
    items = list(_sequence(c, 0))
    del items[_place(c, 1, len(items), len(items) - 1)]
    return (Sequence_(items),)


@onnx_op("SequenceLength")
def sequence_length(c: Call):
    return constant(len(_sequence(c, 0)), "i64")


@onnx_op("ConcatFromSequence")
def concat_from_sequence(c: Call):
    items = _sequence(c, 0)
    if not items:
        raise ValueError("the sequence is empty")
    stack, rank = c.attr("new_axis", 0), items[0].rank
    axis = c.in_rank(c.need_attr("axis"), rank + bool(stack))
    return op.concat(*(unsqueeze(i, axis) if stack else i for i in items), axis=axis)


@onnx_op("SplitToSequence")
def split_to_sequence(c: Call):
    x, axis = c.x, c.axis(0)
    size = x.shape[axis]
    if not isinstance(size, int):
        raise Unsupported(f"axis {axis} is {size}, which is open", "Fix the size with --dim")
    if size > TRIPS:
        raise Unsupported(f"a sequence cut from {size} elements")
    if not c.has(1):
        parts = split(x, axis, [1] * size)
        return (Sequence_(parts if c.attr("keepdims", 1) else [index(x, axis, i) for i in range(size)]),)
    sizes = c.ints(1, "split")
    if c[1].rank == 0:
        each = sizes[0]
        if each < 1:
            raise ValueError(f"parts of {each} elements")
        sizes = [min(each, size - at) for at in range(0, size, each)]
    return (Sequence_(split(x, axis, sizes)),)


@onnx_op("Optional")
def optional(c: Call):
    return (c.inputs[0] if c.inputs else None,)


@onnx_op("OptionalGetElement")
def optional_get(c: Call):
    if not c.has(0):
        raise ValueError("the optional is empty")
    return (c.inputs[0],)


@onnx_op("OptionalHasElement")
def optional_has(c: Call):
    return constant(c.has(0), "bool")
