"""Opens artifacts as the untrusted data they are: every offset, size and checksum is checked before a byte is used."""

from __future__ import annotations

import hashlib
import os
import zlib
from typing import Any

from edgec import _core
from edgec.artifact import manifest as manifests
from edgec.errors import EdgecError

REQUIRED = ("plan.bin", "weights.bin")


class ArtifactFile:
    """An open artifact: `manifest` (dict) and `members` (name -> read-only memoryview of the mapped file)."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        check_target: bool = True,
        check_content: bool = True,
        wait: bool = True,
        threads: int = 0,
    ) -> None:
        """check_content: look at the checksums of large members, which reads them. wait: False leaves that to the
        background until wait() is called. Raises EdgecError EC1501 to EC1506."""
        self.path = os.fspath(path)
        self._file = _core.Artifact(self.path)
        self.size: int = self._file.size
        self.members: dict[str, memoryview] = self._file.members()
        data = self.members.get(manifests.MANIFEST)
        if data is None:
            raise EdgecError("EC1502", "it has no manifest.json", where=self.path, hint="Is it an edgec artifact?")
        if zlib.crc32(data) != self._file.crc32(manifests.MANIFEST):
            raise self._damaged(manifests.MANIFEST, "its checksum does not fit")
        self.manifest: dict[str, Any] = manifests.parse(bytes(data), self.path)
        self._checks: dict[str, _core.Checksums] = {}
        self._check_members(check_content, threads)
        if check_target:
            manifests.check_target(self.manifest["target"], _core.cpu_features(), self.path)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until large members are compared with their checksums. Raises EdgecError EC1504."""
        while self._checks:
            name, check = self._checks.popitem()
            if [f"{s:016x}" for s in check.wait()] != self.manifest["members"][name]["sums"]:
                raise self._damaged(name, "its checksums are not the manifest's")

    def _check_members(self, content: bool, threads: int) -> None:
        listed = self.manifest["members"]
        for name in REQUIRED:
            if name not in listed:
                raise EdgecError("EC1503", f"it lists no '{name}'", where=self.path)
        for name in self.members:
            if name not in listed and name != manifests.MANIFEST:
                raise self._damaged(name, "the manifest does not list it")
        for name, entry in listed.items():
            data = self.members.get(name)
            if data is None:
                raise self._damaged(name, "it is missing")
            if len(data) != entry["size"]:
                raise self._damaged(name, f"{len(data)} bytes, the manifest says {entry['size']}")
            if "sums" not in entry:
                self._check_sha256(name)
            elif content:
                self._checks[name] = _core.Checksums(data, manifests.CHUNK, threads)
                if name != "weights.bin":  # what decides over more than numbers
                    self.wait()

    def _check_sha256(self, name: str) -> None:
        if hashlib.sha256(self.members[name]).hexdigest() != self.manifest["members"][name]["sha256"]:
            raise self._damaged(name, "its SHA-256 is not the manifest's")

    def check(self) -> None:
        """Every member's SHA-256: opening looks at those of small members, and at large ones' checksums.

        Raises EdgecError EC1504.
        """
        for name in self.manifest["members"]:
            self._check_sha256(name)

    def _damaged(self, member: str, reason: str) -> EdgecError:
        return EdgecError("EC1504", reason, where=f"{self.path} {member}", hint="Copy or build the artifact again")
