"""Cluster state in etcd: durable, for several controllers of which one writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import MappingProxyType

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.internal.v1 import state_pb2
from chiron.store.contract import CompactedError, FencedError, Store, Transaction, UnavailableError
from chiron.store.decisions import DecisionRecord
from chiron.store.etcd import terms
from chiron.store.etcd.candidates import Electorate
from chiron.store.etcd.commit import Committer, Limits
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.decision_log import DecisionLog
from chiron.store.etcd.head import Head, Heads
from chiron.store.etcd.keys import Keys, range_end
from chiron.store.etcd.leadership import Leadership
from chiron.store.etcd.methods import RANGE, TXN
from chiron.store.etcd.past import Past
from chiron.store.etcd.settings import EtcdSettings
from chiron.store.etcd.txn import put
from chiron.store.etcd.values import decode_record, parse
from chiron.store.etcd.watch import Batch
from chiron.store.etcd.watch_hub import WatchHub
from chiron.store.records import (
    ApiKeyRecord,
    Change,
    InstanceRecord,
    Key,
    ModelRecord,
    NodeRecord,
    Record,
    Snapshot,
    TenantRecord,
    TicketKeysRecord,
)


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class EtcdStore(Store):
    """The state below one prefix of an etcd cluster; used from one event loop.

    A revision of this store counts the changes below its prefix: the head, a key that every commit writes,
    holds it. etcd's own revision counts every write of whoever shares that etcd.
    """

    def __init__(
        self,
        connection: Connection,
        prefix: str,
        *,
        decisions_kept: int = 1000,
        changes_buffered: int = 1000,
        page_size: int = 500,
        limits: Limits | None = None,
        clock_ms: Callable[[], int] = _wall_clock_ms,
    ) -> None:
        """Opens no connection before the first call.

        Args:
            connection: to etcd; `close` closes it.
            prefix: where this cluster's keys lie; ValueError("prefix: ...") for one that cannot be.
            decisions_kept: how many decisions the log holds.
            changes_buffered: how many changes are held for a slow watch; beyond, it reads them again.
            page_size: keys per request of a read.
            limits: of one transaction; None: etcd's defaults.
            clock_ms: wall clock in milliseconds, for the terms.
        """
        self._connection = connection
        self._keys = Keys(prefix)
        self._heads = Heads(connection, self._keys.head)
        self._hub = WatchHub(connection, buffered=changes_buffered)
        self._log = DecisionLog(connection, self._keys, kept=decisions_kept, page_size=page_size)
        self._committer = Committer(connection, self._keys, self._heads, self._log, limits or Limits())
        self.electorate = Electorate(connection, self._hub, self._keys.election)
        """Those who would lead under this prefix."""
        self.past = Past(connection, self._keys.head)
        """What etcd has shown of itself."""
        self._page_size = page_size
        self._clock_ms = clock_ms
        self._writing = asyncio.Lock()
        self._closed = False
        self.leadership: Leadership | None = None
        """Once set, terms and commits need it: FencedError when it is lost."""

    @property
    def settings(self) -> EtcdSettings:
        """How etcd is reached."""
        return self._connection.settings

    @property
    def connection(self) -> Connection:
        """To etcd."""
        return self._connection

    async def acquire_term(self) -> int:
        """See Store."""
        return await terms.acquire(self._connection, self._keys.term, self._clock_ms, self.leadership)

    async def read(self) -> Snapshot:
        """See Store. Large states come in pages of one etcd revision."""
        while True:
            try:
                return _snapshot(self._keys, await self._pages())
            except CompactedError:
                # Between two pages their revision was dropped; the next attempt is of a newer one.
                continue

    async def commit(self, transaction: Transaction) -> int:
        """See Store."""
        async with self._writing:
            return await self._committer.commit(transaction, self.leadership)

    async def watch(self, after: int) -> AsyncIterator[Change]:
        """See Store. While etcd is away it waits."""
        while (start := await self._locate(after)) is not None:
            with self._hub.open(self._keys.state, range_end(self._keys.state), start + 1) as events:
                while True:
                    try:
                        batch = await events.next()
                    except CompactedError:
                        # Perhaps what was dropped is of others alone.
                        break
                    if batch is None:
                        return
                    change = _change(self._keys, batch)
                    if change is None or change.revision <= after:
                        continue
                    if change.revision != after + 1:
                        raise CompactedError(f"a change is missing between {after} and {change.revision}")
                    yield change
                    after = change.revision

    async def decisions(self, *, limit: int, model: str = "") -> Sequence[DecisionRecord]:
        """See Store."""
        return await self._log.newest(limit, model)

    async def probe(self) -> None:
        """Finds out whether a write succeeds, by one that changes nothing that matters.

        Raises FencedError, UnavailableError and RefusedError.
        """
        guards = self.leadership.guards() if self.leadership is not None else ()
        request = pb.TxnRequest(compare=guards, success=[put(self._keys.probe, b"")])
        if not (await self._connection.call(TXN, request)).succeeded:
            raise FencedError("the leadership has passed to another")

    async def close(self) -> None:
        """See Store."""
        if not self._closed:
            self._closed = True
            await self._hub.close()
            await self._connection.close()

    async def _pages(self) -> list[pb.KeyValue]:
        request = pb.RangeRequest(
            key=self._keys.state, range_end=range_end(self._keys.state), limit=self._page_size
        )
        kvs: list[pb.KeyValue] = []
        while True:
            answer = await self._connection.call(RANGE, request, repeatable=True)
            kvs += answer.kvs
            if not answer.more:
                return kvs
            request.revision = request.revision or answer.header.revision
            request.key = answer.kvs[-1].key + b"\0"

    async def _locate(self, after: int) -> int | None:
        """See Heads.locate; waits while etcd is away, and returns None once the store is closed."""
        backoff = self._connection.backoff()
        while not self._closed:
            try:
                return await self._heads.locate(after)
            except UnavailableError:
                if not self._closed:
                    await backoff.pause()
        return None


def _snapshot(keys: Keys, kvs: Sequence[pb.KeyValue]) -> Snapshot:
    models: dict[str, ModelRecord] = {}
    nodes: dict[str, NodeRecord] = {}
    instances: dict[str, InstanceRecord] = {}
    revisions: dict[Key, int] = {}
    ticket_keys: TicketKeysRecord | None = None
    tenants: dict[str, TenantRecord] = {}
    api_keys: dict[str, ApiKeyRecord] = {}
    head = Head()
    for kv in kvs:
        if kv.key == keys.head:
            head = Head.of([kv])
            continue
        record, revision = decode_record(kv.key, kv.value)
        revisions[record.key] = revision
        match record:
            case ModelRecord():
                models[record.name] = record
            case NodeRecord():
                nodes[record.node_id] = record
            case InstanceRecord():
                instances[record.instance_id] = record
            case TicketKeysRecord():
                ticket_keys = record
            case TenantRecord():
                tenants[record.name] = record
            case ApiKeyRecord():
                api_keys[record.key_id] = record
    return Snapshot(
        head.revision,
        MappingProxyType(models),
        MappingProxyType(nodes),
        MappingProxyType(instances),
        MappingProxyType(revisions),
        ticket_keys,
        MappingProxyType(tenants),
        MappingProxyType(api_keys),
    )


def _change(keys: Keys, batch: Batch) -> Change | None:
    """What one commit changed; None where it changed no record."""
    revision = 0
    puts: list[Record] = []
    deletes: list[Key] = []
    for event in batch:
        if event.kv.key == keys.head:
            revision = parse(state_pb2.StoredHead, event.kv.key, event.kv.value).revision
        elif event.type == pb.EVENT_TYPE_DELETE:
            deletes.append(keys.parse(event.kv.key))
        else:
            puts.append(decode_record(event.kv.key, event.kv.value)[0])
    return Change(revision, tuple(puts), tuple(deletes)) if puts or deletes else None
