"""Estimates of latency and energy, from what an artifact's manifest says of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def of_manifest(manifest: Mapping[str, Any]) -> list:
    """The edgec.estimate.Estimate of each case that the manifest has work for; none where its target is not known here."""
    from edgec import rates, targets
    from edgec.errors import EdgecError
    from edgec.estimate import estimate, unpacked

    report, target = manifest.get("report"), manifest.get("target")
    cases = report.get("work") if isinstance(report, dict) else None
    name = target.get("name") if isinstance(target, dict) else None
    if not isinstance(cases, list) or not isinstance(name, str):
        return []
    try:
        found = rates.of(targets.load(name))
    except EdgecError:
        return []
    estimates = []
    for case in cases:
        if not isinstance(case, dict) or found is None:
            continue
        work, dims, tokens = unpacked(case.get("steps")), case.get("dims"), case.get("tokens")
        if work and isinstance(dims, dict) and type(tokens) is int and tokens > 0:
            dims = {str(k): v for k, v in dims.items() if type(v) is int}
            estimates.append(estimate(work, found, str(case.get("case")), dims, tokens))
    return estimates


def by_family(steps: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, float, str]]:
    """(family, steps, microseconds, what bounds most of it), the longest first, of an estimate's rows."""
    found: dict[str, dict[str, float]] = {}
    count: dict[str, int] = {}
    for s in steps:
        bounds = found.setdefault(s["family"], {})
        bounds[s["bound"]] = bounds.get(s["bound"], 0.0) + s["latency_us"] * s["count"]
        count[s["family"]] = count.get(s["family"], 0) + s["count"]
    rows = [(f, count[f], sum(b.values()), max(b, key=lambda k: b[k])) for f, b in found.items()]
    return sorted(rows, key=lambda r: -r[2])


def show(estimates: Iterable[Mapping[str, Any]]) -> None:
    """A table of the kinds of steps for each case, marked as an estimate, and what it went by."""
    from edgec.cli.common import table

    for e in estimates:
        total = e["latency_us"]
        dims = ", ".join(f"{k}={v}" for k, v in e["dims"].items())
        table(
            ("estimated", "steps>", "us>", "%>", "bound by"),
            [(f, n, f"{us:.1f}", f"{100 * us / total:.1f}", bound) for f, n, us, bound in by_family(e["steps"])],
            title=f"{e['case']}: {e['text']}" + (f"\nat {dims}" if dims else ""),
        )
