"""The table and the figure of a comparison of methods, from its rows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmjax.common import plots
from dmjax.evaluation.accuracy import BEST
from dmjax.run import study

_ALWAYS = ("accuracy (%)", "published", "seconds", "IOR", "HLR", "LRS")
SCORES = {
    "IOR": ("improvement_over_random", "accuracy minus that of random real images (same protocol and factor)"),
    "HLR": ("hard_label_recovery", "that of the whole training set minus accuracy"),
    "LRS": ("label_robust", "both in one, 0 to 100"),
    "ARS": ("augmentation_robust", "IOR with and without augmentation in one, 0 to 100"),
}
"""The scores by their short names: what they are in a row, and what they mean."""
LABELS = {
    "stored": "hard labels",  # most sets have no others
    "hard": "hard labels",
    "soft": "soft labels stored with the images",
    "teacher": "a teacher's soft labels, one for each image",
    "teacher-views": "a teacher's soft labels, one for each augmented view",
}
"""What networks learn from, by `EvaluationConfig.labels`, or soft for a set that has such labels itself."""


def table(report: list[dict[str, Any]]) -> str:
    """Markdown, a table for each group of rows that can be compared; a star marks published figures of other settings.

    Columns that would be empty are left out.
    """
    shown, parts, groups = columns(report), [], grouped(report)
    for heading, rows in groups.items():
        cells = [[row["method"], size(row), *(cell(row) for cell in shown.values())] for row in rows]
        parts += [f"{heading}:"] if len(groups) > 1 else []
        parts.append(study.markdown(["method", "images per class", *shown], cells))
    return "\n\n".join([*parts, *notes(report)])


def grouped(report: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows that can be compared with each other, by what they have in common: the protocol and the labels."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in report:
        groups.setdefault(f"Protocol {row.get('protocol', '')}, {row.get('labels', '')}", []).append(row)
    return groups


def columns(report: Sequence[dict[str, Any]]) -> dict[str, Callable[[dict[str, Any]], str]]:
    """The columns after the method and its size, by their headings: what is in the cell of a row, in Markdown."""
    further = {
        "protocol": lambda row: row.get("protocol", "-"),
        "stored pixels (factor)": lambda row: f"{row['pixels']} ({row['factor']})" if "pixels" in row else "-",
        "accuracy (%)": study.percent,
        BEST: lambda row: f"{100 * np.mean(row['best']):.1f}" if "best" in row else "-",
        "without augmentation (%)": lambda row: study.percent(row["plain"]) if "plain" in row else "-",
        "own evaluation (%)": lambda row: study.percent(row["own_evaluation"]) if "own_evaluation" in row else "-",
        "top-5 (%)": lambda row: f"{100 * np.mean(row['top5']):.1f}" if "top5" in row else "-",
        "published": _published_cell,
        "seconds": lambda row: f"{row['seconds']:.1f}",
    }
    fair = {short: lambda row, name=name: _score(row, name) for short, (name, _) in SCORES.items()}
    return {n: c for n, c in {**further, **fair}.items() if n in _ALWAYS or any(c(row) != "-" for row in report)}


def notes(report: Sequence[dict[str, Any]]) -> list[str]:
    """What stands below the table: what the scores mean, and how settings differ from the papers', in Markdown."""
    said = [f"{short}: {text}" for short, (_, text) in SCORES.items() if short in columns(report)]
    measured = any(name in row for row in report for name, _ in SCORES.values())
    return [*(["; ".join(said)] if measured else []), *_settings_notes(report)]


def _published_cell(row: dict[str, Any]) -> str:
    star = "\\*" if row["settings"] else ""
    return "-" if row["published"] is None else f"{row['published']:.1f}{star}"


def _score(row: dict[str, Any], name: str) -> str:
    return f"{100 * row[name]:.1f}" if name in row else "-"


def _settings_notes(report: Sequence[dict[str, Any]]) -> list[str]:
    """How the settings differ from the papers': what all sets have in common, then what some rows have besides."""
    if not any(row["published"] for row in report):
        return []  # nothing stands beside ours that could be mistaken
    sets = [row for row in report if row["ipc"] is not None] or report
    common = [s for s in sets[0]["settings"] if all(s in row["settings"] for row in sets)]
    found = [f"\\* not the papers' settings: {', '.join(common)}"] if common else []
    found += dict.fromkeys(
        f"\\* published for {row['method']}: {row['published_note']}"
        for row in report
        if row["published"] and row["published_note"]
    )
    rest: dict[str, list[str]] = {}
    for row in report:
        own = ", ".join(s for s in row["settings"] if s not in common)
        if own:
            rest.setdefault(own, []).append(f"{name_of(row, report)} {size(row)}")
    return found + [f"\\* {', '.join(of)}: {own}" for own, of in rest.items()]


def name_of(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The method, and where rows differ in it the protocol; real images that are packed say so."""
    several = len({other.get("protocol") for other in rows}) > 1
    packed = len({o["factor"] for o in rows if o["method"] == row["method"] and "factor" in o}) > 1
    further = [row["protocol"]] * several + [f"factor {row['factor']}"] * packed if "protocol" in row else []
    return " ".join([row["method"], *further])


def size(row: dict[str, Any]) -> str:
    """Images per class of a row, as they are shown."""
    return "all" if row["ipc"] is None else str(row["ipc"])


def cell_name(method: str, ipc: int, run: int) -> str:
    """The name of the cell of one set, which is also the folder of its run below FOLDER/runs."""
    return f"{method.replace(':', '.')}/ipc_{ipc}/run_{run}"


def plot(path: Path, rows: Sequence[dict[str, Any]], dataset: str) -> None:
    """Accuracy against images per class, and against the seconds that a set took (Figure 4)."""
    by_size: dict[str, list[tuple[float, float, float]]] = {}
    by_seconds: dict[str, list[tuple[float, float, float]]] = {}
    sizes: dict[str, list[float]] = {}
    sets = sorted((row for row in rows if row["ipc"] is not None), key=lambda row: row["ipc"])
    for row in sets:
        name, mean, std = name_of(row, rows), 100 * row["mean"], 100 * row["std"]
        by_size.setdefault(name, []).append((row["ipc"], mean, std))
        by_seconds.setdefault(name, []).append((row["seconds"], mean, std))
        sizes.setdefault(name, []).append(row["ipc"])
    path.unlink(missing_ok=True)  # a picture of other rows
    if sets:
        for whole in (row for row in rows if row["ipc"] is None):
            line = [(row["ipc"], 100 * whole["mean"], 100 * whole["std"]) for row in sets]
            by_size[name_of(whole, rows)] = sorted(set(line))
        panels = [("images per class", by_size), ("seconds to make a set", by_seconds)]
        several = len({row["ipc"] for row in sets}) > 1
        title = f"Networks trained on small sets of {dataset}" + " (larger dots: more images per class)" * several
        plots.curves(path, [("test accuracy (%)", x, lines) for x, lines in panels], title, sizes=sizes)
