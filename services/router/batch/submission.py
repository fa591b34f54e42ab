"""Takes one submission in: a header, items in any order, and the word that they are complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from chiron.auth.callers import Caller
from chiron.batch.contract import (
    BatchExistsError,
    BatchQueue,
    BatchStateError,
    IncompleteError,
    ItemError,
    UnknownBatchError,
)
from chiron.batch.records import Batch, BatchState, Limits, NewItem
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import batch_pb2 as pb
from services.router.batch.errors import told
from services.router.batch.header import check_caller, check_header, new_batch, tenant_limits
from services.router.batch.items import ItemChecker, Models
from services.router.batch.refusal import Refusal

_APPENDS, _APPEND_BYTES = 4, 4 << 20
"""What one stream may have on its way into the queue; beyond it the submitter is not read from."""
_AT_ONCE = 50
"""Items checked before others have their turn."""
_AGAIN_S = 1.0


class Submission:
    """One stream of SubmitBatch.

    Nothing that it does differs when it is done twice: a stream may break anywhere and be sent again, to
    another router too, and two streams may hand in the same batch at the same time.
    """

    def __init__(
        self,
        queue: BatchQueue,
        limits: Limits,
        models: Models,
        caller: Caller | None,
        *,
        silence_s: float,
    ) -> None:
        """A submission that has not begun.

        Args:
            queue: keeps it.
            limits: of the queue.
            models: the router's table.
            caller: who hands it in; None: tenancy is off.
            silence_s: longest time between two messages, in seconds.
        """
        self._queue = queue
        self._limits = limits
        self._models = models
        self._caller = caller
        self._tenant_limits = tenant_limits(caller.tenant if caller is not None else None)
        self._silence_s = silence_s
        self._appends: set[asyncio.Task[int]] = set()
        self._bytes = 0

    async def run(self, messages: AsyncIterator[pb.SubmitBatchRequest]) -> Batch:
        """Reads the stream to its end and returns the batch, accepted.

        Raises:
            ChironError: refused; of an invalid batch nothing is kept, else what came is.
            BatchQueueError: as the queue says.
        """
        first = await self._next(messages)
        if first is None or not first.HasField("header"):
            raise ChironError.invalid([("header", "must be in the first message")])
        if self._caller is not None:
            self._caller.fill_batch(first.header)
        if violations := check_header(first.header, self._limits):
            raise ChironError.invalid(violations)
        if self._caller is not None:
            check_caller(first.header, self._caller)
        new = new_batch(first.header, "" if self._caller is None else self._caller.tenant.name)
        batch = await self._queue.create(new, self._tenant_limits)
        key = batch.tenant, batch.batch_id
        checker = ItemChecker(
            self._caller, self._models, self._limits, fail_invalid=new.fail_invalid, items=new.items
        )
        try:
            return await self._take(batch, checker, first, messages)
        except UnknownBatchError as error:
            text = f"batch {new.batch_id!r} was discarded while it was handed in: {error}"
            raise ChironError(Reason.BATCH_BROKEN_OFF, text, retry_after_s=_AGAIN_S) from error
        except (ItemError, IncompleteError, BatchStateError, _InvalidError) as error:
            refusal = error.refusal.error() if isinstance(error, _InvalidError) else told(error)
            if isinstance(error, BatchStateError) and (
                batch.state is BatchState.RECEIVING or batch.cancelled
            ):
                raise
            if batch.state is not BatchState.RECEIVING:
                text = f"batch {new.batch_id!r} was accepted before, and not with these items: {refusal}"
                raise BatchExistsError(text) from error
            await self._settle()
            try:
                await self._queue.discard(key)
            except BatchStateError:
                # Somebody else has completed it meanwhile: it stays, and this one differs from it.
                text = f"batch {new.batch_id!r} was accepted meanwhile, and not with these items: {refusal}"
                raise BatchExistsError(text) from error
            raise refusal from error
        finally:
            await self._settle()

    async def _take(
        self,
        batch: Batch,
        checker: ItemChecker,
        first: pb.SubmitBatchRequest,
        messages: AsyncIterator[pb.SubmitBatchRequest],
    ) -> Batch:
        key = batch.tenant, batch.batch_id
        refusal = Refusal()
        # A stream that holds the first item holds all of them; another one goes on where one broke.
        end, whole = 0, False
        message: pb.SubmitBatchRequest | None = first
        complete = False
        while message is not None and not refusal.full:
            if message is not first and message.HasField("header"):
                raise ChironError.invalid([("header", "must be in the first message alone")])
            items: list[NewItem] = []
            for place, item in enumerate(message.items, 1):
                if place % _AT_ONCE == 0:
                    # Requests that somebody waits for pass through the same loop.
                    await asyncio.sleep(0)
                checked = checker.check(item)
                if isinstance(checked, NewItem):
                    items.append(checked)
                else:
                    refusal.add(checked)
                end, whole = max(end, item.index + 1), whole or item.index == 0
            if items and not refusal:
                await self._append(key, items, message.ByteSize())
            if complete := message.complete:
                break
            message = await self._next(messages)
        if refusal:
            raise _InvalidError(refusal)
        while self._appends:
            await self._one()
        if not complete:
            # A call that was cut off looks like one that has ended.
            text = "the stream ended before the batch was complete; what came is kept: send it again"
            raise ChironError(Reason.BATCH_BROKEN_OFF, text)
        if not whole:
            end = max(end, batch.counts.contiguous)
        return await self._queue.seal(key, first.header.items or end)

    async def _next(self, messages: AsyncIterator[pb.SubmitBatchRequest]) -> pb.SubmitBatchRequest | None:
        try:
            async with asyncio.timeout(self._silence_s):
                return await anext(messages, None)
        except TimeoutError:
            text = f"the submitter sent nothing for {self._silence_s:g} s; what came is kept: send it again"
            raise ChironError(Reason.BATCH_BROKEN_OFF, text) from None

    async def _append(self, key: tuple[str, str], items: Sequence[NewItem], size: int) -> None:
        """Hands items to the queue; waits while too many are on their way."""
        while self._appends and (len(self._appends) >= _APPENDS or self._bytes + size > _APPEND_BYTES):
            await self._one()
        self._bytes += size
        task = asyncio.create_task(self._queue.append(key, items, self._tenant_limits))
        task.add_done_callback(lambda _: self._landed(size))
        self._appends.add(task)

    def _landed(self, size: int) -> None:
        self._bytes -= size

    async def _one(self) -> None:
        """Waits until at least one append has ended; raises what went wrong with it."""
        done, self._appends = await asyncio.wait(self._appends, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _settle(self) -> None:
        """Waits for what is on its way: it must not arrive after a batch was discarded."""
        appends, self._appends = self._appends, set()
        await asyncio.gather(*appends, return_exceptions=True)


class _InvalidError(Exception):
    """Items are wrong, and the batch is refused for it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self.refusal = refusal
