"""Bounds how many do something at once, without letting a slow one hold up the others for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """After a fail-over every router wants its table and every agent its desired state at once."""

    def __init__(self, at_once: int, longest_wait_s: float) -> None:
        """Lets `at_once` through; one that has waited for `longest_wait_s` seconds goes anyway."""
        self._free = asyncio.Semaphore(at_once)
        self._longest_wait_s = longest_wait_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for its turn, and holds it."""
        try:
            async with asyncio.timeout(self._longest_wait_s):
                await self._free.acquire()
        except TimeoutError:
            yield
            return
        try:
            yield
        finally:
            self._free.release()
