"""Those who would lead, in the order in which they will: their keys below the election's name."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.internal.v1 import state_pb2
from chiron.store.contract import CompactedError, UnavailableError
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.election import campaign
from chiron.store.etcd.keys import range_end
from chiron.store.etcd.leadership import Leadership
from chiron.store.etcd.lease import Lease
from chiron.store.etcd.methods import RANGE
from chiron.store.etcd.values import encode_candidate, parse
from chiron.store.etcd.watch_hub import WatchHub

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One that campaigns or leads."""

    address: str
    """host:port at which it is reached."""
    lease_id: int


class Electorate:
    """The election under one name."""

    def __init__(self, connection: Connection, hub: WatchHub, name: bytes) -> None:
        """Sends nothing yet."""
        self._connection = connection
        self._hub = hub
        self._name = name

    async def campaign(self, lease: Lease, address: str) -> Leadership:
        """Waits until `address` leads. Raises FencedError when the lease ends first, and RefusedError."""
        return await campaign(self._connection, self._name, lease, encode_candidate(address))

    async def candidates(self) -> Sequence[Candidate]:
        """All of them, the leader first. Raises UnavailableError, RefusedError and SchemaError."""
        return (await self._read())[0]

    async def follow(self) -> AsyncGenerator[Sequence[Candidate]]:
        """All of them, the leader first, now and after each change. While etcd is away it waits.

        Ends when the store is closed. Raises RefusedError and SchemaError.
        """
        start, end = self._name + b"/", range_end(self._name + b"/")
        backoff = self._connection.backoff()
        while True:
            try:
                found, revision = await self._read()
                yield found
                backoff.reset()
                with self._hub.open(start, end, revision + 1) as events:
                    while await events.next() is not None:
                        yield (await self._read())[0]
                return
            except CompactedError:
                continue
            except UnavailableError as error:
                _log.info("the candidates are not known: %s", error)
                await backoff.pause()

    async def _read(self) -> tuple[Sequence[Candidate], int]:
        """The candidates, and etcd's revision."""
        prefix = self._name + b"/"
        request = pb.RangeRequest(key=prefix, range_end=range_end(prefix))
        answer = await self._connection.call(RANGE, request, repeatable=True)
        # Who has campaigned for longest leads.
        oldest_first = sorted(answer.kvs, key=lambda kv: kv.create_revision)
        found = [
            Candidate(parse(state_pb2.StoredCandidate, kv.key, kv.value).address, kv.lease)
            for kv in oldest_first
        ]
        return found, answer.header.revision
