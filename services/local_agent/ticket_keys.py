"""The keys of tickets on their way from the controller to the node's workers."""

from __future__ import annotations

import asyncio

from chiron.auth.keys import KeyRing


class TicketKeys:
    """Holds the newest keys and tells those who wait for newer ones."""

    def __init__(self) -> None:
        self.ring: KeyRing | None = None
        """As the controller last sent them; None: it has not yet."""
        self._changed = asyncio.Event()

    def set(self, ring: KeyRing) -> None:
        """Replaces the keys."""
        self.ring = ring
        waiting, self._changed = self._changed, asyncio.Event()
        waiting.set()

    async def newer_than(self, known: KeyRing | None) -> KeyRing:
        """The newest keys, once they are others than `known`."""
        while self.ring is None or self.ring == known:
            await self._changed.wait()
        return self.ring
