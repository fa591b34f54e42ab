"""Keeps up with the queue: what waits, which batches are wanted no more, and the housekeeping."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from chiron.batch.contract import BatchQueue, RefusedError, UnavailableError, UnknownBatchError
from chiron.batch.records import BatchKey, BatchState
from services.router.batch.backlog import QueueBacklog

log = logging.getLogger(__name__)
_LEAST_S, _MOST_S = 0.1, 5.0
"""Time between two reads of what waits: on a change, and without one while anything waits."""
_SHARE = 0.05
"""Most of the time that reading what waits may take."""
_SWEEP_S, _LONGEST_SWEEP_S = 0.5, 30.0
_UNREACHED_S = 1.0


class Following:
    """Reads on every change, whoever made it, and no more often than reading is cheap."""

    def __init__(
        self,
        queue: BatchQueue,
        backlog: QueueBacklog,
        *,
        running: Callable[[], Collection[BatchKey]],
        drop: Callable[[BatchKey], None],
        on_read: Callable[[], None],
    ) -> None:
        """Knows nothing yet.

        Args:
            queue: that is followed.
            backlog: takes what waits.
            running: batches of which this router has items in work.
            drop: stops those of a batch that has ended, whose results nobody wants.
            on_read: told when what waits has been read.
        """
        self._queue = queue
        self._backlog = backlog
        self._running = running
        self._drop = drop
        self._on_read = on_read
        self._loop = asyncio.get_running_loop()
        self._stale = asyncio.Event()
        self._stale.set()
        self._sweep_now = asyncio.Event()
        self._changed: set[BatchKey] | None = None
        """Batches that have changed since the last look; None: any may have."""

    def look(self) -> None:
        """Something waits that has not been read."""
        self._stale.set()

    async def run(self) -> None:
        """Follows until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="batch changes")
            group.create_task(self._read(), name="batch units")

    async def sweep(self) -> None:
        """Does the queue's housekeeping, in rounds, until cancelled."""
        while True:
            self._sweep_now.clear()
            try:
                again_s = (await self._queue.sweep()).again_s
            except (UnavailableError, RefusedError) as error:
                log.info("the batch queue cannot be swept: %s", error)
                again_s = _UNREACHED_S
            if again_s > 0:
                # A change may be something to do, but not every one is worth a round.
                await asyncio.sleep(min(again_s, _SWEEP_S))
                try:
                    async with asyncio.timeout(min(max(0.0, again_s - _SWEEP_S), _LONGEST_SWEEP_S)):
                        await self._sweep_now.wait()
                except TimeoutError:
                    pass

    async def _listen(self) -> None:
        while True:
            try:
                async for changed in self._queue.changes():
                    if not changed:
                        self._changed = None
                    elif self._changed is not None:
                        self._changed |= changed
                    self._stale.set()
                    self._sweep_now.set()
                return  # The queue was closed.
            except (UnavailableError, RefusedError) as error:
                log.info("the batch queue cannot be followed: %s", error)
            await asyncio.sleep(_UNREACHED_S)
            self._changed = None
            self._stale.set()

    async def _read(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_MOST_S if self._backlog.units else None):
                    await self._stale.wait()
            except TimeoutError:
                pass
            self._stale.clear()
            began = self._loop.time()
            try:
                await self._stop_unwanted()
                self._backlog.take(await self._queue.units())
                self._on_read()
                rest_s = min(max(_LEAST_S, (self._loop.time() - began) / _SHARE), _MOST_S)
            except (UnavailableError, RefusedError) as error:
                log.info("the batch queue cannot be read: %s", error)
                self._stale.set()
                rest_s = _UNREACHED_S
            await asyncio.sleep(rest_s)

    async def _stop_unwanted(self) -> None:
        changed, self._changed = self._changed, set()
        running = set(self._running())
        left = running if changed is None else running & changed
        try:
            for key in list(left):
                if await self._unwanted(key):
                    self._drop(key)
                left.discard(key)
        finally:
            if left and self._changed is not None:
                self._changed |= left

    async def _unwanted(self, key: BatchKey) -> bool:
        try:
            batch = await self._queue.get(key)
        except UnknownBatchError:
            return True
        return batch.cancelled or batch.state is not BatchState.ACTIVE
