"""The history is kept for a while and then dropped; what is present stays."""

from __future__ import annotations

import asyncio

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store import CompactedError
from chiron.store.etcd import Connection
from chiron.store.etcd.compaction import compact_regularly
from chiron.store.etcd.methods import PUT, RANGE
from tests.support.etcd_server import EtcdServer, settings
from tests.support.wait import eventually


async def test_what_was_history_when_the_time_began_is_dropped_and_later_history_is_kept(
    etcd_alone: EtcdServer,
) -> None:
    connection = Connection(settings(etcd_alone.endpoint))
    for number in range(5):
        await connection.call(PUT, pb.PutRequest(key=b"k", value=b"%d" % number))
    keeping = asyncio.create_task(compact_regularly(connection, b"k", 0.3))
    try:

        async def dropped() -> bool:
            try:
                await connection.call(RANGE, pb.RangeRequest(key=b"k", revision=2), repeatable=True)
            except CompactedError:
                return True
            return False

        await eventually(dropped)
        answer = await connection.call(RANGE, pb.RangeRequest(key=b"k"), repeatable=True)
        assert [kv.value for kv in answer.kvs] == [b"4"]
        assert answer.kvs[0].version == 5
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await connection.close()
