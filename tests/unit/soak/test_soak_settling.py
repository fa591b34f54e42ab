"""What counts as left over at the end of a soak test."""

from __future__ import annotations

import pytest

from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from tests.soak.settling import unsettled


def at_rest() -> pb.ClusterSnapshot:
    return pb.ClusterSnapshot(
        models=[{"spec": {"name": "m"}, "desired_instances": 1, "ready_instances": 1}],
        nodes=[{"node_id": "n", "live": True}],
        routers=[{"router_id": "r"}],
        instances=[{"instance_id": "i", "model": "m", "state": types_pb2.INSTANCE_STATE_READY}],
    )


def left(snapshot: pb.ClusterSnapshot) -> list[str]:
    return list(unsettled(snapshot, agents=1, routers=1))


def test_a_cluster_at_rest_leaves_nothing() -> None:
    assert left(at_rest()) == []


def test_whatever_is_not_at_rest_is_named() -> None:
    dead, queued, unready, loading = at_rest(), at_rest(), at_rest(), at_rest()
    dead.nodes[0].live = False
    queued.routers[0].queued.batch = 2
    unready.models[0].ready_instances = 0
    loading.instances[0].state = types_pb2.INSTANCE_STATE_LOADING
    assert left(dead) == ["0 of 1 nodes live"]
    assert left(queued) == ["2 requests wait in router r"]
    assert left(unready) == ["0 of 1 instances of m are ready"]
    assert left(loading) == ["i is LOADING"]


def test_a_roll_that_is_not_over_is_named() -> None:
    snapshot = at_rest()
    for state, told in (
        (pb.ROLL_STATE_ROLLING, ["the roll of m is ROLLING why"]),
        (pb.ROLL_STATE_STALLED, ["the roll of m is STALLED why"]),
        (pb.ROLL_STATE_DONE, []),
    ):
        snapshot.models[0].roll.CopyFrom(pb.RollStatus(state=state, reason="why"))
        assert left(snapshot) == told


@pytest.mark.parametrize("field", ["running", "waiting"])
@pytest.mark.parametrize("kind", ["interactive", "batch"])
def test_a_slot_that_is_still_taken_is_named(field: str, kind: str) -> None:
    snapshot = at_rest()
    setattr(getattr(snapshot.instances[0].load, field), kind, 1)
    assert left(snapshot) == [f"1 requests {'run' if field == 'running' else 'wait'} in i"]


def test_a_router_too_many_or_too_few_is_named() -> None:
    none, two = at_rest(), at_rest()
    del none.routers[:]
    two.routers.add(router_id="old")
    assert left(none) == ["0 of 1 routers are connected"]
    assert left(two) == ["2 of 1 routers are connected"]
