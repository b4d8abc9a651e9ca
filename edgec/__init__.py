"""edgec: ONNX models to small, fast artifacts for CPUs at the edge.

>>> import edgec
>>> edgec.build("model.onnx", out="model.edgec")
>>> session = edgec.load("model.edgec", threads=2)
>>> outputs = session(x=array)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgec.errors import EdgecError

if TYPE_CHECKING:
    from edgec.compiler import build
    from edgec.runtime.opening import load
    from edgec.runtime.session import Session

__version__ = "0.1.0"
__all__ = ["EdgecError", "Session", "__version__", "build", "load"]

_LAZY = {"load": "edgec.runtime.opening", "Session": "edgec.runtime.session", "build": "edgec.compiler"}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'edgec' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
