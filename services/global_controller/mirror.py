"""The store's state, followed by its watch, so that reading it costs nothing."""

from __future__ import annotations

import asyncio
import logging

from chiron.store import Change, CompactedError, Snapshot, Store, UnavailableError
from services.global_controller.pulse import Pulse

_log = logging.getLogger(__name__)
_RETRY_S = 1.0


class Mirror:
    """Holds the newest snapshot. What it shows is durable: it comes from the store alone."""

    def __init__(self, store: Store, *listeners: Pulse) -> None:
        """Follows `store`; each of the listeners beats on every change."""
        self._store = store
        self._listeners = listeners
        self.snapshot = Snapshot()

    async def load(self) -> None:
        """Reads the whole state. Raises UnavailableError."""
        found = await self._store.read()
        if found.revision >= self.snapshot.revision:
            self.snapshot = found
            self._tell()

    async def follow(self) -> None:
        """Applies changes until the store is closed; while the store is away it waits."""
        while True:
            try:
                async for change in self._store.watch(self.snapshot.revision):
                    # A commit of our own, or a `load` meanwhile, may have brought the change already.
                    if change.revision == self.snapshot.revision + 1:
                        self.snapshot = self.snapshot.after(change)
                        self._tell()
                    elif change.revision > self.snapshot.revision:
                        await self.load()
                return
            except (CompactedError, UnavailableError) as error:
                _log.warning("the state is read anew: %s", error)
                await self._load_when_possible()

    async def _load_when_possible(self) -> None:
        while True:
            try:
                await self.load()
                return
            except UnavailableError:
                await asyncio.sleep(_RETRY_S)

    async def committed(self, change: Change) -> None:
        """Shows what has just been committed, without waiting for the watch to bring it."""
        if change.revision == self.snapshot.revision + 1:
            self.snapshot = self.snapshot.after(change)
            self._tell()
        elif change.revision > self.snapshot.revision:
            # Someone else has written between.
            await self.load()

    def _tell(self) -> None:
        for pulse in self._listeners:
            pulse.beat()
