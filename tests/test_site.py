"""The documentation as a reader sees it: built strictly, served from here, and looked at with a browser.

    pip install -r docs/requirements.txt -r tests/requirements-browser.txt
    apt-get install chromium chromium-driver
    python -m pytest tests/test_site.py

It skips, and says why, where one of them is missing. With SCREENSHOTS=FOLDER it leaves pictures of every page there.
"""

import functools
import html.parser
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import pytest
from conftest import ROOT

from dmjax import methods

pytestmark = pytest.mark.browser

PHONE, DESK = (360, 740), (1280, 900)
_WAIT = 20  # seconds, for what a page loads after it is there


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning while building is an error (with -q mkdocs would not count them)."""
    for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install -r docs/requirements.txt")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """The addresses of all pages below the site's root, and what is in them."""
    found = {path.relative_to(site).as_posix(): _Page.of(path) for path in sorted(site.rglob("*.html"))}
    found.pop("404.html")
    return found


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that keeps what it printed and what it asked for."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("needs selenium: pip install -r tests/requirements-browser.txt")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.add_argument("--disable-background-networking")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    started.set_page_load_timeout(60)
    yield started
    started.quit()


class _Page(html.parser.HTMLParser):
    """What a page links to, loads and can be linked at."""

    def __init__(self):
        super().__init__()
        self.links, self.loads, self.anchors, self.text = [], [], set(), ""

    @classmethod
    def of(cls, path: Path) -> "_Page":
        page = cls()
        page.feed(path.read_text())
        return page

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("img", "script", "source", "iframe") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("href") and given.get("rel") != "canonical":
            self.loads.append(given["href"])

    def handle_data(self, data):
        self.text += data


def test_every_link_and_anchor_leads_somewhere(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links + page.loads:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (site / name).parent / urllib.parse.unquote(parts.path) if parts.path else site / name
            target = target / "index.html" if target.is_dir() else target
            found = target.resolve().relative_to(site.resolve()).as_posix()
            if not target.exists():
                broken.append(f"{name}: {link}")
            elif parts.fragment and found in pages:
                anchors = pages[found].anchors
                if urllib.parse.unquote(parts.fragment) not in anchors:
                    broken.append(f"{name}: {link} (no such anchor)")
    assert not broken


def test_nothing_of_the_site_names_another_host_to_load_from(pages):
    foreign = {name: [at for at in page.loads if "//" in at] for name, page in pages.items()}
    assert not {name: loads for name, loads in foreign.items() if loads}


def test_every_page_is_in_the_navigation_and_every_method_has_one(pages):
    home = pages["index.html"]
    linked = {urllib.parse.urlsplit(link).path.removeprefix("./") for link in home.links}
    assert not set(pages) - linked
    text = "".join(page.text for name, page in pages.items() if name.startswith("methods/"))
    assert all(re.search(rf"\b{name}\b", text) for name in methods.built_in())


def test_formulas_are_mathml_and_none_is_left_as_latex(site, pages):
    with_formula = [name for name in pages if "<math" in (site / name).read_text()]
    assert len(with_formula) >= len([name for name in pages if name.startswith("methods/")]) - 1  # all but the chooser
    left = [name for name in pages if re.search(r"\\\(|\\\[|\\frac|\\sum|\$\$", _prose((site / name).read_text()))]
    assert not left


def _prose(text: str) -> str:
    """Without code and scripts."""
    return re.sub(r"<(pre|code|script|annotation)\b.*?</\1>", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_every_page_opens_without_errors_and_fits(pages, address, browser, size, scheme):
    """No message in the console, no request to elsewhere, every picture shown, and nothing wider than the window."""
    _look_as(browser, size, scheme)
    browser.get(address)
    browser.execute_script("localStorage.clear()")  # where a reader's choice is kept
    browser.get(address)
    chosen = browser.execute_script("return document.body.dataset.mdColorScheme")
    assert chosen == ("slate" if scheme == "dark" else "default")
    _log(browser)
    faults = []
    for name in pages:
        browser.get(address + name)
        faults += [f"{name}: {message}" for message in _faults(browser, address, size)]
        _picture(browser, f"{name.replace('/', '_').removesuffix('.html')}-{size[0]}-{scheme}")
    assert not faults


def test_a_page_that_is_wrong_is_seen_to_be(site, address, browser):
    """The checks above find each kind of fault."""
    faulty = site / "faulty.html"
    faulty.write_text(
        "<!DOCTYPE html><title>wrong</title><main><img src='nowhere.png'><div style='width: 5000px'>wide</div></main>"
        "<script>console.error('broken'); fetch('http://127.0.0.2:9/other').catch(() => null)</script>"
    )
    try:
        _look_as(browser, PHONE, "light")
        _log(browser)
        browser.get(f"{address}faulty.html")
        found = "\n".join(_faults(browser, address, PHONE))
    finally:
        faulty.unlink()
    for fault in ("picture nowhere.png is not shown", "pixels wide", "broken", "asks http://127.0.0.2:9/other"):
        assert fault in found


@pytest.mark.parametrize(("query", "page"), [("herding", "methods/coresets.html"), ("DataDAM", "methods/datadam.html")])
def test_the_search_finds_a_method(site, address, browser, query, page):
    from selenium.webdriver.common.by import By

    _look_as(browser, DESK, "light")
    browser.get(address)
    field = browser.find_element(By.CSS_SELECTOR, "input.md-search__input")
    browser.execute_script("arguments[0].focus()", field)
    field.send_keys(query)
    found = []
    for _ in range(10 * _WAIT):
        found = browser.execute_script(
            "return [...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
        )
        if found:
            break
        time.sleep(0.1)
    assert any(page in link for link in found), found
    _picture(browser, f"search-{query}")


def _look_as(browser, size, scheme):
    """A window of this many CSS pixels, and the reader's preference for light or dark."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    preference = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)


def _faults(browser, address, size) -> list[str]:
    """What is wrong with the page that is open."""
    found = []
    deadline = time.monotonic() + _WAIT
    shown = "return [...document.images].every(i => i.complete) && document.readyState == 'complete'"
    while not browser.execute_script(shown):
        if time.monotonic() > deadline:
            return ["it is still loading"]
        time.sleep(0.05)
    empty = browser.execute_script(
        "return [...document.images].filter(i => i.naturalWidth == 0).map(i => i.getAttribute('src'))"
    )
    found += [f"picture {source} is not shown" for source in empty]
    width = browser.execute_script("return document.documentElement.scrollWidth")
    if width > size[0]:
        wide = browser.execute_script(_WIDEST, size[0])
        found.append(f"it is {width} pixels wide in a window of {size[0]}: {wide}")
    errors, requests = _log(browser)
    found += [f"console: {message}" for message in errors]
    found += [f"asks {url}" for url in requests if not url.startswith((address, "data:", "blob:", "chrome:", "about:"))]
    return found


_WIDEST = """
const wide = [...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > arguments[0] + 1);
return wide.slice(0, 5).map(e => e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40).trim());
"""


def _log(browser) -> tuple[list[str], list[str]]:
    """Messages of the console, and the addresses that were asked for, since the last call."""
    messages = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    requests = []
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            requests.append(event["params"]["request"]["url"])
    return messages, requests


def _picture(browser, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))
