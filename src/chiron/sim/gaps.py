"""The longest step since any moment, for the longest gap in each request's stream."""

from __future__ import annotations

from bisect import bisect_right
from math import inf


class LongestStep:
    """Steps of one engine, of which only those are kept that no later one outlasts.

    What is left has falling durations, so the longest after a moment is the first one kept that ended after
    it: O(1) per step on average, O(log n) per question.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: list[tuple[float, float]] = []

    def add(self, end_s: float, duration_s: float) -> None:
        """Note a step, or the longest of several, that ends at `end_s`."""
        kept = self._kept
        while kept and kept[-1][1] <= duration_s:
            kept.pop()
        kept.append((end_s, duration_s))

    def since(self, moment_s: float) -> float:
        """Duration of the longest step that ended after the moment; 0 when there was none."""
        first = bisect_right(self._kept, (moment_s, inf))
        return self._kept[first][1] if first < len(self._kept) else 0.0
