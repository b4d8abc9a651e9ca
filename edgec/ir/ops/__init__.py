"""All canonical ops; importing this fills the table."""

from edgec.ir.ops import elementwise, hadamard, leaf, movement, nn, recurrent, reduce, rope  # noqa: F401
from edgec.ir.ops.registry import OPS, REQUIRED, IrError, Op

__all__ = ["OPS", "REQUIRED", "IrError", "Op"]
