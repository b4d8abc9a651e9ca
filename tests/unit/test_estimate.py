"""Estimates of latency and energy: what they are made of, and that damaged figures make none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgec import rates, targets
from edgec.estimate import Work, estimate, merged, packed, step, unpacked

PI = rates.of_target(targets.load("raspberry-pi-5"))
COUNT = st.integers(0, 10**9)
WORKS = st.builds(
    Work,
    family=st.sampled_from(sorted(rates.FAMILIES)),
    macs=COUNT,
    unpacked=COUNT,
    operations=COUNT,
    weights=COUNT,
    moved=COUNT,
    chunks=st.none() | st.integers(0, 1000),
    count=st.integers(1, 50),
    kernel=st.text(max_size=5),
)


def test_one_row_of_a_large_product_is_bound_by_memory():
    weights = 4096 * 4096 * 9 // 16
    work = Work("int4 product", macs=4096 * 4096, unpacked=4096 * 4096, weights=weights, count=40)
    found = estimate([work], PI)
    of_one = weights / (9.6 * rates.READ) / 1e3
    assert of_one < found.steps[0].latency_us < 1.6 * of_one  # part of the arithmetic shows
    assert found.bounds["memory"] > 0.99 and abs(sum(found.bounds.values()) - 1) < 1e-9
    assert found.latency_us == pytest.approx(PI.run_us + 40 * found.steps[0].latency_us)
    assert found.energy_j == pytest.approx(8.0 * found.latency_us / 1e6)


def test_many_rows_are_bound_by_arithmetic_and_few_bytes_by_overhead():
    many = estimate([Work("int4 product", macs=10**9, unpacked=10**6, weights=10**6 // 2)], PI)
    assert many.steps[0].bound == "arithmetic"
    assert many.latency_us > 1e9 / (4 * 32 * 2.4) / 1e3  # not faster than the peak of four cores
    assert estimate([Work("map", moved=64)], PI).steps[0].bound == "overhead"


@given(WORKS, st.sampled_from(["macs", "unpacked", "operations", "weights", "moved"]), COUNT)
def test_more_work_never_takes_less_time(work, field, more):
    longer = replace(work, **{field: getattr(work, field) + more})
    resident = 2**30
    if field not in ("macs", "unpacked"):  # more rows hide more of what is read
        assert step(longer, PI, resident).latency_us >= step(work, PI, resident).latency_us


@given(st.lists(WORKS, max_size=20))
def test_a_manifest_keeps_the_work(works):
    rows = json.loads(json.dumps(packed(works)))
    assert unpacked(rows) == merged(works)
    assert sum(w.count for w in merged(works)) == sum(w.count for w in works)
    assert estimate(unpacked(rows), PI).latency_us == pytest.approx(estimate(works, PI).latency_us)


ROW = ["map", 0, 0, 1, 0, 4, 1, 1, "map_add"]


@pytest.mark.parametrize(
    "rows",
    [None, 3, {}, "map", [3], [[]], [ROW[:-1]], [[*ROW, 1]], [["nonsense", *ROW[1:]]], [["map", -1, *ROW[2:]]],
     [["map", 1.5, *ROW[2:]]], [["map", True, *ROW[2:]]], [["map", 2**70, *ROW[2:]]], [[*ROW[:-1], 7]],
     [["map", None, *ROW[2:]]], [[["map"], *ROW[1:]]]],
)  # fmt: skip
def test_damaged_rows_give_no_work(rows):
    assert unpacked(rows) == []


@pytest.mark.parametrize("name", [n for n in targets.names() if n != "host"])
def test_every_target_has_figures_and_its_estimates_show_them(name):
    found = rates.of_target(targets.load(name))
    assert found is not None and found.source == f"targets/{name}.toml"
    assert min(*found.gmacs.values(), *found.unpack.values(), found.load_gbs, found.watts) > 0
    assert found.gmacs["int4"] <= targets.load(name).int8_macs * targets.load(name).clock_ghz
    done = estimate([Work("fp32 product", macs=10**6, unpacked=10**6, weights=4 * 10**6)], found)
    assert done.to_dict()["estimate"] is True and "(estimate: " in done.text() and name in done.text()
    assert f"{found.watts:g} W" in done.text() and "GB/s" in done.text()
    json.dumps(done.to_dict(), allow_nan=False)


def test_a_target_without_figures_has_no_estimate():
    target = targets.load("raspberry-pi-5")
    for key in ("clock_ghz", "bandwidth_gbs", "int8_macs", "fp32_macs"):
        assert rates.of_target(replace(target, **{key: 0})) is None
    unknown = rates.of_target(replace(target, watts=0.0))
    assert estimate([Work("map", moved=4)], unknown).energy_j is None


def test_this_machine_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEC_CACHE_DIR", str(tmp_path))
    host = targets.load("host")
    assert rates.measured(1) is None and rates.of(host).source != "measured on this machine"
    calls = []
    sane = {"threads": 1, "gmacs": {"int4": 100.0, "int8": 50.0, "fp32": 40.0},
            "unpack": {"int4": 100.0, "int8": 100.0, "fp32": 10.0}, "stream": [[1e6, 50.0], [rates.EVERY, 20.0]]}  # fmt: skip
    monkeypatch.setattr(rates, "measure", lambda threads: calls.append(threads) or sane)
    for _ in range(2):
        found = rates.of(host, 1, measure_now=True)
        assert found.source == "measured on this machine" and found.stream_gbs(2 * 10**6) == 20
    assert calls == [1]
    (file,) = tmp_path.iterdir()
    for damage in ("", "[]", "{", '{"1": {}}', file.read_text().replace("100.0", "-1"), file.read_text()[:-9]):
        file.write_text(damage)
        assert rates.measured(1) is None
    rates.forget()
    rates.forget()
    assert not list(tmp_path.iterdir())


def test_a_measurement_gives_sane_rates():
    found = rates.measure(1)
    assert all(v > 0 for v in (*found["gmacs"].values(), *found["unpack"].values()))
    sizes = [size for size, _ in found["stream"]]
    assert sizes == sorted(sizes) and sizes[-1] == rates.EVERY and all(speed > 0 for _, speed in found["stream"])
    assert found["gmacs"]["int4"] < 4000


@pytest.mark.parametrize("name", [n for n in targets.names() if n != "host"])
def test_weights_that_fit_a_faster_cache_are_read_faster(name):
    """The Raspberry Pi 5's L3 holds as much as its four L2 together: the latter's speed counts."""
    found = rates.of(targets.load(name))
    sizes, speeds = zip(*found.stream)
    assert list(sizes) == sorted(set(sizes)) and list(speeds) == sorted(set(speeds), reverse=True)
