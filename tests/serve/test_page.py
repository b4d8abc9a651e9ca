"""The built-in page in a real browser."""

from __future__ import annotations

import pytest

pytest.importorskip("openai")
pytest.importorskip("tvm")
selenium = pytest.importorskip("selenium")

from test_serve import Server, artifact  # noqa: E402, F401


@pytest.mark.filterwarnings("ignore")
def test_chat_in_the_page(artifact, browser, tmp_path):  # noqa: F811
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    server = Server(artifact, "--model-name", "tiny")
    try:
        browser.get(server.url)
        wait = WebDriverWait(browser, 30)
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "#model option"))
        browser.execute_script("document.getElementById('tokens').value = 12")
        field = browser.find_element(By.ID, "text")
        field.send_keys("<b>Hello</b><script>window.bad = 1</script>", Keys.ENTER)
        wait.until(lambda b: "tokens, first after" in b.find_element(By.ID, "log").text)
        question = browser.find_element(By.CSS_SELECTOR, "#log .user")
        assert question.text.startswith("<b>Hello</b>") and not question.find_elements(By.TAG_NAME, "b")
        assert browser.execute_script("return window.bad") is None
        assert browser.find_element(By.CSS_SELECTOR, "#log .assistant").text
        # a long answer is stopped by Escape, and the chat goes on
        browser.execute_script("document.getElementById('tokens').value = 200")
        field.send_keys("again", Keys.ENTER)
        wait.until(lambda b: b.find_element(By.ID, "go").text == "Stop" or "stopped" in b.find_element(By.ID, "log").text
                   or b.find_element(By.ID, "log").text.count("first after") == 2)  # fmt: skip
        browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
        wait.until(lambda b: b.find_element(By.ID, "go").text == "Send")
        browser.save_screenshot(str(tmp_path / "page.png"))
        browser.find_element(By.ID, "clear").click()
        assert browser.find_element(By.ID, "log").text == ""
        assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    finally:
        server.stop()
