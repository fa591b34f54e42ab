"""Plots of a report as images: PNG and SVG files, and SVG to stand within a page. Needs matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chiron.sim.paper.sections import Axis, Plot, Point, Series
from chiron.sim.plots import check_drawing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
"""Okabe and Ito's palette, which people who do not tell red from green can read, without black and yellow:
these would be lost on a dark or a white page."""
_MARKERS = "osD^vP*X"
_INK = "#010203"
"""Stands for the colour of the page's text until the page decides on it."""
_SIZE_INCH = (7.2, 4.0)
_INSIDE = 3
"""Series of a legend that covers nothing of note; those of more stand below."""
_SIZE = re.compile(r'\s(?:width|height)="[^"]*"')


def save(plot: Plot, folder: Path) -> list[Path]:
    """Writes NAME.png and NAME.svg; the same plot gives the same bytes of SVG.

    Returns the files. Raises ConfigError without matplotlib, OSError when a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{plot.name}.png", folder / f"{plot.name}.svg"]
    with _drawn(plot, {}) as figure:
        figure.savefig(files[0], dpi=150)
        figure.savefig(files[1], metadata={"Date": None})
    return files


def inline_svg(plot: Plot) -> str:
    """The plot as an SVG element: no background, and ink in the colour of the text around it.

    Its text is text, and its ids begin with the plot's name, so that several fit into one page. Raises
    ConfigError without matplotlib.
    """
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    clear = {"axes.facecolor": "none", "legend.framealpha": 0.0, "svg.fonttype": "none"}
    made = io.StringIO()
    with _drawn(plot, {**dict.fromkeys(inked, _INK), **clear}, ink=_INK) as figure:
        figure.savefig(made, format="svg", transparent=True, metadata={"Date": None})
    svg = made.getvalue()
    svg = svg[svg.index("<svg ") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'( id="|url\(#|href="#)', lambda found: f"{found[1]}{plot.name}-", svg)
    # The page says how wide it is; the height follows.
    tag, rest = svg.split(">", 1)
    return f"{_SIZE.sub('', tag)}>{rest}"


@contextmanager
def _drawn(plot: Plot, style: dict[str, Any], ink: str = "black") -> Iterator[Any]:
    check_drawing()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Ids come from a fixed salt, not at random; a dollar sign in a name does not start a formula.
    fixed = {"svg.hashsalt": "chiron", "text.parse_math": False, "font.size": 10.0}
    with matplotlib.rc_context({**fixed, **style}):
        figure = Figure(figsize=_SIZE_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        draw = {"lines": _lines, "steps": _steps, "bars": _bars, "dots": _dots}[plot.kind]
        for place, (series, colour) in enumerate(zip(plot.series, _colours(plot.series), strict=True)):
            draw(axes, series, colour, place, len(plot.series))
        _finish(axes, plot, ink)
        yield figure


def _colours(series: Sequence[Series]) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(len(series))]


def _finish(axes: Any, plot: Plot, ink: str) -> None:
    if plot.reference is not None:
        axes.axhline(plot.reference, color=ink, linewidth=0.8, linestyle="--")
    if plot.diagonal:
        axes.axline((0, 0), slope=1, color=ink, linewidth=0.8, linestyle="--")
    if not any(_known(series) for series in plot.series):
        axes.text(0.5, 0.5, "no figures", ha="center", va="center", transform=axes.transAxes)
    for axis, name in ((plot.x, "x"), (plot.y, "y")):
        _scale(axes, axis, name)
    if plot.x.ticks:
        axes.set_xticks(range(len(plot.x.ticks)), list(plot.x.ticks), rotation=20, ha="right")
    axes.set_title(plot.title)
    axes.grid(alpha=0.25)
    if len(plot.series) > _INSIDE:
        axes.figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    elif len(plot.series) > 1:
        axes.legend(fontsize="small")


def _scale(axes: Any, axis: Axis, name: str) -> None:
    getattr(axes, f"set_{name}label")(axis.label)
    if axis.log:
        getattr(axes, f"set_{name}scale")("log")
    if axis.least is not None or axis.most is not None:
        getattr(axes, f"set_{name}lim")(axis.least, axis.most)


def _known(series: Series) -> list[tuple[Point, float]]:
    return [(point, point.y) for point in series.points if point.y is not None]


def _whiskers(known: Sequence[tuple[Point, float]]) -> list[list[float]]:
    return [
        [y - (y if point.low is None else point.low) for point, y in known],
        [(y if point.high is None else point.high) - y for point, y in known],
    ]


def _lines(axes: Any, series: Series, colour: str, place: int, _: int) -> None:
    gaps = [float("nan") if point.y is None else point.y for point in series.points]
    xs = [point.x for point in series.points]
    marker = _MARKERS[place % len(_MARKERS)]
    axes.plot(xs, gaps, color=colour, marker=marker, markersize=5, label=series.name)
    _error_bars(axes, series, colour, 0.0)


def _steps(axes: Any, series: Series, colour: str, _: int, __: int) -> None:
    known = _known(series)
    axes.step(
        [point.x for point, _ in known], [y for _, y in known], where="post", color=colour, label=series.name
    )


def _dots(axes: Any, series: Series, colour: str, place: int, _: int) -> None:
    known = _known(series)
    marker = _MARKERS[place % len(_MARKERS)]
    xs, ys = [point.x for point, _ in known], [y for _, y in known]
    axes.plot(xs, ys, marker, color=colour, markersize=4, alpha=0.7, label=series.name)


def _bars(axes: Any, series: Series, colour: str, place: int, count: int) -> None:
    width = 0.8 / count
    shift = (place - (count - 1) / 2) * width
    known = _known(series)
    axes.bar(
        [point.x + shift for point, _ in known], [y for _, y in known], width, color=colour, label=series.name
    )
    _error_bars(axes, series, _darker(colour), shift)


def _error_bars(axes: Any, series: Series, colour: str, shift: float) -> None:
    known = [(point, y) for point, y in _known(series) if point.low is not None or point.high is not None]
    if known:
        xs, ys = [point.x + shift for point, _ in known], [y for _, y in known]
        axes.errorbar(xs, ys, _whiskers(known), fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)


def _darker(colour: str) -> str:
    parts = [int(colour[at : at + 2], 16) * 3 // 5 for at in (1, 3, 5)]
    return "#{:02x}{:02x}{:02x}".format(*parts)
