"""Tells subscribers of a change without polling: each wakes at once, but never more often than it wants."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

MOST_PENDING_IDS = 20_000
"""A subscriber that lets more ids pile up is cut off; it subscribes again and starts from the present."""


class Subscriber:
    """What one subscriber has not been told yet."""

    def __init__(self, live_ids: list[str]) -> None:
        self.started = live_ids
        self.finished: list[str] = []
        self._changed = asyncio.Event()
        self._changed.set()
        self._closed = False

    def tell(self, ids: list[str], request_id: str) -> None:
        """Adds an id to one of its lists, unless too many pile up already."""
        if not self.overrun:
            ids.append(request_id)
        self.wake()

    def wake(self) -> None:
        """There is news."""
        self._changed.set()

    def close(self) -> None:
        """There will be no more news."""
        self._closed = True
        self._changed.set()

    @property
    def overrun(self) -> bool:
        """True when it has fallen too far behind."""
        return len(self.started) + len(self.finished) > MOST_PENDING_IDS

    async def news(self, after: float) -> bool:
        """Waits for a change, and until the monotonic instant `after`; False when there will be none."""
        await self._changed.wait()
        delay = after - time.monotonic()
        if delay > 0 and not self._closed:
            await asyncio.sleep(delay)
        self._changed.clear()
        if self._closed:
            self._changed.set()
        return not self._closed

    async def news_within(self, timeout_s: float) -> bool:
        """Waits for a change or for `timeout_s` seconds; False when there will be no more changes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        self._changed.clear()
        if self._closed:
            self._changed.set()
        return not self._closed

    def take(self) -> tuple[list[str], list[str]]:
        """Ids started and finished since the last call."""
        started, self.started = self.started, []
        finished, self.finished = self.finished, []
        return started, finished


class Board:
    """All subscribers of one kind of news."""

    def __init__(self) -> None:
        self._subscribers: set[Subscriber] = set()
        self._closed = False

    @contextlib.contextmanager
    def subscribe(self, live_ids: list[str]) -> Iterator[Subscriber]:
        """A subscriber that has news at once; it begins with the ids that live."""
        subscriber = Subscriber(live_ids)
        if self._closed:
            subscriber.close()
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    def touch(self) -> None:
        """Something has changed."""
        for subscriber in self._subscribers:
            subscriber.wake()

    def started(self, request_id: str) -> None:
        """A request was accepted."""
        for subscriber in self._subscribers:
            subscriber.tell(subscriber.started, request_id)

    def finished(self, request_id: str) -> None:
        """A request has ended."""
        for subscriber in self._subscribers:
            subscriber.tell(subscriber.finished, request_id)

    def close(self) -> None:
        """Ends every subscription, the later ones too."""
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.close()
