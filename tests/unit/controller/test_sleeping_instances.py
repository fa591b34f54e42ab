"""Instances that sleep, in the controller: who counts, who must go, what keeps one from sleep or waking."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.internal.v1 import control_pb2
from chiron.policy.decisions import Retire, Sleep, Start, Wake
from chiron.policy.words import Role
from chiron.rpc.errors import ChironError, Reason
from chiron.store import Change, InstanceRecord, ModelRecord, Snapshot
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller import levels, routing, views
from services.global_controller.bounds import Bounds
from services.global_controller.carrying_out import Carried, carry_out
from services.global_controller.fleet import held_gpus
from services.global_controller.notice import Notice
from services.global_controller.registry import Registry
from services.global_controller.sleep_acts import set_sleeping
from services.global_controller.sleepers import LOST_SLEEPER_S, Sleepers
from services.global_controller.view import ClusterView, Liveness, NodeView
from tests.support.cluster_states import (
    DRAINING,
    FAILED,
    LOADING,
    PENDING,
    READY,
    RUNNING,
    STOPPED,
    cluster,
    decide,
    instance,
    model,
    node,
)

SLEEP = control_pb2.DESIRED_STATE_SLEEPING
SLEEPING = types_pb2.INSTANCE_STATE_SLEEPING
GIB = 2**30


def sleepy(
    name: str = "chat", desired: int = 1, *, version: int = 1, level: int = 1, host_mib: int = 0
) -> ModelRecord:
    """A model that may sleep."""
    record = model(name, desired, version=version)
    spec = record.parsed_spec()
    spec.autoscaling.sleep_level, spec.autoscaling.sleep_host_mib = level, host_mib
    return dataclasses.replace(record, spec=spec.SerializeToString())


def asleep(name: str, *gpus: int, of: str = "chat", at: str = "n", version: int = 1) -> InstanceRecord:
    return instance(name, at, *gpus, of=of, state=SLEEPING, desired=SLEEP, version=version)


def with_memory(view: NodeView, gib: int) -> NodeView:
    gpus = tuple(dataclasses.replace(gpu, memory_bytes=gib * GIB) for gpu in view.record.gpus)
    return dataclasses.replace(view, record=dataclasses.replace(view.record, gpus=gpus))


def hosts(view: ClusterView, gib: float = 64, **kept_gib: float) -> ClusterView:
    """With so much host memory for sleepers on each node, and what sleepers were measured to take."""
    return dataclasses.replace(
        view,
        sleep_host_bytes={one.record.node_id: int(gib * GIB) for one in view.nodes},
        kept_host_bytes={name: int(size * GIB) for name, size in kept_gib.items()},
    )


def long_dead(name: str) -> NodeView:
    return dataclasses.replace(node(name, liveness=Liveness.DEAD), silent_s=61.0)


def test_a_sleeper_waits_for_a_node_that_has_just_fallen_silent() -> None:
    done = decide(cluster(sleepy(desired=0), node("n", liveness=Liveness.DEAD), asleep("a", 0)))
    assert (done.puts, done.due_s) == ((), LOST_SLEEPER_S - 7.5)


def test_a_sleeper_is_none_of_those_that_are_wanted_and_its_gpu_is_for_others() -> None:
    view = cluster(sleepy("chat", 0), model("other", 1), node("n", 1), asleep("a", 0))
    done = decide(view)
    [placed] = done.puts
    assert (placed.model, placed.node_id, placed.gpu_indexes) == ("other", "n", (0,))
    assert "only sleepers keep a part of its GPUs" in done.acts[0].reason


@pytest.mark.parametrize("state", [READY, DRAINING])
def test_until_it_is_seen_asleep_nobody_gets_its_gpu(state: types_pb2.InstanceState.ValueType) -> None:
    falls = instance("a", "n", 0, state=state, desired=SLEEP)
    done = decide(cluster(sleepy("chat", 0), model("other", 1), node("n", 1), falls))
    assert done.puts == ()
    assert "other" in done.reasons
    waking = instance("a", "n", 0, state=SLEEPING, desired=RUNNING)
    assert decide(cluster(sleepy("chat", 1), model("other", 1), node("n", 1), waking)).puts == ()


def test_sleepers_leave_no_room_on_a_small_gpu() -> None:
    # Each may keep 4 GiB, and an instance takes 0.92 of the memory.
    parts = (sleepy("chat", 0), model("other", 1), asleep("a", 0))
    assert decide(cluster(*parts, with_memory(node("n", 1), 40))).puts == ()
    assert len(decide(cluster(*parts, with_memory(node("n", 1), 80))).puts) == 1
    two = (*parts, asleep("b", 0))
    assert decide(cluster(*two, with_memory(node("n", 1), 80))).puts == ()


def test_a_waking_instance_counts_as_coming() -> None:
    waking = instance("a", "n", 0, state=SLEEPING, desired=RUNNING)
    assert decide(cluster(sleepy("chat", 1), node("n", 2), waking)).puts == ()


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ((sleepy(version=2, desired=0), node("n"), asleep("a", 0)), "runs spec version 1, not 2"),
        ((sleepy(desired=0), node("n", draining=True), asleep("a", 0)), "is being drained"),
        ((sleepy(desired=0), node("n", unhealthy=(0,)), asleep("a", 0)), "GPU 0 of n is not healthy"),
        ((sleepy(desired=0), long_dead("n"), asleep("a", 0)), "silent for 61.0 s"),
        (
            (
                sleepy(desired=0),
                node("n"),
                instance("a", "n", 0, state=FAILED, reason="killed by SIGKILL", desired=SLEEP),
            ),
            "its worker ended in its sleep: killed by SIGKILL",
        ),
        (
            (sleepy(desired=0), node("n"), instance("a", "n", 0, state=PENDING, desired=SLEEP)),
            "its worker ended in its sleep",
        ),
    ],
)
def test_a_sleeper_that_nobody_will_wake_stops(
    parts: tuple[ModelRecord | NodeView | InstanceRecord, ...], why: str
) -> None:
    done = decide(cluster(*parts))
    assert [(one.instance_id, one.desired) for one in done.puts] == [("a", STOPPED)]
    assert why in done.acts[0].reason
    assert decide(cluster(*parts, settling=True)).puts == ()


def test_a_sleeper_is_left_alone_where_nothing_is_the_matter() -> None:
    assert decide(cluster(sleepy(desired=0), node("n"), asleep("a", 0))).puts == ()


def test_who_may_sleep() -> None:
    def why(*parts: ModelRecord | NodeView | InstanceRecord, gib: float = 64, **kept: float) -> str:
        return Sleepers(hosts(cluster(*parts), gib, **kept)).why_not_sleep(one)

    one = instance("a", "n", 0)
    assert why(sleepy(), node("n"), one) == ""
    assert "autoscaling.sleep_level of its spec is 0" in why(sleepy(level=0), node("n"), one)
    assert "is not connected" in why(sleepy(), node("n", liveness=Liveness.SILENT), one)
    # What the spec says and what another of the model was measured to take, whichever is more.
    big = sleepy(host_mib=16 * 1024)
    assert why(big, node("n"), one, gib=16) == ""
    assert why(big, node("n"), one, asleep("b", 1), gib=31) == (
        "a needs 16.0 GiB of host memory, and sleepers on n may take 15.0 GiB more"
    )
    assert why(sleepy(), node("n"), one, asleep("b", 1), gib=30, b=20) != ""
    assert why(sleepy(), node("n"), one, asleep("b", 1), gib=40, b=20) == ""
    assert why(sleepy(level=2), node("n"), one, gib=0) == ""
    one = instance("a", "n", 0, state=LOADING)
    assert why(sleepy(), node("n"), one) == "a does not serve"


def test_who_may_wake() -> None:
    def why(*parts: ModelRecord | NodeView | InstanceRecord) -> str:
        return Sleepers(cluster(*parts, one)).why_not_wake(one)

    one = asleep("a", 0, 1)
    assert why(sleepy(), node("n")) == ""
    assert why(sleepy(), node("n"), instance("b", "n", 1)) == "a cannot have its GPUs of n: GPU 1 is b's"
    assert why(sleepy(), node("n"), asleep("b", 1)) == ""
    assert why(sleepy(), node("n"), instance("b", "n", 1, state=DRAINING, desired=SLEEP)) != ""
    assert why(sleepy(), node("n", unhealthy=(1,))) == "GPU 1 of n is not healthy"
    assert "leaves it no room" in why(sleepy(), with_memory(node("n"), 40), asleep("b", 1))
    assert why(sleepy(), with_memory(node("n"), 80), asleep("b", 1)) == ""
    one = instance("a", "n", 0)
    assert why(sleepy(), node("n")) == "a does not sleep"


def snapshot_of(view: ClusterView) -> Snapshot:
    nodes = (one.record for one in view.nodes)
    return Snapshot().after(Change(1, (*view.models, *view.instances, *nodes)))


def test_an_operators_sleep_and_wake_change_how_many_are_wanted() -> None:
    view = hosts(cluster(sleepy(desired=2), node("n"), instance("a", "n", 0), instance("b", "n", 1)))
    draft = set_sleeping(snapshot_of(view), view, "a", sleeping=True)
    record, counted = draft.puts
    assert isinstance(record, InstanceRecord)
    assert isinstance(counted, ModelRecord)
    assert (record.desired, record.generation, counted.desired_instances) == (SLEEP, 2, 1)
    view = hosts(cluster(sleepy(desired=1), node("n"), asleep("a", 0), instance("b", "n", 1)))
    record, counted = set_sleeping(snapshot_of(view), view, "a", sleeping=False).puts
    assert isinstance(record, InstanceRecord)
    assert isinstance(counted, ModelRecord)
    assert (record.desired, record.generation, counted.desired_instances) == (RUNNING, 2, 2)


@pytest.mark.parametrize(("pinned", "then"), [(None, None), (2, 1)])
def test_an_operators_sleep_pins_no_number_that_was_not_pinned(pinned: int | None, then: int | None) -> None:
    scaled = sleepy(desired=2)
    spec = scaled.parsed_spec()
    spec.autoscaling.enabled = True
    orders = dataclasses.replace(scaled.autoscaling, pinned_instances=pinned)
    scaled = dataclasses.replace(scaled, spec=spec.SerializeToString(), autoscaling=orders)
    view = hosts(cluster(scaled, node("n"), instance("a", "n", 0), instance("b", "n", 1)))
    counted = set_sleeping(snapshot_of(view), view, "a", sleeping=True).puts[1]
    assert isinstance(counted, ModelRecord)
    assert (counted.desired_instances, counted.autoscaling.pinned_instances) == (1, then)


def test_an_operator_is_told_what_stands_in_the_way() -> None:
    view = hosts(cluster(sleepy(), node("n"), asleep("a", 0), instance("b", "n", 0)))
    with pytest.raises(ChironError, match="GPU 0 is b's") as caught:
        set_sleeping(snapshot_of(view), view, "a", sleeping=False)
    assert caught.value.reason is Reason.BUSY
    least = sleepy()
    spec = least.parsed_spec()
    spec.min_instances = 1
    view = hosts(
        cluster(dataclasses.replace(least, spec=spec.SerializeToString()), node("n"), instance("b", "n", 0))
    )
    with pytest.raises(ChironError, match=r"chat must run at least 1 instance \("):
        set_sleeping(snapshot_of(view), view, "b", sleeping=True)


def test_a_spec_that_allows_no_sleep_is_what_the_refusal_names() -> None:
    view = hosts(cluster(sleepy(level=0), node("n"), instance("a", "n", 0)))
    with pytest.raises(
        ChironError, match=r"chat may not sleep: autoscaling\.sleep_level of its spec is 0"
    ) as caught:
        set_sleeping(snapshot_of(view), view, "a", sleeping=True)
    assert caught.value.reason is Reason.INVALID_ARGUMENT, "nothing that passes by itself"


def carried(view: ClusterView, *actions: Start | Retire | Sleep | Wake, most: int = 9) -> Carried:
    bounds = {one.name: Bounds(0, most) for one in view.models}
    return carry_out(view, actions, "{}-new".format, bounds=bounds)


def test_an_autoscalers_sleep_and_wake_are_carried_out() -> None:
    view = hosts(cluster(sleepy(desired=1), node("n", 1), instance("a", "n", 0)))
    done = carried(view, Sleep("chat", "a", "it is idle", {}))
    assert [(one.instance_id, one.desired) for one in done.plan.puts] == [("a", SLEEP)]
    assert [(one.name, one.desired_instances) for one in done.plan.models] == [("chat", 0)]
    assert [(act.action, act.reason) for act in done.plan.acts] == [("sleep", "it is idle")]
    view = hosts(cluster(sleepy(desired=0), node("n", 1), asleep("a", 0)))
    done = carried(view, Wake("chat", "a", Role.BATCH, "requests wait", {}))
    [record] = done.plan.puts
    assert (record.desired, record.role) == (RUNNING, types_pb2.ROLE_BATCH)
    assert [(act.action, act.reason) for act in done.plan.acts] == [("wake", "batch: requests wait")]
    done = carried(view, Retire("chat", "a", "it sleeps alone", {}))
    assert [(one.instance_id, one.desired) for one in done.plan.puts] == [("a", STOPPED)]
    assert done.plan.models == (), "it was none of those that are wanted"


def test_an_autoscalers_actions_that_cannot_be_are_void() -> None:
    view = hosts(
        cluster(sleepy(desired=0), model("b", 1), node("n", 1), asleep("a", 0), instance("b-1", "n", of="b"))
    )
    void = carried(view, Wake("chat", "a", Role.MIXED, "requests wait", {})).void
    assert [why for _, why in void] == ["a cannot have its GPUs of n: GPU 0 is b-1's"]
    view = hosts(cluster(sleepy(desired=1, level=0), node("n", 1), instance("a", "n", 0)))
    assert len(carried(view, Sleep("chat", "a", "it is idle", {})).void) == 1


def test_routers_have_notice_of_a_sleep_and_lose_sight_of_a_sleeper_until_it_wakes() -> None:
    def routed(record: InstanceRecord) -> list[types_pb2.InstanceState.ValueType]:
        view = cluster(sleepy(), node("n"), record)
        found = routing.entries(snapshot_of(view), Registry(5.0, lambda: 0.0), {})[1]
        return [one.state for one in found.values()]

    falls = dataclasses.replace(instance("a", "n", 0, desired=SLEEP), generation=4)
    assert routed(falls) == [DRAINING]
    assert views.shown_state(falls) == DRAINING
    assert routed(asleep("a", 0)) == []
    assert routed(instance("a", "n", 0, state=SLEEPING, desired=RUNNING)) == [SLEEPING]
    notice = Notice(2.0)
    notice.update([falls], 100.0, routers=True)
    [told] = levels.told([falls], notice)
    assert (told.desired, told.generation) == (RUNNING, 3)
    notice.update([falls], 102.0, routers=True)
    [told] = levels.told([falls], notice)
    assert (told.desired, told.generation) == (SLEEP, 4)


def test_an_agent_is_told_how_its_instance_sleeps() -> None:
    spec = cluster_pb2.ModelSpec(name="chat")
    spec.autoscaling.sleep_level, spec.autoscaling.sleep_residual_mib = 2, 100
    told = levels.desired_instance(asleep("a", 0), spec)
    assert (told.sleep_level, told.sleep_residual_bytes) == (2, 100 * 2**20)


STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "sleep", "wake", "retire", "report"]), st.integers(0, 9)), max_size=40
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_whatever_is_asked_for_no_gpu_has_two_owners(steps: list[tuple[str, int]]) -> None:
    """Agents do as they are told whenever a report comes; what cannot be done at once is void."""
    models = {name: sleepy(name, 0) for name in "ab"}
    records: dict[str, InstanceRecord] = {}
    number = 0
    for kind, chance in steps:
        view = hosts(cluster(*models.values(), node("n", 2), *records.values()))
        name = "ab"[chance % 2]
        some = sorted(records)[chance % len(records)] if records else ""
        if kind == "report" and some:
            seen = {RUNNING: READY, SLEEP: SLEEPING}.get(records[some].desired)
            if seen is None:
                del records[some]
            else:
                observed = dataclasses.replace(records[some].observed, state=seen)
                records[some] = dataclasses.replace(records[some], observed=observed)
            continue
        if kind != "start" and not some:
            continue
        of = records[some].model if some else name
        action = {
            "start": Start(name, Role.MIXED, 1, "", {}),
            "sleep": Sleep(of, some, "", {}),
            "wake": Wake(of, some, Role.MIXED, "", {}),
            "retire": Retire(of, some, "", {}),
        }.get(kind)
        if action is None:
            continue
        number += 1
        bounds = {one: Bounds(0, 9) for one in models}
        done = carry_out(view, [action], f"{{}}-{number}".format, bounds=bounds).plan
        records |= {record.instance_id: record for record in done.puts}
        models |= {one.name: one for one in done.models}
        owned = [index for record in records.values() for index in held_gpus(record)]
        assert len(owned) == len(set(owned)), (kind, records)
