"""A clock on which nobody waits."""

from __future__ import annotations

import asyncio


class InstantClock:
    """Time that passes when somebody waits for it."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    async def sleep_until(self, instant: float) -> None:
        self._now = max(self._now, instant)
        await asyncio.sleep(0)
