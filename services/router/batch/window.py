"""How many items of a model to claim: as many as instances have credits for, and a few more. Pure.

The few more are those whose slots come free while a claim is under way: items of the model that end in a
second, times how long a claim takes, with half as much again for scatter, and one. They wait in this router
for as long, so that a slot is filled by the message that frees it. Times are monotonic seconds.
"""

from __future__ import annotations

import math

_TAU_S = 2.0
_SCATTER = 1.5
_SMOOTHING = 0.2
_FIRST_LATENCY_S = 0.02


class ClaimWindow:
    """One model's."""

    def __init__(self, most_ahead: int) -> None:
        """most_ahead: most items beyond the credits."""
        self._most_ahead = most_ahead
        self._ends = 0.0
        self._ends_at = 0.0
        self._latency_s = _FIRST_LATENCY_S
        self.asked = 0
        """Items that a claim under way may bring."""
        self.unplaced = 0
        """Items that have been claimed and do not wait for an instance yet."""
        self.running = 0
        """Items that are claimed and have not ended."""

    def ended(self, now: float) -> None:
        """An item has left its slot."""
        self._fade(now)
        self._ends += 1.0

    def claimed(self, took_s: float) -> None:
        """A claim took so long."""
        self._latency_s += (took_s - self._latency_s) * _SMOOTHING

    def ahead(self, now: float) -> int:
        """Items that should wait in this router."""
        if not self.running:
            return 0
        self._fade(now)
        ends_per_s = self._ends / _TAU_S
        return min(self._most_ahead, 1 + math.ceil(_SCATTER * ends_per_s * self._latency_s))

    def room(self, credits: int, now: float) -> int:
        """Items to claim now.

        Args:
            credits: batch requests that instances would take from this router, less those that wait here.
            now: the time.
        """
        return max(0, credits + self.ahead(now) - self.asked - self.unplaced)

    def _fade(self, now: float) -> None:
        self._ends *= math.exp(-(now - self._ends_at) / _TAU_S)
        self._ends_at = now
