"""Demand reports cover their interval, once."""

from __future__ import annotations

from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.demand import Demand


def test_a_report_covers_what_happened_since_the_one_before() -> None:
    demand = Demand(now=10.0)
    counts = demand.of("m")
    counts.arrived.add(RequestClass.INTERACTIVE)
    counts.arrived.add(RequestClass.BATCH)
    counts.failed.add(RequestClass.BATCH)
    first = demand.report(1, {"m": (2, 3), "idle": (0, 0)}, now=11.5)
    assert (first.sequence, first.interval_ms) == (1, 1500.0)
    assert [one.model for one in first.demand] == ["idle", "m"]
    of_m = first.demand[1]
    assert of_m.arrived == types_pb2.ClassCounts(interactive=1, batch=1)
    assert of_m.failed == types_pb2.ClassCounts(batch=1)
    assert of_m.queued == types_pb2.ClassCounts(interactive=2, batch=3)

    second = demand.report(2, {"m": (0, 0)}, now=12.0)
    assert second.interval_ms == 500.0
    assert second.demand[0].arrived == types_pb2.ClassCounts()


def test_what_ends_after_a_report_is_in_the_next_one() -> None:
    demand = Demand(now=0.0)
    tally = demand.tally("m", RequestClass.INTERACTIVE)
    tally.arrived()
    [first] = demand.report(1, {}, now=1.0).demand
    tally.finished()
    [second] = demand.report(2, {}, now=2.0).demand
    one = types_pb2.ClassCounts(interactive=1)
    assert (first.arrived, first.finished) == (one, types_pb2.ClassCounts())
    assert (second.arrived, second.finished) == (types_pb2.ClassCounts(), one)
