"""Counts the items of batches that were accepted at this router as arrived, by model, each once. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chiron.batch.records import BatchKey, Unit


class Arrivals:
    """A batch counts with what waits of it when it is first read, whether that comes before or after its
    acceptance is told. What other routers have claimed of it by then is not counted.
    """

    def __init__(self, count: Callable[[str, int], None]) -> None:
        """count: takes a model and a number of items."""
        self._count = count
        self._waiting: dict[BatchKey, dict[str, int]] = {}
        """Batch → model → items, as first read."""
        self._accepted: set[BatchKey] = set()
        """Not read yet."""
        self._counted: set[BatchKey] = set()

    def accepted(self, batch: BatchKey) -> None:
        """A batch was sealed here; a repeated submission tells so again."""
        if batch not in self._counted:
            self._accepted.add(batch)
            self._settle(batch)

    def read(self, units: Iterable[Unit]) -> None:
        """What waits has been read."""
        seen: dict[BatchKey, dict[str, int]] = {}
        for unit in units:
            seen.setdefault(unit.batch, {})[unit.model] = unit.queued
        self._waiting = {batch: self._waiting.get(batch, models) for batch, models in seen.items()}
        self._counted &= seen.keys()
        for batch in list(self._accepted):
            self._settle(batch)
        # A batch of which nothing waits any more is not waited for.
        self._accepted.clear()

    def _settle(self, batch: BatchKey) -> None:
        models = self._waiting.get(batch)
        if models is not None:
            self._accepted.discard(batch)
            self._counted.add(batch)
            for model, items in models.items():
                self._count(model, items)
