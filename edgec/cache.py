"""Encoded weights on disk: those of this build, and those of earlier ones, found again by what they were made of."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgec import _core
from edgec.errors import EdgecError

MAGIC = b"EDGCWGT2"  # another where a packed format changes, or what is encoded into it
SUFFIX, PART = ".weight", ".part"
WORTH = 1 << 18  # bytes from which an encoded weight is kept on disk: a smaller one is made again sooner than found
LIMIT = 16 << 30  # bytes that the folder may hold
RECENT = 3600.0  # seconds in which an entry that was used stays: another build may be about to read it
_PIECE = 4 << 20


@dataclass(frozen=True)
class Stored:
    """Bytes that were put away, and what is known of them."""

    nbytes: int
    meta: dict[str, Any]
    read: Callable[[int, int], np.ndarray]  # (begin, end) -> uint8


class Store:
    """Where encoded weights wait for the artifact to be written.

    folder: keeps them between builds. scratch: a folder for a temporary file; with neither they stay in memory.
    """

    def __init__(self, folder: Path | None = None, scratch: Path | None = None, limit: int = LIMIT):
        self.folder, self.scratch, self.limit = folder, scratch, limit
        self.hits, self.bytes_found, self.bytes_made = 0, 0, 0
        self._scratch: _Scratch | None = None
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EdgecError("EC1003", error.strerror or str(error), str(folder), "Pass --no-cache") from None

    def find(self, key: str | None, nbytes: int, worth: int | None = None) -> Stored | None:
        """The entry of that key and size, if it is there and whole. worth: bytes from which on one is kept (WORTH), as put
        was told."""
        if self.folder is None or key is None or nbytes < (WORTH if worth is None else worth):
            return None
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                meta = _check(file, nbytes)
            os.utime(path)
        except OSError:
            return None
        if meta is None:
            path.unlink(missing_ok=True)
            return None
        self.hits += 1
        self.bytes_found += nbytes
        return Stored(nbytes, meta, lambda begin, end: _read_path(path, begin, end))

    def put(self, key: str | None, nbytes: int, worth: int | None = None) -> Writer:
        """Takes the bytes of an entry one after another; see Writer. worth: as find's."""
        self.bytes_made += nbytes
        if nbytes < (WORTH if worth is None else worth) or (self.folder is None and self.scratch is None):
            return _MemoryWriter(nbytes)
        if self.folder is not None and key is not None:
            return _FileWriter(nbytes, self._path(key))
        self._scratch = self._scratch or _Scratch(self.scratch or self.folder)
        return _ScratchWriter(nbytes, self._scratch)

    def prune(self) -> None:
        """Drops what was not used for longest until the folder is within its limit, and what was left unfinished."""
        if self.folder is None:
            return
        found = []
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except OSError:
                continue
            if path.suffix == PART and time.time() - status.st_mtime > RECENT:  # of a build that was killed
                path.unlink(missing_ok=True)
                continue
            found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if total <= self.limit or time.time() - used < RECENT:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / (hashlib.sha256(key.encode()).hexdigest()[:40] + SUFFIX)


class Writer:
    """write() the bytes in order, then done(what is known of them) for the entry; discard() drops what is not done."""

    def __init__(self, nbytes: int):
        self.nbytes, self.at, self.open = nbytes, 0, True

    def write(self, data: np.ndarray) -> None:
        assert self.at + data.nbytes <= self.nbytes
        self._write(data)
        self.at += data.nbytes

    def done(self, meta: dict[str, Any]) -> Stored:
        assert self.at == self.nbytes
        read = self._finish(meta)
        self.open = False
        return Stored(self.nbytes, meta, read)

    def discard(self) -> None:
        if self.open:
            self._drop()
        self.open = False

    def _drop(self) -> None:
        pass

    def _write(self, data: np.ndarray) -> None:
        raise NotImplementedError

    def _finish(self, meta: dict[str, Any]) -> Callable[[int, int], np.ndarray]:
        raise NotImplementedError


class _MemoryWriter(Writer):
    def __init__(self, nbytes: int):
        super().__init__(nbytes)
        self.bytes = np.empty(nbytes, np.uint8)

    def _write(self, data: np.ndarray) -> None:
        self.bytes[self.at : self.at + data.nbytes] = data

    def _finish(self, meta: dict[str, Any]) -> Callable[[int, int], np.ndarray]:
        return lambda begin, end: self.bytes[begin:end]


class _Scratch:
    """A file without a name: gone with the process, however that ends. Its entries keep it open."""

    def __init__(self, folder: Path | None):
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def __del__(self) -> None:
        self.file.close()


class _ScratchWriter(Writer):
    def __init__(self, nbytes: int, scratch: _Scratch):
        super().__init__(nbytes)
        self.scratch, self.start = scratch, scratch.file.seek(0, os.SEEK_END)

    def _write(self, data: np.ndarray) -> None:
        self.scratch.file.seek(self.start + self.at)
        self.scratch.file.write(memoryview(data))

    def _finish(self, meta: dict[str, Any]) -> Callable[[int, int], np.ndarray]:
        self.scratch.file.flush()
        return lambda begin, end: _read(self.scratch.file, self.start + begin, end - begin)

    def _drop(self) -> None:
        self.scratch.file.truncate(self.start)


class _FileWriter(Writer):
    """Under a name of its own until it is whole."""

    def __init__(self, nbytes: int, path: Path):
        super().__init__(nbytes)
        self.path = path
        handle, self.temporary = tempfile.mkstemp(prefix=".", suffix=PART, dir=path.parent)
        self.file = os.fdopen(handle, "wb")
        self.sums = _Sums()

    def _write(self, data: np.ndarray) -> None:
        self.file.write(memoryview(data))
        self.sums.add(memoryview(data))

    def _finish(self, meta: dict[str, Any]) -> Callable[[int, int], np.ndarray]:
        tail = json.dumps({"nbytes": self.nbytes, "sum": self.sums.text(), "meta": meta}).encode()
        self.file.write(tail + struct.pack("<Q", len(tail)) + MAGIC)
        self.file.close()
        os.replace(self.temporary, self.path)
        return lambda begin, end: _read_path(self.path, begin, end)

    def _drop(self) -> None:
        self.file.close()
        os.unlink(self.temporary)


class _Sums:
    """The checksum of a stream: of the checksums of its pieces."""

    def __init__(self) -> None:
        self.rest, self.sums = bytearray(), hashlib.sha256()

    def add(self, view: memoryview) -> None:
        while view:
            if not self.rest and len(view) >= _PIECE:
                piece, view = view[:_PIECE], view[_PIECE:]
                self._piece(piece)
                continue
            room = _PIECE - len(self.rest)
            self.rest += view[:room]
            view = view[room:]
            if len(self.rest) == _PIECE:
                self._piece(self.rest)
                self.rest = bytearray()

    def _piece(self, piece) -> None:
        self.sums.update(struct.pack("<Q", *_core.checksums(piece, _PIECE, 1)))

    def text(self) -> str:
        if self.rest:
            self._piece(self.rest)
            self.rest = bytearray()
        return self.sums.hexdigest()


def _check(file: BinaryIO, nbytes: int) -> dict[str, Any] | None:
    """What is known of an entry, None if it is damaged."""
    size = file.seek(0, os.SEEK_END)
    if size < nbytes + 16:
        return None
    file.seek(size - 16)
    length, magic = struct.unpack("<Q8s", file.read(16))
    if magic != MAGIC or nbytes + length + 16 != size:
        return None
    file.seek(nbytes)
    try:
        tail = json.loads(file.read(length))
        sums = _Sums()
        file.seek(0)
        for at in range(0, nbytes, _PIECE):
            sums.add(memoryview(file.read(min(_PIECE, nbytes - at))))
        whole = tail["nbytes"] == nbytes and tail["sum"] == sums.text()
        return tail["meta"] if whole and isinstance(tail["meta"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def _read(file: BinaryIO, begin: int, count: int) -> np.ndarray:
    out = np.empty(count, np.uint8)
    file.seek(begin)
    if file.readinto(memoryview(out)) != count:  # type: ignore[attr-defined]
        raise EdgecError("EC1003", "an encoded weight is cut off", "the build cache", "Build again with --no-cache")
    return out


def _read_path(path: Path, begin: int, end: int) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            return _read(file, begin, end - begin)
    except OSError as error:
        raise EdgecError("EC1003", error.strerror or str(error), str(path), "Build again") from None
