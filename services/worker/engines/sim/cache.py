"""Tells what leaves the engine model's prefix cache."""

from __future__ import annotations

from chiron.engine.kv import BlockPool
from services.worker.engines.base import OnGone


class CacheWatch:
    """Nothing is noted of the cache until somebody follows it."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._on_gone: OnGone | None = None

    def follow(self, on_gone: OnGone) -> None:
        """From now on `on_gone` is told."""
        self._on_gone = on_gone
        self._pool.follow()

    def tell(self) -> None:
        """Tells of what has left since the last call."""
        if self._on_gone is not None and (gone := self._pool.evicted()):
            self._on_gone(gone)
