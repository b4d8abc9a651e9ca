"""A user's machine: the built wheel and numpy, nothing else, run an artifact."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import venv

import pytest

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]


def pip(*args) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> pathlib.Path:
    """The Python of an environment that holds only the wheel and numpy."""
    folder = tmp_path_factory.mktemp("wheel")
    # a build folder of its own inside build/, so that a second run compiles only what changed
    settings = ("-C", f"build-dir={ROOT / 'build' / 'wheel'}")
    built = pip("wheel", ROOT, "--no-deps", "--no-build-isolation", "-w", folder, *settings)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("edgec-*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    installed = pip("--python", python, "install", wheel)
    if installed.returncode and "No matching distribution" in installed.stderr:
        pytest.skip("numpy cannot be had: no package index is reached")
    assert installed.returncode == 0, installed.stderr
    return python


def run(python: pathlib.Path, code: str, cwd: pathlib.Path) -> str:
    done = subprocess.run([python, "-I", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_and_numpy_run_an_artifact(bare, mlp_artifact, tmp_path):
    code = (
        "import sys, importlib.metadata, numpy, edgec\n"
        f"session = edgec.load({str(mlp_artifact)!r})\n"
        "y = session(x=numpy.ones((3, 64), 'float32'))['y']\n"
        "assert y.shape == (3, 32) and abs(y.sum() - 3) < 1e-3, y\n"
        "heavy = {'tvm', 'onnx', 'onnx_ir', 'onnxruntime', 'torch', 'rich', 'cyclopts'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(sorted(d.metadata['Name'].lower() for d in importlib.metadata.distributions()))"
    )
    assert run(bare, code, tmp_path) == "['edgec', 'numpy']"


def test_the_wheel_has_targets_and_no_tests(bare, tmp_path):
    assert "x86-64-v3" in run(bare, "import edgec.targets as t; print(t.names())", tmp_path)
    files = "import importlib.metadata as m; print(*[str(f) for f in m.files('edgec')])"
    names = run(bare, files, tmp_path).split()
    assert not [n for n in names if n.startswith("tests/") or n.endswith(".a")]
    # the runtime's sources, for `verify --emulate`; the binding is not among them
    sources = [n for n in names if n.endswith((".cpp", ".h", ".inc"))]
    assert sources and all(n.startswith("edgec/csrc/") and "/python/" not in n for n in sources)


def test_building_without_the_extra_says_what_to_install(bare, mlp_onnx, tmp_path):
    call = f"edgec.build({str(mlp_onnx)!r})"
    code = f"import edgec\ntry:\n    {call}\nexcept edgec.EdgecError as e:\n    print(e.code, e.hint)"
    said = run(bare, code, tmp_path)
    assert said.startswith("EC1002") and "edgec[build]" in said
