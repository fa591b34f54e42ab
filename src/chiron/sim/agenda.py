"""What happens when: a heap of events, first come first served at equal times."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

Handler = Callable[[float, Any], None]
"""Called with the time, in seconds, and the argument that it was put down with."""


class Agenda:
    """Events to come. Times are simulated seconds."""

    __slots__ = ("count", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Handler, Any]] = []
        self.count = 0
        """Events put down so far."""

    def at(self, time_s: float, handler: Handler, argument: Any = None) -> None:
        """Have `handler(time_s, argument)` called at that time."""
        self.count += 1
        heappush(self.heap, (time_s, self.count, handler, argument))
