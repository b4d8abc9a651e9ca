"""ONNX to IR. The only part of edgec that imports onnx and onnx_ir."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgec.errors import EdgecError
from edgec.frontend import (  # noqa: F401  (importing them fills the table)
    algebra,
    attention,
    contrib,
    control,
    elementwise,
    movement,
    nn,
    quant,
    recurrent,
    reduction,
    resample,
    sampling,
    signal,
)
from edgec.frontend import model as _model
from edgec.frontend.importer import ConstantsNeeded, Importer
from edgec.frontend.learned import is_learned, replace
from edgec.frontend.model import source_files
from edgec.ir.node import Data, Graph, Node

if TYPE_CHECKING:
    import onnx

__all__ = ["ConstantsNeeded", "load", "load_learned", "replace", "source_files"]


def load(
    source: str | os.PathLike | onnx.ModelProto,
    dims: Mapping[str, Any] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
) -> Graph:
    """The IR of an ONNX model, a file (external data beside it) or a ModelProto.

    dims: name of a symbolic dim -> its size, (lo, hi) bounds (hi None: open), or another dim's name that it equals.
    An unnamed dim is called INPUT.AXIS. constants: values of inputs that shall be known when compiling; those inputs
    vanish from the graph.

    Raises EdgecError: EC1003 (a file cannot be read), EC1101 (no ONNX model), EC1102 (unsupported nodes, all of them
    listed), EC1103 (an invalid model), EC1001 (`dims` or `constants` do not fit); ConstantsNeeded (EC1104) where the
    value of an input decides shapes or attributes.
    """
    return _run(Importer(_model.read(source), dims or {}, constants or {}))


def load_learned(
    source: str | os.PathLike | onnx.ModelProto,
    dims: Mapping[str, Any] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    freeze: Iterable[str] = (),
) -> tuple[Graph, dict[Node, Data]]:
    """As `load`, for training: the weights among the initializers (`learned.is_learned`) are inputs of their names behind
    the model's own, so that no rewrite looks at their values. freeze: patterns of names that stay constants.

    Returns the graph, and what each of these inputs holds. Raises what `load` raises.
    """
    importer = Importer(
        _model.read(source), dims or {}, constants or {}, lambda value: is_learned(value, tuple(freeze))
    )
    return _run(importer), importer.learned


def _run(importer: Importer) -> Graph:
    try:
        return importer.run()
    except EdgecError:
        raise
    except Exception as error:  # the file decides what the importer sees: whatever it trips over, the file is at fault
        raise _model.invalid(f"it cannot be imported ({type(error).__name__}: {error})") from error
