"""One reader of the queue's changes, for everybody who waits for a batch."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from chiron.batch.contract import BatchQueue
from chiron.batch.records import BatchKey


class Changes:
    """Wakes who waits; what happens meanwhile is one more wake-up, however much it is."""

    def __init__(self, queue: BatchQueue) -> None:
        self._queue = queue
        self._waiting: defaultdict[BatchKey, set[asyncio.Event]] = defaultdict(set)

    async def run(self) -> None:
        """Reads the queue's changes until it is closed."""
        async for changed in self._queue.changes():
            for key in changed or tuple(self._waiting):
                for event in self._waiting.get(key, ()):
                    event.set()

    @contextmanager
    def of(self, batch: BatchKey) -> Iterator[asyncio.Event]:
        """An event that is set whenever the batch may have changed; its owner clears it."""
        event = asyncio.Event()
        self._waiting[batch].add(event)
        try:
            yield event
        finally:
            self._waiting[batch].discard(event)
            if not self._waiting[batch]:
                del self._waiting[batch]
