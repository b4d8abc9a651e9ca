"""Opens artifacts as the untrusted data they are: every offset, size and checksum is checked before a byte is used."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from edgec import _core
from edgec.artifact import manifest as manifests
from edgec.errors import EdgecError

REQUIRED = ("plan.bin", "weights.bin")


class Members(Mapping[str, memoryview]):
    """name -> read-only memoryview: of the mapped file, or of what a deflated member holds, inflated when it is asked for.

    stored: those of the file that are ready to be read. sizes: of the deflated ones, the bytes of their content.
    """

    def __init__(self, path: str, stored: dict[str, memoryview], deflated: dict[str, memoryview]) -> None:
        self.path, self.stored, self.deflated = path, stored, deflated
        self.sizes: dict[str, int] = {}
        self._inflated: dict[str, memoryview] = {}

    def __getitem__(self, name: str) -> memoryview:
        """Raises KeyError, EdgecError EC1504."""
        if name in self.stored:
            return self.stored[name]
        if name not in self._inflated:
            self._inflated[name] = memoryview(self._inflate(self.deflated[name], self.sizes.get(name, 0), name))
        return self._inflated[name]

    def _inflate(self, data: memoryview, size: int, name: str) -> bytes:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            found = stream.decompress(data, size + 1)  # never more, whatever the stream says; 0 would be no limit
        except zlib.error:
            found = b""
        if len(found) != size or not stream.eof:
            raise damaged(self.path, name, "it does not inflate to what the manifest says")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.stored or name in self.deflated

    def __iter__(self) -> Iterator[str]:
        return iter((*self.stored, *self.deflated))

    def __len__(self) -> int:
        return len(self.stored) + len(self.deflated)

    def raw(self, name: str) -> memoryview | None:
        """The bytes of the file."""
        return self.stored.get(name, self.deflated.get(name))


class ArtifactFile:
    """An open artifact: `manifest` (dict) and `members` (name -> read-only memoryview)."""

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
        try:
            self._file = _core.Artifact(self.path)
        except EdgecError as error:
            if error.code == "EC1502" and self.path.endswith(".onnx"):
                raise EdgecError(
                    "EC1502", "it is a model, no artifact", self.path, f"Make one of it: edgec build {self.path}"
                ) from None
            raise
        self.size: int = self._file.size
        self.members = Members(self.path, self._file.members(), self._file.deflated())
        data = self.members.stored.get(manifests.MANIFEST)
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
            if name in self.members.deflated:
                raise self._damaged(name, "it is compressed")
        for name in self.members:
            if name not in listed and name != manifests.MANIFEST:
                raise self._damaged(name, "the manifest does not list it")
        for name, entry in listed.items():
            data = self.members.raw(name)
            if data is None:
                raise self._damaged(name, "it is missing")
            if len(data) != entry["size"]:
                raise self._damaged(name, f"{len(data)} bytes, the manifest says {entry['size']}")
            if name in self.members.deflated:
                self.members.sizes[name] = entry.get("inflated", 0)
            if "sums" not in entry:
                self._check_sha256(name)
            elif content:
                self._checks[name] = _core.Checksums(data, manifests.CHUNK, threads)
                if name != "weights.bin":  # what decides over more than numbers
                    self.wait()

    def _check_sha256(self, name: str) -> None:
        if hashlib.sha256(self.members.raw(name) or b"").hexdigest() != self.manifest["members"][name]["sha256"]:
            raise self._damaged(name, "its SHA-256 is not the manifest's")

    def check(self) -> None:
        """Every member's SHA-256: opening looks at those of small members, and at large ones' checksums.

        Raises EdgecError EC1504.
        """
        for name in self.manifest["members"]:
            self._check_sha256(name)
            self.members[name]

    def _damaged(self, member: str, reason: str) -> EdgecError:
        return damaged(self.path, member, reason)


def damaged(path: str, member: str, reason: str) -> EdgecError:
    return EdgecError("EC1504", reason, where=f"{path} {member}", hint="Copy or build the artifact again")
