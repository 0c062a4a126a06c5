"""The page of a comparison of methods."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dmjax import methods
from dmjax.common import files
from dmjax.common.errors import UserError
from dmjax.data.synthetic_set import SyntheticSet
from dmjax.reporting import charts, markup, pictures, sections
from dmjax.reporting.markup import Markup, element
from dmjax.reporting.sections import Bar
from dmjax.run import comparison

_COMMAND = "dmjax.compare"
_PICTURES = 30  # sets that are shown
Row = dict[str, Any]


def page(folder: Path) -> str:
    """The page of the comparison in a folder, as HTML."""
    mend = "the same command makes it anew"
    if files.read_json(folder / "study.json", mend) != _COMMAND:
        raise UserError(f"{folder} holds a study that is no comparison of methods; its table is in table.md")
    results = files.read_json(folder / "results.json", mend)
    if results is None:
        raise UserError(f"the comparison in {folder} is not finished; the command that began it goes on with it")
    try:
        rows, about = results["rows"], results["about"]
        body = [_header(rows, about, results["seconds"]), *_accuracies(rows), _pictures(folder, rows, about)]
        body += [_curves(rows), _table(rows), _cost(results, about), _repeat(about)]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{folder / 'results.json'} is not of a comparison; {mend}") from None
    return markup.page(f"{about['dataset']['name']}: comparison of methods", *(part for part in body if part))


def _header(rows: Sequence[Row], about: Row, seconds: float) -> Markup:
    dataset = about["dataset"]
    names = list(dict.fromkeys(row["method"] for row in rows))
    lead = f"{', '.join(names)}: the same data, networks, evaluation and seeds."
    tiles: list[tuple[str, Any]] = []
    sets = [row for row in rows if row["ipc"] is not None]
    if sets:
        best = max(sets, key=lambda row: row["mean"])
        name = f"best set: {comparison.name_of(best, rows)}, {best['ipc']} per class"
        tiles.append((name, sections.percent(best["mean"], best["std"])))
    tiles += [("rows", len(rows)), ("for all of it", sections.duration(seconds))]
    return sections.header("dmjax · comparison", f"{len(names)} methods on {dataset['name']}", lead, tiles)


def _accuracies(rows: Sequence[Row]) -> list[Markup]:
    """A table with bars for every group of rows that can be compared."""
    groups = comparison.grouped(rows)
    return [
        sections.section(
            "Accuracy" if len(groups) == 1 else f"Accuracy: {heading}",
            sections.bars([_bar(row, rows) for row in of_group], "method"),
            sections.note("Mean and standard deviation over sets and networks."),
        )
        for heading, of_group in groups.items()
    ]


def _bar(row: Row, rows: Sequence[Row]) -> Bar:
    size = "all images" if row["ipc"] is None else f"{row['ipc']} per class"
    note = sections.joined(size, sections.counted(row["runs"], "run"), sections.networks(row))
    bound = getattr(methods.built_in().get(row["method"]), "bound", None)
    kind = {"upper": "whole_dataset", "lower": "random_real"}.get(bound, "synthetic")
    return Bar(comparison.name_of(row, rows), note, row["mean"], row["std"], kind)


def _pictures(folder: Path, rows: Sequence[Row], about: Row) -> Markup | None:
    """The set of the first run of every method and size, with links to the pages of runs that have one."""
    figures, shape, seen, room = [], about["dataset"]["image_shape"], set(), pictures.MAX_BYTES
    for row in rows:
        key = row["method"], row["ipc"]
        if row["ipc"] is None or key in seen or len(figures) == _PICTURES:
            continue
        seen.add(key)
        place = folder / "runs" / comparison.cell_name(*key, 0)
        per_class = _per_class(place / "synthetic.npz")
        read = pictures.read(place / "images", about["dataset"]["num_classes"], shape, per_class, most=1)
        for picture in read.shown:
            room -= picture.size
            if room >= 0:
                name = f"{row['method']}, {row['ipc']} per class"
                accuracy = element("small", sections.percent(row["mean"], row["std"]))
                caption = element("span", name, element("br"), accuracy, *_links(folder, row))
                figures.append((picture.html(f"the set of {name}"), caption))
    if not figures:
        return None
    which = "The first set of each method and size."
    return sections.section("The images", sections.gallery(figures), sections.note(which))


def _per_class(path: Path) -> int | None:
    try:
        return SyntheticSet.load(path).ipc
    except UserError:
        return None


def _links(folder: Path, row: Row) -> list[Markup]:
    """Links to the pages of the runs of a row, where `python -m dmjax.report` has made them."""
    names = [f"runs/{comparison.cell_name(row['method'], row['ipc'], run)}/report.html" for run in range(row["runs"])]
    there = [(run, name) for run, name in enumerate(names) if (folder / name).exists()]
    return [element("small", " ", element("a", f"run {run}", href=quote(name))) for run, name in there]


def _curves(rows: Sequence[Row]) -> Markup | None:
    """Accuracy against images per class, where there are several sizes, and against seconds."""
    sets = sorted((row for row in rows if row["ipc"] is not None), key=lambda row: row["ipc"])
    if len({row["ipc"] for row in sets}) < 2:
        return None
    named: dict[str, list[Row]] = {}
    for row in sets:
        named.setdefault(comparison.name_of(row, rows), []).append(row)
    lines = [
        charts.Line(
            name,
            *([row[key] * scale for row in found] for key, scale in (("ipc", 1), ("mean", 100), ("std", 100))),
            True,
        )
        for name, found in named.items()
    ]
    levels = [charts.Level("whole set", 100 * row["mean"], True) for row in rows if row["ipc"] is None][:1]
    drawn = charts.curves("Test accuracy (%)", "images per class", lines, levels, logarithmic_x=True)
    return sections.section("By size", element("div", drawn, class_="charts"))


def _table(rows: Sequence[Row]) -> Markup:
    """All columns that the command prints, with the notes below them."""
    columns = comparison.columns(rows)
    cells = [[row["method"], comparison.size(row), *(_plain(cell(row)) for cell in columns.values())] for row in rows]
    head = ["method", "images per class", *columns]
    whole = sections.table(head, cells, "all columns", numbers=range(1, len(head)), wide=True)
    return sections.section("All columns", whole, *(sections.note(_plain(text)) for text in comparison.notes(rows)))


def _plain(text: str) -> str:
    """Markdown as it is read."""
    return text.replace("\\*", "*").replace("+-", "±")


def _cost(results: Row, about: Row) -> Markup:
    further = [("all measurements", f"{sections.duration(results['seconds'])}, compiling and evaluating included")]
    return sections.section("Cost", sections.facts([*further, *sections.about_machine(about)]))


def _repeat(about: Row) -> Markup:
    said = element("p", "The same command goes on with what is there; in another --workdir it makes all of it again:")
    each = element(
        "p", "A page of one of its runs: ", element("code", "python -m dmjax.report runs/METHOD/ipc_1/run_0")
    )
    return sections.section("How to repeat it", said, sections.command(shlex.split(about["command"])), each)
