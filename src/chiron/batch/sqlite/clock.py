"""The queue's clock: the host's wall clock, but never going back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

WallClock = Callable[[], float]


class QueueClock:
    """Follows the wall clock; where that has gone back, goes on at the pace of the monotonic one until it has
    caught up, so that leases still lapse and no instant is given twice in the wrong order. Safe for threads.
    """

    def __init__(self, wall: WallClock = time.time, monotonic: WallClock = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._highest = 0.0
        self._at = monotonic()

    def not_before(self, instant: float) -> None:
        """What an earlier process has seen."""
        with self._lock:
            self._highest = max(self._highest, instant)

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        with self._lock:
            at = self._monotonic()
            self._highest = max(self._wall(), self._highest + max(0.0, at - self._at))
            self._at = at
            return self._highest
