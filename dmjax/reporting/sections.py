"""The parts of a page that runs, several seeds and comparisons share."""

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dmjax.evaluation.accuracy import BEST
from dmjax.reporting.markup import Markup, element
from dmjax.run import papers

_TOPS = (0.05, 0.1, 0.2, 0.5, 1.0)  # where the axis of the bars may end


class Bar(NamedTuple):
    """A measured accuracy, or a published one.

    Attributes:
      label: What it is the accuracy of.
      note: In small letters below.
      mean: In [0, 1].
      std: The same; None where it is not known.
      kind: One of synthetic, own, random_real, whole_dataset and published, which have their colours.
      link: A page about it; None for none.
    """

    label: str
    note: str
    mean: float
    std: float | None
    kind: str
    link: str | None = None


def header(kind: str, title: str, lead: str, tiles: Sequence[tuple[str, Any]]) -> Markup:
    """The head of a page: what it is about, and its most important numbers as (name, number)."""
    numbers = [element("div", element("dt", name), element("dd", number)) for name, number in tiles]
    return element(
        "header",
        element("p", kind, class_="kind"),
        element("h1", title),
        element("p", lead, class_="lead"),
        element("dl", *numbers, class_="tiles"),
    )


def section(title: str, *content: Any) -> Markup:
    """A part of the page under a heading."""
    return element("section", element("h2", title), *content)


def note(*content: Any) -> Markup:
    """A line in small letters."""
    return element("p", *content, class_="note")


def percent(mean: float, std: float | None) -> Markup:
    """An accuracy as it is read, with all its digits for programs."""
    text = f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"
    return element("data", f"{text} %", value=repr(float(mean)))


def bars(rows: Sequence[Bar], first: str = "trained on") -> Markup:
    """A table of accuracies, with a bar and an error bar beside each number."""
    highest = max(row.mean + (row.std or 0) for row in rows)
    top = next((top for top in _TOPS if highest <= top), 1.0)
    width = lambda value: f"{100 * min(max(value, 0.0), top) / top:.2f}%"  # noqa: E731
    lines = []
    for row in rows:
        low, high = row.mean - (row.std or 0), row.mean + (row.std or 0)
        error = element("i", style=f"left:{width(low)};right:calc(100% - {width(high)})") if row.std else None
        drawn = element(
            "div", element("b", style=f"width:{width(row.mean)}"), error, class_=f"bar {row.kind}", aria_hidden="true"
        )
        label = row.label if row.link is None else element("a", row.label, href=row.link)
        small = element("small", row.note) if row.note else None
        cells = [element("th", label, small, scope="row"), element("td", percent(row.mean, row.std), class_="number")]
        lines.append(element("tr", *cells, element("td", drawn, class_="drawn")))
    heads = [element("th", first, scope="col"), element("th", "test accuracy", scope="col", class_="number")]
    scale = element("th", element("span", "0"), element("span", f"{100 * top:g} %"), class_="scale", aria_hidden="true")
    return element(
        "table", element("thead", element("tr", *heads, scale)), element("tbody", *lines), class_="accuracies"
    )


def networks(accuracy: Mapping[str, Any]) -> str:
    """How many networks an accuracy is of, and what else was measured of them."""
    count = len(accuracy["values"])
    parts = [f"{count} network{'' if count == 1 else 's'}"]
    for name, label in (("top5", "top-5"), ("best", BEST)):
        if accuracy.get(name):
            parts.append(f"{label} {100 * np.mean(accuracy[name]):.1f} ± {100 * np.std(accuracy[name]):.1f} %")
    return ", ".join(parts)


def table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], label: str, numbers: Sequence[int] = (), wide: bool = False
) -> Markup:
    """A table, which scrolls by itself where it is wider than the screen.

    Args:
      head: Of the columns.
      rows: The cells; the first of each row is its head.
      label: What the table is, for those who do not see it.
      numbers: The columns of numbers.
      wide: Whether cells stay on one line, so that it scrolls rather than grows.
    """
    aligned = dict.fromkeys(numbers, "number")
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=aligned.get(i)) for i, cell in enumerate(row[1:], 1)),
        )
        for row in rows
    ]
    heads = [element("th", text, scope="col", class_=aligned.get(i)) for i, text in enumerate(head)]
    whole = element("table", element("thead", element("tr", *heads)), element("tbody", *lines))
    return element(
        "div", whole, class_="scroll wide" if wide else "scroll", role="region", aria_label=label, tabindex="0"
    )


def facts(pairs: Sequence[tuple[str, Any]]) -> Markup:
    """Names and values below each other; those without a value are left out."""
    shown = [(name, value) for name, value in pairs if value not in (None, "", [])]
    return element("dl", *(element("div", element("dt", n), element("dd", v)) for n, v in shown), class_="facts")


def cost(seconds: Mapping[str, float], machine: Mapping[str, Any], further: Sequence[tuple[str, Any]] = ()) -> Markup:
    """The seconds of a run, and what it ran on: hardware, versions, commit."""
    total = sum(seconds.values())
    names = {"condense": "condensing", "pretrain": "training networks for it", "compile": "compiling"}
    names |= {"evaluate": "evaluating"}
    parts = [(name, seconds[key]) for key, name in names.items() if seconds.get(key)]
    rows = [
        [name, element("data", duration(value), value=repr(float(value))), _share(value, total)]
        for name, value in parts
    ]
    times = table(["", "time", "share"], rows, "seconds", numbers=(1,)) if rows else None
    return section("Cost", times, facts([*further, *about_machine(machine)]))


def _share(value: float, total: float) -> Markup:
    style = f"width:{100 * value / total if total else 0:.1f}%"
    return element("div", element("b", style=style), class_="bar share", aria_hidden="true")


def about_machine(machine: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Hardware, versions and commit, by their names."""
    devices = list(machine.get("devices", []))
    kinds = [f"{devices.count(kind)} x {kind}" for kind in dict.fromkeys(devices)]
    versions = [f"{name} {version}" for name, version in machine.get("versions", {}).items()]
    processor = machine.get("processor", "")
    cores = f"{machine['cpu_count']} cores" if machine.get("cpu_count") else ""
    return [
        ("devices", ", ".join(filter(None, [*kinds, f"backend {machine['backend']}" if "backend" in machine else ""]))),
        ("processor", ", ".join(filter(None, [processor, cores]))),
        ("system", machine.get("platform")),
        ("versions", ", ".join(versions)),
        ("commit", element("code", machine["commit"]) if machine.get("commit") else None),
    ]


def duration(seconds: float) -> str:
    """Seconds as they are read."""
    if seconds < 600:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def settings(found: Sequence[papers.Difference], of_paper: bool, method: str) -> Markup:
    """The settings that are not those of the paper, or of a method without one, its defaults."""
    theirs = "the paper's" if of_paper else f"the defaults of {method}"
    title = f"Settings that differ from {theirs}"
    if not found:
        return section(title, element("p", "None: all settings that matter are the same."))
    head = ["setting", "here", "in the paper" if of_paper else "by default"]
    rows = [[_field(f.field), _value(f.value), _value(f.paper)] for f in found]
    return section(title, table(head, rows, title))


def _field(name: str) -> Markup:
    """A dotted name, which may break after each dot."""
    first, *rest = name.split(".")
    return element("code", first, *(part for word in rest for part in (".", element("wbr"), word)))


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(papers.shown, value)) or "none"
    return "-" if value is None else papers.shown(value)


def command(words: Sequence[str]) -> Markup:
    """A command line to copy; the words are quoted as a shell needs it, and no line breaks inside one."""
    spaced = [part for word in words for part in (" ", element("span", shlex.quote(word)))][1:]
    return element("pre", element("code", *spaced), class_="command")


def configuration(about: Mapping[str, Any]) -> Markup:
    """The configuration as JSON, to read and to save."""
    text = json.dumps(about, indent=2) + "\n"
    data = f"data:application/json;base64,{base64.b64encode(text.encode()).decode()}"
    link = element("a", "Save config.json", href=data, download="config.json")
    return element(
        "details",
        element("summary", "The whole configuration"),
        element("p", link),
        element("pre", element("code", text), tabindex="0", aria_label="config.json"),
    )


def gallery(figures: Sequence[tuple[Markup, Any]]) -> Markup:
    """Pictures with captions, as many beside each other as fit."""
    return element(
        "div",
        *(element("figure", picture, element("figcaption", caption)) for picture, caption in figures),
        class_="gallery",
    )


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def joined(*parts: str | None) -> str:
    """The parts of a line that are there."""
    return ", ".join(part for part in parts if part)
