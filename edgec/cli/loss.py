"""What a build lost against its source: errors of each output, a language model's divergence, each weight's share.

`Review` goes with `compiler.build`: what it needs is read and checked before the weights are quantized, and where --max-loss
is exceeded it raises, so that the artifact never gets its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgec.cli.common import bytes_text, origin_text
from edgec.cli.compare import NO_NUMBERS
from edgec.errors import EdgecError

HELD = 10**9  # bytes of a source that onnxruntime may hold at once; a larger one runs in fp32, a few layers at a time
TOKENS = {"sample": 256, "large": 64}  # of a language model, from edgec's own text; of a large source
WINDOWS, LENGTH, ROWS = 8, 256, 64  # of --eval
BUDGET = 100e9  # multiply-accumulates that sensitivities may take
BIG = {"kl": 0.05, "cosine": 0.99}  # beyond which a build names the option that would help
FEWEST = 4  # tokens or rows that a sensitivity is worth measuring on
# metric -> (what it must not do, of language models only, unit)
METRICS = {
    "cosine": (">=", False, ""), "snr": (">=", False, " dB"), "max": ("<=", False, ""),
    "kl": ("<=", True, ""), "top1": (">=", True, ""), "ppl": ("<=", True, ""),
}  # fmt: skip
# what a limit can be: no build is better than its source
RANGES = {"cosine": (-1, 1), "snr": (-300, 300), "max": (0, math.inf), "kl": (0, math.inf), "top1": (0, 1),
          "ppl": (-1, math.inf)}  # fmt: skip


def parse_limits(spec: str | None) -> dict[str, float]:
    """--max-loss: METRIC=LIMIT, several with commas; a share may be written with %. Raises EdgecError EC1001."""
    limits: dict[str, float] = {}
    example = "For example --max-loss cosine=0.99 or kl=0.05,ppl=3%"
    for part in () if spec is None else spec.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(-?\d+(?:\.\d*)?(?:e-?\d{1,3})?)\s*(%?)\s*", part)
        if found is None or found[1] not in METRICS:
            reason = f"{part!r} is not METRIC=LIMIT with a metric of {', '.join(METRICS)}"
            raise EdgecError("EC1001", reason, "--max-loss", example)
        metric, limit = found[1], float(found[2]) / (100 if found[3] else 1)
        if metric in limits:
            raise EdgecError("EC1001", f"{metric} is given twice", "--max-loss", example)
        least, most = RANGES[metric]
        if not least <= limit <= most:
            reason = (
                f"{metric}={found[2]}{found[3]} is no limit that can be kept: it lies between {least:g} and {most:g}"
            )
            raise EdgecError("EC1001", reason, "--max-loss", example)
        limits[metric] = limit
    return limits


def sample_text() -> str:
    return (Path(__file__).with_name("sample.txt")).read_text(encoding="utf-8")


class Review:
    """Measures a build's loss. `found` is what `edgec build --json` shows as "check"; None where nothing was compared."""

    def __init__(
        self,
        model: Path,
        consts: Mapping[str, Any],
        *,
        texts: Path | None = None,
        calib: Path | None = None,
        limits: Mapping[str, float] | None = None,
        progress: Callable[[str, float | None], None] = lambda phase, share: None,
    ) -> None:
        """texts: of --eval. calib: what the build was calibrated on, used where there is nothing else: it flatters."""
        self.model, self.consts, self.limits, self.progress = model, consts, dict(limits or {}), progress
        self.calib, self.given = calib, texts
        self.inputs = "random"  # what the outputs were compared on
        self.found: dict[str, Any] | None = None
        self.data: Any = None
        self.first: dict[str, Any] = {}  # inputs of the first run
        self.large = False

    # --- before the work -------------------------------------------------------------------------------------------

    def rewritten(self, job) -> None:
        """Reads the data, and refuses limits that the model cannot have. Raises EdgecError."""
        from edgec.calibrate import data

        roles, self.large = job.lm, _source_bytes(self.model) > HELD
        for metric in self.limits:
            if METRICS[metric][1] and roles is None:
                reason = f"{metric} is of language models, this is none"
                raise EdgecError("EC1001", reason, "--max-loss", "Use cosine, snr or max")
        if self.given is None and "tokenizer.json" in job.files:
            self._sample(job, roles)
        if self.data is None and (given := self.given or self.calib) is not None:
            length, limit = (None, ROWS) if roles is None else (LENGTH, WINDOWS)
            if self.large:
                length, limit = (None if roles is None else TOKENS["large"]), 1
            self.data = data.load(given, job.graph, job.files, length=length, limit=limit)
            self.inputs = str(given) if self.given else "calibration"

    def _sample(self, job, roles) -> None:
        import tempfile

        from edgec.calibrate import data

        tokens = TOKENS["large" if self.large else "sample"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sample.txt"
            path.write_text(sample_text(), encoding="utf-8")
            try:
                self.data = data.load(path, job.graph, job.files, length=None if roles is None else tokens, limit=1
                                      if roles is not None else ROWS)  # fmt: skip
            except EdgecError:
                return  # inputs that are no text: random ones do
        self.inputs = "edgec's sample text"

    # --- afterwards ------------------------------------------------------------------------------------------------

    def written(self, job, path: Path) -> dict[str, Any]:
        """What the artifact at `path` lost. Raises EdgecError EC1306 where that is more than the limits allow."""
        self.progress("check", None)
        try:
            found = self._compare(job, path)
        except EdgecError as error:
            if self.limits:
                reason = f"the loss cannot be measured: {error}"
                raise EdgecError("EC1306", reason, "--max-loss", "Leave --max-loss out, or fix that") from None
            found = {"skipped": str(error)}
        self.found = found
        if "skipped" not in found and self._lossy(job):
            self._sensitivities(job)
            if self.inputs != "random" and (text := advice(job.options, found, self.calib, job.distill)):
                job.report.notes.append(text)
        if exceeded := self._exceeded(found):
            raise EdgecError("EC1306", self._blame(exceeded, job), "--max-loss", self._help(job))
        return found

    def _lossy(self, job) -> bool:
        return job.unquantized is not None

    def _compare(self, job, path: Path) -> dict[str, Any]:
        import edgec

        if self.large and self.given is None and not self.limits:
            # the head of a model of a billion weights alone takes 2 GB that the build has not needed
            return {
                "skipped": f"the source has more than {bytes_text(HELD)}; --eval FILE does it, in 2 GB of memory and more"
            }
        try:
            session = edgec.load(path)
        except EdgecError as error:
            if error.code != "EC1506":
                raise
            session = None
        feeds, sizes, valid = self._feeds(job, session)
        self.first = feeds[0]
        wanted, by = self._wanted(job, session, feeds, sizes)
        if session is None:
            from edgec.loss import outputs_in_stages

            got = outputs_in_stages(job.graph, feeds)
        else:
            names = [i.name for i in session.inputs]
            got = [session(**{n: f[n] for n in names}) for f in feeds]
        from edgec.cli import compare

        outputs = {}
        for name in [n for n, _ in job.graph.outputs if n in got[0] and n in wanted[0]]:
            outputs[name] = compare.errors_of_all([(g[name], w[name]) for g, w in zip(got, wanted)], valid)
        found: dict[str, Any] = {"against": by, "inputs": self.inputs, "dims": sizes, "runs": len(feeds),
                                 "outputs": outputs}  # fmt: skip
        if session is None:
            found["by"] = f"this machine's kernels, not those of {job.target.name}"
        if job.lm is not None and job.lm["logits"] in outputs:
            found["lm"] = self._divergence(job, feeds, got, wanted)
        return found

    def _divergence(self, job, feeds, got, wanted) -> dict[str, Any] | None:
        from edgec.loss import Divergence

        sums, name = Divergence(), job.lm["logits"]
        for feed, g, w in zip(feeds, got, wanted):
            if g[name].shape != w[name].shape:
                return None
            sums.add(g[name], w[name], feed[job.lm["ids"]])
        found = sums.result()
        if self.inputs == "random":  # nothing to be predicted
            found = {k: v for k, v in found.items() if "ppl" not in k}
        return found

    def _feeds(self, job, session) -> tuple[list[dict], dict[str, int], list]:
        """(inputs of each run, sizes of the symbols where they are made up, which positions count)."""
        from edgec.cli import sampling

        if self.data is not None:
            return self.data.feeds, {}, self.data.valid
        if session is not None:
            sizes, feeds = sampling.feeds_for(session, (), {}, seed=0)
        else:
            from edgec.ir.dims import evaluate
            from edgec.ir.types import numpy_dtype
            from edgec.runtime.session import Port
            from edgec.testing.inputs import random_inputs

            sizes = job.report.sample
            kept = {past for past, _ in job.graph.states}
            ports = [Port(n["name"], tuple(evaluate(d, sizes) for d in n.shape), numpy_dtype(n.dtype).name)
                     for n in job.graph.inputs if n["name"] not in kept]  # fmt: skip
            feeds = random_inputs(ports, sizes, job.ranges, 0)
        from edgec.calibrate.data import empty_caches

        return [feeds | empty_caches(job.graph, feeds)], sizes, [None]

    def _wanted(self, job, session, feeds, sizes) -> tuple[list[dict], str]:
        """The source's outputs, and what ran it."""
        import importlib.util

        from edgec.cli import compare
        from edgec.loss import outputs_in_stages

        whole = importlib.util.find_spec("onnxruntime") is not None and not self.large
        if not whole and self._lossy(job):
            how = "edgec's fp32 kernels, a few layers at a time" + (", once pruned" if _pruned(job) else "")
            return outputs_in_stages(job.unquantized, feeds), how
        if self.large:
            raise EdgecError("EC1606", f"the source has more than {bytes_text(HELD)}", str(self.model),
                             "edgec verify compares it")  # fmt: skip
        source = compare.Source(self.model, self.consts)
        manifest = {"states": job.states()}
        return [source.run(f | source.empty_caches(manifest, _env(job.graph, f, sizes))) for f in feeds], source.by

    # --- what each weight alone does -------------------------------------------------------------------------------

    def _sensitivities(self, job) -> None:
        """Adds "sensitivity" to the report's weights."""
        from edgec import loss
        from edgec.rewrites.quantize import readers

        plain = job.unencoded()
        feed = self._few(job, plain)
        if feed is None:
            return
        names = readers(job.graph)
        found: dict[str, float] = {}

        def tick(done: int, total: int) -> None:
            self.progress("sensitivity of each weight", done / total)

        try:
            for key, value in loss.sensitivities(plain, job.graph, feed, tick):
                found[names.get(key, "")] = value
        except EdgecError as error:
            job.report.notes.append(f"sensitivities could not be measured: {error}")
        for row in job.report.weights:
            if row["name"] in found and row["bits"] < 32:
                row["sensitivity"] = float(f"{found[row['name']]:.3g}")

    def _few(self, job, plain) -> dict | None:
        """The first run's inputs, cut so that the budget holds; None where even little is too much."""
        import numpy as np

        from edgec.calibrate.data import empty_caches
        from edgec.loss import cost

        feed, roles = self.first, job.lm
        while (now := cost(plain, job.graph, feed)) > BUDGET:
            rows, tokens = next((a.shape for a in feed.values() if a.ndim == 2), (1, 1))
            keep = int(rows * tokens * BUDGET / now)
            if self.data is None or keep < FEWEST:
                job.report.notes.append("the model is too large to measure what each weight alone does; SNR is there")
                return None
            if rows > 1:
                feed = {k: v[:1] for k, v in feed.items()}
            elif roles is not None:
                ids = (roles["ids"], roles.get("mask"), roles.get("positions"))
                feed = {k: np.ascontiguousarray(feed[k][:, :keep]) for k in ids if k in feed}
                feed |= empty_caches(plain, feed)
            else:
                feed = {k: np.ascontiguousarray(v[:, :keep]) for k, v in feed.items()}
        return feed

    # --- limits ------------------------------------------------------------------------------------------------------

    def _exceeded(self, found: Mapping[str, Any]) -> list[str]:
        texts = []
        if self.limits and (silent := _silent(found)):
            return [f"nothing can be told of {', '.join(silent)}: the source's own numbers there are not finite"]
        for metric, limit in self.limits.items():
            value, where = measured(found, metric)
            sign, _, unit = METRICS[metric]
            if value is None:
                texts.append(f"{metric} could not be measured ({found.get('skipped') or 'no text was compared'})")
            elif not (value >= limit if sign == ">=" else value <= limit):
                beside = "below" if sign == ">=" else "above"
                texts.append(f"{metric} {value:.4g}{unit}{where} is {beside} {limit:g}{unit}")
        return texts

    def _blame(self, exceeded: Sequence[str], job) -> str:
        worst = [] if _silent(self.found or {}) else blamed(job.report.weights)[:3]
        names = "; ".join(_layer(row) for row in worst)
        text = "; ".join(exceeded) + (f". Most of it comes from {names}" if names else "")
        return f"{text}. Nothing was written"

    def _help(self, job) -> str:
        o = job.options
        if _silent(self.found or {}):
            return "Check the model, and give it inputs that it takes with --eval"
        if o.weights == "fp32" and _pruned(job):
            return "Prune less, heal it with --distill DATA, or allow more"
        if o.weights == "fp32":
            return "The rewrites are what changes it: report this model"
        options = [] if o.weights == "int8" else ["--weights int8"]
        if self.calib is None:
            options.insert(0, "--calib TEXT")
        elif job.distill is None:
            options.insert(0, "--distill TEXT")
        if o.group > 32:
            options.insert(0, "--group 32")
        if o.embedding == 4:
            options.insert(0, "--embedding 8")
        options += ["less --prune"] if _pruned(job) else []
        return f"Try {' or '.join(options or ['--weights fp32'])}, or allow more"


def advice(options: Any, found: Mapping[str, Any], calib: Any, distill: Any) -> str | None:
    """What would win back most of a big loss of 4 bits, in a sentence; None where it is small."""
    (kl, _), (cosine, _) = measured(found, "kl"), measured(found, "cosine")
    big = cosine is not None and cosine < BIG["cosine"] if kl is None else kl > BIG["kl"]
    if options.weights != "int4" or not big:
        return None
    start = f"{'cosine' if kl is None else 'KL'} {cosine if kl is None else kl:.3f} is much for 4 bits: "
    if calib is None:
        fewer = "" if options.bits else ", with --bits 4.25 in fewer bits"
        return f"{start}--calib TEXT fits the weights to what the model is for{fewer} (docs/quantization.md)"
    if distill is None:
        return f"{start}--distill TEXT lets norms and scales learn from the source, in minutes, with torch"
    return f"{start}{'--embedding 6' if options.embedding == 4 else '--bits 5'} loses less in more bytes"


def _pruned(job) -> bool:
    return job.options.prune is not None or job.options.speedup is not None


def _silent(found: Mapping[str, Any]) -> list[str]:
    """Outputs of which the source gives no finite number."""
    return [name for name, row in (found.get("outputs") or {}).items() if row.get("reason") == NO_NUMBERS]


def measured(found: Mapping[str, Any], metric: str) -> tuple[float | None, str]:
    """(the worst value of a metric, " of OUTPUT") in what `Review` found."""
    lm = found.get("lm") or {}
    if METRICS[metric][1]:
        return lm.get("ppl_increase" if metric == "ppl" else metric), ""
    rows = [(name, r) for name, r in (found.get("outputs") or {}).items()]
    key = {"cosine": "cosine", "snr": "snr_db", "max": "relative"}[metric]
    values = [(math.inf if r.get(key) is None else r[key], name) for name, r in rows]
    if not values:
        return None, ""
    value, name = max(values) if metric == "max" else min(values)
    return value, f" of {name}"


def blamed(weights: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The quantized weights, those that cost most first: by what they alone change, else by their signal to noise."""
    rows = [w for w in weights if w.get("bits", 32) < 32]
    if any("sensitivity" in w for w in rows):
        return sorted(rows, key=lambda w: -w.get("sensitivity", 0.0))
    return sorted(rows, key=lambda w: math.inf if w.get("snr_db") is None else w["snr_db"])


def _layer(row: Mapping[str, Any]) -> str:
    alone = f", alone {row['sensitivity']:.2g} of the output" if "sensitivity" in row else ""
    snr = "" if row.get("snr_db") is None else f", {row['snr_db']:.1f} dB"
    return f"{origin_text(row['name'], 48)} ({row['bits']} bits{snr}{alone})"


def lines(found: Mapping[str, Any] | None, weights: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(label, text) for people: the worst output, a language model's divergence, the weights that cost most."""
    if found is None:
        return []
    if "skipped" in found:
        return [("error", f"not compared: {found['skipped']}")]
    name, row = max(found["outputs"].items(), key=lambda item: item[1]["relative"])
    snr = "" if row.get("snr_db") is None else f", SNR {row['snr_db']:.1f} dB"
    on = f"{name}; {found['inputs']}, against {found['against']}" + (f", by {found['by']}" if "by" in found else "")
    out = [("error", f"{row['relative']:.2e} of the largest value, cosine {row['cosine']:.5f}{snr} ({on})")]
    if silent := _silent(found):
        reason = f"the source gives no finite number of {', '.join(silent)}: check the model and its inputs"
        out = (
            [("error", f"not compared: {reason} ({on})")]
            if len(silent) == len(found["outputs"])
            else [*out, ("", reason)]
        )
    lm = found.get("lm")
    if lm:
        ppl = (
            f", perplexity {lm['source_ppl']:.2f} -> {lm['ppl']:.2f} ({lm['ppl_increase']:+.1%})" if "ppl" in lm else ""
        )
        more = " (--eval TEXT for yours)" if found["inputs"] == "edgec's sample text" else ""
        out.append(("loss", f"KL {lm['kl']:.4f}, top-1 agreement {lm['top1']:.1%}{ppl}; {lm['tokens']} tokens{more}"))
    worst = blamed(weights)[:3]
    if worst and "sensitivity" in worst[0]:
        out.append(("layers", "most of it: " + "; ".join(map(_layer, worst))))
    return out


def _env(graph, feed: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    import numpy as np

    from edgec.ir.dims import symbol_name

    env = dict(sizes)
    for node in graph.inputs:
        for dim, size in zip(node.shape, np.shape(feed[node["name"]])) if node["name"] in feed else ():
            env |= {s: size for s in (symbol_name(dim),) if s is not None}
    return env


def _source_bytes(model: Path) -> int:
    from edgec.compiler import source_size

    return source_size(model)
