"""Tells those who watch which batches have changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from chiron.batch.records import BatchKey

MERGED = 10_000
"""A consumer that has missed changes of more batches is told that any may have changed."""


class _Watcher:
    def __init__(self) -> None:
        self.keys: set[BatchKey] = set()
        self.any = True
        self.wake = asyncio.Event()
        self.wake.set()


class Changes:
    """Merges changes for each watcher. For one event loop."""

    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()
        self._closed = False

    def tell(self, keys: set[BatchKey]) -> None:
        """These batches have changed."""
        for watcher in self._watchers:
            if not watcher.any:
                watcher.keys |= keys
                if len(watcher.keys) > MERGED:
                    watcher.any = True
                    watcher.keys = set()
            watcher.wake.set()

    def tell_any(self) -> None:
        """Any batch may have changed."""
        for watcher in self._watchers:
            watcher.any = True
            watcher.keys = set()
            watcher.wake.set()

    def close(self) -> None:
        """Ends every iterator."""
        self._closed = True
        for watcher in self._watchers:
            watcher.wake.set()

    async def watch(self) -> AsyncIterator[frozenset[BatchKey]]:
        """As `BatchQueue.changes`."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            while True:
                await watcher.wake.wait()
                if self._closed:
                    return
                watcher.wake.clear()
                keys, watcher.keys = watcher.keys, set()
                everything, watcher.any = watcher.any, False
                yield frozenset() if everything else frozenset(keys)
        finally:
            self._watchers.discard(watcher)
