"""Watches: nothing lost, nothing twice, and an honest end when history is gone."""

from __future__ import annotations

import asyncio

import pytest

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store import Change, CompactedError, Transaction
from chiron.store.etcd import Connection
from chiron.store.etcd.head import Heads
from chiron.store.etcd.keys import Keys
from chiron.store.etcd.methods import WATCH
from tests.integration.store.etcd_cases import OpenStore, follow, model, write
from tests.support.etcd_proxy import EtcdProxy
from tests.support.etcd_server import EtcdServer, settings


def etcd_revision(etcd: EtcdServer) -> str:
    printed = etcd.control("get", "--write-out=fields", "none")
    return next(line.split()[-1] for line in printed.splitlines() if line.startswith('"Revision"'))


def revisions(changes: list[Change]) -> list[int]:
    return [change.revision for change in changes]


async def test_a_broken_watch_resumes_after_its_last_event_wherever_the_header_stands(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        writer, reader = open_store(etcd.endpoint), open_store(proxy.endpoint)

        def ahead_and_cut(response: pb.WatchResponse) -> bool:
            if response.events:
                # As when a watch catches up: some revisions' events, under a header that runs ahead of the
                # others, which die with the stream. Who resumes after the header loses them.
                last = response.events[0].kv.mod_revision + 14
                kept = [event for event in response.events if event.kv.mod_revision <= last]
                del response.events[:]
                response.events.extend(kept)
                response.header.revision += 1000
                proxy.cut_after = True
            return True

        proxy.see_watch = ahead_and_cut
        term = await writer.acquire_term()
        base = await write(writer, term, 1)
        following = asyncio.create_task(follow(reader, base, base + 60))
        await write(writer, term, 60, first=1)
        changes = await following
        assert revisions(changes) == list(range(base + 1, base + 61))
        assert [change.puts for change in changes] == [(model(desired=number),) for number in range(1, 61)]
        assert proxy.calls[WATCH.path] >= 4


async def test_a_stream_that_dies_between_the_parts_of_a_split_response_repeats_and_loses_nothing(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        writer, reader = open_store(etcd.endpoint), open_store(proxy.endpoint)
        split_once = False

        def split(response: pb.WatchResponse) -> bool:
            nonlocal split_once
            if not split_once and len(response.events) > 2:
                # The first part of what the server would split; the rest dies with the stream.
                split_once = proxy.cut_after = response.fragment = True
                del response.events[2:]
            return True

        proxy.see_watch = split
        term = await writer.acquire_term()
        watch = aiter(reader.watch(0))
        coming = asyncio.ensure_future(anext(watch))
        names = [f"m{number}" for number in range(5)]
        await writer.commit(Transaction(term, puts=tuple(map(model, names))))
        await writer.commit(Transaction(term, puts=(model("last"),)))
        change = await coming
        assert change == Change(1, puts=tuple(map(model, names)))
        assert await anext(watch) == Change(2, puts=(model("last"),))
        assert split_once


async def test_a_compaction_under_a_broken_watch_is_told_and_a_fresh_read_goes_on(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        writer, reader = open_store(etcd.endpoint), open_store(proxy.endpoint)
        term = await writer.acquire_term()
        watch = aiter(reader.watch(0))
        first = asyncio.ensure_future(anext(watch))
        await write(writer, term, 1)
        assert (await first).revision == 1
        # From here on the watch gets nothing, and each stream breaks when there is something.
        proxy.see_watch = lambda response: not response.events
        lost = asyncio.ensure_future(anext(watch))
        await write(writer, term, 3, first=1)
        etcd.control("compact", etcd_revision(etcd))
        proxy.see_watch = lambda response: True
        with pytest.raises(CompactedError):
            await lost
        snapshot = await reader.read()
        assert snapshot.revision == 4
        following = asyncio.create_task(follow(reader, snapshot.revision, 5))
        await write(writer, term, 1, first=9)
        assert await following == [Change(5, puts=(model(desired=9),))]


async def test_what_others_write_and_compact_does_not_end_a_watch_that_is_owed_nothing(
    etcd: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        mine, reader = open_store(etcd.endpoint), open_store(proxy.endpoint)
        others = open_store(etcd.endpoint, under=f"{prefix}-others")
        term = await mine.acquire_term()
        await write(mine, term, 1)
        watch = aiter(reader.watch(0))
        assert (await anext(watch)).revision == 1
        await write(others, await others.acquire_term(), 5)
        etcd.control("compact", etcd_revision(etcd))
        # The stream dies, and the watch stands at a revision that etcd no longer keeps.
        streams = proxy.calls[WATCH.path]
        proxy.see_watch = lambda response: proxy.calls[WATCH.path] > streams
        coming = asyncio.ensure_future(anext(watch))
        await write(mine, term, 1)
        assert (await coming).revision == 2
        assert proxy.calls[WATCH.path] > streams


async def test_the_present_can_be_watched_although_etcd_has_dropped_its_own_revision_since(
    etcd: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    mine, others = open_store(etcd.endpoint), open_store(etcd.endpoint, under=f"{prefix}-others")
    term = await mine.acquire_term()
    await write(mine, term, 2)
    await write(others, await others.acquire_term(), 5)
    compacted = etcd_revision(etcd)
    etcd.control("compact", compacted)
    connection = Connection(settings(etcd.endpoint))
    heads = Heads(connection, Keys(prefix).head)
    assert await heads.locate(2) >= int(compacted)
    with pytest.raises(CompactedError):
        await heads.locate(1)
    await connection.close()


async def test_all_watches_of_a_store_share_one_stream(etcd: EtcdServer, open_store: OpenStore) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        writer, reader = open_store(etcd.endpoint), open_store(proxy.endpoint)
        term = await writer.acquire_term()
        following = [asyncio.create_task(follow(reader, 0, 10)) for _ in range(32)]
        await write(writer, term, 10)
        for changes in await asyncio.gather(*following):
            assert revisions(changes) == list(range(1, 11))
        assert proxy.calls[WATCH.path] == 1


async def test_a_slow_consumer_gets_everything_while_little_is_held_for_it(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    store = open_store(etcd.endpoint, changes_buffered=3)
    term = await store.acquire_term()
    slow = aiter(store.watch(0))
    await write(store, term, 1)
    assert (await anext(slow)).revision == 1
    # Another watch of the same stream has seen all before the slow one asks again.
    following = asyncio.create_task(follow(store, 1, 17))
    await write(store, term, 16)
    await following
    assert [(await anext(slow)).revision for _ in range(16)] == list(range(2, 18))


async def test_a_watch_waits_for_an_etcd_that_is_away(etcd_alone: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(etcd_alone.endpoint)
    term = await store.acquire_term()
    watch = aiter(store.watch(0))
    coming = asyncio.ensure_future(anext(watch))
    await write(store, term, 1)
    assert (await coming).revision == 1
    coming = asyncio.ensure_future(anext(watch))
    etcd_alone.kill()
    await asyncio.to_thread(etcd_alone.start)
    await write(store, term, 1)
    assert (await coming).revision == 2
