"""The clock that the sim engine runs by."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds, and waiting for an instant of them."""

    def now(self) -> float:
        """Seconds since a fixed point."""

    async def sleep_until(self, instant: float) -> None:
        """Returns at the instant, or after letting others run once when it has passed."""


class MonotonicClock:
    """Real time."""

    def now(self) -> float:
        """time.monotonic()."""
        return time.monotonic()

    async def sleep_until(self, instant: float) -> None:
        """Sleeps on the event loop's timer."""
        await asyncio.sleep(max(0.0, instant - time.monotonic()))
