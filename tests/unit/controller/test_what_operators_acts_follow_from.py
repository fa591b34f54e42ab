"""What an operator asks of one instance follows from no earlier decision about its model."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.store import Change, DecisionRecord, Snapshot
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.decisions.causes import Causes
from services.global_controller.drain_acts import drain_instance
from services.global_controller.instance_limits import set_instance_limits
from services.global_controller.operator_acts import give_back_role, set_role
from services.global_controller.sleep_acts import set_sleeping
from services.global_controller.view import ClusterView
from services.global_controller.writer import Draft
from tests.support.cluster_states import cluster, instance, model, node

_LIMITS = cluster_pb2.SetInstanceLimitsRequest(instance_id="a", batch_size=2)


def _view() -> ClusterView:
    sleepy = model(desired=2)
    spec = sleepy.parsed_spec()
    spec.autoscaling.sleep_level = 1
    sleepy = dataclasses.replace(sleepy, spec=spec.SerializeToString())
    pinned = dataclasses.replace(instance("a", "n", 0), role_pinned=True)
    view = cluster(sleepy, node("n"), pinned, instance("b", "n", 1))
    return dataclasses.replace(view, sleep_host_bytes={"n": 2**40})


def _draft(asked: str) -> Draft | None:
    view = _view()
    snapshot = Snapshot().after(
        Change(1, (*view.models, *view.instances, *(one.record for one in view.nodes)))
    )
    if asked == "set role":
        return set_role(snapshot, "a", types_pb2.ROLE_BATCH)
    if asked == "give back role":
        return give_back_role(snapshot, "a")
    if asked == "sleep":
        return set_sleeping(snapshot, view, "a", sleeping=True)
    if asked == "drain":
        return drain_instance(snapshot, "a")
    return set_instance_limits(snapshot, _LIMITS, None)


@pytest.mark.parametrize("asked", ["set role", "give back role", "sleep", "drain", "limits"])
def test_it_is_not_blamed_on_the_autoscalers_last_decision(asked: str) -> None:
    causes = Causes()
    causes.note(DecisionRecord("d1", 1, 1, "start", "chat", "", "", "requests wait"))
    draft = _draft(asked)
    assert draft is not None
    assert [causes.of(act) for act in draft.acts] == [""]
