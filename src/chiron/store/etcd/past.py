"""Notices that etcd has another past than the one it has shown: it was restored from a backup."""

from __future__ import annotations

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.methods import RANGE


class RestoredError(Exception):
    """What was read and watched until now may never have been; everything has to be read and watched anew."""


class Past:
    """What one process has been shown of etcd so far. One check at a time."""

    def __init__(self, connection: Connection, head: bytes) -> None:
        """Reads the state's head, at the key `head`: an etcd with one past never shows an older one again."""
        self._connection = connection
        self._head = head
        self._cluster_id = 0

    async def check(self) -> None:
        """Compares etcd's present with what it has shown.

        Raises RestoredError, UnavailableError and RefusedError.
        """
        shown = self._connection.shown
        answer = await self._connection.call(RANGE, pb.RangeRequest(key=self._head), repeatable=True)
        before, self._cluster_id = self._cluster_id, answer.header.cluster_id
        if before and before != self._cluster_id:
            raise RestoredError(
                f"another etcd answers: cluster {self._cluster_id:x}, and it was {before:x}; "
                "it was restored from a backup or replaced"
            )
        if answer.header.revision < shown:
            raise RestoredError(
                f"etcd is at revision {answer.header.revision}, and it was at {shown}: "
                "it was restored from a backup"
            )
