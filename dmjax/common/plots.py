"""Figures as PNG files: heat map, curves, scatter. Matplotlib is drawn without a screen."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmjax.common import files

_DPI = 110
_TICKS = 10  # of an axis that has one at every point; more would cover each other
_DOTS = 50  # of a curve; more than so many are a line without them


def heat_map(path: Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """A table of percentages [rows, columns] as colours with numbers; NaN for what is missing."""
    figure, (axes,) = _figure(1, 1.6 + 1.1 * len(columns), 1.4 + 0.5 * len(rows))
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    middle = (shown.min() + shown.max()) / 2 if shown.count() else 0
    for (r, c), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(c, r, f"{value:.1f}", ha="center", va="center", color="white" if value < middle else "black")
    axes.set(xlabel="tested on", ylabel="learned on", title=title)
    figure.colorbar(image, label="test accuracy (%)")
    _save(figure, path)


def curves(
    path: Path,
    panels: Sequence[tuple[str, str, Mapping[str, Sequence[tuple[float, float, float]]]]],
    title: str,
    logarithmic: bool = True,
    sizes: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Curves with error bars, one panel beside the other.

    Args:
      path: The file.
      panels: (label of the y axis, of the x axis, {name of a curve: (x, y, error) of its points, in the order in which
        they are connected}) of each.
      title: Above all of them.
      logarithmic: Whether the x axis is.
      sizes: A further number for the points of some curves, by their names: the larger, the larger the dot.
    """
    from matplotlib import colormaps

    figure, every = _figure(len(panels), 4.8, 3.8)
    names = list(dict.fromkeys(name for *_, lines in panels for name in lines))
    palette = colormaps["tab10" if len(names) <= 10 else "tab20"].colors
    colours = {name: palette[i % len(palette)] for i, name in enumerate(names)}  # the same in all panels
    ranks = {size: i for i, size in enumerate(sorted({size for of in (sizes or {}).values() for size in of}))}
    for axes, (y_label, x_label, lines) in zip(every, panels, strict=True):
        for name, points in lines.items():
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, y, error if any(error) else None, capsize=3, label=name, color=colours[name])
            if len(points) <= _DOTS:
                steps = [ranks[size] for size in (sizes or {}).get(name, [])] or [0] * len(points)
                axes.scatter(x, y, [30 + 45 * step for step in steps], color=colours[name], zorder=3)
        axes.set_xscale("log" if logarithmic else "linear")
        ticks = sorted({point[0] for points in lines.values() for point in points})
        if len(ticks) <= _TICKS and all(float(tick).is_integer() for tick in ticks):
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=30 if len(ticks) > 4 else 0)
            axes.minorticks_off()
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
    handles = {name: handle for axes in every for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")  # once, and beside the curves
    figure.suptitle(title)
    _save(figure, path)


def scatter(
    path: Path, panels: Sequence[tuple[str, np.ndarray, np.ndarray, Sequence[str], np.ndarray]], title: str
) -> None:
    """Points in the plane, one panel beside the other: small dots for real images, stars for synthetic ones.

    Args:
      path: The file.
      panels: (name, points [n, 2], class of each [n], names of the classes, whether it is synthetic [n]) of each.
      title: Above all of them.
    """
    figure, every = _figure(len(panels), 4.6, 4.6)
    for axes, (name, points, labels, classes, synthetic) in zip(every, panels, strict=True):
        for c, class_name in enumerate(classes):
            real, made = points[(labels == c) & ~synthetic], points[(labels == c) & synthetic]
            colour = f"C{c % 10}"
            axes.scatter(*real.T, s=6, alpha=0.4, color=colour, linewidths=0)
            axes.scatter(
                *made.T, s=90, marker="*", color=colour, edgecolors="black", linewidths=0.6, label=class_name, zorder=3
            )
        axes.set(xticks=[], yticks=[], title=name)
        axes.legend(title="synthetic (stars), real (dots)", fontsize=8, title_fontsize=8)
    figure.suptitle(title)
    _save(figure, path)


def pictures(path: Path, rows: Mapping[str, np.ndarray]) -> None:
    """Images [n, H, W, D], of values from 0 to 1, in rows with a name each."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(0.68 * columns, 0.86 * len(rows)))
    every = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (name, images) in zip(every, rows.items(), strict=True):
        axes[0].set_ylabel(name, fontsize=10)
        for one, image in zip(axes, images, strict=False):
            one.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
    for axes in every.flat:
        axes.set(xticks=[], yticks=[])
    figure.subplots_adjust(left=0.05, right=0.995, top=0.99, bottom=0.01, wspace=0.06, hspace=0.06)
    _save(figure, path)


def against(
    path: Path,
    panels: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[bool]]],
    x_label: str,
    y_label: str,
    marked: str,
    title: str,
) -> None:
    """One quantity against another, one panel beside the other, with a common y axis.

    Args:
      path: The file.
      panels: (name, x [n], y [n], whether a point is marked [n]) of each.
      x_label: Of the x axes.
      y_label: Of the y axis.
      marked: What it means that a point is marked.
      title: Above all of them.
    """
    figure, every = _figure(len(panels), 3.1, 3.6)
    for axes, (name, x, y, chosen) in zip(every, panels, strict=True):
        x, y, chosen = np.asarray(x), np.asarray(y), np.asarray(chosen, bool)
        axes.scatter(x[~chosen], y[~chosen], s=14, alpha=0.5, color="C0", linewidths=0, label="others")
        axes.scatter(x[chosen], y[chosen], s=26, color="C1", edgecolors="black", linewidths=0.5, label=marked, zorder=3)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
        if axes is every[0]:
            axes.set_ylabel(y_label)
        else:
            axes.sharey(every[0])
    figure.supxlabel(x_label, fontsize=10)
    figure.legend(*every[0].get_legend_handles_labels(), loc="outside upper right", fontsize=8, ncols=2)
    figure.suptitle(title, x=0.02, ha="left")
    _save(figure, path)


def bars(path: Path, rows: Sequence[tuple[str, float, float]], label: str, title: str) -> None:
    """Horizontal bars with error bars, the first on top.

    Args:
      path: The file.
      rows: (name, value, error) of each.
      label: Of the axis of the values.
      title: Above the bars.
    """
    figure, (axes,) = _figure(1, 6.4, 1.0 + 0.32 * len(rows))
    names, values, errors = zip(*rows, strict=True)
    places = range(len(rows))[::-1]
    axes.barh(places, values, xerr=errors, capsize=3, color="C0", height=0.7)
    style = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    for place, value, error in zip(places, values, errors, strict=True):
        axes.annotate(f"{value:.1f}", (value + error, place), (5, 0), **style)
    axes.set_yticks(places, names)
    axes.set(xlabel=label, title=title, xlim=(0, 1.1 * max(v + e for v, e in zip(values, errors, strict=True))))
    axes.grid(alpha=0.3, axis="x")
    _save(figure, path)


def _figure(panels: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side; sizes in inches are those of one."""
    from matplotlib.figure import Figure  # imported where it is needed: it takes half a second

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    return figure, [figure.add_subplot(1, panels, i + 1) for i in range(panels)]


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    files.write_bytes(path, buffer.getvalue())
