"""edgec demo: is a text positive or negative? A small model that comes with edgec, compiled at its first use."""

from __future__ import annotations

import hashlib
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from edgec.cli.common import COMMON, Common, need, print_json
from edgec.errors import EdgecError

MODEL = Path(__file__).parents[1] / "models/sentiment.zip"  # examples/sentiment/make.py makes it
TOKENS = 64  # the longest text that it was trained on
TEXTS = ("the pump works again, great", "it broke after two days and nobody answers", "a moving and brilliant film",
         "the plot makes no sense")  # fmt: skip


def demo(*texts: str, common: Common = COMMON) -> int:
    """Say whether texts are positive or negative, with a model in 4 bits that comes with edgec.

    Parameters
    ----------
    texts
        What to judge, each in quotes; by default some of its own.
    """
    if any(not text.strip() for text in texts):
        raise EdgecError(
            "EC1001", "an empty text says nothing", "TEXTS", 'Such as edgec demo "the pump works again, great"'
        )
    need("tokenizers", "text", "'edgec[lm]'")
    path = compiled(quiet=common.json)
    found = judge(path, texts or TEXTS)
    if common.json:
        print_json({"artifact": path, "bytes": path.stat().st_size, "texts": found})
        return 0
    width = max(len(row["text"]) for row in found)
    for row in found:
        print(f"{row['text']:<{width}}  {row['label']}  {row['confidence']:6.1%}  {row['ms']:5.2f} ms")
    return 0


def compiled(quiet: bool) -> Path:
    """The artifact for this machine and version, compiled if it is not there. Raises EdgecError EC1002, EC1003."""
    from edgec import _core, targets

    try:
        digest = hashlib.sha256(MODEL.read_bytes())
    except OSError as error:
        raise EdgecError("EC1003", error.strerror or str(error), str(MODEL), "Install edgec again") from None
    core = os.stat(str(_core.__file__))
    digest.update(repr((targets.host(), core.st_size, core.st_mtime_ns)).encode())
    folder = Path(os.environ.get("EDGEC_CACHE_DIR") or Path.home() / ".cache/edgec") / "demo"
    path = folder / f"sentiment-{digest.hexdigest()[:16]}.edgec"
    if not path.exists():
        need("tvm", "compiling the model at its first use", "'edgec[build,lm]'")
        import tempfile

        from edgec import compiler

        start = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            with zipfile.ZipFile(MODEL) as archive:
                archive.extractall(work)
            report = compiler.build(work, embedding=4, out=path)
        if not quiet:
            size, seconds = report.artifact_bytes / 1e6, time.perf_counter() - start
            print(f"compiled for this machine: {size:.2f} MB in {seconds:.1f} s, once", file=sys.stderr)
    return path


def judge(path: Path, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each text: label, confidence (0.5 to 1) and the milliseconds that the model took."""
    import numpy as np

    import edgec
    from edgec.runtime.generate.text import Tokenizer

    session = edgec.load(path)
    tokenizer = Tokenizer(session.artifact.members["tokenizer.json"])
    found = []
    for text in texts:
        ids = tokenizer.encode(text)
        ids = np.array([ids if len(ids) <= TOKENS else [*ids[: TOKENS - 1], ids[-1]]], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        session(**feeds)  # lays out memory for this length
        start = time.perf_counter()
        logits = session.run(["logits"], feeds)[0][0]
        took = time.perf_counter() - start
        p = 1 / (1 + np.exp(-abs(float(logits[1] - logits[0]))))
        label = "positive" if logits[1] > logits[0] else "negative"
        found.append({"text": text, "label": label, "confidence": float(p), "ms": took * 1e3})
    return found
