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
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import browser
import pytest
from conftest import ROOT

from dmjax import methods

pytestmark = pytest.mark.browser

PHONE, DESK = (360, 740), (1280, 900)


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
def window():
    """A headless Chromium."""
    if reason := browser.reason_to_skip():
        pytest.skip(reason)
    with browser.opened() as opened:
        yield opened


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


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"])
def test_every_page_opens_without_errors_and_fits(pages, address, window, size, scheme):
    """No message in the console, no request to elsewhere, every picture shown, and nothing wider than the window."""
    window.look_as(*size, dark=scheme == "dark")
    window.open(address)
    window.driver.execute_script("localStorage.clear()")  # where a reader's choice is kept
    window.open(address)
    assert window.run("document.body.dataset.mdColorScheme") == ("slate" if scheme == "dark" else "default")
    faults = []
    for name in pages:
        window.open(address + name)
        faults += [f"{name}: {message}" for message in window.problems(address)]
        _picture(window, f"{name.replace('/', '_').removesuffix('.html')}-{size[0]}-{scheme}")
    assert not faults


def test_a_page_that_is_wrong_is_seen_to_be(site, address, window):
    """The checks above find each kind of fault."""
    faulty = site / "faulty.html"
    faulty.write_text(
        "<!DOCTYPE html><meta name='viewport' content='width=device-width, initial-scale=1'><title>wrong</title>"
        "<main><img src='nowhere.png'><div style='width: 500px'>wide</div></main>"
        "<script>console.error('broken'); fetch('http://127.0.0.2:9/other').catch(() => null)</script>"
    )
    try:
        window.look_as(*PHONE)
        window.open(f"{address}faulty.html")
        found = "\n".join(window.problems(address))
    finally:
        faulty.unlink()
    for fault in (
        "is not shown: nowhere.png",
        "pixels wide in a window of 360: ['DIV  wide",
        "broken",
        "asks for http://127.0.0.2:9/other",
    ):
        assert fault in found


@pytest.mark.parametrize(("query", "page"), [("herding", "methods/coresets.html"), ("DataDAM", "methods/datadam.html")])
def test_the_search_finds_a_method(address, window, query, page):
    from selenium.webdriver.common.by import By

    window.look_as(*DESK)
    window.open(address)
    field = window.driver.find_element(By.CSS_SELECTOR, "input.md-search__input")
    window.driver.execute_script("arguments[0].focus()", field)
    field.send_keys(query)
    deadline = time.monotonic() + 20
    while not (found := window.run("[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)")):
        assert time.monotonic() < deadline, "nothing was found"
        time.sleep(0.1)
    assert any(page in link for link in found), found
    _picture(window, f"search-{query}")


def _picture(window, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        window.driver.save_screenshot(str(Path(folder) / f"{name}.png"))
