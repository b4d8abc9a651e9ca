"""Every command that the README and docs/ show works as shown; the table of errors is whole."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
from cli.conftest import mlp
from lm_tools import write_folder

from edgec.errors import CODES

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: pathlib.Path) -> list[list[str]]:
    """The `$ edgec ...` lines of the page's console blocks, but those marked `# not run: REASON`."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S):
        for line in block.splitlines():
            if line.startswith("$ edgec ") and "# not run:" not in line:
                found.append(shlex.split(line[len("$ edgec ") :], comments=True))
    return found


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_console_blocks(edgec, page, mlp_onnx, mlp_artifact, tmp_path):
    for name in ("model", "minilm"):  # the pages show real models; here a small one stands for them
        shutil.copy(mlp_onnx, tmp_path / f"{name}.onnx")
    shutil.copy(mlp_artifact, tmp_path / "model.edgec")
    for name in ("teacher", "student"):
        mlp(tmp_path / f"{name}.onnx", seed=len(name))
    np.savez(tmp_path / "samples.npz", x=np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32))
    if page.name in ("language-models.md", "quantization.md"):
        write_folder(tmp_path / "smollm2")
    (tmp_path / "texts.txt").write_text("The quick brown fox jumps over the lazy dog, again and again.\n" * 90)
    for command in commands(page):
        done = edgec(*command)
        assert done.status == 0, (command, done.err)


def test_errors_page_lists_every_code():
    page = (ROOT / "docs/errors.md").read_text()
    for code, meaning in CODES.items():
        assert f"| {code} |" in page and meaning in page


def test_links_and_files_that_pages_name_exist():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
