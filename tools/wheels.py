#!/usr/bin/env python3
"""Wheels for other machines, made here: the extension is compiled by the ziglang package, no SDK or sysroot is needed.

usage: wheels.py [--out DIR] [PLATFORM ...]        PLATFORM: those of PLATFORMS below; default all
The wheels are for this Python's version (3.11 makes cp311), whose headers they are compiled with.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = f"{sys.version_info[0]}{sys.version_info[1]}"
# wheel's platform: (zig's target, suffix of extension modules)
PLATFORMS = {
    "manylinux_2_28_aarch64": ("aarch64-linux-gnu.2.28", f".cpython-{VERSION}-aarch64-linux-gnu.so"),
    "manylinux_2_28_x86_64": ("x86_64-linux-gnu.2.28", f".cpython-{VERSION}-x86_64-linux-gnu.so"),
    "macosx_13_0_arm64": ("aarch64-macos.13.0", f".cpython-{VERSION}-darwin.so"),
}


def build(platform: str, out: Path) -> Path:
    """Compiles and tags one wheel; its path."""
    target, suffix = PLATFORMS[platform]
    defines = {
        "CMAKE_TOOLCHAIN_FILE": str(ROOT / "tools/zig.cmake"),
        "EDGEC_ZIG_TARGET": target,
        "Python_EXECUTABLE": sys.executable,
        "Python_INCLUDE_DIR": sysconfig.get_path("include"),
        "PYTHON_MODULE_EXTENSION": suffix,
        "PYTHON_MODULE_DEBUG_POSTFIX": "",
        "CMAKE_CXX_FLAGS": "-D_DARWIN_C_SOURCE" if "macos" in target else "",
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"-Ccmake.define.{k}={v}" for k, v in defines.items()]
        settings += ["-Cbuild-dir=build/wheel-" + platform]
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel", "--no-deps",
                   "--no-build-isolation", "-w", folder, *settings, str(ROOT)]  # fmt: skip
        subprocess.run(command, check=True, env=os.environ | {"CMAKE_GENERATOR": "Ninja"})
        (made,) = Path(folder).glob("*.whl")
        tag = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", platform, str(made)]
        name = subprocess.run(tag, check=True, capture_output=True, text=True).stdout.split()[-1]
        out.mkdir(parents=True, exist_ok=True)
        return Path((made.parent / name).replace(out / name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    if unknown := set(arguments.platforms) - PLATFORMS.keys():
        parser.error(f"no platform {', '.join(sorted(unknown))}: {', '.join(PLATFORMS)}")
    for platform in arguments.platforms or PLATFORMS:
        print(build(platform, arguments.out))


if __name__ == "__main__":
    main()
