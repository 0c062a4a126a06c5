"""The page of runs that differ in their seeds."""

from pathlib import Path

from dmjax.common import files
from dmjax.common.errors import UserError
from dmjax.reporting import markup, run, sections, source
from dmjax.reporting.markup import Markup, element
from dmjax.reporting.sections import Bar
from dmjax.reporting.source import Run

_PICTURES = 12  # seeds whose sets are shown
_CURVES = 8  # seeds whose losses are shown, which is how many colours there are


def page(folder: Path) -> str:
    """The page of the runs in a folder, as HTML."""
    pooled = files.read_json(folder / "runs.json", mend="the same command with --runs writes it anew")
    try:
        runs = {int(seed): source.read(folder / f"seed_{int(seed)}") for seed in pooled["seed"]}
        first, body = next(iter(runs.values())), []
        body.append(_header(first, pooled, runs))
        body.append(_images(runs))
        body.append(run.accuracy(first, pooled, f", of {len(runs)} sets"))
        body.append(_by_seed(runs))
        few = list(runs.items())[:_CURVES]
        body.append(run.progress([(f"seed {seed}", one) for seed, one in few], first))
        body += [run.differences(first, len(runs)), run.cost(first, pooled), run.repeat(first, len(runs))]
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        raise UserError(f"{folder / 'runs.json'} is not of several runs; remove it, and make them again") from None
    return markup.page(f"{first.dataset.name}, {first.method}, {len(runs)} seeds", *(part for part in body if part))


def _header(first: Run, pooled: dict, runs: dict[int, Run]) -> Markup:
    main = pooled["accuracy"].get("synthetic") or pooled["accuracy"].get("whole_dataset")
    tiles = [("test accuracy", sections.percent(main["mean"], main["std"]))] if main else []
    tiles += [("sets", len(runs)), ("to make all of them", sections.duration(pooled["seconds"]["condense"]))]
    return sections.header(f"dmjax · {len(runs)} seeds", run.title(first), run.lead(first), tiles)


def _images(runs: dict[int, Run]) -> Markup | None:
    figures = []
    for seed, one in list(runs.items())[:_PICTURES]:
        for picture in run.read_pictures(one, most=1).shown:
            figures.append(
                (picture.html(f"the set of {one.dataset.name} with seed {seed}"), _link(one, f"seed {seed}"))
            )
    if not figures:
        return None
    rest = sections.note(f"{len(figures)} of {len(runs)} sets.") if len(figures) < len(runs) else None
    return sections.section("The images", sections.gallery(figures), rest)


def _by_seed(runs: dict[int, Run]) -> Markup | None:
    rows = []
    for seed, one in runs.items():
        measured = ((one.results or {}).get("accuracy") or {}).get("synthetic")
        if measured:
            note, link = sections.networks(measured), _page(one)
            rows.append(Bar(f"seed {seed}", note, measured["mean"], measured["std"], "synthetic", link))
    return sections.section("Each seed", sections.bars(rows, "set")) if rows else None


def _page(one: Run) -> str | None:
    """The page of one of the runs, from that of all; None where it has none."""
    return f"{one.folder.name}/report.html" if (one.folder / "report.html").exists() else None


def _link(one: Run, text: str) -> str | Markup:
    return text if _page(one) is None else element("a", text, href=_page(one))
