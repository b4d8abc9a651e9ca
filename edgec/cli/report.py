"""edgec report: an artifact's size, loss, layers, latency and provenance as one page that works offline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from edgec.cli.common import COMMON, Common, bytes_text, existing, need, parse_dims, print_json, ratio_text, writable
from edgec.cli.compare import NO_NUMBERS
from edgec.errors import EdgecError
from edgec.options import idle

CHART = 24  # bars of a chart
MEASURED_S = 1.0


def report(
    model: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    against: Path | None = None,
    dim: tuple[str, ...] = (),
    threads: int | None = None,
    no_measure: bool = False,
    common: Common = COMMON,
) -> int:
    """Write a page about an artifact: size, loss, layers, latency, energy, where it comes from.

    Parameters
    ----------
    model
        The artifact (.edgec).
    output
        The page to write; by default the artifact's name with .html, in this folder.
    against
        The ONNX model that it was built from: its outputs are compared anew, at several sizes.
    dim
        NAME=SIZE of a symbolic dim for the measurement; repeat it for several.
    threads
        Threads to measure with; by default as many as the machine allows this process.
    no_measure
        Do not run the artifact, even where this machine can.
    """
    need("jinja2", "edgec report", "'edgec[cli]'")
    existing(model)
    if against is not None:
        existing(against, "--against")
    for option, value in (("--dim", dim or None), ("--threads", threads)) if no_measure else ():
        if value is not None and (option == "--dim" or against is None):
            raise idle(option, "nothing is measured with --no-measure", "Leave one of them out")
    out = writable(output or Path(model.stem + ".html"), "--output")
    found = collect(model, against, parse_dims(dim), threads, not no_measure)
    page = render(found)
    _write(out, page)
    if common.json:
        print_json({"path": str(out), "bytes": len(page.encode()), **found})
    else:
        print(f"{out}: {bytes_text(len(page.encode()))}, one file, opens without a network")
    return 0


def _write(out: Path, page: str) -> None:
    """Under its name only when it is whole."""
    import os

    aside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        aside.write_text(page, encoding="utf-8")
        os.replace(aside, out)
    finally:
        aside.unlink(missing_ok=True)


def render(found: Mapping[str, Any]) -> str:
    """The page. All that comes from the artifact is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": bytes_text, "figure": figure, "short": short, "duration": duration}
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(found)


def figure(value: Any, digits: int = 3) -> str:
    """A number with a few digits, "-" for none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "-"
    return f"{value:.{digits}g}" if math.isfinite(value) else "∞" if value > 0 else "-∞"


def duration(us: float) -> str:
    """Microseconds with three digits and a unit that fits."""
    scale, unit = (1e6, "s") if us >= 1e6 else (1e3, "ms") if us >= 1e3 else (1, "µs")
    return f"{us / scale:.3g} {unit}"


def short(name: str) -> str:
    from edgec.cli.common import origin_text

    return origin_text(name, 56)


# --- what the page shows ------------------------------------------------------------------------------------------------


def collect(path: Path, against: Path | None, dims: dict, threads: int | None, measure: bool) -> dict[str, Any]:
    """Everything on the page, as plain values. Raises EdgecError where the artifact is none."""
    import edgec
    from edgec.artifact.reader import ArtifactFile
    from edgec.cli import estimates

    file = ArtifactFile(path, check_target=False)
    m, about = file.manifest, _mapping(file.manifest.get("report"))
    session, note = None, None
    try:
        session = edgec.load(path, threads=threads)
    except EdgecError as error:
        if error.code != "EC1506":
            raise
        note = error.message
        if dims:
            raise idle("--dim", f"nothing is measured here: {note}") from None
    weights = _weights(about.get("weights"))
    found: dict[str, Any] = {
        "name": path.name,
        "edgec": str(m.get("edgec", "?")),
        "target": {k: str(_mapping(m.get("target")).get(k, "?")) for k in ("name", "triple", "cpu")},
        "needs": ", ".join(m["target"].get("features", [])),
        "inputs": [_port(p) for p in m["inputs"]],
        "outputs": [_port(p) for p in m["outputs"]],
        "note": note,
        "size": _size(file, weights),
        "weights": weights,
        "chart": _points(weights),
        "loss": _loss(about.get("loss")),
        "changes": _changes(about),
        "narrowed": _narrowed(about),
        "compared": _compare(session, path, against),
        "estimates": [_estimate(e.to_dict()) for e in estimates.of_manifest(m)],
        "measured": None,
        "tuned": about.get("tuned_share") if isinstance(about.get("tuned_share"), float) else None,
        "macs": about.get("macs") if isinstance(about.get("macs"), int) else None,
        "options": {str(k): _text(v) for k, v in _mapping(m.get("options")).items() if v not in ({}, None)},
        "source": {k: str(v) for k, v in _mapping(m.get("source")).items()},
        "members": [{"name": n, "bytes": v["size"], "sha256": str(v["sha256"])} for n, v in m["members"].items()],
        "kernels": [],
    }
    if session is not None:
        found["kernels"] = _count((kind, kernel) for _, kind, kernel in session.steps)
        if measure:
            sample = found["estimates"][0]["dims"] if found["estimates"] else {}
            found["measured"] = _measure(session, dims, sample)
    return found


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _number(value: Any) -> float | None:
    return (
        float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        else None
    )


def _port(port: Mapping[str, Any]) -> dict[str, str]:
    shape = port.get("shape")
    dims = ", ".join(map(str, shape)) if isinstance(shape, list) else "?"
    return {"name": port["name"], "type": f"{port.get('dtype', '?')}[{dims}]"}


def _weights(rows: Any) -> list[dict[str, Any]]:
    """The well-formed rows of the manifest's list, those that cost most first."""
    from edgec.cli.loss import blamed

    found = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict) or not isinstance(row.get("name"), str) or _number(row.get("bits")) is None:
            continue
        shape = row.get("shape") if isinstance(row.get("shape"), list) else []
        if not all(type(d) is int and 0 < d < 2**40 for d in shape):
            continue
        keys = ("bits", "group", "bytes", "snr_db", "output_snr_db", "sensitivity")
        plain = {k: row[k] for k in keys if _number(row.get(k)) is not None}
        plain |= {
            "name": row["name"],
            "role": str(row.get("role", "")),
            "reason": str(row.get("reason", "")),
            "shape": shape,
        }
        found.append({"bytes": 0, "group": 0} | plain)
    first = blamed(found)
    return [*first, *(w for w in found if w not in first)]


def _size(file, weights: list[dict]) -> dict[str, Any]:
    """Parts of the artifact and of its source, in bytes, for two bars of one scale."""
    members = {n: v["size"] for n, v in file.manifest["members"].items()}
    after: dict[str, int] = {}
    for w in weights:
        label = f"weights, {w['bits']:g} bits" if w["bits"] < 32 else "weights, float"
        after[label] = after.get(label, 0) + int(w["bytes"])
    known = sum(after.values())
    rest = members.get("weights.bin", 0) - known
    if rest < 0:  # not what the members say
        after, rest = {}, members.get("weights.bin", 0)
    after["other constants"] = rest
    after["code and plan"] = members.get("code.so", 0) + members.get("plan.bin", 0)
    after["tokenizer and text"] = sum(n for m, n in members.items() if m not in ("weights.bin", "code.so", "plan.bin"))
    after["padding and manifest"] = max(0, file.size - sum(after.values()))
    source = _mapping(file.manifest.get("source")).get("bytes")
    source = source if type(source) is int and 0 < source < 2**60 else None
    scale = max(file.size, source or 0) or 1
    parts = [{"name": k, "bytes": n, "share": 100 * n / scale} for k, n in after.items() if n]
    return {"bytes": file.size, "source": source, "source_share": 100 * (source or 0) / scale, "parts": parts,
            "ratio": ratio_text(source, file.size) if source else None}  # fmt: skip


def _points(weights: list[dict]) -> dict[str, Any] | None:
    """Bars of what costs most: what a weight alone changes, else its noise."""
    lossy = [w for w in weights if w["bits"] < 32]
    key = "sensitivity" if any("sensitivity" in w for w in lossy) else "snr_db"

    def height(w: dict) -> float:
        if key == "sensitivity":
            return max(0.0, w.get("sensitivity", 0.0))
        return 10 ** (-w["snr_db"] / 20) if "snr_db" in w else 0.0

    bars = [{"name": w["name"], "value": height(w), "bits": w["bits"]} for w in lossy[:CHART]]
    most = max((b["value"] for b in bars), default=0)
    if not most:
        return None
    what = "change of the outputs with this weight alone quantized" if key == "sensitivity" else "noise of the weight"
    return {"what": what, "bars": [b | {"share": 100 * b["value"] / most} for b in bars], "of": len(lossy)}


def _loss(value: Any) -> dict[str, Any] | None:
    """What the build found, as far as it is well-formed."""
    found = _mapping(value)
    if "skipped" in found:
        return {"skipped": str(found["skipped"]), "outputs": [], "lm": {}, "on": ""}
    rows = []
    for name, row in _mapping(found.get("outputs")).items():
        row = _mapping(row)
        rows.append(
            {"name": str(name), **{k: _number(row.get(k)) for k in ("max_abs", "relative", "cosine", "snr_db")}}
            if row.get("reason") != NO_NUMBERS
            else {"name": f"{name}: {NO_NUMBERS}", **dict.fromkeys(("max_abs", "relative", "cosine", "snr_db"))}
        )
    if not rows:
        return None
    inputs = str(found.get("inputs", "?"))
    inputs = "made-up numbers" if inputs == "random" else inputs
    on = f"{inputs}, against {found.get('against', '?')}" + (f", by {found['by']}" if "by" in found else "")
    lm = {str(k): n for k, v in _mapping(found.get("lm")).items() if (n := _number(v)) is not None}
    return {"skipped": None, "outputs": rows, "lm": lm, "on": on}


def _changes(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, how) of calibration, pruning and healing, as far as the manifest tells it well."""
    from edgec.cli.build import _healing_text, _pruning_text

    def calibrated(c: Mapping[str, Any]) -> str:
        return f"weights fitted to {c['name']}, {c['samples']} samples"

    found = []
    for what, key, say in (
        ("calibrated", "calibration", calibrated),
        ("pruned", "pruning", _pruning_text),
        ("healed", "healing", _healing_text),
    ):
        with suppress(AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            if about.get(key):
                found.append((what, str(say(about[key]))))
    return found


def _narrowed(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The groups of channels that pruning has made smaller."""
    found = []
    rows = _mapping(about.get("pruning")).get("removed")
    for row in rows if isinstance(rows, list) else ():
        row = _mapping(row)
        if isinstance(row.get("name"), str) and all(type(row.get(k)) is int for k in ("before", "after")):
            keys = ("before", "after", "error")
            found.append({"name": row["name"], "kind": str(row.get("kind", "")), **{k: row.get(k) for k in keys}})
    return found


def _compare(session, path: Path, against: Path | None) -> list[dict[str, Any]]:
    """Rows of `edgec verify` against the source, at several sizes."""
    if against is None:
        return []
    if session is None:
        raise EdgecError("EC1001", "the artifact is for another CPU", "--against", "edgec verify --emulate compares it")
    from edgec.cli import compare, verify

    source = compare.Source(against)
    verify._same_outputs(session, source)
    rows = []
    for sizes, (got, want, _) in verify._trials(session, source, (), {}, 4, 0):
        for name in got:
            dims = ", ".join(f"{k}={v}" for k, v in sizes.items())
            rows.append({"dims": dims, "name": name, **compare.errors(got[name], want[name])})
    return rows


def _estimate(e: dict[str, Any]) -> dict[str, Any]:
    from edgec.cli.estimates import by_family

    rows = [{"name": f, "us": us, "bound": bound, "share": 100 * us / e["latency_us"]} for f, _, us, bound in
            by_family(e["steps"])]  # fmt: skip
    keys = ("case", "text", "latency_us", "energy_j", "tokens", "dims")
    return {k: e[k] for k in keys} | {"rows": rows}


def _count(items: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    counts: dict[tuple[str, str], int] = {}
    for item in items:
        counts[item] = counts.get(item, 0) + 1
    rows = sorted(counts.items(), key=lambda x: (-x[1], x[0]))
    return [{"kind": kind, "name": name, "count": n} for (kind, name), n in rows]


def _measure(session, dims: dict, sample: dict[str, int]) -> dict[str, Any]:
    """Latency on this machine, and where the time goes; at the estimate's sizes where none are given and it takes them."""
    from edgec.cli import bench, bench_lm, sampling

    if hasattr(session, "generate") and not dims:
        ids = bench_lm._ids(session, min(128, session.context - 33), 0)
        prefill = bench_lm._median(bench_lm.prefill_rates(session, ids, 2))
        decode = bench_lm._median(bench_lm.decode_rates(session, ids, 32, 2))
        rows = [("decode", f"{1e3 / decode:.3g} ms a token, {decode:.1f} tokens/s"),
                (f"prefill of {len(ids)}", f"{1e3 * len(ids) / prefill:.3g} ms, {prefill:.0f} tokens/s")]  # fmt: skip
        steps = bench_lm._profile(session, ids) if session.lm.get("states") else []
        what = "decoding one token"
    else:
        try:
            sizes, feeds = sampling.feeds_for(
                session, (), dims or {k: v for k, v in sample.items() if k in session.symbols}, 0
            )
        except EdgecError:
            if dims:
                raise
            sizes, feeds = sampling.feeds_for(session, (), {}, 0)
        times = bench.summarise(bench.measure({"edgec": lambda: session(**feeds)}, MEASURED_S, None)["edgec"])
        rows = [("median", f"{times['median_ms']:.3g} ms"), ("p99", f"{times['p99_ms']:.3g} ms"),
                ("calls", str(times["runs"]))]  # fmt: skip
        if sizes:
            rows.append(("at", ", ".join(f"{k}={v}" for k, v in sizes.items())))
        steps, what = bench._profile(session, feeds), "one run"
    total = sum(s["us"] for s in steps) or 1.0
    kinds: dict[str, float] = {}
    for s in steps:
        kinds[_kind(s["kernel"])] = kinds.get(_kind(s["kernel"]), 0.0) + s["us"]
    slowest = sorted(steps, key=lambda s: -s["us"])[:CHART]
    return {
        "threads": session.threads, "rows": rows, "what": what, "total_us": total,
        "kinds": [{"name": k, "us": us, "share": 100 * us / total} for k, us in sorted(kinds.items(), key=lambda x: -x[1])],
        "slowest": [{"name": s["origin"], "kernel": s["kernel"], "us": s["us"], "share": 100 * s["us"] / total}
                    for s in slowest],
    }  # fmt: skip


def _kind(kernel: str) -> str:
    """A compiled function's name without its hash: map_add_1f2e... -> map add."""
    head, _, tail = kernel.rpartition("_")
    return head.replace("_", " ") if head and len(tail) >= 8 and all(c in "0123456789abcdef" for c in tail) else kernel
