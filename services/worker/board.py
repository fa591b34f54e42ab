"""Tells subscribers of a change without polling: each wakes at once, but never more often than it wants."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from chiron.internal.v1 import worker_pb2

DONE_S = 1.0
"""How often a subscriber hears what the worker has done since it started."""
MOST_PENDING_IDS = 20_000
"""A subscriber that lets more ids pile up is cut off; it subscribes again and starts from the present."""


class Subscriber:
    """What one subscriber has not been told yet."""

    def __init__(self, live_ids: list[str], name: str = "", *, wants_ends: bool = False) -> None:
        self.wants_ends = wants_ends
        """Whether it is told what ended requests came to."""
        self.ends: list[worker_pb2.EndedRequest] = []
        self.name = name
        """Who it is; empty: somebody of its own."""
        self.started = live_ids
        self.finished: list[str] = []
        self.interrupted: list[str] = []
        """Those of the finished ones that the worker gave up."""
        self._done_at = float("-inf")
        self._changed = asyncio.Event()
        self._changed.set()
        self._closed = False

    def wants_done(self, now: float) -> bool:
        """Whether it is to be told what the worker has done: at first, and then once a second."""
        if now - self._done_at < DONE_S:
            return False
        self._done_at = now
        return True

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
        return len(self.started) + len(self.finished) + len(self.ends) > MOST_PENDING_IDS

    async def news(self, after: float, within_s: float | None = None) -> bool:
        """Waits for a change, and until the monotonic instant `after`; False when there will be none.

        Without a change it returns after `within_s` seconds; None: never.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
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

    def take(self) -> tuple[list[str], list[str], list[str]]:
        """Ids started, finished and, of these, interrupted since the last call."""
        taken = self.started, self.finished, self.interrupted
        self.started, self.finished, self.interrupted = [], [], []
        return taken


class Board:
    """All subscribers of one kind of news."""

    def __init__(self) -> None:
        self._subscribers: dict[Subscriber, None] = {}
        self._closed = False

    @contextlib.contextmanager
    def subscribe(
        self, live_ids: list[str], name: str = "", *, wants_ends: bool = False
    ) -> Iterator[Subscriber]:
        """A subscriber that has news at once; it begins with the ids that live."""
        subscriber = Subscriber(live_ids, name, wants_ends=wants_ends)
        if self._closed:
            subscriber.close()
        self._subscribers[subscriber] = None
        self._shares_changed(subscriber)
        try:
            yield subscriber
        finally:
            del self._subscribers[subscriber]
            self._shares_changed(subscriber)

    def share(self, subscriber: Subscriber, total: int, turn: int) -> int:
        """The subscriber's part of `total`, which all of them together share out to the last one.

        A name counts once, however often it has subscribed: its newest subscription has its part, because the
        earlier ones are connections that have broken without a word. Whoever gets one more than the others
        changes with `turn`. Who has no name only watches, and has none.
        """
        newest = {one.name: one for one in self._subscribers if one.name}
        if newest.get(subscriber.name) is not subscriber:
            return 0
        place = next(i for i, one in enumerate(newest.values()) if one is subscriber)
        whole, left = divmod(total, len(newest))
        return whole + ((place + turn) % len(newest) < left)

    def touch(self) -> None:
        """Something has changed."""
        for subscriber in self._subscribers:
            subscriber.wake()

    def started(self, request_id: str) -> None:
        """A request was accepted."""
        for subscriber in self._subscribers:
            subscriber.tell(subscriber.started, request_id)

    def finished(self, request_id: str, *, interrupted: bool = False) -> None:
        """A request has ended; `interrupted` where the worker gave it up."""
        for subscriber in self._subscribers:
            if interrupted:
                subscriber.tell(subscriber.interrupted, request_id)
            subscriber.tell(subscriber.finished, request_id)

    def came_to(self, end: Callable[[], worker_pb2.EndedRequest]) -> None:
        """A request has ended; `end` tells what it came to, and is asked where somebody wants to know."""
        wanting = [one for one in self._subscribers if one.wants_ends and not one.overrun]
        if wanting:
            told = end()
            for subscriber in wanting:
                subscriber.ends.append(told)
                subscriber.wake()

    def _shares_changed(self, subscriber: Subscriber) -> None:
        if subscriber.name:
            self.touch()

    def close(self) -> None:
        """Ends every subscription, the later ones too."""
        self._closed = True
        for subscriber in self._subscribers:
            subscriber.close()
