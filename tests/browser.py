"""A real browser for tests of pages: Chromium without a screen, and what it says of a page that it has opened.

    with opened() as browser:
        browser.look_as(width=360)
        browser.open(path)
        assert not browser.problems()

It needs chromium with its driver and selenium; `reason_to_skip` says what is missing.
"""

import contextlib
import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    "--disable-background-networking",
)
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_TABLET = 600  # pixels, from which a window is none of a phone
_WAIT = 20  # seconds, for what a page loads
_WIDEST = """
const wide = [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > arguments[0] + 1);
return wide.slice(0, 5).map(e => e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40).trim());
"""


def reason_to_skip() -> str | None:
    """What is missing here to open pages in a browser; None where all is there."""
    if importlib.util.find_spec("selenium") is None:
        return "needs selenium: pip install -r tests/requirements-browser.txt"
    if _program() is None or shutil.which("chromedriver") is None:
        return "needs chromium and its driver: apt-get install chromium chromium-driver"
    return None


def _program() -> str | None:
    return next((path for path in map(shutil.which, _NAMES) if path), None)


class Browser:
    """A browser window.

    Attributes:
      driver: Of selenium, for what is not here.
    """

    def __init__(self, driver: Any):
        self.driver = driver
        self.look_as(1280)

    def look_as(self, width: int, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """A window of this many pixels, by day or by night, with or without JavaScript."""
        self._width = width
        command = self.driver.execute_cdp_cmd
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < _TABLET}
        command("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        command("Emulation.setEmulatedMedia", {"features": [scheme]})
        command("Emulation.setScriptExecutionDisabled", {"value": not script})

    def open(self, page: Path | str) -> None:
        """Opens a file or an address, and waits until all of it is there."""
        for log in ("browser", "performance"):
            self.driver.get_log(log)  # what was said before
        self.driver.get(page.absolute().as_uri() if isinstance(page, Path) else page)
        deadline = time.monotonic() + _WAIT
        while not self.run("document.readyState == 'complete' && [...document.images].every(i => i.complete)"):
            assert time.monotonic() < deadline, f"{page} is still loading"
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.driver.execute_script(f"return {script}")

    def problems(self, home: str = "file:") -> list[str]:
        """What is wrong with the page: wider than the window, pictures not shown, errors, requests to elsewhere."""
        messages = self.driver.get_log("browser")
        found = [f"console: {entry['message']}" for entry in messages if entry["level"] in ("SEVERE", "WARNING")]
        width = self.run("document.documentElement.scrollWidth")
        if width > self._width:  # innerWidth, that of a phone, grows with the page
            widest = self.driver.execute_script(_WIDEST, self._width)
            found.append(f"the page is {width} pixels wide in a window of {self._width}: {widest}")
        broken = self.run("[...document.images].filter(i => !i.naturalWidth).map(i => i.alt || i.getAttribute('src'))")
        found += [f"a picture is not shown: {name}" for name in broken]
        inside = (home, "data:", "blob:", "chrome:", "about:")
        return found + [f"it asks for {url}" for url in self._requests() if not url.startswith(inside)]

    def _requests(self) -> list[str]:
        """The addresses that the page has asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def save_picture(self, path: Path, height: int | None = None) -> None:
        """Writes a picture of the page, the whole of it or its first pixels, as a PNG."""
        width, whole = self.run("[innerWidth, document.documentElement.scrollHeight]")
        size = {"width": width, "height": height or whole, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.save_screenshot(str(path))


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """Starts a browser that is closed at the end."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(_program())
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
