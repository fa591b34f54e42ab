"""Tables that a narrow terminal shows with fewer columns instead of cut cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_GAP = 2
_PROSE_WIDTH = 16
"""Width that a column of sentences needs; it wraps between words."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    name: str
    rank: int = 0
    """How soon it is left out: the highest first, 0 never."""
    prose: bool = False
    """Its cells are sentences, which may be wrapped; others stay on one line."""


class FittingTable:
    """Rows under columns; shows the most important columns that the width has room for."""

    def __init__(self, *columns: Column) -> None:
        """Starts without rows."""
        self._columns = columns
        self._rows: list[tuple[Text, ...]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Adds a row with a cell for each column."""
        if len(cells) != len(self._columns):
            raise ValueError(f"{len(cells)} cells for {len(self._columns)} columns")
        self._rows.append(tuple(cell if isinstance(cell, Text) else Text(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws the table at the width of the options."""
        shown = self._shown(options.max_width)
        fits = self._width(shown) <= options.max_width
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
        for index in shown:
            column = self._columns[index]
            # What does not even fit alone goes on in the next line.
            table.add_column(column.name, no_wrap=fits and not column.prose, overflow="fold")
        for row in self._rows:
            table.add_row(*(row[index] for index in shown))
        yield table

    def _shown(self, width: int) -> list[int]:
        shown = list(range(len(self._columns)))
        for index in sorted(shown, key=lambda index: self._columns[index].rank, reverse=True):
            if self._columns[index].rank == 0 or self._width(shown) <= width:
                break
            shown.remove(index)
        return shown

    def _width(self, shown: Sequence[int]) -> int:
        return sum(self._needed(index) + _GAP for index in shown)

    def _needed(self, index: int) -> int:
        column = self._columns[index]
        longest = max([cell_len(column.name), *(row[index].cell_len for row in self._rows)])
        return min(longest, _PROSE_WIDTH) if column.prose else longest
