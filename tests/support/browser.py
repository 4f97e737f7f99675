"""A real browser for tests: Debian's chromium, driven by its own chromedriver. Nothing is ever downloaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

DEADLINE_S = 20.0


def require_browser() -> tuple[str, str]:
    """Paths of chromium and chromedriver. Without them the test skips and says so; under CI it fails."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium and driver:
        return chromium, driver
    missing = "chromium and chromedriver are not on PATH (Debian: apt install chromium chromium-driver)"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


class Browser:
    """One browser window."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def wait(self, script: str, what: str, deadline_s: float = DEADLINE_S) -> object:
        """Wait until the JavaScript expression is truthy and return its value."""
        waiting = WebDriverWait(self.driver, deadline_s, poll_frequency=0.05)
        return waiting.until(lambda driver: driver.execute_script(f"return {script}"), f"never saw: {what}")

    def text(self, selector: str) -> str:
        """Visible text of the first element that fits."""
        return str(self.driver.execute_script("return document.querySelector(arguments[0])?.innerText", selector))

    def texts(self, selector: str) -> list[str]:
        found = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"
        return list(self.driver.execute_script(found, selector))

    def wait_text(self, selector: str, text: str) -> None:
        """Wait until some element that fits shows the text."""
        quoted = json.dumps(selector), json.dumps(text)
        script = f"[...document.querySelectorAll({quoted[0]})].some(e => e.innerText.includes({quoted[1]}))"
        self.wait(script, f"{text!r} in {selector}")

    def hover(self, selector: str) -> None:
        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        ActionChains(self.driver).move_to_element(element).perform()

    def color_scheme(self, scheme: Literal["light", "dark"]) -> None:
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})

    def size(self, width: int, height: int) -> None:
        """Of the page itself, in CSS pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def picture(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))

    def errors(self) -> list[str]:
        """What the page wrote to the console as an error since the last call, uncaught exceptions included."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless browser with a fresh profile; it speaks to nothing but the pages that the test opens."""
    chromium, chromedriver = require_browser()
    with TemporaryDirectory(prefix="swarm-browser-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for argument in (
            "--headless=new",
            "--no-sandbox",  # containers run as root
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",  # containers have a small /dev/shm
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        driver = webdriver.Chrome(options=options, service=Service(chromedriver))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
