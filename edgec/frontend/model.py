"""Opens ONNX files: the model, its tensors as data handles, its types. Everything read here is untrusted."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
import onnx_ir as ir

from edgec.errors import EdgecError
from edgec.frontend import wire
from edgec.ir.data import Data, Part, full_box, sizes
from edgec.ir.types import TensorType, numpy_dtype

DTYPES = {
    "BOOL": "bool", "INT8": "i8", "UINT8": "u8", "INT16": "i16", "UINT16": "u16", "INT32": "i32", "UINT32": "u32",
    "INT64": "i64", "UINT64": "u64", "FLOAT16": "f16", "BFLOAT16": "bf16", "FLOAT": "f32", "DOUBLE": "f64",
}  # fmt: skip
# constants of these types are read as the type that holds their values
WIDER = {
    "INT4": "i8", "UINT4": "u8", "INT2": "i8", "UINT2": "u8", "FLOAT8E4M3FN": "f32", "FLOAT8E4M3FNUZ": "f32",
    "FLOAT8E5M2": "f32", "FLOAT8E5M2FNUZ": "f32", "FLOAT8E8M0": "f32", "FLOAT4E2M1": "f32",
}  # fmt: skip

NARROW = 1 << 11  # bytes


def invalid(message: str, where: str | None = None, hint: str | None = None) -> EdgecError:
    return EdgecError("EC1103", message, where, hint or "Check the file with onnx.checker or export it again")


def parse(source: str | os.PathLike | onnx.ModelProto) -> onnx.ModelProto:
    """The proto of a file. Raises EdgecError EC1003 or EC1101."""
    if isinstance(source, onnx.ModelProto):
        proto, where = source, None
    else:
        path = Path(source)
        where = str(path)
        try:
            content = _read(path)
        except IsADirectoryError:
            raise EdgecError("EC1003", "it is a folder", where, "Give the path of the .onnx file in it") from None
        except OSError as error:
            raise EdgecError("EC1003", error.strerror or str(error), where, "Check the path") from None
        proto = onnx.ModelProto()
        try:
            proto.ParseFromString(content)
        except Exception as error:
            reason = "the file is empty" if not content else f"it does not parse as one ({error})"
            raise EdgecError("EC1101", reason, where, _next_step(path)) from None
        if not content:
            raise EdgecError("EC1101", "the file is empty", where, "Check that it was downloaded whole")
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output) or not proto.opset_import:
        reason = "it holds no graph" if proto.opset_import else "it names no opset"
        raise EdgecError("EC1101", reason, where, "Check that it is an ONNX model and was downloaded whole")
    return proto


OTHERS = (".pt", ".pth", ".bin", ".safetensors", ".gguf", ".tflite", ".h5", ".keras", ".pb")


def _next_step(path: Path) -> str:
    """For a file that is no ONNX model, by its name."""
    if path.suffix == ".edgec":
        return f"It is built already: edgec inspect {path} shows it, edgec run {path} runs it"
    if path.suffix in OTHERS:
        return "Export it to ONNX first: torch.onnx.export, optimum-cli export onnx or tf2onnx"
    return "Check that it is an ONNX model and was downloaded whole"


def _read(path: Path) -> bytes:
    """The file, large tensors as references to it."""
    if is_inside(path.name) and path.stat().st_size > wire.LARGE:
        with contextlib.suppress(wire.Malformed):
            return wire.without_tensors(path, path.name)
    return path.read_bytes()


def read(source: str | os.PathLike | onnx.ModelProto) -> ir.Model:
    """The model of a file or proto. Raises EdgecError EC1003, EC1101 or EC1103."""
    proto = parse(source)
    where = None if isinstance(source, onnx.ModelProto) else str(source)
    if not proto.graph.output:
        raise invalid("the graph has no outputs", where)
    try:
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, "" if where is None else str(Path(where).parent))
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        cycle = "cycle" in reason.lower()
        raise invalid("its nodes form a cycle" if cycle else f"it cannot be read ({reason})", where) from None
    return model


def source_files(path: str | os.PathLike) -> list[Path]:
    """The file of a model and the external data files that it names and that are there."""
    folder = Path(path).parent
    locations: set[str] = set()
    graphs = [parse(path).graph]
    while graphs:
        graph = graphs.pop()
        for tensor in graph.initializer:
            locations.update(e.value for e in tensor.external_data if e.key == "location")
        for node in graph.node:
            for attribute in node.attribute:
                locations.update(e.value for e in attribute.t.external_data if e.key == "location")
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    inside = (folder / name for name in sorted(locations - {Path(path).name}) if is_inside(name))
    return [Path(path), *(p for p in inside if p.is_file())]


def is_inside(location: str) -> bool:
    """Whether a relative path stays in its folder, as POSIX and as Windows would read it."""
    parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    return (
        bool(location) and not location.startswith("/") and not PureWindowsPath(location).anchor and ".." not in parts
    )


def dtype_of(t: ir.DataType | None, where: str) -> str:
    if t is None or t.name not in DTYPES:
        name = "no dtype" if t is None else f"dtype {t.name}"
        raise EdgecError("EC1102", f"{name}, which edgec has no values of", where, "Cast it to float32 or an integer")
    return DTYPES[t.name]


def data_of(tensor: ir.TensorProtocol, name: str) -> Data:
    """A handle of a tensor's content; external files are mapped. Raises EdgecError EC1102, EC1103 or EC1003."""
    where = f"tensor {name!r}"
    kind = tensor.dtype.name
    dtype = DTYPES.get(kind) or WIDER.get(kind)
    if dtype is None:
        raise EdgecError("EC1102", f"dtype {kind}, which edgec has no values of", where, "Cast it when exporting")
    shape = tuple(int(d) for d in tensor.shape)
    if any(d < 0 for d in shape):
        raise invalid(f"the shape {list(shape)} has a negative size", where)
    if isinstance(tensor, ir.ExternalTensor):
        return _external(tensor, TensorType(dtype, shape), kind in DTYPES, where)
    try:
        array = tensor.numpy()
        if array.shape != shape:
            raise ValueError(f"its data has the shape {list(array.shape)}, declared is {list(shape)}")
        return Data.of(array.astype(numpy_dtype(dtype), copy=False))
    except Exception as error:
        raise invalid(f"its data does not fit its shape ({error})", where) from None


def _external(tensor: ir.ExternalTensor, type: TensorType, whole: bool, where: str) -> Data:
    location = os.fspath(tensor.location)
    if not is_inside(location):
        raise invalid(f"its external data {location!r} lies outside of the model's folder", where,
                      "Put the data file beside the model")  # fmt: skip
    path = os.path.join(os.fspath(tensor.base_dir), location)
    try:
        status = os.stat(path)
        if not os.path.isfile(path):
            raise OSError(None, "it is not a file")
    except OSError as error:
        raise EdgecError("EC1003", f"its external data file {path} cannot be read ({error.strerror})", where,
                         "Put the data file beside the model") from None  # fmt: skip
    count = int(np.prod(type.shape, dtype=object)) if type.shape else 1
    bits = {"4": 4, "2": 2}.get(tensor.dtype.name[-1:], 8) if not whole else 8
    item = numpy_dtype(type.dtype).itemsize if whole else 1
    need = count * item if whole and bits == 8 else -(-count * (tensor.dtype.itemsize * 8) // 8)
    need = int(-(-need // 1))
    offset, length = int(tensor.offset or 0), int(tensor.length if tensor.length is not None else need)
    if offset < 0 or length < need or offset + need > status.st_size:
        raise invalid(f"bytes {offset} to {offset + max(length, need)} are outside of the {status.st_size} of {path}, "
                      f"or too few for {type}", where, "Check that the data file was downloaded whole")  # fmt: skip
    if not whole:
        return Data.of(tensor.numpy().astype(numpy_dtype(type.dtype)))
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    key = ("file", *stamp, offset, str(type))
    stored = FileArray(path, offset, numpy_dtype(type.dtype), type.shape)
    return Data(type, key, lambda: {"value": stored.read(full_box(type.shape))}, stored.read)


class FileArray:
    """An array in a file. What is read is copied: mapped pages would count as the process's memory."""

    def __init__(self, path: str, offset: int, dtype: np.dtype, shape: tuple[int, ...]):
        self.path, self.offset, self.dtype, self.shape = path, offset, dtype, shape

    def read(self, box: Part) -> np.ndarray:
        """A box of it. Raises EdgecError EC1003 where the file is gone or shorter than it was."""
        cut = max((i for i, (s, d) in enumerate(zip(box, self.shape)) if (s.start, s.stop) != (0, d)), default=0)
        run = math.prod(sizes(box)[cut:]) * self.dtype.itemsize
        if cut and run < NARROW:  # reading what lies between is cheaper than a call for each piece
            rows = self.read((*box[:cut], *full_box(self.shape[cut:])))
            return rows[(*(slice(None) for _ in range(cut)), *box[cut:])]
        out = np.empty(sizes(box), self.dtype)
        if not out.size:
            return out
        view = memoryview(out.reshape(-1).view(np.uint8))
        strides = [math.prod(self.shape[i + 1 :]) * self.dtype.itemsize for i in range(len(self.shape))]
        first = self.offset + sum(s.start * stride for s, stride in zip(box, strides))
        try:
            with open(self.path, "rb", buffering=0) as file:
                for i, index in enumerate(np.ndindex(*sizes(box)[:cut])):
                    file.seek(first + sum(j * stride for j, stride in zip(index, strides)))
                    self._fill(file, view[i * run : (i + 1) * run])
        except OSError as error:
            raise EdgecError("EC1003", error.strerror or str(error), self.path, "Check the path") from None
        return out

    @staticmethod
    def _fill(file, view: memoryview) -> None:
        while view:
            got = file.readinto(view)
            if not got:
                raise OSError(None, "it became shorter while it was read")
            view = view[got:]
