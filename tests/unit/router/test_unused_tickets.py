"""Whose doing it is that a ticket was not used."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.abandoned import Opener
from services.router.core import CoreSettings, RouterCore
from services.router.request import PendingRequest, Place, Unused

TTL_S = 0.5
OPENER = Opener("web", "connection 1")


def core_with(heartbeat_ms: int) -> RouterCore:
    """One instance that reported at 0 and promises to report again."""
    core = RouterCore(CoreSettings(10, 0, 1.0, TTL_S), LeastExpectedWait())
    routed = control_pb2.RoutedInstance(
        instance_id="a",
        incarnation=1,
        model="m",
        address="host-a:1",
        role=types_pb2.ROLE_MIXED,
        state=types_pb2.INSTANCE_STATE_READY,
    )
    models = [control_pb2.RoutedModel(name="m")]
    core.snapshot(control_pb2.RoutingTable(epoch=1, term=1, models=models, instances=[routed]), 0.0)
    report = worker_pb2.WatchLoadResponse(
        instance_id="a",
        incarnation=1,
        role=types_pb2.ROLE_MIXED,
        state=types_pb2.INSTANCE_STATE_READY,
        batch_size=4,
        heartbeat_ms=heartbeat_ms,
    )
    core.load("a", 1, report, 0.0)
    return core


@pytest.mark.parametrize(
    ("heartbeat_ms", "taken_at", "blamed"),
    [
        (1000, 0.4, True),  # Nothing has changed at the worker since: it need not have reported.
        (1000, 0.9, False),  # By the time it lapses the worker has missed its heartbeat.
        (0, 0.1, False),  # No promise to report: half a ticket's time.
        (100, 0.1, False),
    ],
)
def test_a_lapsed_ticket_counts_against_its_holder_while_the_worker_is_heard(
    heartbeat_ms: int, taken_at: float, blamed: bool
) -> None:
    core = core_with(heartbeat_ms)
    request = PendingRequest(
        "r", "m", arrived=taken_at, request_class=RequestClass.INTERACTIVE, lookaside=True, opener=OPENER
    )
    [place] = core.submit(request, taken_at)
    assert isinstance(place, Place)
    told = core.tick(taken_at + TTL_S)
    assert (Unused(OPENER) in told) is blamed
