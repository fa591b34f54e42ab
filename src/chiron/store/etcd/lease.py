"""Leases of etcd, kept alive on one stream, with a deadline of our own."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import aclosing

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.contract import RefusedError, UnavailableError
from chiron.store.etcd.backoff import Backoff
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.methods import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE
from chiron.store.etcd.outbox import Outbox

_log = logging.getLogger(__name__)
_BEATS_PER_TTL = 3
_ID_BITS = 62


class Lease:
    """A promise of the server's for some seconds, renewed while this object keeps it.

    The server counts the time to live from when a renewal reaches it. This object counts from when the
    renewal was sent, and less `margin`: it ends here before it can end there, also when the server is frozen
    and answers nothing at all.
    """

    def __init__(
        self,
        connection: Connection,
        lease_id: int,
        ttl_s: float,
        granted_at: float,
        *,
        margin: float,
        clock: Callable[[], float],
    ) -> None:
        """Use `grant`."""
        self.lease_id = lease_id
        self.ttl_s = ttl_s
        self.lost = asyncio.Event()
        """Set when the lease has ended, or may have."""
        self.revoked = False
        """Whether the server has been told that it has ended."""
        self._connection = connection
        self._clock = clock
        self._holds_s = ttl_s * (1 - margin)
        self._deadline = granted_at + self._holds_s
        self._tasks = [asyncio.create_task(self._keep()), asyncio.create_task(self._expire())]

    @classmethod
    async def grant(
        cls,
        connection: Connection,
        ttl_s: int,
        *,
        margin: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
    ) -> Lease:
        """Asks for a lease once; one whose grant was not answered ends by itself.

        Args:
            connection: to etcd.
            ttl_s: time to live, in seconds; the server may give more.
            margin: share of the time to live by which the lease ends here earlier than it can there.
            clock: monotonic time in seconds.

        Raises:
            UnavailableError: no answer.
            RefusedError: the server grants none.
        """
        asked = clock()
        request = pb.LeaseGrantRequest(ttl=ttl_s, id=1 + secrets.randbits(_ID_BITS))
        answer = await connection.call(LEASE_GRANT, request)
        if answer.error:
            raise RefusedError(f"etcd grants no lease: {answer.error}")
        return cls(connection, answer.id, answer.ttl, asked, margin=margin, clock=clock)

    @property
    def alive(self) -> bool:
        """False from the moment at which the lease may end on the server."""
        return not self.lost.is_set() and self._clock() < self._deadline

    async def revoke(self) -> None:
        """Ends the lease, here at once, and on the server now or by itself. May be called twice."""
        self.lost.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self.end_there()
        except UnavailableError as error:
            _log.info("lease %x ends by itself: %s", self.lease_id, error)

    async def end_there(self) -> None:
        """Ends the lease on the server, where that has not been done. Raises UnavailableError."""
        if not self.revoked:
            try:
                await self._connection.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=self.lease_id))
            except RefusedError as error:
                _log.info("lease %x is not revoked: %s", self.lease_id, error)
            self.revoked = True

    async def _expire(self) -> None:
        # The deadline moves on while this sleeps.
        while (left_s := self._deadline - self._clock()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left_s)
        self._end("nothing renewed it in time")

    async def _keep(self) -> None:
        backoff = self._connection.backoff()
        while not self.lost.is_set():
            member = self._connection.member
            try:
                await self._renew_on_one_stream(backoff)
            except TimeoutError:
                # Silence: another member may answer before the deadline.
                self._connection.failed(member)
            except (UnavailableError, RefusedError) as error:
                _log.info("the stream that keeps lease %x broke: %s", self.lease_id, error)
            self._connection.forget_token()
            await backoff.pause()

    async def _renew_on_one_stream(self, backoff: Backoff) -> None:
        interval_s = self.ttl_s / _BEATS_PER_TTL
        outbox: Outbox[pb.LeaseKeepAliveRequest] = Outbox()
        try:
            answers = self._connection.stream(LEASE_KEEP_ALIVE, outbox.requests())
            async with aclosing(answers):
                while not self.lost.is_set():
                    sent = self._clock()
                    outbox.put(pb.LeaseKeepAliveRequest(id=self.lease_id))
                    async with asyncio.timeout(interval_s):
                        answer = await anext(answers, None)
                    if answer is None:
                        return
                    if answer.ttl <= 0:
                        self._end("the server has ended it")
                        return
                    backoff.reset()
                    self._deadline = max(self._deadline, sent + self._holds_s)
                    await asyncio.sleep(interval_s)
        finally:
            outbox.end()

    def _end(self, reason: str) -> None:
        if not self.lost.is_set():
            _log.warning("lease %x is lost: %s", self.lease_id, reason)
            self.lost.set()
