"""The events of one range of keys, buffered within bounds for one consumer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from chiron.internal.etcd.v1 import etcd_pb2 as pb

Batch = Sequence[pb.Event]
"""All the events of one etcd revision, in the order of their transaction."""

BUFFERED_BYTES = 8 << 20
"""How much a watch holds for a slow consumer; beyond it, etcd's history is the buffer."""


class Watch:
    """What WatchHub.open gives; used by one consumer."""

    def __init__(
        self, key: bytes, range_end: bytes, start: int, *, buffered: int, resume: Callable[[Watch], None]
    ) -> None:
        """Watches from etcd revision `start` on.

        Args:
            key: first key.
            range_end: first key past the range.
            start: first etcd revision of interest.
            buffered: how many revisions are held for a slow consumer.
            resume: asks the server for what comes after `received`.
        """
        self.key, self.range_end = key, range_end
        self.received = start - 1
        """The newest revision of an event that is here, or was taken; what comes next is asked for after it.
        It is never a revision of a response's header: events below that may still be on their way."""
        self.confirmed = False
        """The server has begun this watch."""
        self.renewed = False
        """A refusal has already led to a new token."""
        self._buffered = buffered
        self._resume = resume
        self._taken = start - 1
        self._batches: deque[Batch] = deque()
        self._part: list[pb.Event] = []
        self._held_bytes = 0
        self._wanted = False
        self._dropped = False
        self._failure: Exception | None = None
        self._closed = False
        self._stirred = asyncio.Event()

    async def next(self) -> Batch | None:
        """The next events; None once the hub is closed. Raises CompactedError and RefusedError."""
        self._wanted = True
        try:
            while not self._closed:
                if self._batches:
                    batch = self._batches.popleft()
                    self._held_bytes -= _size(batch)
                    self._taken = batch[-1].kv.mod_revision
                    return batch
                if self._failure is not None:
                    raise self._failure
                if self._dropped:
                    self._dropped = False
                    self._resume(self)
                self._stirred.clear()
                await self._stirred.wait()
            return None
        finally:
            self._wanted = False

    def take(self, response: pb.WatchResponse) -> bool:
        """Stores what arrived; False when that is too much, and the server must send nothing more for now."""
        for event in response.events:
            if self._part and self._part[-1].kv.mod_revision != event.kv.mod_revision:
                self._finish_part()
            self._part.append(event)
        # The server splits a large response anywhere; only its last part ends a revision for certain.
        if not response.fragment:
            self._finish_part()
        if self._held_bytes <= BUFFERED_BYTES and len(self._batches) <= self._buffered:
            return True
        self._part.clear()
        self._drop()
        return False

    def broken(self) -> None:
        """The stream has ended; what was cut off comes again."""
        self.confirmed = False
        self._part.clear()

    def fail(self, failure: Exception) -> None:
        """Ends the watch with an error, after what is buffered."""
        self._failure = failure
        self._stirred.set()

    def close(self) -> None:
        """Ends the watch."""
        self._closed = True
        self._stirred.set()

    def _finish_part(self) -> None:
        if self._part:
            self.received = self._part[-1].kv.mod_revision
            self._held_bytes += _size(self._part)
            self._batches.append(tuple(self._part))
            self._part.clear()
            self._stirred.set()

    def _drop(self) -> None:
        """Keeps nothing for a consumer that is away, and for one that waits what it may have at once."""
        self._dropped = True
        # One batch stays in any case, so that a consumer gets on however large the batches are.
        keep = 1 if self._wanted else 0
        while len(self._batches) > keep and (
            not self._wanted or self._held_bytes > BUFFERED_BYTES or len(self._batches) > self._buffered
        ):
            self._held_bytes -= _size(self._batches.pop())
        self.received = self._batches[-1][-1].kv.mod_revision if self._batches else self._taken


def _size(batch: Iterable[pb.Event]) -> int:
    return sum(len(event.kv.key) + len(event.kv.value) for event in batch)
