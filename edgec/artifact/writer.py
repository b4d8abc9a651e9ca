"""Writes artifacts: a zip of members that are stored, so that they can be memory-mapped; texts are deflated."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from edgec import _core
from edgec.artifact import manifest as manifests
from edgec.errors import EdgecError

LINE = 64  # where a stored member begins: a cache line, which the widest vectors are aligned to
PAGE = (
    64 * 1024
)  # where one of manifests.CHUNK and more does: a page of any system, so that no other member is in its pages
MIMETYPE = b"application/vnd.edgec"
_DATE = 0x0021  # 1980-01-01, as MS-DOS writes it
_LIMIT32 = 0xFFFFFFFF

Buffer = bytes | bytearray | memoryview | Any


class _Entry(NamedTuple):
    name: bytes
    crc: int
    size: int
    offset: int
    sha256: str
    sums: list[str]
    inflated: int | None = None  # bytes of the content, of a deflated member

    def listed(self) -> dict[str, Any]:
        """The member's entry in the manifest."""
        entry = {"size": self.size, "sha256": self.sha256}
        if self.inflated is not None:
            entry["inflated"] = self.inflated
        return entry if self.size <= manifests.CHUNK else entry | {"sums": self.sums}

    def record(self) -> bytes:
        """Method, date, CRC and the rest up to the sizes' placeholders, as both of the zip's headers have them."""
        method = 0 if self.inflated is None else zipfile.ZIP_DEFLATED
        return struct.pack("<HHHHHIII", 45, 0, method, 0, _DATE, self.crc, _LIMIT32, _LIMIT32)

    def sizes(self) -> tuple[int, int]:
        """Of the content, and in the file."""
        return self.size if self.inflated is None else self.inflated, self.size


class _Zip:
    """Appends members; the sizes need not be known beforehand."""

    def __init__(self, file: BinaryIO, threads: Executor) -> None:
        self._file, self._threads = file, threads
        self.entries: list[_Entry] = []

    def add_text(self, name: str, data: Buffer) -> None:
        """Deflated, where the previous member ends."""
        stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = stream.compress(data) + stream.flush()
        self.add(name, [packed], 1, (zlib.crc32(data), memoryview(data).nbytes))

    def add(
        self, name: str, chunks: Iterable[Buffer], alignment: int = LINE, content: tuple[int, int] | None = None
    ) -> None:
        """alignment: of a small member. content: CRC and size of what a deflated member holds."""
        pieces = _rechunk(chunks, manifests.CHUNK)
        view = next(pieces, None)
        if view is not None and len(view) == manifests.CHUNK and content is None:
            alignment = PAGE
        encoded = name.encode("ascii")
        # Space before the header, not an extra field: those end at 64 KiB.
        header_size = 30 + len(encoded) + 20
        self._pad(-(self._file.tell() + header_size) % alignment)
        offset = self._file.tell()
        self._file.write(bytes(header_size))
        size, crc, sha, sums = 0, 0, hashlib.sha256(), []
        while view is not None:
            hashed = self._threads.submit(sha.update, view)
            checked = self._threads.submit(zlib.crc32, view, crc)
            self._file.write(view)
            sums.append(f"{_core.checksums(view, manifests.CHUNK, 1)[0]:016x}")
            size += len(view)
            hashed.result()
            crc = checked.result()
            view = None  # before the next one takes its memory
            view = next(pieces, None)
        end = self._file.tell()
        self._file.seek(offset)
        if content is not None:
            crc = content[0]
        entry = _Entry(encoded, crc, size, offset, sha.hexdigest(), sums, None if content is None else content[1])
        # Sizes are always in a zip64 field, so that the header's length does not depend on them.
        self._file.write(struct.pack("<I", 0x04034B50) + entry.record() + struct.pack("<HH", len(encoded), 20))
        self._file.write(encoded + struct.pack("<HHQQ", 1, 16, *entry.sizes()))
        self._file.seek(end)
        self.entries.append(entry)

    def finish(self) -> None:
        start = self._file.tell()
        for entry in self.entries:
            extra = struct.pack("<HHQQQ", 1, 24, *entry.sizes(), entry.offset)
            self._file.write(struct.pack("<IH", 0x02014B50, 45) + entry.record())
            self._file.write(struct.pack("<HHHHHII", len(entry.name), len(extra), 0, 0, 0, 0, _LIMIT32))
            self._file.write(entry.name + extra)
        end, count = self._file.tell(), len(self.entries)
        self._file.write(struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, end - start, start))
        self._file.write(struct.pack("<IIQI", 0x07064B50, 0, end, 1))
        self._file.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, _LIMIT32, _LIMIT32, 0))

    def _pad(self, count: int) -> None:
        self._file.write(bytes(count))


def _rechunk(chunks: Iterable[Buffer], size: int) -> Iterator[memoryview]:
    """The same bytes in pieces of `size` but the last; a piece is gone when the next is asked for."""
    rest = bytearray()
    for chunk in chunks:
        view = memoryview(chunk)
        del chunk
        view = view if view.nbytes == 0 else view.cast("B")
        while len(view):
            if not rest and len(view) >= size:
                yield view[:size]
                view = view[size:]
                continue
            part = view[: size - len(rest)]
            rest += part
            view = view[len(part) :]
            if len(rest) == size:
                yield memoryview(rest)
                rest = bytearray()
        del view
    if rest:
        yield memoryview(rest)


def _aligned(pieces: Iterable[tuple[int, Buffer]]) -> Iterable[Buffer]:
    """The pieces' bytes with zeros between them so that each begins at its alignment."""
    at = 0
    for alignment, piece in pieces:
        if gap := -at % alignment:
            yield bytes(gap)
        at += gap + memoryview(piece).nbytes
        yield piece
        del piece


def write_artifact(
    path: str | os.PathLike[str],
    *,
    plan: bytes,
    manifest: Mapping[str, Any],
    code: bytes | None = None,
    weights: Iterable[tuple[int, Buffer]] = (),
    files: Mapping[str, Buffer] | None = None,
) -> dict[str, Any]:
    """Writes the artifact and returns its whole manifest.

    `weights`: (alignment in bytes, C-contiguous buffer) in the order of their offsets; taken one at a time, so they
    need not be in memory together; one of alignment 1 continues the one before. `plan` holds their offsets: each is
    the previous end rounded up to the alignment.
    `manifest`: edgec, target, inputs, outputs, report; format and members are added here. `files`: further members,
    texts, which are deflated.
    The file appears under its name only when it is whole; after a failure nothing is left. Raises EdgecError EC1509.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        with os.fdopen(handle, "wb") as file, ThreadPoolExecutor(2) as threads:
            archive = _Zip(file, threads)
            archive.add("mimetype", [MIMETYPE], alignment=1)
            archive.add("plan.bin", [plan])
            if code is not None:
                archive.add("code.so", [code])
            archive.add("weights.bin", _aligned(weights))
            for name, data in sorted((files or {}).items()):
                archive.add_text(name, data)
            full = dict(manifest) | {
                "format": manifests.FORMAT,
                "members": {e.name.decode(): e.listed() for e in archive.entries},
            }
            archive.add(manifests.MANIFEST, [manifests.dump(full)], alignment=1)
            archive.finish()
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return full


def replace_manifest(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Puts change(manifest) in the place of the manifest of an artifact that `write_artifact` wrote: its last member.

    Not for a file that others may be reading. Raises EdgecError EC1509.
    """
    try:
        with open(path, "r+b") as file, zipfile.ZipFile(file) as known, ThreadPoolExecutor(2) as threads:
            *others, last = known.infolist()
            manifest = json.loads(known.read(last))
            archive = _Zip(file, threads)
            archive.entries = [_known(i) for i in others]
            file.seek(others[-1].header_offset)
            header = file.read(30)
            name, extra = struct.unpack("<HH", header[26:30])
            file.truncate(others[-1].header_offset + 30 + name + extra + others[-1].compress_size)
            file.seek(0, os.SEEK_END)
            archive.add(manifests.MANIFEST, [manifests.dump(change(manifest))], alignment=1)
            archive.finish()
    except OSError as error:
        raise _cannot_write(path, error) from None


def _known(info: zipfile.ZipInfo) -> _Entry:
    inflated = info.file_size if info.compress_type == zipfile.ZIP_DEFLATED else None
    return _Entry(info.filename.encode(), info.CRC, info.compress_size, info.header_offset, "", [], inflated)


def _cannot_write(path: Path, error: OSError) -> EdgecError:
    return EdgecError(
        "EC1509",
        error.strerror or str(error),
        where=str(path),
        hint="Choose a folder that exists and can be written to",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
