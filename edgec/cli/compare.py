"""An artifact beside its source: the source run by onnxruntime, or by the IR's reference evaluator, and the errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgec.errors import EdgecError

NO_NUMBERS = "no value is finite, on both sides"
# largest error of an output, relative to its largest value, that `verify` accepts by default
TOLERANCE = {"fp32": 1e-3, "int8": 0.05, "int4": 0.2}


# onnxruntime's names of the types that a constant given as a number may have to become
_NUMPY = {f"tensor({k})": v for k, v in {"float": "float32", "double": "float64", "bool": "bool"}.items()}
_NUMPY |= {f"tensor({sign}int{n})": f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)}
_NUMPY["tensor(float16)"] = "float16"


class Source:
    """The ONNX model that an artifact was built from. `by` says what runs it."""

    def __init__(
        self,
        path: Path,
        consts: Mapping[str, Any] | None = None,
        reference: bool = False,
        content: bytes | None = None,
    ) -> None:
        """reference: use the IR's numpy evaluator though onnxruntime is installed. content: see onnxruntime_session."""
        import importlib.util

        self.consts = dict(consts or {})
        path = path / "model.onnx" if path.is_dir() else path
        self._session = self._graph = None
        if importlib.util.find_spec("onnxruntime") is not None and not reference:
            import numpy as np

            from edgec.cli.sampling import onnxruntime_session
            from edgec.frontend.importer import MERGED

            self.by = "onnxruntime"
            self._session = onnxruntime_session(path, content=content)
            self.inputs = {i.name for i in self._session.get_inputs()}
            self.outputs = [o.name for o in self._session.get_outputs()]
            if unknown := [name for name in self.consts if name not in self.inputs]:
                listed = ", ".join(i.name for i in self._session.get_inputs())
                raise EdgecError("EC1001", "the model has no such input", f"--const {unknown[0]}", f"It has {listed}")
            self.dtypes = {i.name: _NUMPY.get(i.type) for i in self._session.get_inputs()}
            for i in self._session.get_inputs():
                if i.name == MERGED:  # as the importer takes it
                    self.consts.setdefault(MERGED, np.ones([d if isinstance(d, int) else 1 for d in i.shape], bool))
            self.consts = {k: v.astype(self.dtypes.get(k) or v.dtype) for k, v in self.consts.items()}
        else:
            from edgec import frontend
            from edgec.ir.types import numpy_dtype

            self.by = "the reference evaluator"
            self._graph = frontend.load(path, constants=self.consts)
            self.inputs = {n["name"] for n in self._graph.inputs}
            self.dtypes = {n["name"]: numpy_dtype(n.dtype) for n in self._graph.inputs}
            self.outputs = [name for name, _ in self._graph.outputs]

    def empty_caches(self, manifest: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """The source's inputs that the artifact keeps itself: caches without a token."""
        import numpy as np

        from edgec.testing.inputs import size_of

        return {
            state["past"]: np.zeros([size_of(d, sizes) for d in state["empty"]], self.dtypes[state["past"]])
            for state in manifest.get("states", ())
            if state["past"] in self.inputs
        }

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name. Raises EdgecError EC1604 where the source does not take these inputs."""
        feeds = {k: v for k, v in {**self.consts, **feeds}.items() if k in self.inputs}
        try:
            if self._session is not None:
                return dict(zip(self.outputs, self._session.run(self.outputs, feeds)))
            from edgec.ir.evaluate import run

            assert self._graph is not None
            return run(self._graph, feeds)
        except EdgecError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise EdgecError("EC1604", f"{self.by}: {str(error).splitlines()[0]}", "the source model") from None


def errors(got, want) -> dict[str, Any]:
    """max_abs; relative: max_abs by the largest magnitude of `want`; cosine; snr_db, None where there is no error;
    over the finite values of `want`.

    Where shapes or dtypes differ, or non-finite values do, relative is infinite and `reason` says why. Where both sides have
    no finite value the errors are 0, and `reason` is NO_NUMBERS.
    """
    import numpy as np

    if got.shape != want.shape or got.dtype != want.dtype:
        reason = f"is {got.dtype}{list(got.shape)}, the source gives {want.dtype}{list(want.shape)}"
        return {"max_abs": float("inf"), "relative": float("inf"), "cosine": 0.0, "snr_db": -math.inf,
                "reason": reason}  # fmt: skip
    a, b = np.asarray(got, np.float64).reshape(-1), np.asarray(want, np.float64).reshape(-1)
    finite = np.isfinite(b)
    same = (finite == np.isfinite(a)) & (finite | (a == b) | (np.isnan(a) & np.isnan(b)))
    if not same.all():
        reason = f"{int((~same).sum())} of {a.size} values are not finite on one side only"
        return {"max_abs": float("inf"), "relative": float("inf"), "cosine": 0.0, "snr_db": -math.inf,
                "reason": reason}  # fmt: skip
    a, b = a[finite], b[finite]
    if not a.size:
        equal = {"max_abs": 0.0, "relative": 0.0, "cosine": 1.0, "snr_db": None}
        return equal if not finite.size else equal | {"reason": NO_NUMBERS}
    max_abs, largest = float(np.abs(a - b).max()), float(np.abs(b).max())
    noise, signal = float(np.square(a - b).sum()), float(np.square(b).sum())
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return {
        "max_abs": max_abs,
        "relative": max_abs / largest if largest > 0 else (0.0 if max_abs == 0 else float("inf")),
        "cosine": float(a @ b / norms) if norms > 0 else float(max_abs == 0),
        "snr_db": 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None if noise == 0 else -math.inf,
    }


def errors_of_all(pairs, valid) -> dict[str, Any]:
    """`errors` over all (got, want) as one; valid: for each None, or which of the first two axes count (bool)."""
    import numpy as np

    got, want = [], []
    for (a, b), mask in zip(pairs, valid):
        if a.shape != b.shape or a.dtype != b.dtype:
            return errors(a, b)
        chosen = mask is not None and a.shape[:2] == mask.shape
        got.append((a[mask] if chosen else a).reshape(-1))
        want.append((b[mask] if chosen else b).reshape(-1))
    return errors(np.concatenate(got), np.concatenate(want))


def worst(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return max(rows, key=lambda r: r["relative"])
