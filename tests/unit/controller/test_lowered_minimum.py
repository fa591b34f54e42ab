"""What is wanted of an autoscaled model once its minimum is lower."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.store import AutoscalingOrders, Change, InstanceRecord, ModelRecord, Record, Snapshot
from chiron.v1 import cluster_pb2 as pb
from services.global_controller.operator_acts import apply_model
from tests.support.cluster_states import STOPPED, instance


def apply(snapshot: Snapshot, minimum: int, *, enabled: bool = True) -> Snapshot:
    scaling = pb.AutoscalingSpec(enabled=enabled)
    spec = pb.ModelSpec(
        name="chat", engine="sim", gpus_per_instance=1, min_instances=minimum, autoscaling=scaling
    )
    draft, _ = apply_model(snapshot, spec, ())
    assert draft is not None
    return put(snapshot, *draft.puts)


def put(snapshot: Snapshot, *records: Record) -> Snapshot:
    return snapshot.after(Change(snapshot.revision + 1, records))


def wanted(snapshot: Snapshot) -> ModelRecord:
    return snapshot.models["chat"]


@pytest.mark.parametrize(
    ("there", "minimum", "left"),
    [
        ([], 0, 0),
        ([], 1, 1),
        ([instance("a", "n")], 0, 1),
        ([instance("a", "n"), instance("b", "n")], 0, 2),
        ([instance("gone", "n", desired=STOPPED)], 0, 0),
    ],
    ids=["none placed", "partly lowered", "one placed", "all placed", "what stops is none"],
)
def test_what_is_not_placed_follows_the_lower_minimum(
    there: list[InstanceRecord], minimum: int, left: int
) -> None:
    snapshot = put(apply(Snapshot(), 2), *there)
    assert wanted(snapshot).desired_instances == 2
    assert wanted(apply(snapshot, minimum)).desired_instances == left


def test_more_than_the_minimum_asked_for_stays_wanted() -> None:
    # Two more than the minimum run no longer, and may come back.
    snapshot = apply(Snapshot(), 1)
    snapshot = put(snapshot, dataclasses.replace(wanted(snapshot), desired_instances=3))
    assert wanted(apply(snapshot, 0)).desired_instances == 2


def test_a_number_that_people_have_set_stays() -> None:
    snapshot = apply(Snapshot(), 2)
    pinned = dataclasses.replace(wanted(snapshot), autoscaling=AutoscalingOrders(pinned_instances=2))
    assert wanted(apply(put(snapshot, pinned), 0)).desired_instances == 2
    by_hand = apply(Snapshot(), 2, enabled=False)
    assert wanted(apply(by_hand, 0, enabled=False)).desired_instances == 2
