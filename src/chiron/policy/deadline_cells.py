"""Deadlines in cells, and the runs of neighbouring cells that make a group.

Deadlines fall into cells of `width_s`; a group is a run of neighbouring occupied cells within one span of
`cells_per_span` cells. That is single-linkage clustering with a bounded spread: it does not depend on the
order of arrival, and a steady stream of deadlines does not chain into one endless group (reconstructed).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Cell = TypeVar("Cell")


class DeadlineCells(Generic[Cell]):
    """The occupied cells, by index. Adding and dropping one cost O(log cells) comparisons."""

    def __init__(self, make: Callable[[], Cell], width_s: float = 30.0, cells_per_span: int = 4) -> None:
        """make: an empty cell. width_s: in seconds, > 0. Raises ValueError naming what is out of range."""
        if not width_s > 0:
            raise ValueError(f"width_s must be positive, got {width_s}")
        if cells_per_span < 1:
            raise ValueError(f"cells_per_span must be at least 1, got {cells_per_span}")
        self._make = make
        self._width_s = width_s
        self._span = cells_per_span
        self._cells: dict[int, Cell] = {}
        self._occupied: list[int] = []

    def __bool__(self) -> bool:
        """Whether any cell is occupied."""
        return bool(self._cells)

    def __getitem__(self, index: int) -> Cell:
        """An occupied cell. Raises KeyError."""
        return self._cells[index]

    def index(self, deadline_s: float) -> int:
        """Where a deadline falls."""
        return math.floor(deadline_s / self._width_s)

    def occupy(self, index: int) -> Cell:
        """The cell there, made if it was not occupied."""
        cell = self._cells.get(index)
        if cell is None:
            cell = self._cells[index] = self._make()
            insort(self._occupied, index)
        return cell

    def vacate(self, index: int) -> None:
        """The cell is empty. Raises KeyError if it was not occupied."""
        del self._cells[index]
        del self._occupied[bisect_left(self._occupied, index)]

    def cells(self) -> Iterator[Cell]:
        """All cells, in no order."""
        return iter(self._cells.values())

    def runs(self) -> Iterator[list[int]]:
        """The groups in the order of their deadlines, each as the indices of its cells."""
        run: list[int] = []
        for index in self._occupied:
            if run and (index != run[-1] + 1 or index // self._span != run[-1] // self._span):
                yield run
                run = []
            run.append(index)
        if run:
            yield run
