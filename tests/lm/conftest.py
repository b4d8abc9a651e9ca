"""A small random decoder, built three ways."""

from __future__ import annotations

import pathlib

import pytest
from lm_tools import write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> pathlib.Path:
    return write_folder(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def artifacts(folder, tmp_path_factory) -> dict[str, pathlib.Path]:
    """The caches kept by the session, as inputs and outputs, and none at all."""
    import edgec

    out = tmp_path_factory.mktemp("lm")
    plain = write_folder(out / "plain", cached=False)
    made = {"state": (folder, "fp32"), "exposed": (folder, "exposed"), "none": (plain, "fp32")}
    for name, (source, kv_cache) in made.items():
        edgec.build(source, weights="fp32", kv_cache=kv_cache, out=out / f"{name}.edgec")
    return {name: out / f"{name}.edgec" for name in made}


@pytest.fixture
def load(artifacts):
    """load("state") is that artifact as a LanguageModel, with nothing in its slots."""
    import edgec

    def make(name: str = "state", **options):
        return edgec.load(artifacts[name], **{"threads": 1} | options)

    return make
