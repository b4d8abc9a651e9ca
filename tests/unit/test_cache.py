"""The store of encoded weights: what is put is found, whole and by its key only."""

from __future__ import annotations

import os

import numpy as np
import pytest

from edgec import EdgecError, _core, cache
from edgec.cache import Store


def put(store: Store, key: str | None, data: np.ndarray, meta=None):
    writer = store.put(key, data.nbytes)
    for part in np.array_split(data, 3):
        writer.write(part)
    return writer.done(meta or {"noise": 1.5})


@pytest.fixture
def data():
    return np.random.default_rng(0).integers(0, 256, cache._PIECE + 12345, np.uint8)


@pytest.mark.parametrize("kind", ["memory", "scratch", "folder", "small"])
def test_what_is_put_is_read(tmp_path, data, kind):
    data = data[:1000] if kind == "small" else data
    folders = {"scratch": {"scratch": tmp_path}, "folder": {"folder": tmp_path / "a" / "b"}}.get(kind, {})
    store = Store(**folders)
    entries = [put(store, f"k{i}", np.roll(data, i)) for i in range(3)]
    for i, entry in enumerate(entries):
        np.testing.assert_array_equal(entry.read(0, data.nbytes), np.roll(data, i))
        np.testing.assert_array_equal(entry.read(17, 800), np.roll(data, i)[17:800])
        assert entry.meta == {"noise": 1.5}
    again = Store(**folders).find("k1", data.nbytes)
    assert (again is not None) == (kind == "folder")
    if again is not None:
        np.testing.assert_array_equal(again.read(0, data.nbytes), np.roll(data, 1))
        assert store.find("k1", data.nbytes - 1) is None and store.find("k9", data.nbytes) is None
    if kind == "scratch":
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "tail", "empty", "json"])
def test_a_damaged_entry_is_not_found(tmp_path, data, damage):
    put(Store(tmp_path), "k", data)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    at = content.rindex(b'{"nbytes"')
    if damage == "flip":
        content[cache._PIECE + 7] ^= 1
    elif damage == "json":
        content[at + 3] ^= 0x80
    else:
        del content[{"cut": cache._PIECE, "tail": len(content) - 5, "empty": 0}[damage] :]
    path.write_bytes(content)
    assert Store(tmp_path).find("k", data.nbytes) is None


def test_an_unfinished_entry_leaves_nothing(tmp_path, data):
    for store in (Store(tmp_path), Store(scratch=tmp_path)):
        writer = store.put("k", data.nbytes)
        writer.write(data[:100])
        writer.discard()
        assert not list(tmp_path.iterdir())
        assert store.find("k", data.nbytes) is None
        np.testing.assert_array_equal(put(store, "k", data).read(0, data.nbytes), data)
        for path in tmp_path.iterdir():
            path.unlink()


def test_the_folder_stays_within_its_limit(tmp_path, data):
    store = Store(tmp_path, limit=2 * data.nbytes + 10000)
    for i in range(4):
        put(store, f"k{i}", data)
        os.utime(store._path(f"k{i}"), (i * 10, i * 10))
    os.utime(store._path("k0"))  # used again
    (tmp_path / ".x.part").write_bytes(b"unfinished")
    (tmp_path / ".y.part").write_bytes(b"unfinished")
    os.utime(tmp_path / ".y.part", (0, 0))
    store.prune()
    assert [p.name for p in tmp_path.glob("*.part")] == [".x.part"]
    assert [store.find(f"k{i}", data.nbytes) is not None for i in range(4)] == [True, False, False, True]


def test_a_folder_that_cannot_be_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EdgecError, match=r"EC1003.*no-cache"):
        Store(tmp_path / "file" / "cache")


def test_checksums_see_every_byte():
    data = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    seen = {_core.checksums(data[:n], 4096)[0] for n in range(1, 400)}
    for at in range(300):
        for bit in (1, 128):
            changed = data[:300].copy()
            changed[at] ^= bit
            seen.add(_core.checksums(changed, 4096)[0])
    assert len(seen) == 399 + 600
    assert _core.checksums(data, 300, 2) == [_core.checksums(data[i : i + 300], 300)[0] for i in range(0, 1000, 300)]
    assert _core.checksums(b"", 8) == []
    with pytest.raises(ValueError, match="empty"):
        _core.checksums(data, 0)
