"""All watches of a process on one stream, resumed where they were when it breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.contract import CompactedError, RefusedError, UnavailableError
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.methods import WATCH
from chiron.store.etcd.outbox import Outbox
from chiron.store.etcd.watch import Watch

_log = logging.getLogger(__name__)
_NO_WATCH = -1
"""The id under which newer servers refuse a watch."""


class WatchHub:
    """One stream for all watches: etcd serves it at less cost than a stream each."""

    def __init__(self, connection: Connection, *, buffered: int = 1000) -> None:
        """Holds at most `buffered` revisions for a watch whose consumer is slow."""
        self._connection = connection
        self._buffered = buffered
        self._watches: dict[int, Watch] = {}
        """By the id that the server knows; one whose buffer was dropped is missing until it resumes."""
        self._outbox: Outbox[pb.WatchRequest] = Outbox()
        self._opened: set[Watch] = set()
        self._some = asyncio.Event()
        self._last_id = 0
        self._running: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def open(self, key: bytes, range_end: bytes, start: int) -> Iterator[Watch]:
        """A watch from etcd revision `start` on, which ends with the context."""
        watch = Watch(key, range_end, start, buffered=self._buffered, resume=self._resume)
        if self._closed:
            watch.close()
        else:
            self._opened.add(watch)
            self._resume(watch)
            if self._running is None:
                self._running = asyncio.create_task(self._run())
        try:
            yield watch
        finally:
            self._opened.discard(watch)
            for watch_id in [known for known, one in self._watches.items() if one is watch]:
                self._cancel(watch_id)

    async def close(self) -> None:
        """Ends every watch."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        for watch in self._opened:
            watch.close()

    def _resume(self, watch: Watch) -> None:
        self._last_id += 1
        self._watches[self._last_id] = watch
        self._some.set()
        create = pb.WatchCreateRequest(
            key=watch.key,
            range_end=watch.range_end,
            start_revision=watch.received + 1,
            watch_id=self._last_id,
            fragment=True,
        )
        self._outbox.put(pb.WatchRequest(create_request=create))

    def _cancel(self, watch_id: int) -> None:
        del self._watches[watch_id]
        self._outbox.put(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id)))

    async def _run(self) -> None:
        backoff = self._connection.backoff()
        told = ""
        while True:
            self._some.clear()
            if not self._watches:
                await self._some.wait()
            self._start_over()
            try:
                async with aclosing(self._connection.stream(WATCH, self._outbox.requests())) as responses:
                    async for response in responses:
                        backoff.reset()
                        told = ""
                        if not self._heard(response):
                            break
                _log.info("the watch stream has ended; it is opened again")
            except UnavailableError as error:
                # Once, not at every try that ends the same way.
                if str(error) != told:
                    told = str(error)
                    _log.info("the watch stream broke: %s", told)
            except Exception as error:
                # The consumers are told; nobody awaits this task.
                for watch in self._watches.values():
                    watch.fail(error)
                self._watches.clear()
            self._outbox.end()
            # A token may have ended with the member; a stream would learn that too late.
            self._connection.forget_token()
            await backoff.pause()

    def _start_over(self) -> None:
        """Asks for every watch again, from where it stands."""
        self._outbox = Outbox()
        watches = list(self._watches.values())
        self._watches.clear()
        for watch in watches:
            watch.broken()
            self._resume(watch)

    def _heard(self, response: pb.WatchResponse) -> bool:
        """Takes a response in; False when the stream must be opened anew."""
        self._connection.note(response)
        if response.canceled or response.compact_revision:
            settled = [self._ended(watch_id, response) for watch_id in self._concerned(response)]
            return all(settled)
        watch = self._watches.get(response.watch_id)
        if watch is not None:
            watch.confirmed, watch.renewed = True, False
            if not watch.take(response):
                self._cancel(response.watch_id)
        return True

    def _concerned(self, response: pb.WatchResponse) -> Sequence[int]:
        if response.watch_id == _NO_WATCH:
            return [known for known, watch in self._watches.items() if not watch.confirmed]
        return [response.watch_id] if response.watch_id in self._watches else []

    def _ended(self, watch_id: int, response: pb.WatchResponse) -> bool:
        watch, reason = self._watches[watch_id], response.cancel_reason
        if response.compact_revision:
            failure: Exception = CompactedError(
                f"etcd has dropped what came before its revision {response.compact_revision}"
            )
        elif "permission denied" in reason or "auth" in reason:
            # A token that is not known any more is refused in these words too: it is renewed once.
            if self._connection.settings.user and not watch.renewed:
                watch.renewed = True
                return False
            failure = RefusedError(f"etcd refuses a watch: {reason}")
        else:
            return False
        del self._watches[watch_id]
        watch.fail(failure)
        return True
