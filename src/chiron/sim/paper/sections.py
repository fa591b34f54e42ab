"""What an experiment tells: sections of text, tables and plots, as plain data that any renderer can show.

Text is plain text: no markup of any kind, for renderers escape it. A cell is text too, so that the experiment
decides on digits and units; `None` is a figure that there is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    cells: tuple[str | None, ...]
    """One for each column; None: there is no such figure."""
    command: str = ""
    """What to type to have the row's figures again; "": the row is computed from others."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Raises ValueError for a row that has not one cell for each column."""

    caption: str
    columns: tuple[str, ...]
    """Headings, with units."""
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{self.caption}: a row of {len(row.cells)} cells, not {len(self.columns)}")


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a series."""

    x: float
    y: float | None
    """None: there is no such figure, and the line is broken here."""
    low: float | None = None
    """The least over the seeds; None: no spread is drawn."""
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """What belongs together in a plot, under one name in its legend."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a plot."""

    label: str
    """With its unit."""
    log: bool = False
    least: float | None = None
    """Where it begins; None: where the data do."""
    most: float | None = None
    ticks: tuple[str, ...] = ()
    """Names of the places 0, 1, 2, … of a `bars` plot; (): the axis has numbers."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot."""

    name: str
    """Of its files: letters, digits and hyphens, once in the whole report."""
    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    kind: Literal["lines", "steps", "bars", "dots"] = "lines"
    reference: float | None = None
    """A value of y that is marked by a line: a goal, or 1 where both sides are equal."""
    diagonal: bool = False
    """Marks where y equals x."""


Verdict = Literal["met", "not met", "not reachable", "no figure"]
"""Not reachable: physics forbids it with this calibration. No figure: runs that would tell are missing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One expectation of the paper, or one goal, beside what came out; the report lists all of them first."""

    claim: str
    expected: str
    """As published, or the goal."""
    found: str
    """As measured, with where it was."""
    verdict: Verdict
    why: str = ""
    """What keeps it from being met, computed and not supposed; or what else should be known with it."""


@dataclass(frozen=True, slots=True)
class Section:
    """One experiment's part of the report."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    findings: tuple[Finding, ...] = ()


def number(value: float | None, form: str = ",.2f") -> str | None:
    """A figure as a cell; None where there is none, or it is not a number."""
    return None if value is None or math.isnan(value) else format(value, form)


def share(value: float | None) -> str | None:
    """A share of 1 as a cell, in percent."""
    return number(value, ".2%")


def spread(values: Iterable[float | None], form: str = ",.2f") -> str | None:
    """The mean over the seeds that have the figure, with the least and the most where these differ."""
    found = _known(values)
    if not found:
        return None
    mean, low, high = (format(value, form) for value in (sum(found) / len(found), min(found), max(found)))
    return mean if low == high else f"{mean} [{low}–{high}]"


def point(x: float, values: Iterable[float | None], scale: float = 1.0) -> Point:
    """The mean over the seeds that have the figure, times `scale`, and the spread."""
    found = [scale * value for value in _known(values)]
    if not found:
        return Point(x, None)
    return Point(x, sum(found) / len(found), min(found), max(found))


def mean(values: Iterable[float | None]) -> float | None:
    """Over those that there are; None: there are none."""
    found = _known(values)
    return sum(found) / len(found) if found else None


def row(*cells: str | None, command: str = "") -> Row:
    """A row of these cells."""
    return Row(cells, command)


def table(caption: str, columns: Sequence[str], rows: Iterable[Row]) -> Table:
    """A table of these rows."""
    return Table(caption, tuple(columns), tuple(rows))


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and not math.isnan(value)]
