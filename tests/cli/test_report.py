"""edgec report: one page that works offline, in a real browser too, whatever the artifact says."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from html.parser import HTMLParser

import numpy as np
import pytest
from lm_tools import write_folder

SECTIONS = ("size", "loss", "layers", "latency", "kernels", "provenance")


class Page(HTMLParser):
    """Ids, texts, and addresses that the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links, self.text = set(), [], []
        self.feed(text)
        self.shown = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key == "id":
                self.ids.add(value)
            if key in ("src", "href", "action", "data"):
                self.links.append(value)

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_about_an_artifact(edgec, mlp_onnx, tmp_path):
    built = edgec("build", mlp_onnx, "-o", "a.edgec", "--json").json
    done = edgec("report", "a.edgec", "-o", "a.html", "--against", mlp_onnx, "--json")
    assert done.status == 0, done.err
    text = (tmp_path / "a.html").read_text()
    page = Page(text)
    assert set(SECTIONS) <= page.ids and page.links == ["data:,"] and "http" not in text.replace("http-equiv", "")
    found = done.json
    assert found["bytes"] == len(text.encode()) and found["size"]["source"] == mlp_onnx.stat().st_size
    assert sum(p["bytes"] for p in found["size"]["parts"]) == (tmp_path / "a.edgec").stat().st_size
    assert found["loss"]["outputs"][0]["cosine"] == pytest.approx(built["check"]["outputs"]["y"]["cosine"], rel=1e-3)
    assert found["weights"][0]["name"] == max(
        (w for w in built["weights"] if "sensitivity" in w), key=lambda w: w["sensitivity"])["name"]  # fmt: skip
    assert len(found["compared"]) >= 2 and all(r["relative"] < 0.2 for r in found["compared"])
    assert found["measured"]["rows"][0][0] == "median" and found["estimates"][0]["text"] in page.shown
    assert sum(k["share"] for k in found["measured"]["kinds"]) == pytest.approx(100)
    for words in ("Measured on this machine", "(estimate:", "Compared now", "100.0%", "largest error", "sha256"):
        assert words in page.shown, words
    for member in built and found["members"]:
        assert member["sha256"] in page.shown
    assert {p.name for p in tmp_path.iterdir()} == {"a.edgec", "a.html"}


def test_pages_of_other_cpus_fp32_and_language_models(edgec, mlp_onnx, tmp_path):
    assert edgec("build", mlp_onnx, "-o", "pi.edgec", "--target", "raspberry-pi-5", "--no-check").status == 0
    found = edgec("report", "pi.edgec", "--json").json
    page = Page((tmp_path / "pi.html").read_text())
    assert found["measured"] is None and "Not measured" in page.shown and "on raspberry-pi-5 (estimate:" in page.shown
    assert "built without the comparison" in page.shown
    assert edgec("report", "pi.edgec", "--against", mlp_onnx).status == 2
    assert edgec("build", mlp_onnx, "-o", "f.edgec", "--weights", "fp32").status == 0
    assert edgec("report", "f.edgec", "--no-measure").status == 0
    assert "computes in fp32" in Page((tmp_path / "f.html").read_text()).shown
    write_folder(tmp_path / "lm")
    assert edgec("build", "lm", "-o", "lm.edgec").status == 0
    found = edgec("report", "lm.edgec", "--json").json
    shown = Page((tmp_path / "lm.html").read_text()).shown
    assert "tokens/s" in found["measured"]["rows"][0][1] and "perplexity" in shown and "KL a token" in shown
    assert [e["case"] for e in found["estimates"]] == ["decode", "prefill"]


def test_what_pruning_and_calibration_changed(edgec, mlp_onnx, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32))
    assert edgec("build", mlp_onnx, "-o", "a.edgec", "--prune", "ffn=25%", "--calib", "x.npz").status == 0
    found = edgec("report", "a.edgec", "--no-measure", "--json").json
    shown = Page((tmp_path / "a.html").read_text()).shown
    assert [(r["before"], r["after"]) for r in found["narrowed"]] == [(128, 96)]
    assert "Pruned: ffn 128 -> 96" in shown and "Calibrated: weights fitted to x.npz, 64 samples" in shown
    assert "channels of" in shown and found["narrowed"][0]["name"] in shown


def test_wrong_calls_leave_nothing(edgec, mlp_onnx, mlp_artifact, tmp_path):
    (tmp_path / "no.edgec").write_bytes(b"PK\x03\x04nothing")
    for arguments, code in (
        (("none.edgec",), 2), (("no.edgec",), 1), ((mlp_artifact, "-o", "no/such/folder.html"), 2),
        ((mlp_artifact, "--against", "none.onnx"), 2), ((mlp_artifact, "--dim", "zz=1"), 2), ((mlp_onnx,), 1),
    ):  # fmt: skip
        done = edgec("report", *arguments)
        assert done.status == code and done.err.startswith("error: EC"), (arguments, done.err)
    assert [p.name for p in tmp_path.iterdir()] == ["no.edgec"]


BAD = "</script><script>window.bad=1</script><img src=x onerror='window.bad=1'>{{ 7*7 }}"


def forge(source, out, change) -> None:
    """A copy of an artifact with another manifest."""
    from pathlib import Path

    from edgec.artifact.writer import replace_manifest

    shutil.copy(source, out)
    replace_manifest(Path(out), change)


def hostile(manifest: dict) -> dict:
    text = json.dumps(manifest).replace('"first"', json.dumps(BAD)).replace('"y"', json.dumps(BAD))
    forged = json.loads(text)
    forged["edgec"] = forged["target"]["name"] = BAD
    forged["options"] = {BAD: BAD}
    forged["source"] = {"name": BAD, "bytes": -5}
    forged["report"]["weights"].append({"name": BAD, "bits": 4, "shape": [3, BAD], "bytes": "x"})
    forged["report"]["weights"] += [3, {"name": 3}, {"name": BAD, "bits": 4, "bytes": 10, "reason": BAD, "snr_db": 3.0}]
    forged["report"]["loss"] = {"outputs": {BAD: {"cosine": BAD}, "z": 3}, "inputs": BAD, "lm": {BAD: BAD, "kl": None}}
    forged["report"] |= {
        "pruning": {"removed": [3, {"name": BAD, "kind": BAD, "before": 3, "after": 2, "error": BAD}], "work": BAD},
        "healing": {"before": BAD},
        "calibration": {"name": BAD, "samples": BAD},
    }
    return forged


def test_a_forged_manifest_is_shown_as_text(edgec, mlp_artifact, tmp_path):
    forge(mlp_artifact, tmp_path / "bad.edgec", hostile)
    done = edgec("report", "bad.edgec", "--no-measure")
    assert done.status == 0, done.err
    text = (tmp_path / "bad.html").read_text()
    assert (
        "<script>window" not in text
        and "<img" not in text
        and "{{ 7*7 }}" in text
        and len(re.findall("<script", text)) == 1
    )
    for report in (3, [], {}, {"weights": 3, "loss": [], "work": {}, "macs": "x", "tuned_share": "y"}):
        forge(mlp_artifact, tmp_path / "bad.edgec", lambda m, r=report: m | {"report": r, "options": 7, "source": [1]})
        assert edgec("report", "bad.edgec", "--no-measure").status == 0
    with zipfile.ZipFile(tmp_path / "bad.edgec") as z:
        assert z.testzip() is None


@pytest.mark.filterwarnings("ignore")
def test_in_a_browser(edgec, mlp_onnx, browser, tmp_path):
    assert edgec("build", mlp_onnx, "-o", "a.edgec").status == 0
    assert edgec("report", "a.edgec", "-o", "a.html").status == 0
    forge(tmp_path / "a.edgec", tmp_path / "bad.edgec", hostile)
    assert edgec("report", "bad.edgec", "--no-measure").status == 0
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions",
                            {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0})  # fmt: skip
    backs = {}
    for scheme in ("light", "dark"):
        for width in (1100, 360):
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                    {"features": [{"name": "prefers-color-scheme", "value": scheme}]})  # fmt: skip
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600})  # fmt: skip
            for name in ("a", "bad"):
                browser.get(f"file://{tmp_path}/{name}.html")
                assert browser.execute_script("return window.bad") is None
                # nothing wider than the screen: tables scroll inside of their frames
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width
                bars = browser.execute_script(
                    "return [...document.querySelectorAll('.bars rect')].map(r => r.getBoundingClientRect().width)"
                )
                assert bars and min(bars) > 0
                style = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
                backs[scheme] = browser.execute_script(style)
                assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    assert backs["light"] != backs["dark"]
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(f"file://{tmp_path}/a.html")
    column = "return [...document.querySelectorAll('table.sortable tbody tr')].map(r => Number(r.cells[4].dataset.v))"
    before = browser.execute_script(column)
    button = "document.querySelectorAll('table.sortable th button')[4].click()"
    browser.execute_script(button)
    assert browser.execute_script(column) == sorted(before, reverse=True)
    browser.execute_script(button)
    assert browser.execute_script(column) == sorted(before)
