"""For how long the slots have been taken. Pure; times are monotonic, in seconds."""

from __future__ import annotations

from chiron.policy.snapshots import HANDED_OVER


class Saturation:
    """Follows the present from one change to the next."""

    def __init__(self) -> None:
        self._full = False
        self._full_s = 0.0
        self._noted = 0.0

    def note(self, *, running: int, waiting: int, batch_size: int, now: float) -> None:
        """From `now` on so many requests run and wait."""
        self._full_s = self.full_s(now)
        self._full = waiting > 0 or running >= HANDED_OVER * batch_size
        self._noted = now

    def full_s(self, now: float) -> float:
        """Time since the start during which the slots were taken or requests waited."""
        return self._full_s + (now - self._noted if self._full else 0.0)


def saturated(full_s: float, interval_s: float) -> bool:
    """Whether an interval with so much time of that kind was full throughout."""
    return interval_s > 0 and full_s >= HANDED_OVER * interval_s
