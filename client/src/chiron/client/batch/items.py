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
    "on_progress": "the batch itself tells how far it is",
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
        return _malformed(index, item.custom_id if _is_text(item.custom_id) else "", item.reason)
    custom_id = ""
    try:
        if not isinstance(item, Mapping):
            raise InvalidRequest.of("request", f"must be a mapping, not {type(item).__name__}")
        options = dict(item)
        custom_id = options.pop("custom_id", "")
        if not _is_text(custom_id):
            shown, custom_id = custom_id, ""
            raise InvalidRequest.of("custom_id", f"must be a str of whole characters, not {shown!r}")
        for name, why in _NOT_HERE.items():
            if name in options:
                raise InvalidRequest.of(name, f"does not belong to an item: {why}")
        try:
            request = build_request(**options)
        except TypeError as error:
            raise InvalidRequest.of("request", str(error)) from error
    except InvalidRequest as error:
        return _malformed(index, custom_id, error.message)
    request.ClearField("request_id")
    return pb.BatchItem(index=index, custom_id=custom_id, request=request)


def check_items(items: object) -> None:
    """Raises InvalidRequest for what holds no items; a text or a single item is iterable, too."""
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable | AsyncIterable):
        raise InvalidRequest.of(
            "items", f"must be a list or an iterator of items, not {type(items).__name__}"
        )


def _is_text(value: object) -> bool:
    """Whether it is a str that can travel: JSON's escapes also make halves of characters."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def _malformed(index: int, custom_id: str, reason: str) -> pb.BatchItem:
    told = reason.encode(errors="backslashreplace").decode() or "malformed"
    return pb.BatchItem(index=index, custom_id=custom_id, malformed=told)


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
