"""The soak test's watch of etcd's history, on real members that die and forget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from chiron.store.etcd.keys import Keys
from tests.soak.history_watch import HistoryWatch
from tests.support.etcd_server import EtcdServer, etcd_members
from tests.support.wait import eventually

PREFIX = "/soak"
HEAD = Keys(PREFIX).head.decode()


async def control(member: EtcdServer, *arguments: str) -> None:
    await asyncio.to_thread(member.control, *arguments, "--command-timeout=40s")


async def put(member: EtcdServer, *values: str) -> None:
    for value in values:
        await control(member, "put", HEAD, value)


@asynccontextmanager
async def watched(*members: EtcdServer) -> AsyncIterator[HistoryWatch]:
    watch = HistoryWatch([member.endpoint for member in members], PREFIX, lambda text: None)
    running = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def values(watch: HistoryWatch) -> list[bytes | None]:
    return [write.value for write in watch.writes]


async def test_it_reads_each_write_once_whatever_dies_and_whatever_it_has_dropped(tmp_path: Path) -> None:
    with etcd_members(tmp_path, 3) as members:
        # The first one is the watch's, and dies: a follower, so that writes go on at once.
        first, *others = sorted(members, key=EtcdServer.leads)
        await put(first, "0", "1")
        async with watched(first, *others) as watch:
            await eventually(lambda: len(watch.writes) == 2)
            revision = await watch.compact()
            assert revision == watch.writes[-1].revision
            assert await watch.compact() == revision, "nothing has come since"
            await asyncio.to_thread(first.kill)
            await put(others[0], "2")
            assert await watch.catch_up(20.0)
            await control(others[0], "del", HEAD)
            await put(others[0], "3")
            assert await watch.compact() is not None
            await asyncio.to_thread(first.start)
            await put(first, "4")
            assert await watch.catch_up(20.0)
        assert values(watch) == [b"0", b"1", b"2", None, b"3", b"4"]
        assert [write.revision for write in watch.writes] == sorted({one.revision for one in watch.writes})
        assert not watch.dropped


async def test_what_was_dropped_unread_is_told(tmp_path: Path) -> None:
    with etcd_members(tmp_path) as [etcd]:
        await put(etcd, "0", "1", "2")
        await control(etcd, "compact", "4")
        async with watched(etcd) as watch:
            await eventually(lambda: watch.dropped)
        assert watch.dropped == "etcd has dropped what came before its revision 4"


async def test_nothing_is_dropped_before_anything_is_read(tmp_path: Path) -> None:
    with etcd_members(tmp_path) as [etcd]:
        watch = HistoryWatch([etcd.endpoint], PREFIX, lambda text: None)
        await put(etcd, "0")
        assert await watch.compact() is None
        assert not await watch.catch_up(0.0)
