"""The longest step since any moment, for the longest gap in each request's stream."""

from __future__ import annotations

from bisect import bisect_right


class LongestStep:
    """Steps of one engine, of which only those are kept that no later one outlasts.

    What is left has falling durations, so the longest after a moment is the first one kept that ended after
    it: O(1) per step on average, O(log n) per question.
    """

    __slots__ = ("_durations", "_ends")

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._durations: list[float] = []

    def add(self, end_s: float, duration_s: float) -> None:
        """Note a step, or the longest of several, that ends at `end_s`."""
        durations = self._durations
        ends = self._ends
        while durations and durations[-1] <= duration_s:
            durations.pop()
            ends.pop()
        durations.append(duration_s)
        ends.append(end_s)

    def since(self, moment_s: float) -> float:
        """Duration of the longest step that ended after the moment; 0 when there was none."""
        first = bisect_right(self._ends, moment_s)
        return self._durations[first] if first < len(self._durations) else 0.0
