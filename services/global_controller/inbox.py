"""Holds the newest message until someone takes it: for messages that tell everything each time."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """One reader puts, one worker takes; what was not taken in time is replaced."""

    def __init__(self) -> None:
        self._newest: T | None = None
        self._ended = False
        self._stirred = asyncio.Event()

    def put(self, message: T) -> None:
        """Replaces what is still there."""
        self._newest = message
        self._stirred.set()

    def end(self) -> None:
        """No more comes."""
        self._ended = True
        self._stirred.set()

    async def take(self) -> T | None:
        """The newest message, once there is one; None after the end."""
        while self._newest is None and not self._ended:
            self._stirred.clear()
            await self._stirred.wait()
        newest, self._newest = self._newest, None
        return newest
