"""Damaged artifacts: a clear EdgecError or the right answer, never a crash, a hang or a wrong answer."""

import random
import subprocess
import sys

import pytest
from plan_tools import scale_add_artifact

# Runs in a process of its own, so that a crash is a failed test; argument: the artifact, the seed, the number of cases.
PROGRAM = """
import random, sys
import numpy as np
import edgec
path, seed, cases = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
good = open(path, "rb").read()
rng = random.Random(seed)
x = np.ones((3, 4), np.float32)
want = edgec.load(path)(x=x)
text = bytes(edgec.load(path).artifact.members["t.json"])
interesting = [i for i in range(len(good)) if good[i]] + list(range(len(good) - 600, len(good)))
refused = 0
for case in range(cases):
    data = bytearray(good)
    kind = rng.randrange(4)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.choice(interesting)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 8] = rng.choice((b"\\xff" * 8, bytes(8), rng.randbytes(8)))[: len(data) - at]
    if kind == 2:
        del data[rng.randrange(len(data)) :]
    elif kind == 3:
        at = rng.randrange(len(data))
        del data[at : at + rng.choice((1, 8, 100))]
    bad = path + ".bad"
    open(bad, "wb").write(data)
    try:
        opened = edgec.load(bad)
        got, read = opened(x=x), bytes(opened.artifact.members["t.json"])
    except edgec.EdgecError as error:
        assert str(error).startswith("EC1"), error
        refused += 1
    else:
        assert all(np.array_equal(got[name], want[name]) for name in want), (seed, case)
        assert read == text, (seed, case)
assert refused > cases // 3, refused
"""


@pytest.mark.parametrize("seed", range(2))
def test_damaged_files(tmp_path, seed):
    path = scale_add_artifact(tmp_path, files={"t.json": b"text " * 99})
    subprocess.run([sys.executable, "-c", PROGRAM, str(path), str(seed), "150"], check=True, timeout=300)


def test_damaged_directories(tmp_path):
    """Only the zip's own records, where every word is an offset or a size."""
    path = scale_add_artifact(tmp_path, files={"t.json": b"text " * 99})
    size = path.stat().st_size
    program = PROGRAM.replace("interesting = ", f"interesting = list(range({size} - 500, {size})) or ")
    program = program.replace("rng.randrange(4)", "rng.randrange(2)").replace("cases // 3", "cases // 10")
    subprocess.run([sys.executable, "-c", program, str(path), str(random.Random(0).random())[2:8], "400"], check=True)
