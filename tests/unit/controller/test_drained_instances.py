"""What operators drain is replaced before it stops, in its role, where there is room."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.rpc.errors import ChironError
from chiron.store import Change, Snapshot
from chiron.v1 import types_pb2
from services.global_controller.drain_acts import drain_instance, drain_role
from tests.support.cluster_states import (
    FAILED,
    READY,
    STOPPED,
    after,
    cluster,
    decide,
    instance,
    model,
    node,
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
