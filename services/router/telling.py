"""Tells callers what their requests wait for, for as long as they wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from chiron.v1 import inference_pb2

Tell = Callable[[inference_pb2.Progress], Awaitable[None]]
"""Takes what a request waits for."""
_TELL_S = 1.0
"""Longest time between two words of it."""


class Telling:
    """Of one router; costs nothing while nobody asks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] = self._loop.create_future()

    def changed(self) -> None:
        """What requests wait for may be something else now."""
        self._news.set_result(None)
        self._news = self._loop.create_future()

    async def until(
        self,
        done: asyncio.Future[Any],
        progress: Callable[[float], inference_pb2.Progress],
        tell: Tell,
        after_s: float = 0.0,
    ) -> None:
        """Tells at once, when the instance that is waited for changes and each second, until `done` is.

        Args:
            done: when the wait is over.
            progress: what is waited for at a time, monotonic, in seconds.
            tell: takes it; what it raises ends this.
            after_s: nothing is told, nor looked up, before so many seconds have passed.
        """
        if after_s:
            await asyncio.wait((done,), timeout=after_s)
        said, due = "", 0.0
        while not done.done():
            now, news = self._loop.time(), self._news
            what = progress(now)
            if now >= due or what.instance_id != said:
                said, due = what.instance_id, now + _TELL_S
                await tell(what)
            pause_s = max(0.0, due - self._loop.time())
            await asyncio.wait((done, news), timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
