"""Hands in one batch, whatever becomes of the connection meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import grpc

from chiron.client.batch.calls import BatchCalls, Patience
from chiron.client.channels import Lease
from chiron.client.errors import BatchNotFound, ChironError
from chiron.v1 import batch_pb2 as pb

_LOOK_BYTES, _MOST_BYTES = 16 << 20, 32 << 20
"""Sent and not known to be on disk: beyond the first the router is asked what is, beyond the second sending
waits."""
_LOOK_AGAIN_S = 0.1


class _Unsure:
    """Messages that may have to be sent again, in their order."""

    def __init__(self) -> None:
        self._kept: deque[tuple[pb.SubmitBatchRequest, int]] = deque()
        self.bytes = 0
        self.begins_late = False
        """What came first is kept no more."""

    def add(self, message: pb.SubmitBatchRequest) -> None:
        """Keeps a message that is about to be sent."""
        size = message.ByteSize()
        self._kept.append((message, size))
        self.bytes += size

    def all(self) -> list[pb.SubmitBatchRequest]:
        """What is kept."""
        return [message for message, _ in self._kept]

    def drop(self, contiguous: int) -> None:
        """Every item with a smaller index is on disk."""
        while self._kept and self._kept[0][0].items[-1].index < contiguous:
            self.bytes -= self._kept.popleft()[1]
            self.begins_late = True


class Submission:
    """One batch on its way into the queue.

    What has been sent is kept until the router says that it is on disk, so that the source is read once, and
    in bounded memory. A stream that breaks is begun again with what is kept: the router compares what it has
    already.
    """

    def __init__(
        self,
        calls: BatchCalls,
        header: pb.BatchHeader,
        messages: AsyncIterator[pb.SubmitBatchRequest],
        patience: Patience,
        sent: Callable[[int], None],
    ) -> None:
        """A submission that has not begun.

        Args:
            calls: to whichever router answers.
            header: with an id.
            messages: the items.
            patience: of the whole submission.
            sent: told how many items have been sent.
        """
        self._calls = calls
        self._header = header
        self._source = messages
        self._patience = patience
        self._sent = sent
        self._unsure = _Unsure()

    async def run(self) -> pb.Batch:
        """Returns the batch once it is accepted; raises typed errors."""
        while True:
            address = ""
            try:
                with ExitStack() as held:
                    lease = await self._calls.network.router(held, self._patience.remaining_s)
                    address = lease.address
                    with self._calls.typed_errors(lease):
                        return await self._stream(lease)
            except ChironError as error:
                await self._patience.bear(error, address)
                if self._unsure.begins_late and not await self._is_there():
                    error.add_note("what was sent first is gone, here too")
                    raise

    async def _is_there(self) -> bool:
        """Whether the router still has what this side has forgotten."""
        request = pb.GetBatchRequest(batch_id=self._header.batch_id)
        try:
            await self._calls.unary(lambda stub, options: stub.GetBatch(request, **options), self._patience)
        except BatchNotFound:
            return False
        return True

    async def _stream(self, lease: Lease) -> pb.Batch:
        call = lease.batches.SubmitBatch(**self._calls.options(self._patience))
        try:
            if await self._write(call, pb.SubmitBatchRequest(header=self._header)):
                for message in self._unsure.all():
                    if not await self._write(call, message):
                        break
                else:
                    await self._send_new(call)
            response: pb.SubmitBatchResponse = await call
            return response.batch
        finally:
            call.cancel()

    async def _send_new(self, call: _Call) -> None:
        async for message in self._source:
            # Kept before it is sent: a write that fails may have arrived.
            self._unsure.add(message)
            if not await self._write(call, message):
                return
            self._sent(message.items[-1].index + 1)
            if self._unsure.bytes > _LOOK_BYTES:
                await self._look(call)
        if await self._write(call, pb.SubmitBatchRequest(complete=True)):
            # It may have ended meanwhile.
            with contextlib.suppress(grpc.aio.InternalError):
                await call.done_writing()

    async def _look(self, call: _Call) -> None:
        """Drops what is on disk; waits while too much is not."""
        request = pb.GetBatchRequest(batch_id=self._header.batch_id)
        while True:
            before = self._unsure.bytes
            # Not there: its header is still on its way, or it was discarded, which the stream will tell.
            with contextlib.suppress(BatchNotFound):
                answer: pb.GetBatchResponse = await self._calls.unary(
                    lambda stub, options: stub.GetBatch(request, **options), self._patience
                )
                self._unsure.drop(answer.batch.progress.items_contiguous)
            if self._unsure.bytes < before:
                self._patience.progressed()
            if self._unsure.bytes <= _MOST_BYTES or call.done():
                return
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _write(self, call: _Call, message: pb.SubmitBatchRequest) -> bool:
        """Writes a message; False when the call has ended: awaiting it tells how.

        `call.write` of gRPC would put INTERNAL in place of the status when the router goes during the write,
        and what another router can go on with would look like a failure.
        """
        if call.done():
            return False
        stream: Any = call
        try:
            await call.wait_for_connection()
            await stream._cython_call.send_serialized_message(message.SerializeToString())
        except (grpc.aio.InternalError, grpc.aio.AioRpcError):
            return False
        return True


_Call = grpc.aio.StreamUnaryCall[pb.SubmitBatchRequest, pb.SubmitBatchResponse]
