"""Which cores models run on, by what the kernel says of their capacity."""

from __future__ import annotations

import pytest

from edgec import _core


@pytest.fixture
def cores(tmp_path):
    """A folder like /sys/devices/system/cpu, from capacities (None: the kernel does not say)."""

    def make(*capacities: int | str | None) -> str:
        for cpu, capacity in enumerate(capacities):
            (tmp_path / f"cpu{cpu}").mkdir()
            if capacity is not None:
                (tmp_path / f"cpu{cpu}" / "cpu_capacity").write_text(f"{capacity}\n")
        return str(tmp_path)

    return make


def test_little_cores_are_left_alone(cores):
    """A phone: four little cores, three big ones, a prime one."""
    folder = cores(160, 160, 160, 160, 760, 760, 760, 1024)
    assert _core.big_cpus(list(range(8)), folder) == [4, 5, 6, 7]
    assert _core.big_cpus(list(range(7)), folder) == [4, 5, 6]  # as affinity allows
    assert _core.big_cpus([0, 2, 3], folder) == [0, 2, 3]  # affinity allows little ones only
    assert _core.big_cpus([5, 1, 4], folder) == [5, 4]


def test_middle_cores_help(cores):
    assert _core.big_cpus(list(range(4)), cores(250, 512, 512, 1024)) == [1, 2, 3]


@pytest.mark.parametrize("capacities", [(None,) * 3, (1024,) * 3, ("", "x", 0)])
def test_cores_that_are_alike(cores, capacities):
    assert _core.big_cpus([0, 1, 2], cores(*capacities)) == [0, 1, 2]


def test_no_core(cores):
    assert _core.big_cpus([], cores(1024)) == []
