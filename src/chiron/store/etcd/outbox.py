"""What is still to be sent on one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """Feeds one gRPC stream. The next stream gets an outbox of its own: no request goes to a dead one."""

    def __init__(self) -> None:
        self._waiting: deque[T] = deque()
        self._stirred = asyncio.Event()
        self._ended = False

    def put(self, request: T) -> None:
        """Sends the request when its turn comes."""
        self._waiting.append(request)
        self._stirred.set()

    def end(self) -> None:
        """Sends nothing more."""
        self._ended = True
        self._stirred.set()

    async def requests(self) -> AsyncIterator[T]:
        """The requests in turn, until `end`."""
        while not self._ended:
            while self._waiting and not self._ended:
                yield self._waiting.popleft()
            self._stirred.clear()
            if not self._ended:
                await self._stirred.wait()
