"""Goes on with batches that have a source: makes them from their files, and gives them files when they end.

The router that has taken a batch begins at once. What it leaves undone, killed or cut off from the store, any
router on the queue takes up; two that do the same do no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from chiron.auth.callers import Caller
from chiron.batch.contract import (
    BatchQueue,
    BatchQueueError,
    BatchStateError,
    RefusedError,
    UnavailableError,
    UnknownBatchError,
)
from chiron.batch.records import Batch, BatchKey, BatchState
from chiron.rpc.errors import ChironError
from services.router.http.batches.faults import Fault, refusal_of
from services.router.http.batches.making import Maker
from services.router.http.batches.source import Source
from services.router.http.batches.views import measured
from services.router.http.errors import ANSWERS

log = logging.getLogger(__name__)
HOLD_S = 5.0
"""A batch that nothing has happened to for this long is taken up by whoever looks first."""
_LOOK_S = 0.25
_UNREACHED_S = 1.0
_NOT_READ = Fault("server_error", "The server failed to read the input file.")
_AT_ONCE = 4
"""Batches of one router that are gone on with at a time."""


class SourcedBatches:
    """One router's part in them. All methods belong to one event loop."""

    def __init__(
        self,
        queue: BatchQueue,
        maker: Maker,
        owner: Callable[[str, str], Caller | None],
        ready: asyncio.Event,
        *,
        accepted: Callable[[BatchKey], None],
    ) -> None:
        """Does nothing before `run`.

        Args:
            queue: open; it stays its opener's to close.
            maker: makes them.
            owner: gives the owner by tenant and key, as they are now; None where nobody is asked. Raises
                ChironError for those that count no more.
            ready: set once this router knows models and tenants.
            accepted: told of each batch that was made here.
        """
        self._queue = queue
        self._maker = maker
        self._owner = owner
        self._ready = ready
        self._accepted = accepted
        self._wake = asyncio.Event()
        self._new: dict[BatchKey, None] = {}
        self._working: dict[BatchKey, asyncio.Task[None]] = {}
        self._held = 0.0
        """When those were last held, monotonic, in seconds."""

    def made(self, batch: BatchKey) -> None:
        """A client has just made a batch here."""
        self._new[batch] = None
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            await self._ready.wait()
            while True:
                self._wake.clear()
                wait_s = _LOOK_S
                try:
                    await self._look()
                except (UnavailableError, RefusedError) as error:
                    log.info("the batch queue cannot be looked through: %s", error)
                    wait_s = _UNREACHED_S
                try:
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            for task in self._working.values():
                task.cancel()
            await asyncio.gather(*self._working.values(), return_exceptions=True)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._working:
            self._held = now
        elif now - self._held > HOLD_S / 3:
            # A large one takes longer than others wait.
            await self._queue.hold(list(self._working))
            self._held = now
        room = _AT_ONCE - len(self._working)
        for key in list(self._new)[:room]:
            del self._new[key]
            self._begin(key)
        room = _AT_ONCE - len(self._working)
        if room > 0:
            for key in await self._queue.adopt(HOLD_S, room):
                self._begin(key)

    def _begin(self, key: BatchKey) -> None:
        if key in self._working:
            return
        task = asyncio.create_task(self._go_on(key), name=f"batch {key[1]}")
        self._working[key] = task
        task.add_done_callback(lambda _: self._done(key))

    def _done(self, key: BatchKey) -> None:
        del self._working[key]
        self._wake.set()

    async def _go_on(self, key: BatchKey) -> None:
        try:
            batch = await self._queue.get(key)
            if batch.state is BatchState.RECEIVING:
                await self._make(batch)
            elif batch.state is BatchState.ENDED and batch.closed is None:
                await self._queue.finalize(key, await measured(self._queue, batch))
        except (UnknownBatchError, BatchStateError):
            return
        except (UnavailableError, RefusedError) as error:
            log.info("batch %s is gone on with later: %s", key[1], error)
        except Exception:
            # It is seen to again after the hold, by whichever router.
            log.exception("batch %s cannot be gone on with", key[1])

    async def _make(self, batch: Batch) -> None:
        key = batch.tenant, batch.batch_id
        try:
            owner = self._owner(batch.tenant, Source.of(batch.source).key_id)
            if await self._maker.make(batch, owner):
                self._accepted(key)
        except ChironError as error:
            await self._maker.refuse(key, refusal_of([Fault(ANSWERS[error.reason].code, error.message)]))
        except BatchQueueError:
            raise
        except Exception:
            log.exception("the input file of batch %s cannot be read", key[1])
            await self._maker.refuse(key, refusal_of([_NOT_READ]))
