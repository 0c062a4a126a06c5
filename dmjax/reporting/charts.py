"""Curves as SVG inside a page: drawn by matplotlib, coloured by the style of the page, so by day and by night."""

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dmjax.reporting.markup import Markup, element

_SERIES = 8
_POINTS = 250  # of a line, more of which no screen shows
# Colours that matplotlib draws in, and that become those of the style.
_TEXT, _GRID = "#00fd01", "#00fd02"
_COLOURS = [f"#00fe0{i}" for i in range(_SERIES)]
_VARIABLES = {_TEXT: "var(--muted)", _GRID: "var(--line)"}
_VARIABLES |= {colour: f"var(--series-{i})" for i, colour in enumerate(_COLOURS)}


class Line(NamedTuple):
    """A curve.

    Attributes:
      name: For the legend.
      x: Its points.
      y: Their heights.
      error: Half the length of the error bar at each; None for none.
      marked: Whether each point has a mark.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    marked: bool = False


class Level(NamedTuple):
    """A height that curves are compared with, dashed or dotted."""

    name: str
    y: float
    dotted: bool = False


def curves(
    title: str,
    x_label: str,
    lines: Sequence[Line],
    levels: Sequence[Level] = (),
    logarithmic_y: bool = False,
    logarithmic_x: bool = False,
) -> Markup:
    """A chart of curves, with a legend where there are several.

    Args:
      title: Above it, and for those who do not see it, with the ends of each curve.
      x_label: Of the x axis.
      lines: The curves; their colours repeat after eight.
      levels: Horizontal lines.
      logarithmic_y: Whether the y axis is.
      logarithmic_x: Whether the x axis is.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # imported where it is needed: it takes half a second

    style = {
        "svg.fonttype": "none",  # letters stay letters
        "svg.hashsalt": title,  # ids that are the same whenever it is drawn
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), _TEXT),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _GRID),
    }
    with rc_context(style):
        figure = Figure(figsize=(4.0, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for i, line in enumerate(lines):
            colour = _COLOURS[i % _SERIES]
            x, y = _binned(line) if line.error is None else (line.x, line.y)
            marker = "o" if line.marked or len(x) == 1 else None
            axes.errorbar(
                x, y, line.error, label=line.name, color=colour, marker=marker, markersize=4, capsize=2, linewidth=1.6
            )
        for level in levels:
            dashes = (0, (1, 2)) if level.dotted else (0, (4, 3))
            axes.axhline(level.y, color=_TEXT, linewidth=1.2, linestyle=dashes, label=level.name)
        axes.set_yscale("log" if logarithmic_y else "linear")
        axes.set_xscale("log" if logarithmic_x else "linear")
        if logarithmic_x:
            ticks = sorted({x for line in lines for x in line.x})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(x_label)
        axes.grid(axis="y", linewidth=0.8)
        axes.tick_params(length=0)
        axes.set_axisbelow(True)
        if len(lines) + len(levels) > 1:
            handles, names = axes.get_legend_handles_labels()
            order = [names.index(named.name) for named in (*lines, *levels)]  # curves first, as they are given
            arguments = [handles[i] for i in order], [names[i] for i in order]
            figure.legend(*arguments, loc="outside upper left", ncols=3, frameon=False, handlelength=1.4)
        drawn = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    label = "; ".join([title, *map(_in_words, lines), *(f"{level.name}: {level.y:.3g}" for level in levels)])
    svg = _inline(drawn.getvalue(), label)
    return element("figure", element("figcaption", title), svg, class_="chart")


def _binned(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """The points of a curve; where they are more than a screen shows, means of points beside each other."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    parts = np.array_split(np.arange(len(x)), min(len(x), _POINTS))
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _in_words(line: Line) -> str:
    first, last = f"{line.y[0]:.3g} at {line.x[0]:g}", f"{line.y[-1]:.3g} at {line.x[-1]:g}"
    return f"{line.name}: {first}" + (f", {last}" if len(line.x) > 1 else "")


def _inline(svg: str, label: str) -> Markup:
    """The drawing as an element of a page: without a file's head, names that occur twice, sizes and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    svg = re.sub(r"<svg[^>]*>", "", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    start = element("svg", viewBox=box[1], role="img", aria_label=label).removesuffix("</svg>")
    return Markup(start + svg.strip())
