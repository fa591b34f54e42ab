from __future__ import annotations

import pytest

from chiron.cluster.readiness import failures, is_ready, obstacle
from chiron.policy.placement import NodeGpus, Want, place
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

READY = types_pb2.INSTANCE_STATE_READY
LOADING = types_pb2.INSTANCE_STATE_LOADING
FAILED = types_pb2.INSTANCE_STATE_FAILED
DRAINING = types_pb2.INSTANCE_STATE_DRAINING
REASON = "1 of 2 instances cannot be placed"


def cluster(*states: types_pb2.InstanceState.ValueType, desired: int, reason: str = "") -> pb.ClusterSnapshot:
    snapshot = pb.ClusterSnapshot()
    for number, state in enumerate(states):
        snapshot.instances.add(
            instance_id=f"toy-{number}", model="toy", node_id="n", state=state, reason="torn"
        )
    snapshot.models.add(
        spec=pb.ModelSpec(name="toy"),
        desired_instances=desired,
        ready_instances=sum(state == READY for state in states),
        reason=reason,
    )
    return snapshot


def test_a_model_is_ready_when_every_desired_instance_is() -> None:
    assert is_ready(cluster(READY, READY, desired=2), "toy")
    assert not is_ready(cluster(READY, LOADING, desired=2), "toy")


def test_a_model_that_wants_no_instance_is_ready_and_an_unknown_one_is_not() -> None:
    assert is_ready(cluster(desired=0), "toy")
    assert not is_ready(cluster(desired=0), "other")


def test_failures_name_instance_node_and_reason() -> None:
    assert failures(cluster(READY, FAILED, desired=2), "toy") == ["toy-1 on n: torn"]
    assert failures(cluster(FAILED, desired=1), "other") == []


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((READY,), REASON),
        ((FAILED,), REASON),
        ((), REASON),
        ((READY, LOADING), ""),
        ((READY, DRAINING), ""),
        ((READY, READY), ""),
    ],
)
def test_an_obstacle_counts_once_nothing_moves_any_more(
    states: tuple[types_pb2.InstanceState.ValueType, ...], expected: str
) -> None:
    assert obstacle(cluster(*states, desired=2, reason=REASON), "toy") == expected


def test_a_model_that_is_just_waiting_for_its_first_placement_has_no_obstacle() -> None:
    assert obstacle(cluster(desired=2), "toy") == ""


def test_a_node_that_is_not_connected_may_bring_the_gpus_that_are_missing() -> None:
    snapshot = cluster(desired=2, reason=REASON)
    snapshot.nodes.add(node_id="here", live=True)
    away = snapshot.nodes.add(node_id="away", live=False)
    assert obstacle(snapshot, "toy") == ""

    away.live = True
    assert obstacle(snapshot, "toy") == REASON


def test_a_reason_from_before_a_node_came_back_is_no_obstacle() -> None:
    want = Want("toy", gpus=1, count=1)
    away = NodeGpus("here", healthy=frozenset({0}), live=False)
    [told_before] = place([away], [want]).refusals
    snapshot = cluster(desired=2, reason=f"{REASON}: {told_before.reason}")
    snapshot.nodes.add(node_id="here", live=True)
    assert obstacle(snapshot, "toy") == ""
