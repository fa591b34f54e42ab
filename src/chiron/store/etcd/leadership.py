"""A leadership won in etcd's election, as writers see it."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.etcd.lease import Lease
from chiron.store.etcd.txn import created_at


@dataclass(frozen=True, slots=True)
class Leadership:
    """Ends with its lease, on this machine's clock before it can end on the server's."""

    key: pb.LeaderKey
    lease: Lease

    @property
    def held(self) -> bool:
        """False once the lease may have ended."""
        return self.lease.alive

    def guards(self) -> tuple[pb.Compare, ...]:
        """What each write must find: the election's key as it was when it was won."""
        return (created_at(self.key.key, self.key.rev),)
