"""etcd's own election service: one leader at a time among those who campaign under a name."""

from __future__ import annotations

import asyncio
import logging

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.contract import FencedError, RefusedError, UnavailableError
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.leadership import Leadership
from chiron.store.etcd.lease import Lease
from chiron.store.etcd.methods import CAMPAIGN, LEADER, RESIGN

_log = logging.getLogger(__name__)
_NO_LEADER = "election: no leader"


async def campaign(connection: Connection, name: bytes, lease: Lease, value: bytes) -> Leadership:
    """Waits until the election is won.

    A campaign that breaks is taken up again: with the same lease the server finds its candidate's key there.

    Args:
        connection: to etcd.
        name: of the election.
        lease: what the leadership lasts for.
        value: what others read about the leader.

    Raises:
        FencedError: the lease ended first.
        RefusedError: the server's answer.
    """
    request = pb.CampaignRequest(name=name, lease=lease.lease_id, value=value)
    lost = asyncio.create_task(lease.lost.wait())
    backoff = connection.backoff()
    try:
        while True:
            asked = asyncio.create_task(connection.wait_for(CAMPAIGN, request))
            try:
                await asyncio.wait({asked, lost}, return_when=asyncio.FIRST_COMPLETED)
                if not lease.alive:
                    raise FencedError("the lease has ended before the election was won")
                return Leadership((await asked).leader, lease)
            except UnavailableError as error:
                _log.info("the campaign is taken up again: %s", error)
                await backoff.pause()
            finally:
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
    finally:
        lost.cancel()


async def leader(connection: Connection, name: bytes) -> bytes | None:
    """What the leader tells about itself; None while there is none. Raises UnavailableError."""
    try:
        answer = await connection.call(LEADER, pb.LeaderRequest(name=name), repeatable=True)
    except (RefusedError, UnavailableError) as error:
        if _NO_LEADER in str(error):
            return None
        raise
    return answer.kv.value


async def resign(connection: Connection, leadership: Leadership, *, revoke: bool = True) -> None:
    """Gives a leadership up, and its lease unless `revoke` is False. Raises UnavailableError."""
    await connection.call(RESIGN, pb.ResignRequest(leader=leadership.key))
    if revoke:
        await leadership.lease.revoke()
