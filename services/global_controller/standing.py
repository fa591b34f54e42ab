"""Controllers and store as operators see them: parts of ClusterSnapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chiron.v1 import cluster_pb2
from services.global_controller.seat import Seat
from services.global_controller.store_health import StoreHealth, StoreState

_STATES = {
    StoreState.OK: cluster_pb2.STORE_STATE_OK,
    StoreState.DEGRADED: cluster_pb2.STORE_STATE_DEGRADED,
    StoreState.READ_ONLY: cluster_pb2.STORE_STATE_READ_ONLY,
    StoreState.UNAVAILABLE: cluster_pb2.STORE_STATE_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Reign:
    """How the leader that answers stands."""

    term: int
    age_s: float
    settling: bool
    awaited: Sequence[str]
    """Nodes on record that have not reported yet, while it settles."""


def controllers(seat: Seat, reign: Reign) -> list[cluster_pb2.ControllerStatus]:
    """Every controller, the one that answers and leads first."""
    leader = cluster_pb2.ControllerStatus(
        address=seat.address,
        leader=True,
        term=reign.term,
        reign_ms=reign.age_s * 1000,
        settling=reign.settling,
        awaited_nodes=reign.awaited,
    )
    others = [one for one in seat.candidates if one != seat.address]
    return [leader, *(cluster_pb2.ControllerStatus(address=address) for address in others)]


def store_status(health: StoreHealth) -> cluster_pb2.StoreStatus:
    """The store."""
    return cluster_pb2.StoreStatus(
        kind=health.kind,
        state=_STATES[health.state],
        state_age_ms=health.age_s * 1000,
        reason=health.reason,
        endpoints=[
            cluster_pb2.StoreEndpoint(
                address=member.endpoint,
                answers=member.answers,
                reason=member.reason or ", ".join(f"alarm {alarm}" for alarm in member.alarms),
                leader=member.leads,
                version=member.version,
                db_bytes=member.db_bytes,
            )
            for member in health.members
        ],
    )
