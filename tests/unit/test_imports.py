"""The order of the folders, and what may import what, as ARCHITECTURE.md lists them."""

from __future__ import annotations

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "edgec"
# a package outside of edgec -> the only modules that may import it
ONLY = {
    "onnx": ("edgec.frontend", "edgec.onnx_backend"),
    "onnx_ir": ("edgec.frontend",),
    "tvm": ("edgec.lower",),
    "torch": ("edgec.distill",),
    "onnxruntime": ("edgec.cli", "edgec.testing"),
    "hypothesis": ("edgec.testing",),
    "unicorn": ("edgec.emulate",),
    "lief": ("edgec.emulate",),
    "rich": ("edgec.cli",),
    "cyclopts": ("edgec.cli",),
    "starlette": ("edgec.serve",),
    "uvicorn": ("edgec.cli.serve", "edgec.serve.connection"),
}
RUNNING = ("edgec", "edgec.errors", "edgec.runtime", "edgec.artifact", "edgec._core", "edgec.targets", "edgec.kernels")


def layers() -> list[list[str]]:
    """The modules of each line of ARCHITECTURE.md's list, top first."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    block = re.search(r"```\n(edgec/cli/.*?)```", text, re.S)[1]
    found = []
    for line in block.splitlines():
        paths = re.match(r"edgec/\S+(, edgec/\S+)*", line)
        if paths:
            found.append([p.strip().rstrip("/").removesuffix(".py").replace("/", ".") for p in paths[0].split(",")])
    return found


def under(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


def level(module: str) -> int | None:
    for i, names in enumerate(layers()):
        if any(under(module, n) for n in names):
            return i
    return len(layers()) if under(module, "edgec._core") else None


def imports(path: pathlib.Path) -> set[str]:
    """All modules that the file names in imports, those inside functions too, but not those for type checkers alone."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            names.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for a in node.names:
                inner = f"{node.module}.{a.name}"
                is_module = (ROOT / inner.replace(".", "/")).is_dir() or (
                    ROOT / f"{inner.replace('.', '/')}.py"
                ).exists()
                names.add(inner if is_module else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_go_down_the_list(path):
    module = module_of(path)
    if module == "edgec":
        return
    here = level(module)
    assert here is not None, f"{module} is in no line of ARCHITECTURE.md's list"
    for name in imports(path):
        if under(name, "edgec") and name != "edgec":
            there = level(name)
            assert there is not None, f"{name}, imported by {module}, is in no line of ARCHITECTURE.md's list"
            assert there >= here, f"{module} imports {name}, which stands above it"
        for outside, owners in ONLY.items():
            if under(name, outside):
                assert any(under(module, o) for o in owners), f"{module} imports {name}; only {owners} may"


def loaded_by(statement: str) -> tuple[set[str], float]:
    """The modules that the statement loads in a fresh interpreter, and its CPU time in seconds."""
    code = (
        f"import json, sys, time; start = time.process_time(); {statement}; "
        "print(json.dumps([sorted(sys.modules), time.process_time() - start]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    modules, seconds = json.loads(out.splitlines()[-1])
    return set(modules), seconds


HEAVY = {"tvm", "onnx", "onnx_ir", "onnxruntime", "torch", "hypothesis", "rich", "cyclopts", "ml_dtypes", "sympy"}


def test_import_edgec_is_light(record_property):
    modules, seconds = loaded_by("import edgec")
    record_property("import_cpu_seconds", seconds)
    assert not modules & HEAVY
    assert {m for m in modules if under(m, "edgec")} <= {"edgec", "edgec.errors"}
    # a generous bound on time, since machines differ: what it loads is what decides
    assert seconds < 0.5


def test_running_loads_numpy_and_the_extension_only():
    modules, _ = loaded_by("import edgec; edgec.load")
    assert not modules & HEAVY
    strangers = {m for m in modules if under(m, "edgec") and not any(m == r or under(m, r) for r in RUNNING[1:])}
    assert strangers == {"edgec"}


def test_help_is_light():
    modules, _ = loaded_by("from edgec.cli import main; main(['--help'])")
    assert not modules & (HEAVY - {"rich", "cyclopts"})
    assert "numpy" not in modules
