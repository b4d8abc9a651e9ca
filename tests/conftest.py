"""Fixtures of all suites: real models, fetched by `make models`."""

from __future__ import annotations

import atexit
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import pytest
from hypothesis import settings

# the same examples in each run, here and in CI: what decides over a change may not depend on chance; make fuzz draws others
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("fuzz", deadline=None)
settings.load_profile("fuzz" if os.environ.get("EDGEC_FUZZ") else "same")
# what tests build stays out of the user's cache
os.environ["EDGEC_CACHE_DIR"] = tempfile.mkdtemp(prefix="edgec-test-cache-")
atexit.register(shutil.rmtree, os.environ["EDGEC_CACHE_DIR"], ignore_errors=True)

_spec = importlib.util.spec_from_file_location("fetch_models", pathlib.Path(__file__).with_name("fetch_models.py"))
fetch_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fetch_models)


@pytest.fixture(scope="session")
def model() -> Callable[[str], pathlib.Path]:
    """model("magika") is the path of that model's file; the test is skipped where it was not fetched."""

    def find(name: str) -> pathlib.Path:
        path = fetch_models.path(name)
        if not path.exists():
            how = "`make models` fetches it" if name in fetch_models.ENTRIES else "its exporter is not part of edgec"
            pytest.skip(f"the model {name} is not in {fetch_models.home()}: {how}")
        return path

    return find


@pytest.fixture
def browser():
    """A headless Chromium, driven by selenium."""
    pytest.importorskip("selenium")
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("no chromium and chromedriver (Debian: chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "window-size=900,700", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, Service(driver))
    found.set_page_load_timeout(30)
    yield found
    found.quit()
