"""Keeps etcd's history bounded: what is older than some time is dropped."""

from __future__ import annotations

import asyncio
import logging

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.contract import CompactedError, RefusedError, UnavailableError
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.methods import COMPACT, RANGE

_log = logging.getLogger(__name__)


async def compact_regularly(connection: Connection, key: bytes, kept_s: float) -> None:
    """Drops every `kept_s` seconds what was history already `kept_s` seconds before; runs until cancelled.

    etcd's database grows with each write until its history is compacted, and at its quota it takes no writes
    any more. Compaction is of the whole etcd, whoever else uses it.

    Args:
        connection: to etcd.
        key: any key that may be read.
        kept_s: how much history is kept at least, in seconds; at most twice as much is.
    """
    while True:
        revision = await _present(connection, key)
        await asyncio.sleep(kept_s)
        if revision is None:
            continue
        try:
            await connection.call(COMPACT, pb.CompactionRequest(revision=revision), repeatable=True)
            _log.info("dropped etcd's history before its revision %d", revision)
        except CompactedError:
            # Someone else keeps it shorter.
            continue
        except (UnavailableError, RefusedError) as error:
            _log.warning("etcd's history was not compacted: %s", error)


async def _present(connection: Connection, key: bytes) -> int | None:
    try:
        answer = await connection.call(RANGE, pb.RangeRequest(key=key, count_only=True), repeatable=True)
    except (UnavailableError, RefusedError):
        return None
    return answer.header.revision
