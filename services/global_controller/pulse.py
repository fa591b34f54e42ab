"""A signal that something changed; a slow listener sees one wake-up for many changes."""

from __future__ import annotations

import asyncio


class Pulse:
    """A counter that can be awaited. It holds no queue: listeners read the newest state themselves."""

    def __init__(self) -> None:
        self.count = 0
        """How often `beat` was called."""
        self._next = asyncio.Event()

    def beat(self) -> None:
        """Wakes every listener."""
        self.count += 1
        waiting, self._next = self._next, asyncio.Event()
        waiting.set()

    async def after(self, seen: int) -> int:
        """Returns the count as soon as it is greater than `seen`."""
        while self.count <= seen:
            await self._next.wait()
        return self.count
