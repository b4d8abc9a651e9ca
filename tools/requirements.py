#!/usr/bin/env python3
"""Prints what pyproject.toml's extras need, one requirement a line, for a tree that is not installed.

usage: requirements.py [EXTRA ...]
"""

import pathlib
import re
import sys
import tomllib

PROJECT = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())


def expand(requirements: list[str]) -> set[str]:
    found: set[str] = set()
    for requirement in requirements:
        own = re.fullmatch(r"edgec\[([\w,]+)\]", requirement)
        parts = [PROJECT["project"]["optional-dependencies"][extra] for extra in own[1].split(",")] if own else []
        found |= set().union(*map(expand, parts)) if own else {requirement}
    return found


if __name__ == "__main__":
    wanted = [f"edgec[{extra}]" for extra in sys.argv[1:]]
    print(*sorted(expand(PROJECT["project"]["dependencies"] + wanted)), sep="\n")
