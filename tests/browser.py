"""A real browser for tests of pages: Chromium without a screen, and what it says of a page that it has opened.

    with opened() as browser:
        browser.open(path, width=360)
        assert not browser.problems()

It needs chromium with its driver and selenium; `reason_to_skip` says what is missing.
"""

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
_NAMES = ("chromium", "chromium-browser", "google-chrome")


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

    def open(self, page: Path | str, width: int, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """Opens a file or an address in a window of this size, by day or by night, with or without JavaScript."""
        command = self.driver.execute_cdp_cmd
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        command("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        command("Emulation.setEmulatedMedia", {"features": [scheme]})
        command("Emulation.setScriptExecutionDisabled", {"value": not script})
        self.driver.get_log("browser")  # what was said before
        self.driver.get(page.absolute().as_uri() if isinstance(page, Path) else page)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.driver.execute_script(f"return {script}")

    def problems(self) -> list[str]:
        """What is wrong with the page: wider than the window, pictures that do not show, errors in the console."""
        found = [f"console: {entry['message']}" for entry in self.driver.get_log("browser")]
        width, room = self.run("[document.documentElement.scrollWidth, innerWidth]")
        if width > room:
            found.append(f"the page is {width} pixels wide in a window of {room}")
        broken = self.run("[...document.images].filter(image => !image.naturalWidth).map(image => image.alt)")
        return found + [f"a picture does not show: {alt}" for alt in broken]

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
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
