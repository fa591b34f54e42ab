"""Three members: one is lost or frozen, and the state goes on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from chiron.store.etcd.methods import WATCH
from tests.integration.store.etcd_cases import OpenStore, follow, model, write
from tests.support.etcd_proxy import EtcdProxy
from tests.support.etcd_server import EtcdServer, etcd_members, settings
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EtcdServer]]:
    with etcd_members(tmp_path_factory.mktemp("three"), 3) as members:
        yield members


@pytest.fixture
def three(cluster: list[EtcdServer]) -> Iterator[list[EtcdServer]]:
    """Three members that serve; what a test stops is started again after it."""
    for member in cluster:
        member.wait_ready()
    yield cluster
    for member in cluster:
        if not member.running:
            member.launch()


def leader_first(members: list[EtcdServer]) -> list[EtcdServer]:
    return sorted(members, key=lambda member: not member.leads())


async def test_the_leader_killed_in_the_midst_of_writes_loses_none_and_repeats_none(
    three: list[EtcdServer], open_store: OpenStore
) -> None:
    # The leader is the first endpoint, so that it is the one in use.
    members = await asyncio.to_thread(leader_first, three)
    store = open_store(*(member.endpoint for member in members))
    term = await store.acquire_term()
    following = asyncio.create_task(follow(store, 0, 60))
    await write(store, term, 20)
    writing = asyncio.create_task(write(store, term, 40, first=20))
    members[0].kill()
    assert await writing == 60
    changes = await following
    assert [change.puts for change in changes] == [(model(desired=number),) for number in range(60)]


@pytest.mark.parametrize(
    ("keepalive_s", "writes"),
    [(0.5, False), (600.0, True)],
    ids=["noticed-by-keepalive", "noticed-by-a-call"],
)
async def test_a_frozen_member_is_left_for_another(
    three: list[EtcdServer], open_store: OpenStore, keepalive_s: float, writes: bool
) -> None:
    members = await asyncio.to_thread(leader_first, three)
    # A follower freezes: the others still have their leader.
    frozen, others = members[1], [members[0], members[2]]
    endpoints = [frozen.endpoint, *(member.endpoint for member in others)]
    store = open_store(settings(*endpoints, keepalive_time_s=keepalive_s))
    writer = store if writes else open_store(*endpoints[1:])
    term = await store.acquire_term()
    watch = aiter(store.watch(0))
    await write(store, term, 1)
    assert (await anext(watch)).revision == 1
    frozen.signal(signal.SIGSTOP)
    try:
        coming = asyncio.ensure_future(anext(watch))
        assert await write(writer, term, 5) == 6
        assert (await coming).revision == 2
        assert [(await anext(watch)).revision for _ in range(4)] == [3, 4, 5, 6]
        assert (await store.read()).revision == 6
    finally:
        frozen.signal(signal.SIGCONT)


async def test_a_frozen_leader_delays_a_write_and_does_not_double_it(
    three: list[EtcdServer], open_store: OpenStore
) -> None:
    members = await asyncio.to_thread(leader_first, three)
    store = open_store(*(member.endpoint for member in members))
    term = await store.acquire_term()
    await write(store, term, 1)
    members[0].signal(signal.SIGSTOP)
    try:
        assert await write(store, term, 3) == 4
    finally:
        members[0].signal(signal.SIGCONT)
    await asyncio.to_thread(members[0].wait_ready)
    # What the thawed member still held is refused by its comparison.
    assert [change.revision for change in await follow(store, 0, 4)] == [1, 2, 3, 4]
    assert (await store.read()).revision == 4


async def test_a_single_frozen_etcd_lets_reads_wait_until_it_goes_on(
    etcd_alone: EtcdServer, open_store: OpenStore
) -> None:
    store = open_store(etcd_alone.endpoint)
    term = await store.acquire_term()
    await write(store, term, 1)
    etcd_alone.signal(signal.SIGSTOP)
    reading = asyncio.create_task(store.read())
    try:
        done, _ = await asyncio.wait({reading}, timeout=0.2)
        assert not done
    finally:
        etcd_alone.signal(signal.SIGCONT)
    assert (await reading).revision == 1


async def test_endpoints_that_nobody_listens_on_are_passed_over(
    three: list[EtcdServer], open_store: OpenStore
) -> None:
    store = open_store("127.0.0.1:1", *(member.endpoint for member in three))
    assert await write(store, await store.acquire_term(), 2) == 2


async def test_reconnecting_pauses_stay_short_however_long_etcd_was_away(
    etcd_alone: EtcdServer, open_store: OpenStore
) -> None:
    async with EtcdProxy(etcd_alone.endpoint) as proxy:
        store = open_store(settings(proxy.endpoint, reconnect_max_s=0.05))
        term = await store.acquire_term()
        watch = aiter(store.watch(0))
        coming = asyncio.ensure_future(anext(watch))
        await write(store, term, 1)
        await coming
        etcd_alone.kill()
        coming = asyncio.ensure_future(anext(watch))
        streams = proxy.calls[WATCH.path]
        # Doubling without a cap would need more than a minute for so many attempts.
        await eventually(lambda: proxy.calls[WATCH.path] >= streams + 12, within_s=30.0)
        await asyncio.to_thread(etcd_alone.start)
        await write(store, term, 1)
        assert (await coming).revision == 2
