"""Reads streams of BatchService, and takes them up where they broke."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import ExitStack

from chiron.client.batch.calls import BatchCalls, Patience
from chiron.client.batch.reading import batch_of, result_of
from chiron.client.batch.records import Batch, BatchState, ItemResult
from chiron.client.errors import ChironError, ProtocolError
from chiron.v1 import batch_pb2 as pb


class _Parts:
    """Puts results together that came in parts."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def take(self, response: pb.ReadResultsResponse) -> Iterable[pb.ItemResult]:
        """The results that this message completes."""
        if not (response.part or response.last_part):
            return response.results
        self._parts.append(response.part)
        if not response.last_part:
            return ()
        whole, self._parts = b"".join(self._parts), []
        return (pb.ItemResult.FromString(whole),)


async def read_results(
    calls: BatchCalls, request: pb.ReadResultsRequest, patience: Patience
) -> AsyncGenerator[ItemResult, None]:
    """Yields each result once, over all breaks of the stream."""
    while True:
        address = ""
        try:
            with ExitStack() as held:
                lease = await calls.network.router(held, patience.remaining_s)
                address = lease.address
                with calls.typed_errors(lease):
                    call = lease.batches.ReadResults(request, **calls.options(patience))
                    parts = _Parts()
                    try:
                        async for response in call:
                            patience.progressed()
                            for message in parts.take(response):
                                if not request.custom_id and message.number != request.after + 1:
                                    raise _gap(request.after, message.number)
                                request.after = message.number
                                yield result_of(message)
                    finally:
                        call.cancel()
                    return
        except ChironError as error:
            await patience.bear(error, address)


async def watch_batch(calls: BatchCalls, batch_id: str, patience: Patience) -> AsyncGenerator[Batch, None]:
    """Yields the batch whenever it has changed, the last time when it has ended."""
    seen: pb.Batch | None = None
    while True:
        address = ""
        try:
            with ExitStack() as held:
                lease = await calls.network.router(held, patience.remaining_s)
                address = lease.address
                with calls.typed_errors(lease):
                    request = pb.WatchBatchRequest(batch_id=batch_id)
                    call = lease.batches.WatchBatch(request, **calls.options(patience))
                    try:
                        async for response in call:
                            patience.progressed()
                            if response.batch == seen:
                                continue
                            seen = response.batch
                            batch = batch_of(seen)
                            yield batch
                            if batch.state is BatchState.ENDED:
                                return
                    finally:
                        call.cancel()
                    raise ProtocolError("the watch ended before the batch", reason="PROTOCOL_ERROR")
        except ChironError as error:
            await patience.bear(error, address)


def _gap(after: int, number: int) -> ProtocolError:
    return ProtocolError(f"result {number} follows result {after}", reason="PROTOCOL_ERROR")
