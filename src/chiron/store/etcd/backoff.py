"""Growing pauses between attempts to reach etcd again."""

from __future__ import annotations

import asyncio
import random

_FIRST_S = 0.05
_FACTOR = 2.0


class Backoff:
    """Pauses from 50 ms on, doubling up to a cap; each is drawn from the upper half of its length."""

    def __init__(self, most_s: float) -> None:
        """Caps a pause at `most_s` seconds."""
        self._most_s = most_s
        self._next_s = min(_FIRST_S, most_s)

    async def pause(self, within_s: float | None = None) -> None:
        """Waits for the next pause, or for `within_s` seconds where that is shorter."""
        length_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * _FACTOR, self._most_s)
        await asyncio.sleep(length_s if within_s is None else max(0.0, min(length_s, within_s)))

    def reset(self) -> None:
        """Starts with the shortest pause again."""
        self._next_s = min(_FIRST_S, self._most_s)
