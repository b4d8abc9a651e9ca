"""A small decoder as the compiler sees it after its rewrites."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory) -> pathlib.Path:
    from lm_tools import write_folder

    return write_folder(tmp_path_factory.mktemp("lm") / "lm")


@pytest.fixture(scope="session")
def lm(lm_folder):
    """(graph, text files) of the decoder."""
    from edgec.compiler import Build, Options
    from edgec.frontend.folder import model_file, text_files

    job = Build(Options(kv_cache="fp32"))
    path = model_file(lm_folder)
    job.files = text_files(path)
    job.load(path)
    return job.rewrite(), job.files
