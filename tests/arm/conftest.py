"""The arm64 that these tests need: made once, or they are skipped with the reason."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def arm():
    """qemu, and what of arm64 Linux is run in it."""
    import environment

    try:
        environment.setup()
    except environment.Unavailable as reason:
        pytest.skip(f"no arm64 to test in: {reason}")
    return environment


@pytest.fixture(scope="module")
def qemu(arm):
    """`edgec.emulate` takes that qemu, and keeps what it compiles beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEC_QEMU", arm.emulator()[0])
        patch.setenv("EDGEC_CACHE", str(arm.BUILD / "cache"))
        yield
