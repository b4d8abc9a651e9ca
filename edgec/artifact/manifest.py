"""manifest.json: what an artifact is, for whom, and the SHA-256 of everything else in it.

{"format": 1, "edgec": "0.1.0",
 "target": {"name": "host", "triple": "x86_64-unknown-linux-gnu", "cpu": "...", "features": ["avx2", "fma"]},
 "inputs": [{"name": "x", "dtype": "f32", "shape": ["n", "384"]}], "outputs": [...],
 "members": {"plan.bin": {"size": 1234, "sha256": "..."}, ...},     as in the file; large ones have "sums" too, see CHUNK,
                                                                     deflated ones "inflated", the bytes of their content
 "report": {...}}
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from edgec.errors import EdgecError

FORMAT = 1
MANIFEST = "manifest.json"
# A member larger than this lists the checksum (csrc/runtime/checksum.h, 16 hex digits) of each such piece: loading
# checks these instead of the SHA-256, at the speed of memory and by all threads.
CHUNK = 4 << 20
TEXT = 256 << 20  # bytes that a deflated member may hold
_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
_SYSTEMS = {"linux": "linux", "darwin": "darwin", "macos": "darwin", "windows": "windows"}


def dump(manifest: Mapping[str, Any]) -> bytes:
    """The member's bytes: the same manifest gives the same bytes."""
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The manifest in `data`, its form checked. Raises EdgecError EC1503, EC1505."""

    def fail(reason: str) -> EdgecError:
        return EdgecError("EC1503", reason, where=f"{where} {MANIFEST}", hint="Copy or build the artifact again")

    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise fail(f"it is no JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise fail("it is no JSON object")
    version = manifest.get("format")
    if version != FORMAT:
        raise EdgecError(
            "EC1505",
            f"format version {version!r}, this edgec reads {FORMAT}",
            where=where,
            hint="Build the artifact again with this edgec",
        )
    for key, kind in (("target", dict), ("inputs", list), ("outputs", list), ("members", dict)):
        if not isinstance(manifest.get(key), kind):
            raise fail(f"'{key}' is missing or malformed")
    for key in ("inputs", "outputs"):
        for port in manifest[key]:
            if not isinstance(port, dict) or not isinstance(port.get("name"), str):
                raise fail(f"'{key}' is malformed")
    for name, member in manifest["members"].items():
        if not isinstance(member, dict) or not isinstance(member.get("size"), int) or "sha256" not in member:
            raise fail(f"member '{name}' is malformed")
        sums = member.get("sums")
        if sums is not None and not (isinstance(sums, list) and len(sums) == -(-member["size"] // CHUNK)):
            raise fail(f"member '{name}' is malformed")
        inflated = member.get("inflated", 0)
        if not isinstance(inflated, int) or not 0 <= inflated <= TEXT:
            raise fail(f"member '{name}' is malformed")
    features = manifest["target"].get("features", [])
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        raise fail("'target.features' is malformed")
    return manifest


def check_target(target: Mapping[str, Any], features: Iterable[str], where: str) -> None:
    """Raises EdgecError EC1506 if this machine, with these CPU features, cannot run code for `target`."""
    name = target.get("name", "?")
    hint = "Build it for this machine: edgec build --target host"
    triple = str(target.get("triple", "")).lower().split("-")
    if triple[0]:
        wanted, here = (_ARCHITECTURES.get(a, a) for a in (triple[0], platform.machine().lower()))
        if wanted != here:
            raise EdgecError("EC1506", f"it is for {name} ({wanted}), this CPU is {here}", where=where, hint=hint)
        system = next((s for part in triple[1:] for prefix, s in _SYSTEMS.items() if part.startswith(prefix)), None)
        if system is not None and not sys.platform.startswith(system[:3]):
            raise EdgecError("EC1506", f"it is for {system}, this is {sys.platform}", where=where, hint=hint)
    have = set(features)
    missing = [f for f in (feature.lstrip("+") for feature in target.get("features", [])) if f not in have]
    if missing:
        raise EdgecError("EC1506", f"it is for {name}, this CPU lacks {', '.join(missing)}", where=where, hint=hint)
