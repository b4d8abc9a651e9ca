"""Instructions that one token of a language model takes on arm64 Linux, counted under qemu; beside a peer's, if given.

usage: arm_token.py MODEL.onnx|FOLDER [--target NAME] [--bits 4.25] [--peer "PROGRAM MODEL"] [--json]

The artifact is built for the target, and one token is decoded with an empty cache on one thread: what two runs execute
less what one does, so loading is left out. PROGRAM is a static arm64 program that decodes as many tokens, one after the
other, on as many threads as its last two arguments say (PROGRAM MODEL THREADS TOKENS); counted in the same way, the third
token less the second. Counts are exact and say nothing of time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from pathlib import Path

import numpy as np

import edgec
from edgec import targets
from edgec.emulate import EmulatedSession, runner
from edgec.emulate.session import emulate


def ours(model: Path, target: str, bits: float | None, folder: Path) -> int:
    path = folder / "model.edgec"
    edgec.build(model, target=target, bits=bits, out=path, cache=True)
    session = EmulatedSession(path, threads=1)
    shapes = {p.name: tuple(d if isinstance(d, int) else 1 for d in p.shape) for p in session.inputs}
    feeds = {p.name: np.ones(shapes[p.name], p.dtype) for p in session.inputs}
    return session.run_counted(feeds)[1]


def peer(program: str, target: str, folder: Path) -> int:
    command, environment = runner.command(targets.load(target))

    def run(tokens: int) -> int:
        done, count = emulate(command, [*shlex.split(program), "1", str(tokens)], environment, folder / "trace")
        if done.returncode:
            raise SystemExit(f"{program}: {done.stderr[-2000:]}")
        return count

    return run(3) - run(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--target", default="raspberry-pi-5")
    parser.add_argument("--bits", type=float)
    parser.add_argument("--peer")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = {
            "target": arguments.target,
            "edgec": ours(arguments.model, arguments.target, arguments.bits, Path(name)),
        }
        if arguments.peer:
            found["peer"] = peer(arguments.peer, arguments.target, Path(name))
            found["ratio"] = round(found["edgec"] / found["peer"], 3)
    if arguments.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:8}{value:>14,}" if isinstance(value, int) else f"{key:8}{value:>14}")


if __name__ == "__main__":
    main()
