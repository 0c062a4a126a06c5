"""HTML from Python values: whatever is not markup already is escaped, so that no name or path can become markup."""

import html
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_EMPTY = {"br", "img", "input", "link", "meta", "wbr"}  # elements without content, which have no end tag
# Nothing is loaded, whatever a page holds: pictures, style and script are in it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Markup(str):
    """Text that is HTML and stands as it is; any other text is escaped where it enters a page."""


def element(name: str, /, *content: Any, **attributes: Any) -> Markup:
    """An HTML element.

    Args:
      name: Of the element.
      *content: What is in it: markup, or values that are escaped; None is left out.
      **attributes: By their names, where `class_` is class and `aria_label` is aria-label. One that is None or False
        is left out, one that is True has no value.
    """
    shown = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    written = [
        f" {key}" if value is True else f' {key}="{html.escape(str(value))}"'
        for key, value in shown.items()
        if value is not None and value is not False
    ]
    opened = f"<{name}{''.join(written)}>"
    return Markup(opened if name in _EMPTY else f"{opened}{join(*content)}</{name}>")


def join(*content: Any) -> Markup:
    """Contents one after the other; values that are no markup are escaped, and None is left out."""
    parts = [part if isinstance(part, Markup) else html.escape(str(part)) for part in content if part is not None]
    return Markup("".join(parts))


def page(title: str, *content: Any) -> str:
    """A whole page, with the style and the script of all pages in it."""
    head = [
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", _asset("page.css")),
    ]
    body = [*(Markup(f"{part}\n") for part in map(join, content)), element("script", _asset("page.js"))]
    lines = [*head, Markup("</head>"), Markup("<body>"), element("main", "\n", *body), Markup("</body>")]
    return "\n".join(['<!doctype html>\n<html lang="en">\n<head>', *lines, "</html>\n"])


def _asset(name: str) -> Markup:
    return Markup("\n" + (_HERE / name).read_text(encoding="utf-8"))
