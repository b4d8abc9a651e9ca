"""Estimates in build, inspect, targets and doctor: marked as such, with what they go by."""

from __future__ import annotations

import json
import zipfile

import pytest
from lm_tools import write_folder


@pytest.mark.parametrize("target", ["raspberry-pi-5", "apple-m2"])
def test_build_estimates_a_target_that_is_not_at_hand(edgec, mlp_onnx, target, tmp_path):
    done = edgec("build", mlp_onnx, "-o", "a.edgec", "--target", target, "--dim", "batch=32")
    assert done.status == 0, done.err
    line = next(x for x in done.out.splitlines() if x.startswith("estimated"))
    assert f" on {target} (estimate: 4 threads, weights read at " in line and " W;" in line and "s, " in line
    shown = edgec("inspect", "a.edgec").out
    assert line.split(None, 1)[1] in shown and "\n estimated" in shown


def test_what_an_estimate_is_made_of(edgec, mlp_onnx, tmp_path):
    found = {}
    for batch in (1, 32):
        done = edgec(
            "build", mlp_onnx, "--target", "raspberry-pi-4", "-o", "a.edgec", "--dim", f"batch={batch}", "--json"
        )
        (one,) = done.json["estimates"]
        assert one["estimate"] is True and one["case"] == "run" and one["inputs"]["target"] == "raspberry-pi-4"
        assert sum(s["macs"] for s in one["steps"]) == done.json["macs"] == batch * (64 * 128 + 128 * 32)
        assert one["latency_us"] > sum(s["latency_us"] for s in one["steps"])
        assert one["energy_j"] == pytest.approx(6.4 * one["latency_us"] / 1e6)
        products = [s for s in one["steps"] if "product" in s["family"]]
        stored = sum(w["bytes"] for w in done.json["weights"])
        assert stored <= sum(s["weights"] for s in products) <= stored + 4 * (128 + 32)  # and the bias
        again = edgec("inspect", "a.edgec", "--json").json["estimates"]
        assert again[0]["latency_us"] == pytest.approx(one["latency_us"])
        found[batch] = one["latency_us"]
    assert found[32] > found[1]


def test_a_language_model_has_a_token_and_a_prompt(edgec, tmp_path):
    write_folder(tmp_path / "lm")
    done = edgec("build", "lm", "--target", "raspberry-pi-5", "-o", "a.edgec", "--no-check")
    assert done.status == 0, done.err
    lines = [x for x in done.out.splitlines() if x.startswith("estimated")]
    assert "s/token, " in lines[0] and "J/token on raspberry-pi-5 (estimate:" in lines[0]
    assert "s for 128 tokens, " in lines[1]
    decode, prefill = edgec("inspect", "a.edgec", "--json").json["estimates"]
    assert (decode["case"], decode["tokens"], prefill["case"], prefill["tokens"]) == ("decode", 1, "prefill", 128)

    def macs(case):
        return sum(s["macs"] * s["count"] for s in case["steps"] if "product" in s["family"])

    def head(case):  # the last position's logits alone
        return min(s["macs"] // (s["unpacked"] or 1) for s in case["steps"] if "product" in s["family"])

    assert head(decode) == head(prefill) == 1 and macs(decode) < macs(prefill) < 128 * macs(decode)


def test_a_forged_manifest_has_no_estimate(edgec, mlp_onnx, tmp_path):
    assert edgec("build", mlp_onnx, "--target", "raspberry-pi-5", "-o", "a.edgec").status == 0
    with zipfile.ZipFile(tmp_path / "a.edgec") as z:
        manifest = json.loads(z.read("manifest.json"))
    from edgec.cli.estimates import of_manifest

    assert of_manifest(manifest)
    for key, value in (("steps", [[1]]), ("steps", 7), ("dims", 3), ("tokens", 0), ("tokens", "1"), ("case", None)):
        work = [{**manifest["report"]["work"][0], key: value}]
        forged = {**manifest, "report": {**manifest["report"], "work": work}}
        assert of_manifest(forged) == [] or key == "case"
    for forged in ({"report": 3}, {"report": {"work": [3]}, "target": {"name": "host"}}, {"target": {"name": "../x"}}):
        assert of_manifest({**manifest, **forged}) == []


def test_targets_and_doctor_show_what_estimates_go_by(edgec):
    shown = edgec("targets", "raspberry-pi-5")
    assert "estimates go by (targets/raspberry-pi-5.toml)" in shown.out
    assert edgec("targets", "raspberry-pi-5", "--json").json["rates"]["threads"] == 4
    done = edgec("doctor", "--measure", "--json")
    assert done.json["rates"]["source"] == "measured on this machine"
    assert "GMAC/s a core, weights from memory at" in edgec("doctor").out
