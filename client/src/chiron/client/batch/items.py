"""Turns what a caller hands in into messages of many items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from chiron.client.batch.records import MalformedItem
from chiron.client.errors import InvalidRequest
from chiron.client.request import build_request
from chiron.v1 import batch_pb2 as pb

Item = Mapping[str, Any] | MalformedItem
Items = Iterable[Item] | AsyncIterable[Item]
_MOST_ITEMS, _MOST_BYTES = 500, 256 << 10
"""Of one message, unless a single item is larger."""
_SLICE = 200
"""Items taken at once from an iterator that may block."""
_NOT_HERE = {
    "request_id": "the batch makes one",
    "request_class": "items of a batch are batch requests",
    "timeout_s": "the batch has a deadline",
    "metadata": "give the batch metadata instead",
    "traceparent": "items are worked on long after the call",
}


def wire_item(index: int, item: Item) -> pb.BatchItem:
    """One item as it travels; one that makes no request travels as malformed: the router, which has the items
    before it, decides what becomes of the batch.

    Args:
        index: its place in the batch.
        item: the arguments of `Client.generate` that say what to generate, and `custom_id`.
    """
    if isinstance(item, MalformedItem):
        return pb.BatchItem(index=index, custom_id=item.custom_id, malformed=item.reason or "malformed")
    custom_id = ""
    try:
        if not isinstance(item, Mapping):
            raise InvalidRequest.of("request", f"must be a mapping, not {type(item).__name__}")
        options = dict(item)
        custom_id = options.pop("custom_id", "")
        if not isinstance(custom_id, str):
            shown, custom_id = custom_id, ""
            raise InvalidRequest.of("custom_id", f"must be a str, not {shown!r}")
        for name, why in _NOT_HERE.items():
            if name in options:
                raise InvalidRequest.of(name, f"does not belong to an item: {why}")
        try:
            request = build_request(**options)
        except TypeError as error:
            raise InvalidRequest.of("request", str(error)) from error
    except InvalidRequest as error:
        return pb.BatchItem(index=index, custom_id=custom_id, malformed=error.message)
    request.ClearField("request_id")
    return pb.BatchItem(index=index, custom_id=custom_id, request=request)


async def grouped(items: Items) -> AsyncIterator[pb.SubmitBatchRequest]:
    """The items in messages of a size that costs little."""
    message, size, index = pb.SubmitBatchRequest(), 0, 0
    async for item in _each(items):
        made = wire_item(index, item)
        index += 1
        length = made.ByteSize()
        if message.items and (len(message.items) >= _MOST_ITEMS or size + length > _MOST_BYTES):
            yield message
            message, size = pb.SubmitBatchRequest(), 0
        message.items.append(made)
        size += length
    if message.items:
        yield message


async def _each(items: Items) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    elif isinstance(items, Sequence):
        for item in items:
            yield item
    else:
        # An iterator may read a file or a socket, which must not hold up the event loop.
        source = iter(items)
        while part := await asyncio.to_thread(lambda: list(islice(source, _SLICE))):
            for item in part:
                yield item
