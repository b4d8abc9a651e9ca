"""edgec verify: the artifact's numbers beside the source's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from edgec.cli.common import COMMON, Common, existing, parse_dims, print_json, read_array, split_pair, table
from edgec.errors import EdgecError


def verify(
    model: Path,
    /,
    *,
    against: Path,
    layers: bool = False,
    tolerance: float | None = None,
    dim: tuple[str, ...] = (),
    const: tuple[str, ...] = (),
    input: tuple[str, ...] = (),
    sizes: int = 4,
    seed: int = 0,
    threads: int | None = None,
    by: Literal["onnxruntime", "reference"] | None = None,
    emulate: bool = False,
    count: bool = False,
    common: Common = COMMON,
) -> int:
    """Compare an artifact's outputs with the source model's; exit status 1 where one is beyond the tolerance.

    Parameters
    ----------
    model
        The artifact (.edgec).
    against
        The ONNX model that it was built from.
    layers
        Compare every intermediate too, and name the first op that departs.
    tolerance
        Largest error allowed, relative to the output's largest value; by default 1e-3 for fp32 weights, 0.05 for int8,
        0.2 for int4.
    dim
        NAME=SIZE of a symbolic dim; repeat it for several. By default several sizes of each are tried.
    const
        NAME=VALUE or NAME=FILE.npy for inputs that the build made constants.
    input
        NAME=FILE.npy, NAME=JSON or FILE.npz; inputs that are not given are made up.
    sizes
        How many combinations of sizes to try.
    seed
        Seed of the inputs that are made up.
    threads
        Threads; by default as many as the machine allows this process.
    by
        What runs the source; by default onnxruntime where it is installed, else the IR's reference evaluator.
    emulate
        Run the artifact's own code under an emulator of its target's CPU (qemu; macOS and Android too). For macOS the
        Mach-O's functions then run once more under Unicorn, as macOS would load it.
    count
        With --emulate: count the instructions that each run executes (slow: tens of millions a second).
    """
    import edgec
    from edgec.cli import compare

    existing(model)
    existing(against, "--against")
    if sizes < 1:
        raise EdgecError("EC1001", f"{sizes} is no number of 1 or more", "--sizes", "Such as --sizes 4")
    if tolerance is not None and not tolerance >= 0:
        raise EdgecError("EC1001", f"{tolerance} is no share of 0 or more", "--tolerance", "Such as --tolerance 0.05")
    consts = {n: read_array(v, f"--const {n}") for n, v in (split_pair(c, "--const") for c in const)}
    if emulate:
        from edgec.cli.common import console
        from edgec.emulate import EmulatedSession

        if layers:
            raise EdgecError(
                "EC1001",
                "intermediates are compared on this machine only",
                "--layers with --emulate",
                "Compare the layers of a build for this machine, or leave --layers out",
            )
        session = EmulatedSession(model, threads or 1, progress=console(stderr=True).print)
    elif count:
        raise EdgecError("EC1001", "instructions are counted under emulation", "--count", "Add --emulate")
    else:
        session = edgec.load(model, threads=threads, check=False)
        session.artifact.check()  # every SHA-256, where loading looks at checksums
    limit = compare.TOLERANCE.get(_weights(session.manifest), 1e-3) if tolerance is None else tolerance
    source = compare.Source(against, consts, reference=by == "reference")
    _same_outputs(session, source)
    trials = _trials(session, source, input, parse_dims(dim), sizes, seed)
    rows = [
        {"dims": dims, "output": name, **compare.errors(got[name], want[name])}
        for dims, (got, want, _) in trials
        for name in got
    ]
    holds = all(r["relative"] <= limit for r in rows)
    out: dict[str, Any] = {"ok": holds, "tolerance": limit, "against": source.by, "results": rows}
    if emulate:
        out["emulated"] = {"target": session.target.name, "cpu": session.cpu, "threads": session.threads}
        feeds = trials[0][1][2]
        found = session.smoke({p.name: feeds[p.name] for p in session.inputs}, console(stderr=True).print)
        if found is not None:
            out["emulated"]["macho"] = asdict(found) | {"text": found.text()}
            out["ok"] = holds = holds and found.ok
    if count:
        out["instructions"] = [
            {"dims": dims, "instructions": session.run_counted({p.name: feeds[p.name] for p in session.inputs})[1]}
            for dims, (_, _, feeds) in trials
        ]
    if layers:
        from edgec.cli.layers import compare_layers

        out["layers"] = compare_layers(session.manifest, against, consts, trials[0][1][2], limit, source.by)
        out["ok"] = holds = holds and out["layers"]["first"] is None
    if common.json:
        print_json(out)
    else:
        _show(out)
    return 0 if holds else 1


def _weights(manifest: dict) -> str:
    options = manifest.get("options")
    return str(options.get("weights")) if isinstance(options, dict) else "fp32"


def _same_outputs(session, source) -> None:
    kept = {state["present"] for state in session.manifest.get("states", ())}
    mine, theirs = [o.name for o in session.outputs], [name for name in source.outputs if name not in kept]
    if mine != theirs:
        reason = f"the artifact's outputs are {', '.join(mine)}, the model's {', '.join(theirs)}"
        raise EdgecError("EC1001", reason, "--against", "Give the model that the artifact was built from")
    lacking = [i.name for i in session.inputs if i.name not in source.inputs]
    if lacking:
        raise EdgecError(
            "EC1001", f"the model has no input {lacking[0]!r}", "--against", "Give the model it was built from"
        )


def _trials(session, source, given: tuple[str, ...], dims: dict, count: int, seed: int) -> list:
    """[(sizes, (the artifact's outputs, the source's, feeds))]; sizes that both refuse are passed over."""
    from edgec.cli import sampling
    from edgec.cli.run import read_feeds
    from edgec.testing.inputs import random_inputs

    feeds = read_feeds(given, session)
    fixed = sampling.fixed_sizes(dims, session.symbols)
    for port in session.inputs:
        if port.name in feeds and len(port.shape) == feeds[port.name].ndim:
            fixed |= {d: n for d, n in zip(port.shape, feeds[port.name].shape) if d in session.symbols}
    missing = [p for p in session.inputs if p.name not in feeds]
    hints = sampling.input_hints(session.manifest)

    def attempt(sizes: dict[str, int]):
        made = feeds | random_inputs(missing, sizes, hints, seed)
        full = made | source.empty_caches(session.manifest, sizes)
        want = source.run(full)
        # what the source takes, the artifact must take: its refusal is a failure, not a size to pass over
        try:
            return session(**made), want, full
        except EdgecError as error:
            at = ", ".join(f"{k}={v}" for k, v in sizes.items())
            raise EdgecError(
                "EC1901",
                f"the source takes {at}, the artifact does not: {error}",
                str(session.artifact.path),
                "Report this model; --dim tries other sizes",
            ) from None

    return sampling.sizes_that_fit(session, fixed, attempt, count, seed)


def _show(out: dict[str, Any]) -> None:
    def line(r):
        dims = ", ".join(f"{k}={v}" for k, v in r["dims"].items()) or "-"
        bad = "" if r["relative"] <= out["tolerance"] else r.get("reason", "beyond the tolerance")
        return dims, r["output"], f"{r['max_abs']:.3g}", f"{r['relative']:.3g}", f"{r['cosine']:.6f}", bad

    table(("dims", "output", "max error>", "relative>", "cosine>", ""), map(line, out["results"]))
    for run in out.get("instructions", ()):
        dims = ", ".join(f"{k}={v}" for k, v in run["dims"].items()) or "-"
        print(f"{dims}: {run['instructions']:,} instructions executed")
    if "emulated" in out:
        print(f"emulated: {out['emulated']['target']}, as qemu's {out['emulated']['cpu']}")
        if "macho" in out["emulated"]:
            print(out["emulated"]["macho"]["text"])
    if "layers" in out:
        from edgec.cli.layers import show

        show(out["layers"])
    verdict = "holds" if out["ok"] else "does NOT hold"
    print(f"{verdict}: every output within {out['tolerance']:g} of its largest value, against {out['against']}")
