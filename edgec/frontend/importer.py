"""Walks an ONNX graph node by node and builds the IR; collects every problem before it gives up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.frontend import model as onnx_model
from edgec.frontend.emit import op as ops
from edgec.frontend.registry import TABLE, Call, Sequence_, Unsupported, ValueNeeded
from edgec.ir.dims import Dim, symbol
from edgec.ir.node import Data, Graph, Node, constant, make
from edgec.ir.ops import IrError
from edgec.ir.types import TensorType, TupleType, numpy_dtype

PLACEHOLDERS = {"", "?", "-1", "*", "None", "none", "null", "unk", "unknown"}
MAX_DEPTH = 64  # nested functions and subgraphs
MAX_NODES = 100_000  # ONNX nodes imported, unrolled loops and functions included
OLDEST = 7


class ConstantsNeeded(EdgecError):
    """Inputs whose values decide shapes or attributes: `needs_constants` names them."""

    def __init__(self, names: list[str], reasons: list[str]):
        listed = ", ".join(names)
        super().__init__("EC1104", f"{'input' if len(names) == 1 else 'inputs'} {listed} must be known when compiling: "
                         + "; ".join(reasons), None, f"Give the values: --const {names[0]}=...")  # fmt: skip
        self.needs_constants = names


class Poisoned(Exception):
    """An operand could not be imported; its own problem is already listed."""


class _Poison:
    pass


POISON = _Poison()

# optimum's merged decoders: whether to take the branch with past keys and values, which without a past token gives
# what the other one does
MERGED = "use_cache_branch"


class Importer:
    """Imports one model. `values` maps the current frame's ONNX values to nodes."""

    def __init__(
        self,
        model: ir.Model,
        dims: Mapping[str, Any],
        constants: Mapping[str, np.ndarray],
        is_learned: Callable[[ir.Value], bool] = lambda value: False,
    ):
        """is_learned: initializers that become inputs of the graph, behind the model's own; `learned` has their data."""
        self.model, self.dims, self.constants = model, dict(dims), dict(constants)
        self.is_learned = is_learned
        self.learned: dict[Node, Data] = {}
        self.values: dict[ir.Value, Any] = {}
        self.frame_attrs: Mapping[str, Any] = {}
        self.opsets: Mapping[str, int] = model.opset_imports
        self.problems: list[tuple[bool, str]] = []  # (the model is invalid, text)
        self.needed: dict[str, str] = {}  # input -> why
        self.origins: dict[Node, tuple[str, ...]] = {}
        self.symbols: dict[str, tuple[int, int | None]] = {}
        self.tensors: dict[int, Node] = {}
        self.depth = 0
        self.count = 0
        self.path: list[str] = []  # names of the function calls and subgraphs around the current node

    def run(self) -> Graph:
        graph = self.model.graph
        inputs = self._inputs(graph)
        self._initializers(graph)
        self.nodes(graph)
        outputs = []
        for value in graph.outputs:
            node = self.value(value, "the graph's output")
            if node is not POISON and isinstance(node, Sequence_):
                self.problems.append((False, f"output {value.name!r} is a sequence of tensors"))
            elif node is not POISON and node is None:
                self.problems.append((True, f"output {value.name!r} has no value"))
            elif node is not POISON:
                outputs.append((value.name, node))
        self._report()
        names = [name for name, _ in outputs]
        if len(set(names)) != len(names):
            raise onnx_model.invalid("two outputs have one name")
        result = Graph((*inputs, *self.learned), tuple(outputs), self.symbols, graph.name or "graph")
        result.origins.update(self.origins)
        return result

    def _report(self) -> None:
        # an unsupported node downstream of a needed value is not news
        invalid = [t for bad, t in self.problems if bad]
        if invalid:
            raise EdgecError("EC1103", _listed("node that is not valid", "nodes that are not valid", invalid), None,
                             "Check the file with onnx.checker or export it again")  # fmt: skip
        if self.problems:
            texts = [t for _, t in self.problems]
            raise EdgecError("EC1102", _listed("unsupported node", "unsupported nodes", texts), None,
                             "Export the model without them, or cut the model before them")  # fmt: skip
        if self.needed:
            raise ConstantsNeeded(list(self.needed), list(dict.fromkeys(self.needed.values())))

    # inputs and constants

    def _inputs(self, graph: ir.Graph) -> list[Node]:
        inputs: list[Node] = []
        shapes: list[tuple[ir.Value, str, list]] = []
        for value in graph.inputs:
            if value.const_value is not None:
                continue  # an initializer that older files list among the inputs
            where = f"input {value.name!r}"
            if value.type is None:
                raise onnx_model.invalid("it has no type", where)
            if not isinstance(value.type, ir.TensorType):
                raise EdgecError("EC1102", f"it is of type {value.type}, not a tensor", where, "Export it as tensors")
            dtype = onnx_model.dtype_of(value.type.dtype, where)
            if value.shape is None and value.name not in self.constants:
                raise EdgecError("EC1102", "its rank is not declared", where,
                                 "Run onnx.shape_inference or declare its shape")  # fmt: skip
            dims = (
                []
                if value.shape is None
                else [self._raw_dim(value.name or "", i, d) for i, d in enumerate(value.shape)]
            )
            shapes.append((value, dtype, dims))
        for value, dtype, _ in shapes:
            if value.name == MERGED and dtype == "bool" and all(u.op_type == "If" for u, _ in value.uses()):
                self.constants.setdefault(
                    MERGED, np.ones([d if isinstance(d, int) else 1 for d in value.shape or ()], bool)
                )
        shapes = self._constants(shapes)
        chosen = self._choose({d for _, _, dims in shapes for d in dims if isinstance(d, str)})
        for value, dtype, dims in shapes:
            type = TensorType(dtype, tuple(chosen[d] if isinstance(d, str) else d for d in dims))
            node = make("input", name=value.name, type=type)
            self.values[value] = node
            self.origins[node] = (value.name or "",)
            inputs.append(node)
        names = [n["name"] for n in inputs]
        if len(set(names)) != len(names):
            raise onnx_model.invalid("two inputs have one name")
        return inputs

    @staticmethod
    def _raw_dim(name: str, axis: int, d) -> int | str:
        if isinstance(d, int):
            return d if d >= 0 else f"{name}.{axis}"
        text = (d.value or "").strip()
        return f"{name}.{axis}" if text in PLACEHOLDERS or text.lstrip("-").isdigit() else text

    def _constants(self, shapes: list) -> list:
        """Takes the inputs out whose values are given."""
        left = []
        for value, dtype, dims in shapes:
            if value.name not in self.constants:
                left.append((value, dtype, dims))
                continue
            array = np.asarray(self.constants.pop(value.name))
            if array.dtype != numpy_dtype(dtype):
                try:
                    array = array.astype(numpy_dtype(dtype), casting="same_kind")
                except TypeError:
                    raise EdgecError("EC1001", f"its dtype is {array.dtype}, the input's is {dtype}",
                                     f"constant {value.name}", f"Give it as {dtype}") from None  # fmt: skip
            fits = value.shape is None or (
                len(dims) == array.ndim and all(isinstance(d, str) or d == n for d, n in zip(dims, array.shape))
            )
            if not fits:
                raise EdgecError("EC1001", f"its shape is {list(array.shape)}, the input's is {dims}",
                                 f"constant {value.name}", "Give an array of the input's shape")  # fmt: skip
            self.values[value] = constant(array)
            for d, n in zip(dims, array.shape):
                if isinstance(d, str):
                    self.dims.setdefault(d, n)
        if self.constants:
            known = ", ".join(v.name or "" for v, _, _ in shapes)
            raise EdgecError("EC1001", f"the model has no input {sorted(self.constants)[0]!r}; it has {known}",
                             "constants", "Use an input's name")  # fmt: skip
        return left

    def _choose(self, names: set[str]) -> dict[str, Dim]:
        """What each symbol of the source becomes, by `dims`."""
        fixed = {k: v for k, v in self.dims.items() if k in names}
        for key in self.dims:
            if key not in names:
                listed = ", ".join(sorted(names)) or "none"
                raise EdgecError("EC1001", f"the model has no dim {key!r}; it has: {listed}", f"--dim {key}",
                                 "Use one of these names")  # fmt: skip
        out: dict[str, Dim] = {}
        for name in sorted(names):
            end, seen = name, {name}
            while isinstance(target := fixed.get(end), str):
                if target not in names or target in seen:
                    reason = "is made equal to itself" if target in seen else f"has no dim {target!r} to be equal to"
                    raise EdgecError("EC1001", f"the dim {end!r} {reason}", f"--dim {end}",
                                     f"The model's dims: {', '.join(sorted(names))}")  # fmt: skip
                end = target
                seen.add(end)
            value = fixed.get(end)
            if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
                if value < 0:
                    raise EdgecError("EC1001", f"{value} is no size", f"--dim {end}", "Give a size of 0 or more")
                out[name] = int(value)
                continue
            lo, hi = (0, None) if value is None else _bounds(end, value)
            out[name] = symbol(end)
            self.symbols[end] = (lo, hi)
        return out

    def _initializers(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            if value in self.values and value.is_graph_input():
                continue
            if value.const_value is not None:
                try:
                    learned = self.is_learned(value)
                    self.values[value] = (self._learn if learned else self.tensor)(value.const_value, value.name or "")
                except EdgecError as error:
                    if error.code != "EC1102":
                        raise
                    if value.uses() or value.is_graph_output():
                        self.problems.append((False, f"{error.where}: {error.message}. {error.hint}"))
                    self.values[value] = POISON

    def _learn(self, tensor: ir.TensorProtocol, name: str) -> Node:
        data = onnx_model.data_of(tensor, name)
        node = make("input", name=name, type=data.type)
        self.learned[node] = data
        return node

    def tensor(self, tensor: ir.TensorProtocol, name: str) -> Node:
        key = id(tensor)
        if key not in self.tensors:
            self.tensors[key] = constant(onnx_model.data_of(tensor, name))
        return self.tensors[key]

    # nodes

    def value(self, value: ir.Value | None, where: str):
        if value is None:
            return None
        if value in self.values:
            return self.values[value]
        if not value.name:
            return None
        if value.const_value is not None:
            self.values[value] = node = self.tensor(value.const_value, value.name)
            return node
        self.values[value] = POISON
        self.problems.append((True, f"{where}: its input {value.name!r} is defined nowhere"))
        return POISON

    def nodes(self, graph: ir.Graph | ir.Function) -> None:
        for node in graph:
            self.count += 1
            if self.count > MAX_NODES:
                raise EdgecError("EC1102", f"more than {MAX_NODES} nodes with functions and loops unrolled", None,
                                 "Split the model")  # fmt: skip
            self._node(node)

    def _node(self, node: ir.Node) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self.opsets.get(domain, self.opsets.get("ai.onnx", 1) if domain == "" else 1)
        name = node.name or f"{node.op_type} of {next((o.name for o in node.outputs if o.name), '?')}"
        label = "/".join([*self.path, name])
        where = f"{label} ({(domain + '.') if domain else ''}{node.op_type}, opset {version})"
        inputs = [self.value(v, where) for v in node.inputs]
        for output in node.outputs:
            self.values[output] = POISON
        if any(i is POISON for i in inputs):
            if reason := self._unknown(node, domain, version):
                self.problems.append((False, f"{where}: {reason}"))
            return
        try:
            call = Call(self, node, inputs, self._attrs(node), version)
            results = self._import(call, domain, label)
        except Poisoned:
            return
        except Unsupported as error:
            self.problems.append((False, f"{where}: {error.reason}" + (f" ({error.hint})" if error.hint else "")))
            return
        except ValueNeeded as error:
            for i in error.inputs:
                self.needed.setdefault(i, f"{error.what} of {where}")
            return
        except EdgecError as error:
            if error.code not in ("EC1102", "EC1103"):
                raise
            self.problems.append((error.code == "EC1103", f"{where}: {error.message}"))
            return
        except (IrError, ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, OverflowError) as error:
            reason = str(error) if isinstance(error, ValueError) else f"its inputs or attributes do not fit ({error!r})"
            self.problems.append((True, f"{where}: {reason}"))
            return
        results = results if isinstance(results, (list, tuple)) and not isinstance(results, Sequence_) else [results]
        for output, result in zip(node.outputs, results):
            self.values[output] = result
            self._mark(result, label)

    def _mark(self, result, label: str) -> None:
        """Notes where the nodes under a result come from, those that earlier ONNX nodes made excepted."""
        stack = list(result) if isinstance(result, Sequence_) else [result]
        while stack:
            n = stack.pop()
            if n is None or n in self.origins:
                continue
            self.origins[n] = (label,)
            stack.extend(n.operands())

    def _attrs(self, node: ir.Node) -> dict[str, Any]:
        out = {}
        for name, attr in node.attributes.items():
            if attr.is_ref():
                value = self.frame_attrs.get(attr.ref_attr_name or "")
            else:
                value = attr.value
            if value is not None:
                out[name] = value
        return out

    def _import(self, call: Call, domain: str, label: str):
        node = call.node
        key = (node.domain, node.op_type, node.overload)
        if function := self.model.functions.get(key) or self.model.functions.get((domain, node.op_type, "")):
            return self.function(function, call, label)
        if domain == "" and call.version < OLDEST:
            _check_age(node.op_type, call.version)
        importer = TABLE.get((domain, node.op_type))
        results = NotImplemented if importer is None else importer(call)
        if results is not NotImplemented:
            if isinstance(results, Node) and isinstance(results.type, TupleType):
                return [ops.item(results, index=i) for i in range(len(results.type.items))]
            return results
        proto = self._body(call, domain)
        produced = {o for n in proto.node for o in n.output} | set(proto.input)
        names = list(proto.output)
        kept = [n for n in names if n in produced]  # some bodies leave optional outputs out
        del proto.output[:]
        proto.output.extend(kept)
        function = ir.serde.deserialize_function(proto)
        if not function.opset_imports.get(""):
            function.opset_imports[""] = self.opsets.get("", self.opsets.get("ai.onnx", call.version))
        results = dict(zip(kept, self.function(function, call, label)))
        for i, name in enumerate(names):
            if name not in results and call.wants(i):
                raise Unsupported(f"its output {name!r}")
        return [results.get(name) for name in names]

    def _unknown(self, node: ir.Node, domain: str, version: int) -> str | None:
        """Why no inputs could make this node's op importable; None where some may."""
        key = (node.domain, node.op_type, node.overload)
        if key in self.model.functions or (domain, node.op_type, "") in self.model.functions:
            return None
        if (domain, node.op_type) in TABLE:
            return None
        try:
            schema = onnx.defs.get_schema(node.op_type, version, domain)
        except onnx.defs.SchemaError:
            return f"edgec knows no op {node.op_type!r} of " + (f"the domain {domain!r}" if domain else "ONNX")
        defined = schema.has_function or schema.has_context_dependent_function
        return None if defined else "edgec has no importer for this op"

    def _body(self, call: Call, domain: str) -> onnx.FunctionProto:
        """ONNX's own definition of an op in terms of others."""
        node, version = call.node, call.version
        if reason := self._unknown(node, domain, version):
            raise Unsupported(reason)
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        try:
            if schema.has_function:
                versions = [v for v in schema.function_opset_versions if v <= version] or schema.function_opset_versions
                text = schema.get_function_with_opset_version(max(versions))
            else:
                usable = schema.context_dependent_function_opset_versions
                versions = [v for v in usable if v <= version] or usable
                types = [_type_proto(i).SerializeToString() for i in call.inputs]
                proto = ir.to_proto(node)
                del proto.attribute[:]
                for name, value in call.attrs.items():
                    value = ir.to_proto(value) if isinstance(value, ir.Graph) else value
                    proto.attribute.append(onnx.helper.make_attribute(name, value))
                text = schema.get_context_dependent_function_with_opset_version(
                    max(versions), proto.SerializeToString(), types
                )
            proto = onnx.FunctionProto.FromString(text)
        except (RuntimeError, TypeError) as error:
            raise Unsupported(f"its definition cannot be expanded ({error})") from None
        defaults = {n: onnx.helper.get_attribute_value(a.default_value) for n, a in schema.attributes.items()
                    if a.default_value.name}  # fmt: skip
        for name, value in defaults.items():
            call.attrs.setdefault(name, value.decode() if isinstance(value, bytes) else value)
        return proto

    def function(self, function: ir.Function, call: Call, label: str) -> list:
        """The outputs of a function's body for this call's inputs."""
        if len(call.inputs) > len(function.inputs):
            raise ValueError(f"{len(call.inputs)} inputs for a function of {len(function.inputs)}")
        attrs = {name: a.value for name, a in function.attributes.items() if a.value is not None} | call.attrs
        saved = self.values, self.frame_attrs, self.opsets
        given = list(call.inputs) + [None] * (len(function.inputs) - len(call.inputs))
        self.values, self.frame_attrs, self.opsets = dict(zip(function.inputs, given)), attrs, function.opset_imports
        try:
            return self._within(label, function, lambda: [self.value(o, label) for o in function.outputs])
        finally:
            self.values, self.frame_attrs, self.opsets = saved

    def subgraph(self, graph: ir.Graph, inputs: Sequence, label: str) -> list:
        """The outputs of an If, Loop or Scan body; outer values are seen by name."""
        if len(inputs) != len(graph.inputs):
            raise ValueError(f"the body takes {len(graph.inputs)} inputs, given are {len(inputs)}")
        self.values.update(zip(graph.inputs, inputs))
        self._initializers(graph)
        return self._within(label, graph, lambda: [self.value(o, label) for o in graph.outputs])

    def _within(self, label: str, body, outputs) -> list:
        if self.depth >= MAX_DEPTH:
            raise Unsupported(f"functions or subgraphs nest deeper than {MAX_DEPTH}")
        self.depth += 1
        self.path.append(label.rsplit("/", 1)[-1] if self.path else label)
        try:
            self.nodes(body)
            results = outputs()
        finally:
            self.depth -= 1
            self.path.pop()
        if any(r is POISON for r in results):
            raise Poisoned
        return results


def _check_age(op: str, version: int) -> None:
    """Unsupported if the op meant something else then than in the oldest opset that edgec knows."""
    try:
        same = onnx.defs.get_schema(op, version).since_version == onnx.defs.get_schema(op, OLDEST).since_version
    except onnx.defs.SchemaError:
        same = False
    if not same:
        raise Unsupported(f"its form of opset {version}; edgec reads {OLDEST} and newer",
                          "Convert the model with onnx.version_converter")  # fmt: skip


def _listed(one: str, many: str, texts: list[str]) -> str:
    if len(texts) == 1:
        return f"the model has one {one}: {texts[0]}"
    return f"the model has {len(texts)} {many}:\n" + "\n".join(f"  - {t}" for t in texts) + "\n"


def _bounds(name: str, value) -> tuple[int, int | None]:
    try:
        lo, hi = value
        lo, hi = int(lo), None if hi is None else int(hi)
    except (TypeError, ValueError):
        raise EdgecError("EC1001", f"{value!r} is no size, range or dim's name", f"--dim {name}",
                         "Give NAME=64, NAME=1..512 or NAME=OTHER") from None  # fmt: skip
    if lo < 0 or (hi is not None and hi < lo):
        raise EdgecError(
            "EC1001", f"the range {lo}..{hi} is empty or negative", f"--dim {name}", "Give LO..HI, LO <= HI"
        )
    return lo, hi


_ELEM = {v: k for k, v in onnx_model.DTYPES.items()}


def _type_proto(value) -> onnx.TypeProto:
    if not isinstance(value, Node):
        return onnx.TypeProto()
    dims = [d if isinstance(d, int) else None for d in value.shape]
    return onnx.helper.make_tensor_type_proto(onnx.TensorProto.DataType.Value(_ELEM[value.dtype]), dims)
