"""Streams a batch's results, in messages that any gRPC caller takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

from chiron.batch import wire
from chiron.batch.contract import BatchQueue
from chiron.batch.records import BatchKey, BatchState, Result
from chiron.v1 import batch_pb2 as pb
from services.router.batch.changes import Changes

_PAGE, _PAGE_BYTES = 500, 1 << 20
"""What is read at once, and so what one reader can make the router hold."""
PART_BYTES = 1 << 20
"""A longer result travels in parts of this length."""
_BREATH_S = 0.1
"""Between two looks at a batch whose results come in one by one."""


class Sink(Protocol):
    """Where messages go; it waits while the caller reads slowly."""

    async def __call__(self, message: pb.ReadResultsResponse, /) -> None:
        """Sends one message."""


def messages_of(results: Sequence[Result]) -> Iterator[pb.ReadResultsResponse]:
    """Groups results into messages, in their order; a long one comes in parts."""
    message, size = pb.ReadResultsResponse(), 0
    for result in results:
        if len(result.result) > PART_BYTES:
            if size:
                yield message
                message, size = pb.ReadResultsResponse(), 0
            yield from _parts(wire.item_result(result).SerializeToString())
            continue
        if size and size + len(result.result) > _PAGE_BYTES:
            yield message
            message, size = pb.ReadResultsResponse(), 0
        message.results.append(wire.item_result(result))
        # An empty result still takes room.
        size += len(result.result) + 1
    if size:
        yield message


def _parts(whole: bytes) -> Iterator[pb.ReadResultsResponse]:
    for start in range(0, len(whole), PART_BYTES):
        end = start + PART_BYTES
        yield pb.ReadResultsResponse(part=whole[start:end], last_part=end >= len(whole))


async def stream_results(
    queue: BatchQueue,
    changes: Changes,
    batch: BatchKey,
    request: pb.ReadResultsRequest,
    send: Sink,
) -> None:
    """Sends what `request` asks for. Raises UnknownBatchError, also when the batch is deleted meanwhile."""
    with changes.of(batch) as changed:
        async for results in _pages(queue, changed, batch, request):
            for message in messages_of(results):
                await send(message)


async def _pages(
    queue: BatchQueue, changed: asyncio.Event, batch: BatchKey, request: pb.ReadResultsRequest
) -> AsyncIterator[Sequence[Result]]:
    after = request.after
    while True:
        changed.clear()
        # Looked at before the results: those of a batch that had ended then are all there.
        ended = (await queue.get(batch)).state is BatchState.ENDED
        if request.custom_id:
            one = await queue.result(batch, request.custom_id)
            if one is not None:
                if one.number > after:
                    yield [one]
                return
            page: Sequence[Result] = ()
        else:
            page = await queue.results(batch, after=after, limit=_PAGE, most_bytes=_PAGE_BYTES)
        if page:
            after = page[-1].number
            yield page
        elif ended or not request.follow:
            return
        else:
            await changed.wait()
            # What comes in one by one is sent together.
            await asyncio.sleep(_BREATH_S)
