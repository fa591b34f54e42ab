"""The proxied streams that run now: ends those whose reader stalls, and all of them at the end of a drain."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import grpc

from chiron.rpc.errors import ChironError, Reason

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class ProxiedStream:
    """One call to a worker on behalf of a caller."""

    call: grpc.aio.UnaryStreamCall[bytes, bytes]
    instance_id: str
    task: asyncio.Task[object] | None
    """Handles the caller's RPC."""
    delivered: bool = False
    """True from the first message on."""
    writing_since: float = 0.0
    """When the write under way began, monotonic seconds; 0: none is."""
    ended: ChironError | None = None
    """Why this router ended it."""
    abandoned: bool = False
    """True when this router ended the call because nothing was heard of the instance any more."""
    may_move: bool = False
    """Whether another instance can go on with it, once it is delivered."""


class Streams:
    """All proxied streams of a router."""

    def __init__(self, reader_stall_s: float) -> None:
        self._reader_stall_s = reader_stall_s
        self._streams: set[ProxiedStream] = set()
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._streams)

    def open(
        self, call: grpc.aio.UnaryStreamCall[bytes, bytes], instance_id: str, *, may_move: bool = False
    ) -> ProxiedStream:
        """Counts a stream in; the current task handles it."""
        stream = ProxiedStream(call, instance_id, asyncio.current_task(), may_move=may_move)
        self._streams.add(stream)
        return stream

    def close(self, stream: ProxiedStream) -> None:
        """Counts it out and frees the worker's slot if it has not ended yet."""
        self._streams.discard(stream)
        stream.call.cancel()

    def abandon(self, instance_id: str, begun: bool) -> None:
        """Ends calls to an instance that it has not begun to answer, so that they are tried elsewhere.

        Where `begun` says so, also those with which another instance can go on. The others stay: the instance
        may come back, and gRPC's own keepalive ends them if it does not.
        """
        for stream in [stream for stream in self._streams if stream.instance_id == instance_id]:
            if not stream.delivered or (begun and stream.may_move):
                stream.abandoned = True
                stream.call.cancel()

    def end_all(self, message: str) -> None:
        """Ends every stream; one that has delivered nothing yet may be tried elsewhere."""
        for stream in list(self._streams):
            reason = Reason.STREAM_INTERRUPTED if stream.delivered else Reason.RETRY_ELSEWHERE
            self._end(stream, reason, message)

    async def watch_readers(self) -> None:
        """Ends streams whose caller accepts nothing; runs until cancelled."""
        limit_s = self._reader_stall_s
        message = f"the reader accepted nothing for {limit_s:g} s"
        while True:
            # A sweep instead of a timer for each message: the forwarding loop stays short.
            await asyncio.sleep(limit_s / 4)
            oldest = self._loop.time() - limit_s
            for stream in [stream for stream in self._streams if 0 < stream.writing_since < oldest]:
                log.warning("ending a stream whose reader stalls")
                self._end(stream, Reason.READER_STALLED, message)

    def _end(self, stream: ProxiedStream, reason: Reason, message: str) -> None:
        if stream.ended is None and stream.task is not None:
            # Not shared: an exception keeps the frames of every task that raises it.
            stream.ended = ChironError(reason, message)
            stream.task.cancel()
