"""Runs ONNX's node tests through edgec and prints what passes, by op.

python tests/onnx/coverage.py [--failures] [WORD...]      (tests whose name has one of the words)
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import unittest
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# Why a node test may not pass: op -> reason. A failing test of any other op fails tests/onnx/test_backend.py.
UNSUPPORTED = {
    "NonZero": "the result's size depends on values",
    "Unique": "the result's size depends on values",
    "NonMaxSuppression": "the result's size depends on values",
    "ImageDecoder": "decodes files",
    "TfIdfVectorizer": "text",
    "StringConcat": "strings",
    "StringNormalizer": "strings",
    "StringSplit": "strings",
    "RegexFullMatch": "strings",
    "LabelEncoder": "classical machine learning (ai.onnx.ml)",
    "TreeEnsemble": "classical machine learning (ai.onnx.ml)",
    "ArrayFeatureExtractor": "classical machine learning (ai.onnx.ml)",
    "Binarizer": "classical machine learning (ai.onnx.ml)",
    "Adagrad": "training",
    "Adam": "training",
    "Momentum": "training",
    "Dropout": "training mode draws random numbers",
    "Bernoulli": "random numbers",
    "BitCast": "bits read as another type, other than signed as unsigned",
    "DeformConv": "not imported",
    "Scan": "opset 8's form",
    "Equal": "strings",
    "SequenceInsert": "sequences that come from or leave to the outside",
    "SequenceMap": "sequences that come from or leave to the outside",
    "SplitToSequence": "sequences that come from or leave to the outside",
    "OptionalHasElement": "optionals that come from or leave to the outside",
    "OptionalGetElement": "optionals that come from or leave to the outside",
    "Identity": "sequences and optionals",
    "If": "branches that yield sequences or optionals",
    "Loop": "loops over sequences",
    "Cast": "float8, float4, 4-bit and 2-bit integers, and strings at run time",
    "CastLike": "float8, float4, 4-bit and 2-bit integers, and strings at run time",
    "QuantizeLinear": "float8, float4, 4-bit and 2-bit integers at run time",
    "DequantizeLinear": "float8, float4, 4-bit and 2-bit integers at run time",
    "Resize": "two tests take a fractional size for align_corners, as onnxruntime does not",
    "DFT": "an absolute tolerance of 1e-7 on values near 0",
}


@dataclass
class Outcome:
    name: str
    op: str
    error: str = ""  # empty: it passes


def run(names: list[str]) -> list[Outcome]:
    """Runs node tests by name, in this process."""
    warnings.simplefilter("ignore")
    import onnx.backend.test

    from edgec.onnx_backend import EdgecBackend

    class Recorder(EdgecBackend):
        ops = ""

        @classmethod
        def prepare(cls, model, device="CPU", **kwargs):
            cls.ops = model.graph.node[0].op_type if len(model.graph.node) == 1 else ""
            return super().prepare(model, device, **kwargs)

    cases = onnx.backend.test.BackendTest(Recorder, "edgec").test_cases["OnnxBackendNodeModelTest"]
    outcomes = []
    for name in names:
        Recorder.ops = ""
        result = unittest.TestResult()
        cases(name).run(result)
        problems = result.failures + result.errors
        error = _reason(problems[0][1]) if problems else "skipped" if result.skipped else ""
        outcomes.append(Outcome(name, Recorder.ops, error))
    return outcomes


def _reason(trace: str) -> str:
    if match := re.search(r"EdgecError: (.*)|ConstantsNeeded: (.*)", trace):
        return (match[1] or match[2])[:300]
    lines = [line for line in trace.strip().splitlines() if line.strip()]
    wrong = [line for line in lines if "ismatch" in line or "Max absolute" in line]
    return "; ".join(wrong)[:300] or lines[-1][:300]


def names() -> list[str]:
    """All node tests on the CPU, without their CUDA twins."""
    import onnx.backend.test

    from edgec.onnx_backend import EdgecBackend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx makes its cases with numpy casts that overflow
        cases = onnx.backend.test.BackendTest(EdgecBackend, "edgec").test_cases["OnnxBackendNodeModelTest"]
    return sorted(n for n in dir(cases) if n.startswith("test_") and n.endswith("_cpu"))


def run_all(chosen: list[str] | None = None, processes: int = 2) -> list[Outcome]:
    """Outcomes of all node tests (or those), in fresh processes."""
    chosen = names() if chosen is None else chosen
    parts = [chosen[i::40] for i in range(40)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        found = [o for part in pool.imap_unordered(run, [p for p in parts if p]) for o in part]
    # an expanded test is one of several nodes: it is of the op of the test that it expands
    ops = {o.name: o.op for o in found}
    for o in found:
        o.op = o.op or ops.get(re.sub(r"_expanded(_ver\d+)?", "", o.name), "") or "several nodes"
    return sorted(found, key=lambda o: o.name)


def main() -> None:
    words = [a for a in sys.argv[1:] if not a.startswith("-")]
    outcomes = run_all([n for n in names() if not words or any(w in n for w in words)])
    by_op: dict[str, list[Outcome]] = defaultdict(list)
    for o in outcomes:
        by_op[o.op].append(o)
    for op, group in sorted(by_op.items()):
        passed = sum(not o.error for o in group)
        note = "" if passed == len(group) else UNSUPPORTED.get(op, "UNEXPECTED")
        print(f"{op:30} {passed:4} of {len(group):4}  {note}")
    if "--failures" in sys.argv:
        for o in outcomes:
            if o.error:
                print(f"{o.name[5:-4]} ({o.op}): {o.error}")
    print(f"{sum(not o.error for o in outcomes)} of {len(outcomes)} node tests pass")


if __name__ == "__main__":
    main()
