"""edgec doctor: what this machine has, what is missing, and what to install."""

from __future__ import annotations

import os
import platform
import sys

from edgec.cli.common import COMMON, Common, fields, print_json, table

# distribution, module, what needs it, how to install it
PACKAGES = (
    ("numpy", "numpy", "running", "edgec"),
    ("apache-tvm", "tvm", "building", "'edgec[build]'"),
    ("onnx", "onnx", "building", "'edgec[build]'"),
    ("onnx_ir", "onnx_ir", "building", "'edgec[build]'"),
    ("ziglang", "ziglang", "building", "'edgec[build]'"),
    ("onnxruntime", "onnxruntime", "verify and bench against it (optional)", "onnxruntime"),
    ("unicorn", "unicorn", "verify --emulate of macOS's Mach-O (optional)", "'edgec[emulate]'"),
    ("lief", "lief", "verify --emulate of macOS's Mach-O (optional)", "'edgec[emulate]'"),
)


def doctor(*, measure: bool = False, common: Common = COMMON) -> int:
    """Report Python, CPU, threads and packages; exit status 1 if artifacts cannot be run or built here.

    Parameters
    ----------
    measure
        Measure anew what this machine's estimates go by, which takes a second or two; do it while nothing else runs.
    """
    if measure:
        from edgec import rates, targets

        rates.forget()
        rates.of(targets.load("host"), measure_now=True)
    packages = [_package(*p) for p in PACKAGES]
    cpu = _cpu()
    problems, emulation = _problems(packages, cpu), _emulation()
    if common.json:
        found = {"python": platform.python_version(), **cpu, "packages": packages, "problems": problems}
        found["emulation"] = emulation
        print_json(found | {"rates": _rates()})
        return int(bool(problems))
    import edgec

    fields(
        (
            ("edgec", edgec.__version__),
            ("python", f"{platform.python_version()} ({sys.executable})"),
            ("system", f"{platform.system()} {platform.machine()}"),
            ("cpu", ", ".join(cpu["features"]) or "baseline"),
            ("target", cpu["target"]),
            ("threads", f"{cpu['threads']}: {cpu['threads_reason']}"),
            ("estimates", _estimates()),
        )
    )
    table(
        ("package", "version", "for"),
        [(p["name"], p["version"] or "not installed", p["purpose"]) for p in packages],
    )
    table(
        ("emulation", "found", "for"),
        [(e["name"], e["path"] or f"no: {e['missing']}", e["purpose"]) for e in emulation],
    )
    for problem in problems:
        print(f"problem: {problem}")
    if not problems:
        print("Ready to build and to run.")
    return int(bool(problems))


def _package(distribution: str, module: str, purpose: str, install: str) -> dict:
    import importlib.metadata
    import importlib.util

    version = None
    if importlib.util.find_spec(module) is not None:
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "unknown version"
    return {"name": distribution, "version": version, "purpose": purpose, "install": f"pip install {install}"}


def _cpu() -> dict:
    from edgec.errors import EdgecError

    facts: dict = {"features": [], "threads": None, "threads_reason": "", "target": None, "extension": None}
    try:
        from edgec import _core

        facts["features"] = list(_core.cpu_features())
        facts["threads"] = _core.default_threads()
        facts["threads_reason"] = _threads_reason(facts["threads"])
    except ImportError as error:
        facts["extension"] = str(error)
    try:
        from edgec import targets

        facts["target"] = targets.load("host").description
    except EdgecError as error:
        facts["target"] = str(error)
    return facts


def _rates() -> dict | None:
    """What estimates for this machine go by; None where the machine is none that there is a target for."""
    from dataclasses import asdict

    from edgec.errors import EdgecError

    try:
        from edgec import rates, targets

        found = rates.of(targets.load("host"))
    except (EdgecError, ImportError):
        return None
    return found and asdict(found)


def _estimates() -> str | None:
    found = _rates()
    if found is None:
        return None
    how = "" if found["source"].startswith("measured") else " (not measured yet: --measure)"
    gmacs = ", ".join(f"{unit} {rate:.3g}" for unit, rate in found["gmacs"].items())
    return f"{gmacs} GMAC/s a core, weights from memory at {found['stream'][-1][1]:.3g} GB/s{how}"


def _emulation() -> list[dict]:
    """What runs code of other CPUs here; all of it is optional."""
    from edgec.emulate import runner
    from edgec.errors import EdgecError

    found = {"name": "qemu-aarch64", "path": None, "missing": None, "purpose": "verify --emulate of Arm artifacts"}
    try:
        found["path"] = str(runner.find_qemu("aarch64"))
    except EdgecError as error:
        found["missing"] = f"{error.message}. {error.hint}"
    root = runner.arm_root()
    ready = (root / "ready").exists()
    linux = {"name": "arm64 Linux", "path": str(root) if ready else None,
             "missing": None if ready else "make test-arm in a checkout fetches it",
             "purpose": "edgec's own tests on Arm (make test-arm)"}  # fmt: skip
    return [found, linux]


def _threads_reason(threads: int) -> str:
    total = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    if allowed < total and threads >= allowed:
        return f"affinity allows {allowed} of {total} CPUs"
    if threads < allowed:
        return f"of {allowed} CPUs, what the cgroup quota and the big cores allow"
    return f"all {total} CPUs of the machine"


def _problems(packages: list[dict], cpu: dict) -> list[str]:
    found = []
    if cpu["extension"]:
        found.append(f"the extension edgec._core cannot be loaded ({cpu['extension']}). Install edgec again")
    missing = [p for p in packages if p["version"] is None and "optional" not in p["purpose"]]
    for install in dict.fromkeys(p["install"] for p in missing):
        names = ", ".join(p["name"] for p in missing if p["install"] == install)
        found.append(f"{names} not installed: {install}")
    import tempfile

    try:
        with tempfile.TemporaryFile():
            pass
    except OSError as error:
        found.append(f"no file can be written to the temporary folder ({error}): set TMPDIR")
    return found
