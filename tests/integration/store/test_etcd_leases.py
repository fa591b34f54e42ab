"""Leases and leaderships: over here before they can be over on the server, and every write is checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store import FencedError
from chiron.store.etcd import Connection, Leadership, Lease
from chiron.store.etcd.election import campaign, leader, resign
from chiron.store.etcd.methods import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE, PUT, RANGE
from tests.integration.store.etcd_cases import OpenStore, write
from tests.support.etcd_proxy import EtcdProxy, Fate
from tests.support.etcd_server import EtcdServer, settings
from tests.support.wait import eventually


@pytest.fixture
async def direct(etcd: EtcdServer) -> AsyncIterator[Connection]:
    connection = Connection(settings(etcd.endpoint))
    yield connection
    await connection.close()


async def exists(connection: Connection, key: bytes) -> bool:
    return bool((await connection.call(RANGE, pb.RangeRequest(key=key), repeatable=True)).kvs)


async def test_a_kept_lease_outlives_its_time_to_live(direct: Connection, prefix: str) -> None:
    lease = await Lease.grant(direct, 3)
    key = f"{prefix}/kept".encode()
    await direct.call(PUT, pb.PutRequest(key=key, value=b"x", lease=lease.lease_id))
    # A second lease that nobody renews measures the time: its key goes when it has run out.
    unkept = await direct.call(LEASE_GRANT, pb.LeaseGrantRequest(ttl=4))
    clock = f"{prefix}/clock".encode()
    await direct.call(PUT, pb.PutRequest(key=clock, value=b"x", lease=unkept.id))

    async def run_out() -> bool:
        return not await exists(direct, clock)

    await eventually(run_out)
    assert lease.alive
    assert await exists(direct, key)
    await lease.revoke()
    assert not lease.alive
    assert not await exists(direct, key)


async def test_when_nothing_answers_a_lease_ends_here_before_it_ends_on_the_server(
    etcd: EtcdServer, direct: Connection, prefix: str
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        connection = Connection(settings(proxy.endpoint))
        lease = await Lease.grant(connection, 5, margin=0.6)
        key = f"{prefix}/held".encode()
        await direct.call(PUT, pb.PutRequest(key=key, value=b"x", lease=lease.lease_id))
        await eventually(lambda: proxy.calls[LEASE_KEEP_ALIVE.path])
        proxy.silent = True
        await lease.lost.wait()
        assert not lease.alive
        assert await exists(direct, key)
        await lease.revoke()
        await connection.close()


async def test_a_lease_ended_by_the_server_is_lost_at_the_next_renewal(direct: Connection) -> None:
    lease = await Lease.grant(direct, 3)
    await direct.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease.lease_id))
    await lease.lost.wait()
    assert not lease.alive
    await lease.revoke()


async def test_renewals_go_to_another_member_when_one_is_silent(etcd: EtcdServer) -> None:
    async with EtcdProxy(etcd.endpoint) as silent, EtcdProxy(etcd.endpoint) as answering:
        connection = Connection(settings(silent.endpoint, answering.endpoint))
        lease = await Lease.grant(connection, 6)
        silent.silent = True
        await eventually(lambda: answering.calls[LEASE_KEEP_ALIVE.path])
        assert lease.alive
        await lease.revoke()
        await connection.close()


async def test_a_grant_that_is_not_answered_is_not_sent_again(etcd: EtcdServer) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        proxy.fate = lambda path, request: Fate.LOSE_ANSWER
        connection = Connection(settings(proxy.endpoint))
        with pytest.raises(Exception, match="lost on the way"):
            await Lease.grant(connection, 5)
        assert proxy.calls[LEASE_GRANT.path] == 1
        await connection.close()


async def test_one_candidate_leads_at_a_time_and_the_next_follows(direct: Connection, prefix: str) -> None:
    name = f"{prefix}/election".encode()
    first = await campaign(direct, name, await Lease.grant(direct, 5), b"one")
    waiting = asyncio.create_task(campaign(direct, name, await Lease.grant(direct, 5), b"two"))
    assert await leader(direct, name) == b"one"
    assert not waiting.done()
    await resign(direct, first)
    second = await waiting
    assert await leader(direct, name) == b"two"
    assert second.key.rev > first.key.rev
    await resign(direct, second)
    assert await leader(direct, name) is None


async def test_a_candidate_whose_lease_ends_while_it_waits_stops_waiting(
    etcd: EtcdServer, direct: Connection, prefix: str
) -> None:
    name = f"{prefix}/election".encode()
    holder = await campaign(direct, name, await Lease.grant(direct, 30), b"one")
    lease = await Lease.grant(direct, 30)
    waiting = asyncio.create_task(campaign(direct, name, lease, b"two"))
    await direct.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease.lease_id))
    lease.lost.set()
    with pytest.raises(FencedError):
        await waiting
    await lease.revoke()
    await resign(direct, holder)


async def test_a_deposed_leader_can_neither_write_nor_take_a_new_term(
    etcd: EtcdServer, direct: Connection, open_store: OpenStore, prefix: str
) -> None:
    name = f"{prefix}/election".encode()
    deposed, follower = open_store(etcd.endpoint), open_store(etcd.endpoint)
    lease = await Lease.grant(direct, 30)
    deposed.leadership = await campaign(direct, name, lease, b"one")
    term = await deposed.acquire_term()
    await write(deposed, term, 1)
    # The server ends the lease, and the leader does not know it yet.
    await direct.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease.lease_id))
    assert deposed.leadership.held
    with pytest.raises(FencedError, match="another"):
        await write(deposed, term, 1)
    with pytest.raises(FencedError, match="another"):
        await deposed.acquire_term()
    follower.leadership = await campaign(direct, name, await Lease.grant(direct, 30), b"two")
    newer = await follower.acquire_term()
    assert newer > term
    await write(follower, newer, 1)
    assert (await follower.read()).revision == 2
    for store in (deposed, follower):
        assert store.leadership is not None
        await store.leadership.lease.revoke()


async def test_a_key_made_again_under_the_same_name_does_not_let_the_old_leader_write(
    etcd: EtcdServer, direct: Connection, open_store: OpenStore, prefix: str
) -> None:
    store = open_store(etcd.endpoint)
    lease = await Lease.grant(direct, 30)
    won = await campaign(direct, f"{prefix}/election".encode(), lease, b"one")
    store.leadership = won
    term = await store.acquire_term()
    await resign(direct, Leadership(won.key, won.lease), revoke=False)
    again = await campaign(direct, f"{prefix}/election".encode(), lease, b"one")
    assert again.key.key == won.key.key
    with pytest.raises(FencedError):
        await write(store, term, 1)
    store.leadership = again
    await write(store, term, 1)
    await lease.revoke()
    with pytest.raises(FencedError, match="lease"):
        await write(store, term, 1)
