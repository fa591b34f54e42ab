"""BatchService at the router: who calls, whose batch it is, and what the queue says, as gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from chiron.auth.callers import Caller
from chiron.batch.contract import BatchQueue, BatchQueueError, UnavailableError
from chiron.batch.records import Batch, BatchKey, BatchState, Limits
from chiron.rpc.errors import ChironError, Reason, abort
from chiron.v1 import batch_pb2 as pb
from chiron.v1 import batch_pb2_grpc
from services.router.access import Access
from services.router.batch.changes import Changes
from services.router.batch.errors import told
from services.router.batch.items import Models
from services.router.batch.messages import batch_message, usage_message
from services.router.batch.results import stream_results
from services.router.batch.submission import Submission

log = logging.getLogger(__name__)
SERVICE = "chiron.v1.BatchService"
Context = grpc.aio.ServicerContext[Any, Any]
_PAGE, _LARGEST_PAGE = 100, 1000
_MOST_SUBMISSIONS = 64
"""Streams that hand in batches at once; each one holds up to a few messages in memory."""
_BUSY_RETRY_S = 1.0
_NO_QUEUE = (
    "this router keeps no batch queue ([router.batch] store), while another one of its cluster may: "
    "where several are to, set a store that they share"
)
_CLOSED = "this router is shutting down"

Describe = Callable[[Batch, pb.BatchProgress], None]
"""Adds to a batch's progress what is expected of it."""


@dataclass(frozen=True, slots=True)
class BatchDoor:
    """What the service stands on."""

    queue: BatchQueue
    limits: Limits
    models: Models
    """The router's table."""
    describe: Describe
    has_table: Callable[[], bool]
    """Whether there is a table yet."""
    accepted: Callable[[BatchKey], None] = lambda _: None
    """Told of each batch that was sealed here."""
    made: Callable[[BatchKey], None] = lambda _: None
    """Told of each batch with a source that was made here."""
    silence_s: float = 60.0
    """A submitter that sends nothing for this long is ended, in seconds."""
    stall_s: float = 60.0
    """A reader that takes nothing for this long is ended, in seconds."""
    watch_interval_s: float = 1.0
    """Shortest time between two messages of WatchBatch, in seconds."""


@dataclass(frozen=True, slots=True)
class _Caller:
    door: BatchDoor
    changes: Changes
    caller: Caller | None
    """None: tenancy is off, or an administrator."""

    @property
    def tenant(self) -> str:
        """Empty: tenancy is off, or an administrator."""
        return self.caller.tenant.name if self.caller is not None else ""

    def key(self, batch_id: str) -> BatchKey:
        """The batch of this id, if the caller has one."""
        if not batch_id:
            raise ChironError.invalid([("batch_id", "is required")])
        return (self.tenant, batch_id)


class BatchServicer(batch_pb2_grpc.BatchServiceServicer):
    """Answers NO_BATCH_QUEUE until it is opened, or STORE_UNAVAILABLE while its queue is waited for."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._door: BatchDoor | None = None
        self._changes: Changes | None = None
        self._reader: asyncio.Task[None] | None = None
        self._submissions = 0
        self.unreached = ""
        """Why the queue that there is cannot be reached; empty: there is none, or it is open."""
        self.tasks: set[asyncio.Task[Any]] = set()
        """Calls under way."""
        self.closing = False
        """Every call is sent elsewhere."""

    def open(self, door: BatchDoor) -> None:
        """From now on there is a queue."""
        self._door = door
        self.unreached = ""
        self._changes = Changes(door.queue)
        self._reader = asyncio.create_task(self._changes.run(), name="batch changes")

    async def close(self) -> None:
        """Sends every caller to another router; the queue may be closed afterwards."""
        self.closing = True
        calls = tuple(self.tasks)
        for call in calls:
            call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, *calls, return_exceptions=True)

    # Calls.

    async def SubmitBatch(
        self, messages: AsyncIterator[pb.SubmitBatchRequest], context: Context
    ) -> pb.SubmitBatchResponse:
        """Takes a batch in."""
        async with self._call(context) as caller, self._submitting(caller):
            door = caller.door
            submission = Submission(
                door.queue, door.limits, door.models, caller.caller, silence_s=door.silence_s
            )
            batch = await submission.run(messages)
            door.accepted((batch.tenant, batch.batch_id))
            return pb.SubmitBatchResponse(batch=self._told(door, batch))

    async def GetBatch(self, request: pb.GetBatchRequest, context: Context) -> pb.GetBatchResponse:
        """A batch as it stands."""
        async with self._call(context) as caller:
            batch = await caller.door.queue.get(caller.key(request.batch_id))
            return pb.GetBatchResponse(batch=self._told(caller.door, batch))

    async def ListBatches(self, request: pb.ListBatchesRequest, context: Context) -> pb.ListBatchesResponse:
        """A page of the tenant's batches."""
        async with self._call(context) as caller:
            if request.page_size > _LARGEST_PAGE:
                text = f"must be at most {_LARGEST_PAGE}, not {request.page_size}"
                raise ChironError.invalid([("page_size", text)])
            try:
                batches, token = await caller.door.queue.page(
                    caller.tenant,
                    limit=request.page_size or _PAGE,
                    token=request.page_token,
                    open_only=request.open,
                )
            except ValueError as error:
                raise ChironError.invalid([("page_token", str(error))]) from error
            told_batches = [self._told(caller.door, batch) for batch in batches]
            return pb.ListBatchesResponse(batches=told_batches, next_page_token=token)

    async def CancelBatch(self, request: pb.CancelBatchRequest, context: Context) -> pb.CancelBatchResponse:
        """Ends a batch early."""
        async with self._call(context) as caller:
            batch = await caller.door.queue.cancel(caller.key(request.batch_id))
            return pb.CancelBatchResponse(batch=self._told(caller.door, batch))

    async def DeleteBatch(self, request: pb.DeleteBatchRequest, context: Context) -> pb.DeleteBatchResponse:
        """Forgets a batch that has ended, or one that is still being handed in."""
        async with self._call(context) as caller:
            key, queue = caller.key(request.batch_id), caller.door.queue
            if (await queue.get(key)).state is BatchState.RECEIVING:
                await queue.discard(key)
            else:
                await queue.delete(key)
            return pb.DeleteBatchResponse()

    async def WatchBatch(  # type: ignore[override]  # It writes, and knows when the caller reads no more.
        self, request: pb.WatchBatchRequest, context: Context
    ) -> None:
        """Sends the batch whenever it has changed."""
        async with self._call(context) as caller:
            key, door = caller.key(request.batch_id), caller.door
            seen: pb.Batch | None = None
            with caller.changes.of(key) as changed:
                while True:
                    changed.clear()
                    batch = await door.queue.get(key)
                    message = self._told(door, batch)
                    if message != seen:
                        seen = message
                        await _send(context, pb.WatchBatchResponse(batch=message), door.stall_s)
                    if batch.state is BatchState.ENDED:
                        return
                    await asyncio.sleep(door.watch_interval_s)
                    await changed.wait()

    async def ReadResults(  # type: ignore[override]  # As above.
        self, request: pb.ReadResultsRequest, context: Context
    ) -> None:
        """Sends results."""
        async with self._call(context) as caller:
            key, door = caller.key(request.batch_id), caller.door

            async def send(message: pb.ReadResultsResponse) -> None:
                await _send(context, message, door.stall_s)

            await stream_results(door.queue, caller.changes, key, request, send)

    async def GetBatchUsage(
        self, request: pb.GetBatchUsageRequest, context: Context
    ) -> pb.GetBatchUsageResponse:
        """What tenants have in the queue."""
        async with self._call(context, admin=True) as caller:
            usage = await caller.door.queue.usage(caller.tenant or None)
            return pb.GetBatchUsageResponse(tenants=map(usage_message, usage))

    # What they share.

    def _told(self, door: BatchDoor, batch: Batch) -> pb.Batch:
        message = batch_message(batch)
        if batch.state in (BatchState.ACTIVE, BatchState.CANCELLING):
            door.describe(batch, message.progress)
        return message

    def _call(self, context: Context, *, admin: bool = False) -> _Call:
        return _Call(self, context, admin=admin)

    def enter(self, context: Context, *, admin: bool) -> _Caller:
        """Lets a caller in. Raises ChironError."""
        caller = self._access.batch_caller(context, admin=admin)
        door = self.reach()
        assert self._changes is not None
        return _Caller(door, self._changes, caller)

    def reach(self) -> BatchDoor:
        """What every door to the queue stands on. Raises ChironError while there is none."""
        if self._door is None and not self.unreached:
            raise ChironError(Reason.NO_BATCH_QUEUE, _NO_QUEUE)
        if self.closing:
            raise ChironError(Reason.RETRY_ELSEWHERE, _CLOSED)
        if self._door is None:
            raise told(UnavailableError(self.unreached))
        return self._door

    @asynccontextmanager
    async def _submitting(self, caller: _Caller) -> AsyncIterator[None]:
        if not caller.door.has_table():
            text = "this router does not know the models yet"
            raise ChironError(Reason.RETRY_ELSEWHERE, text, retry_after_s=_BUSY_RETRY_S)
        if self._submissions >= _MOST_SUBMISSIONS:
            text = f"{self._submissions} batches are being handed in to this router already"
            raise ChironError(Reason.BATCH_QUEUE_FULL, text, retry_after_s=_BUSY_RETRY_S)
        self._submissions += 1
        try:
            yield
        finally:
            self._submissions -= 1


async def _send(context: Context, message: object, stall_s: float) -> None:
    """Sends one message. Raises ChironError (READER_STALLED) when the caller takes none for too long."""
    try:
        async with asyncio.timeout(stall_s):
            await context.write(message)
    except TimeoutError:
        text = f"the reader accepted nothing for {stall_s:g} s"
        log.warning("ending a stream of results whose reader stalls")
        raise ChironError(Reason.READER_STALLED, text) from None
    except Exception as error:
        # A write fails only when the caller has gone, sometimes before the cancellation is told.
        raise asyncio.CancelledError from error


class _Call:
    """One call under way: lets its caller in, and turns what goes wrong into its end."""

    def __init__(self, servicer: BatchServicer, context: Context, *, admin: bool) -> None:
        self._servicer = servicer
        self._context = context
        self._admin = admin
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    async def __aenter__(self) -> _Caller:
        self._servicer.tasks.add(self._task)
        try:
            return self._servicer.enter(self._context, admin=self._admin)
        except BaseException as error:
            await self._end(error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end(error)

    async def _end(self, error: BaseException | None) -> None:
        try:
            if isinstance(error, BatchQueueError):
                await abort(self._context, told(error))
            elif isinstance(error, ChironError):
                await abort(self._context, error)
            elif isinstance(error, asyncio.CancelledError) and self._servicer.closing:
                self._task.uncancel()
                await abort(self._context, ChironError(Reason.RETRY_ELSEWHERE, _CLOSED))
            elif isinstance(error, Exception):
                log.error("a call about batches failed", exc_info=error)
                await abort(self._context, ChironError(Reason.INTERNAL, f"{type(error).__name__}: {error}"))
        finally:
            self._servicer.tasks.discard(self._task)
