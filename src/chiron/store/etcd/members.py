"""What each member of etcd says about itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.contract import CompactedError, RefusedError, TooLargeError, UnavailableError
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.methods import STATUS

_ALARMS = ("NOSPACE", "CORRUPT")


@dataclass(frozen=True, slots=True)
class Member:
    """One member's state."""

    endpoint: str
    answers: bool
    reason: str = ""
    """Why it does not answer."""
    leads: bool = False
    knows_leader: bool = False
    """False where it is cut off from the majority."""
    version: str = ""
    db_bytes: int = 0
    """Size of its database on disk, in bytes."""
    alarms: tuple[str, ...] = ()
    """NOSPACE: the quota of the disk is used up; CORRUPT: members differ. Either stops all writes."""


async def look(connection: Connection) -> Sequence[Member]:
    """Asks every endpoint at once."""
    members = range(len(connection.settings.endpoints))
    return await asyncio.gather(*(_look(connection, index) for index in members))


async def _look(connection: Connection, index: int) -> Member:
    endpoint = connection.settings.endpoints[index]
    try:
        status = await connection.ask(index, STATUS, pb.StatusRequest())
    except (UnavailableError, RefusedError, CompactedError, TooLargeError) as error:
        return Member(endpoint, answers=False, reason=str(error).removeprefix(f"etcd at {endpoint}: "))
    told = " ".join(status.errors)
    return Member(
        endpoint,
        answers=True,
        leads=status.leader != 0 and status.leader == status.header.member_id,
        knows_leader=status.leader != 0,
        version=status.version,
        db_bytes=status.db_size,
        alarms=tuple(alarm for alarm in _ALARMS if f"alarm:{alarm}" in told),
    )
