"""The head of the state: one key that every commit writes, so that it counts the commits and guards them."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.internal.v1 import state_pb2
from chiron.store.contract import CompactedError
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.methods import RANGE
from chiron.store.etcd.values import parse


@dataclass(frozen=True, slots=True)
class Head:
    """One value of the head; all zero before the first commit."""

    revision: int = 0
    """The store's revision: it counts the changes of this prefix alone, which etcd's own does not."""
    decisions: int = 0
    """Decisions logged so far."""
    commit_id: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0
    """etcd's revision of the commit."""
    version: int = 0
    """Counts the commits."""

    @classmethod
    def of(cls, kvs: list[pb.KeyValue]) -> Head:
        """From the answer to a range over the key alone. Raises SchemaError."""
        if not kvs:
            return cls()
        [kv] = kvs
        stored = parse(state_pb2.StoredHead, kv.key, kv.value)
        return cls(
            revision=stored.revision,
            decisions=stored.decisions,
            commit_id=stored.commit_id,
            create_revision=kv.create_revision,
            mod_revision=kv.mod_revision,
            version=kv.version,
        )


class Heads:
    """The head now and in etcd's history, as far as that is kept."""

    def __init__(self, connection: Connection, key: bytes) -> None:
        """Reads the head that lies at `key`."""
        self._connection = connection
        self._key = key

    async def at(self, revision: int = 0) -> tuple[Head, int]:
        """The head at an etcd revision (0: now), and etcd's present revision.

        Raises CompactedError when that is no longer kept.
        """
        request = pb.RangeRequest(key=self._key, revision=revision)
        answer = await self._connection.call(RANGE, request, repeatable=True)
        return Head.of(list(answer.kvs)), answer.header.revision

    async def locate(self, after: int) -> int:
        """An etcd revision at which the store's revision was `after`: the latest where that is the present.

        Raises ValueError when `after` lies ahead, CompactedError when changes after it are no longer kept.
        """
        head, now = await self.at()
        if after == head.revision:
            # Not the head's own revision: when others alone write, etcd may have dropped the history up to
            # here, and nothing is lost by that.
            return now
        if after > head.revision:
            raise ValueError(f"revision {after} lies ahead; the present one is {head.revision}")
        low, high = head.create_revision - 1, head.mod_revision - 1
        while low <= high:
            middle = (low + high) // 2
            try:
                found, _ = await self.at(middle)
            except CompactedError:
                low = middle + 1
                continue
            if found.revision == after:
                return middle
            if found.revision < after:
                low = middle + 1
            else:
                high = found.mod_revision - 1
        raise CompactedError(f"changes from revision {after + 1} on are gone; now it is {head.revision}")

    async def successor(self, before: Head) -> Head | None:
        """The head that replaced `before`; None while nothing has. Raises CompactedError."""
        head, _ = await self.at()
        if head.version == before.version:
            return None
        while head.version > before.version + 1:
            head, _ = await self.at(head.mod_revision - 1)
        return head
