"""The store's state, followed by its watch, so that reading it costs nothing."""

from __future__ import annotations

from chiron.store import CompactedError, Snapshot, Store
from services.global_controller.pulse import Pulse


class Mirror:
    """Holds the newest snapshot. What it shows is durable: it comes from the store alone."""

    def __init__(self, store: Store, *listeners: Pulse) -> None:
        """Follows `store`; each of the listeners beats on every change."""
        self._store = store
        self._listeners = listeners
        self.snapshot = Snapshot()
        self._changed = Pulse()

    async def load(self) -> None:
        """Reads the whole state."""
        self.snapshot = await self._store.read()
        self._tell()

    async def follow(self) -> None:
        """Applies changes until the store is closed."""
        while True:
            try:
                async for change in self._store.watch(self.snapshot.revision):
                    # A `load` meanwhile may have brought the change already.
                    if change.revision > self.snapshot.revision:
                        self.snapshot = self.snapshot.after(change)
                        self._tell()
            except CompactedError:
                await self.load()
            else:
                return

    async def reached(self, revision: int) -> None:
        """Returns once the snapshot holds `revision`."""
        seen = self._changed.count
        while self.snapshot.revision < revision:
            seen = await self._changed.after(seen)

    def _tell(self) -> None:
        for pulse in (self._changed, *self._listeners):
            pulse.beat()
