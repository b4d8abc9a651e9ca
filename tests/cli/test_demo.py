"""make demo's script gives the right answers with the int4 model."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_the_demo_knows_the_repositorys_files(model, tmp_path):
    if not (model("magika").parent / "config.min.json").exists():
        raise AssertionError("the model is there without its config: run tests/fetch_models.py magika")
    done = subprocess.run(
        [sys.executable, ROOT / "examples/magika/demo.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[1:]}
    expected = {"README.md": "markdown", "Makefile": "makefile", "CMakeLists.txt": "cmake", "pyproject.toml": "toml"}
    expected |= {"module.cpp": "cpp", "demo.py": "python", "model.onnx": "onnx"}
    assert {k: v for k, v in answers.items() if k in expected} == expected
    assert "-> 0." in done.stdout.splitlines()[0]
