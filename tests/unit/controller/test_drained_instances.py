"""What operators drain is replaced before it stops, in its role, where there is room."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.rpc.errors import ChironError
from chiron.store import Change, InstanceRecord, Snapshot
from chiron.v1 import types_pb2
from services.global_controller.bounds import Bounds
from services.global_controller.carrying_out import carry_out
from services.global_controller.drain_acts import drain_instance, drain_role
from services.global_controller.reconcile import reconcile
from services.global_controller.view import ClusterView
from tests.support.cluster_states import (
    FAILED,
    LOADING,
    PENDING,
    READY,
    STOPPED,
    after,
    cluster,
    decide,
    instance,
    model,
    node,
    numbered,
    started,
    stopped,
)

MIXED, BATCH = types_pb2.ROLE_MIXED, types_pb2.ROLE_BATCH


def snapshot() -> Snapshot:
    records = [
        instance("a", "n0", 0),
        dataclasses.replace(instance("b", "n0", 1), role=BATCH),
        dataclasses.replace(instance("c", "n1", 0), role=BATCH),
        dataclasses.replace(instance("broken", "n1", 1, state=FAILED), role=BATCH),
        dataclasses.replace(instance("going", "n1", 2, desired=STOPPED), role=BATCH),
    ]
    return Snapshot().after(Change(1, (model(desired=4), *records)))


def test_a_role_is_all_instances_of_it_that_stay() -> None:
    draft = drain_role(snapshot(), "chat", BATCH)
    assert draft is not None
    assert {one.instance_id for one in draft.puts} == {"b", "c"}  # type: ignore[union-attr]
    assert [(act.action, act.numbers) for act in draft.acts] == [("drain", {"instances": 2})]
    assert drain_role(snapshot(), "chat", types_pb2.ROLE_INTERACTIVE) is None
    with pytest.raises(ChironError, match="role"):
        drain_role(snapshot(), "chat", types_pb2.ROLE_UNSPECIFIED)
    with pytest.raises(ChironError, match="no model 'code'"):
        drain_role(snapshot(), "code", BATCH)


def test_draining_again_changes_nothing_and_nobody_is_named_wrongly() -> None:
    draft = drain_instance(snapshot(), "a")
    assert draft is not None
    marked = snapshot().after(Change(2, tuple(draft.puts)))
    assert drain_instance(marked, "a") is None
    assert drain_instance(snapshot(), "going") is None
    with pytest.raises(ChironError, match="no instance 'z'"):
        drain_instance(snapshot(), "z")


def test_it_stops_once_its_replacement_serves() -> None:
    drained = dataclasses.replace(instance("a", "n0", 0), role=BATCH, draining=True)
    wanted = dataclasses.replace(model(), other_roles=((BATCH, 1),))
    view = cluster(wanted, node("n0"), drained)
    plan = decide(view)
    assert (started(plan), stopped(plan)) == ({"new-1": ("n0", (1,))}, set())
    assert [one.role for one in plan.puts] == [BATCH]
    assert not plan.puts[0].draining
    assert "for a, which an operator drains" in plan.acts[0].reason
    view = after(view, plan)
    ready = [
        dataclasses.replace(one, observed=dataclasses.replace(one.observed, state=READY))
        for one in view.instances
    ]
    plan = decide(dataclasses.replace(view, instances=tuple(ready)))
    assert stopped(plan) == {"a"}
    assert plan.acts[0].reason == "an operator drains it and enough others serve"


def test_it_stops_at_once_where_no_gpu_is_free() -> None:
    plan = decide(cluster(model(), node("n0", 1), dataclasses.replace(instance("a", "n0"), draining=True)))
    assert stopped(plan) == {"a"}
    assert plan.acts[0].reason == "an operator drains it and no GPU is free for another one"


def drained(name: str, *gpus: int, on: str = "n0") -> InstanceRecord:
    return dataclasses.replace(instance(name, on, *gpus), draining=True)


@pytest.mark.parametrize(
    "other",
    [
        instance("k", "n0", 1, state=FAILED, reason="exit 1"),
        instance("k", "n0", 1, state=LOADING, reason="exit 1", restarts=3),
        instance("k", "n0", 1, state=PENDING, reason="exit 1", restarts=3),
    ],
)
def test_it_serves_on_while_the_start_of_its_replacement_fails(other: InstanceRecord) -> None:
    plan = decide(cluster(model(), node("n0", 6), drained("a", 0), other))
    assert (stopped(plan), started(plan)) == (set(), {})
    said = plan.reasons["chat"]
    assert "a serves on although an operator drains it: until k serves, whose start fails (exit 1)" in said


def world_step(view: ClusterView) -> ClusterView:
    """Agents do what they were told: what stops is gone, and only then what is to come serves."""
    going = [one for one in view.instances if one.desired == STOPPED]
    if going:
        return dataclasses.replace(view, instances=tuple(one for one in view.instances if one not in going))
    ready = [
        dataclasses.replace(one, observed=dataclasses.replace(one.observed, state=READY))
        for one in view.instances
    ]
    return dataclasses.replace(view, instances=tuple(ready))


def test_without_room_a_drained_role_goes_one_at_a_time() -> None:
    view = cluster(model(desired=3), node("n0", 3), drained("a", 0), drained("b", 1), drained("c", 2))
    plan = decide(view)
    assert stopped(plan) == {"a"}
    assert "so that one goes at a time" in plan.reasons["chat"]
    ids, fewest, seen = numbered(), 3, []
    for _ in range(20):
        plan = reconcile(view, ids)
        seen += sorted(stopped(plan))
        view = after(view, plan)
        serving = [one for one in view.instances if one.observed.state == READY and one.desired != STOPPED]
        fewest = min(fewest, len(serving))
        if not plan.puts:
            view = world_step(view)
    assert (seen, fewest) == (["a", "b", "c"], 2)
    assert sorted(one.instance_id for one in view.instances) == ["new-1", "new-2", "new-3"]


def test_a_drained_node_without_room_elsewhere_empties_one_at_a_time() -> None:
    parts = (model(desired=2), node("n0", 2, draining=True))
    view = cluster(*parts, instance("a", "n0", 0), instance("b", "n0", 1))
    ids, seen = numbered(), []
    for _ in range(8):
        plan = reconcile(view, ids)
        seen.append(sorted(stopped(plan)))
        view = world_step(after(view, plan))
    assert seen[:2] == [["a"], ["b"]]
    assert view.instances == ()


def test_the_instances_of_an_agent_that_leaves_do_not_wait_for_each_other() -> None:
    leaving = dataclasses.replace(node("n0", 2), leaving=True)
    plan = decide(cluster(model(desired=2), leaving, instance("a", "n0", 0), instance("b", "n0", 1)))
    assert stopped(plan) == {"a", "b"}


@pytest.mark.parametrize(("may_start", "gone"), [((), set()), (("chat",), {"k"})])
def test_a_failed_replacement_is_tried_again_once_no_pause_forbids_it(
    may_start: tuple[str, ...], gone: set[str]
) -> None:
    failed = instance("k", "n0", 1, state=FAILED, reason="exit 1")
    view = cluster(model(), node("n0", 3), drained("a", 0), failed)
    done = carry_out(view, [], numbered(), bounds={"chat": Bounds(0, 4)}, may_start=may_start).plan
    assert stopped(done) == gone
    assert len(started(done)) == len(gone)


def test_what_has_failed_in_nobodys_place_is_not_tried_again_by_itself() -> None:
    failed = instance("k", "n0", 1, state=FAILED, reason="exit 1")
    view = cluster(model(desired=2), node("n0", 3), instance("a", "n0", 0), failed)
    done = carry_out(view, [], numbered(), bounds={"chat": Bounds(2, 4)}, may_start=("chat",)).plan
    assert done.puts == ()
