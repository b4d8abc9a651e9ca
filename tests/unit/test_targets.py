"""Targets: their files, inheritance, and what is refused."""

from __future__ import annotations

import pytest

from edgec import targets
from edgec.errors import EdgecError


def test_files_load():
    """Every file makes a target, and a child keeps what it does not change."""
    loaded = {name: targets.load(name) for name in targets.names() if name != "host"}
    assert {"x86-64-v2", "x86-64-v3", "aarch64-generic"} <= loaded.keys()
    assert loaded["x86-64-v3"].triple == loaded["x86-64-v2"].triple
    assert loaded["x86-64-v3"].vector_bits == 256 and loaded["x86-64-v2"].vector_bits == 128
    assert loaded["aarch64-generic"].arch == "aarch64"


def test_host_is_one_of_them():
    host = targets.host()
    assert host.name == "host" and host.cores >= 1
    assert host.cpu in {targets.load(n).cpu for n in targets.names() if n != "host"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('inherits = "x86-64-v2"\nwidth = 3', "unknown key 'width'"),
        ('inherits = "x86-64-v2"\nvector_bits = "wide"', "must be of type int"),
        ('inherits = "bad"', "inherits from itself"),
        ('cpu = "generic"', "needs 'triple'"),
        ("cpu = ", "bad.toml"),
        ('inherits = "nothing"', "no target 'nothing'"),
    ],
)
def test_faults_are_named(tmp_path, monkeypatch, text, part):
    for name in ("x86-64-v2",):
        (tmp_path / f"{name}.toml").write_text((targets.folder() / f"{name}.toml").read_text())
    (tmp_path / "bad.toml").write_text(text)
    monkeypatch.setattr(targets, "folder", lambda: tmp_path)
    with pytest.raises(EdgecError, match="EC1402") as caught:
        targets.load("bad")
    assert part in str(caught.value)


@pytest.mark.parametrize("name", ["none", "../targets/x86-64-v2", ""])
def test_unknown_target(name):
    with pytest.raises(EdgecError, match="there is no target"):
        targets.load(name)
