"""What a FleetSnapshot holds, from records and reports written down here."""

from __future__ import annotations

import dataclasses
import math

import pytest

from chiron.internal.v1 import control_pb2
from chiron.policy.decisions import Wake
from chiron.policy.fleet import load_autoscaler
from chiron.policy.snapshots import NEVER_S, BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role
from chiron.store import GpuRecord, InstanceRecord, ModelRecord
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.fleet_instances import Expected
from services.global_controller.fleet_snapshot import (
    Known,
    Told,
    fleet_snapshot,
    gpu_type,
    queued_interactive,
)
from services.global_controller.phases import Phases
from services.global_controller.view import Liveness, NodeView
from tests.support.cluster_states import FAILED, LOADING, PENDING, READY, STOPPED, instance, model, node

SLEEPING = types_pb2.INSTANCE_STATE_SLEEPING
SLEEP = control_pb2.DESIRED_STATE_SLEEPING
TRAFFIC = Traffic(interval_s=1.0, arrived_interactive=5)
NOW = 1000.0
SPEC = cluster_pb2.ModelSpec(
    name="chat",
    gpus_per_instance=2,
    min_instances=1,
    max_instances=9,
    max_batch_size=64,
    initial_batch_size=16,
    priority=-3,
    slo_defaults=cluster_pb2.SloDefaults(
        interactive=types_pb2.Slo(ttft_ms=800, itl_ms=60), batch=types_pb2.Slo(itl_ms=400)
    ),
)
CHAT = dataclasses.replace(model("chat"), spec=SPEC.SerializeToString())


def known(
    *parts: ModelRecord | NodeView | InstanceRecord,
    statuses: tuple[cluster_pb2.InstanceStatus, ...] = (),
    routers: tuple[Told, ...] = (),
    unknown: tuple[InstanceRecord, ...] = (),
) -> Known:
    """Everything that the parts and the reports tell; the instances have just been seen."""
    models = [part for part in parts if isinstance(part, ModelRecord)]
    instances = [
        dataclasses.replace(part, spec=SPEC.SerializeToString())
        for part in parts
        if isinstance(part, InstanceRecord)
    ]
    reported = {status.instance_id: status for status in statuses}
    phases = Phases()
    phases.update(models, instances, reported, NOW)
    return Known(
        models=models,
        instances=instances,
        unknown=unknown,
        nodes={part.record.node_id: part for part in parts if isinstance(part, NodeView)},
        statuses=reported,
        routers=routers,
        phases=phases,
        traffic={one.name: TRAFFIC for one in models},
        presumed=Expected(load_time_s=40.0, wake_time_s=4.0),
    )


def cramped(view: NodeView, gib: int = 8) -> NodeView:
    """The node with GPUs of so much memory, of which a sleeper may keep 4 GiB."""
    gpus = tuple(dataclasses.replace(gpu, memory_bytes=gib << 30) for gpu in view.record.gpus)
    return dataclasses.replace(view, record=dataclasses.replace(view.record, gpus=gpus))


def instances_of(seen: Known, now: float = NOW) -> dict[str, FleetInstance]:
    [fleet] = fleet_snapshot(seen, now).models
    return {one.instance_id: one for one in fleet.instances}


def test_a_model_is_told_by_its_spec() -> None:
    assert fleet_snapshot(known(CHAT, node("n")), NOW) == FleetSnapshot(
        now_s=NOW,
        models=(
            ModelFleet(
                name="chat",
                gpus_per_instance=2,
                min_instances=1,
                max_instances=9,
                ttft_slo_s=0.8,
                itl_slo_s=0.06,
                batch_itl_slo_s=0.4,
                instances=(),
                traffic=TRAFFIC,
                load_time_s=40.0,
                wake_time_s=4.0,
                initial_batch_size=16,
                priority=-3,
            ),
        ),
        free_gpus={"n": 2},
    )


def test_an_instance_is_told_by_its_last_report() -> None:
    load = cluster_pb2.InstanceLoad(
        batch_size=11,
        safe_batch_size=10,
        running=types_pb2.ClassCounts(interactive=1, batch=2),
        waiting=types_pb2.ClassCounts(interactive=3, batch=4),
        tokens_per_s=500.5,
        step_token_budget=512,
        step_tokens=48.5,
        kv_usage=0.25,
        kv_capacity_tokens=9000,
        max_context_tokens=4096,
    )
    status = cluster_pb2.InstanceStatus(
        instance_id="a",
        state=READY,
        role=types_pb2.ROLE_BATCH,
        load=load,
        state_age_ms=30_000,
        load_age_ms=250,
    )
    seen = known(CHAT, node("n"), instance("a", "n", 0, 1), statuses=(status,))
    assert instances_of(seen, NOW + 2.0)["a"] == FleetInstance(
        instance_id="a",
        node_id="n",
        role=Role.BATCH,
        phase=Phase.READY,
        batch_size=11,
        safe_batch_size=10,
        running_interactive=1,
        running_batch=2,
        waiting_interactive=3,
        waiting_batch=4,
        tokens_per_s=500.5,
        step_token_budget=512,
        step_tokens=48.5,
        kv_usage=0.25,
        kv_capacity_tokens=9000,
        phase_age_s=32.0,
        report_age_s=0.75,
    )
    assert fleet_snapshot(seen, NOW).models[0].max_context_tokens == 4096


def test_an_operators_role_is_told_as_fixed() -> None:
    pinned = dataclasses.replace(instance("a", "n", 0), role_pinned=True)
    seen = instances_of(known(CHAT, node("n", 2), pinned, instance("b", "n", 1)))
    assert {key: one.role_fixed for key, one in seen.items()} == {"a": True, "b": False}


def test_an_instance_that_has_not_reported_starts_with_the_specs_batch_size() -> None:
    placed = instances_of(known(CHAT, node("n"), instance("a", "n", state=PENDING)), NOW + 15.0)["a"]
    assert (placed.role, placed.phase) == (Role.MIXED, Phase.LOADING)
    assert (placed.batch_size, placed.safe_batch_size) == (16, 16)
    assert (placed.phase_age_s, placed.ready_in_s) == (15.0, 25.0)


def test_an_instance_that_is_late_is_expected_at_any_moment() -> None:
    late = instances_of(known(CHAT, node("n"), instance("a", "n", state=LOADING)), NOW + 500.0)["a"]
    assert late.ready_in_s == 0.0


def test_a_sleeping_instance_can_wake_unless_another_owns_a_gpu_of_it() -> None:
    asleep = instance("a", "n", 0, 1, state=SLEEPING, desired=SLEEP)
    alone = instances_of(known(CHAT, node("n"), asleep))["a"]
    assert (alone.phase, alone.can_wake) == (Phase.SLEEPING, True)
    other = instance("b", "n", 1, of="other")
    assert not instances_of(known(CHAT, node("n"), asleep, other))["a"].can_wake
    elsewhere = instance("b", "m", 1, of="other")
    assert instances_of(known(CHAT, node("n"), node("m"), asleep, elsewhere))["a"].can_wake


def test_one_that_wakes_is_ready_after_the_wake_time() -> None:
    woken = instances_of(known(CHAT, node("n"), instance("a", "n", state=SLEEPING)), NOW + 1.0)["a"]
    assert (woken.phase, woken.ready_in_s, woken.can_wake) == (Phase.LOADING, 3.0, False)


def test_what_is_no_capacity_is_not_shown() -> None:
    seen = known(
        CHAT,
        node("n"),
        node("dead", liveness=Liveness.DEAD),
        instance("failed", "n", state=FAILED),
        instance("lost", "dead"),
        instance("stops", "n", desired=STOPPED),
    )
    assert {key: one.phase for key, one in instances_of(seen).items()} == {"stops": Phase.DRAINING}


def test_gpus_are_free_that_nothing_holds_on_nodes_that_take_instances() -> None:
    seen = known(
        CHAT,
        cramped(node("full", gpus=2)),
        node("sick", gpus=3, unhealthy=(2,)),
        node("leaves", draining=True),
        node("dead", liveness=Liveness.DEAD),
        instance("a", "full", 0, 1, state=SLEEPING, desired=SLEEP),
        unknown=(instance("b", "sick", 0),),
    )
    assert fleet_snapshot(seen, NOW).free_gpus == {"full": 0, "sick": 1}


def test_gpus_are_free_of_which_sleepers_leave_room_for_any_model() -> None:
    sleeper = instance("a", "n", 0, 1, state=SLEEPING, desired=SLEEP)

    def free(gib: int) -> int:
        return fleet_snapshot(known(CHAT, cramped(node("n", gpus=2), gib), sleeper), NOW).free_gpus["n"]

    # An instance takes 0.92 of a GPU's memory.
    assert (free(40), free(80)) == (0, 2)


def test_the_autoscaler_wakes_a_sleeper_of_whose_gpus_none_counts_as_free() -> None:
    sleeper = instance("a", "full", 0, 1, state=SLEEPING, desired=SLEEP)
    view = fleet_snapshot(known(CHAT, cramped(node("full", gpus=2)), sleeper), NOW)
    assert view.free_gpus == {"full": 0}
    actions = load_autoscaler("chiron").decide(view).actions
    assert [(type(action), action.instance_id) for action in actions] == [(Wake, "a")]  # type: ignore[union-attr]


def test_a_nodes_gpu_type_is_the_name_that_all_its_gpus_bear() -> None:
    def typed(*names: str) -> NodeView:
        gpus = tuple(GpuRecord(index, name=name) for index, name in enumerate(names))
        before = node("n")
        return dataclasses.replace(before, record=dataclasses.replace(before.record, gpus=gpus))

    assert gpu_type(typed("H100", "H100").record) == "H100"
    assert gpu_type(typed("H100", "A100").record) == ""
    assert gpu_type(typed().record) == ""
    assert fleet_snapshot(known(CHAT, typed("H100")), NOW).gpu_types == {"n": "H100"}
    assert fleet_snapshot(known(CHAT, typed("")), NOW).gpu_types == {}


def router(age_s: float, *groups: control_pb2.RequestGroup, queued: int = 0, of: str = "chat") -> Told:
    demand = control_pb2.ModelDemand(
        model=of, queued=types_pb2.ClassCounts(interactive=queued), batch_groups=groups
    )
    return Told(control_pb2.RouterReport(demand=[demand]), age_s)


def test_backlogs_of_all_routers_are_told_by_deadline_less_the_age_of_the_report() -> None:
    group = control_pb2.RequestGroup
    routers = (
        router(0.5, group(deadline_in_ms=9_000, requests=3, prompt_tokens=30), group(requests=1)),
        router(2.0, group(deadline_in_ms=1_000, requests=4, prompt_tokens=40)),
        router(0.0, group(deadline_in_ms=5_000, requests=99), of="other"),
    )
    [fleet] = fleet_snapshot(known(CHAT, routers=routers), NOW).models
    assert fleet.backlog == (
        BatchBacklog(-1.0, 4, 40),
        BatchBacklog(8.5, 3, 30),
        BatchBacklog(NEVER_S, 1, 0),
    )


def queue_reader(age_s: float, read_ms: float, *requests: int, queue_id: str = "q") -> Told:
    groups = [control_pb2.RequestGroup(deadline_in_ms=9_000, requests=each) for each in requests]
    report = control_pb2.RouterReport()
    report.batch_queue.queue_id, report.batch_queue.age_ms = queue_id, read_ms
    report.batch_queue.models.add(model="chat", groups=groups)
    report.batch_queue.models.add(model="other", groups=groups)
    return Told(report, age_s)


def test_a_durable_queue_counts_once_as_who_has_read_it_last_tells_it() -> None:
    routers = (
        queue_reader(0.5, 2_000, 100, 7),
        queue_reader(1.0, 200, 90),
        queue_reader(1.0, 5_000, 80),
        queue_reader(0.0, 0, 3, queue_id="another"),
        Told(control_pb2.RouterReport(), 0.0),
    )
    [fleet] = fleet_snapshot(known(CHAT, routers=routers), NOW).models
    assert fleet.backlog == (BatchBacklog(8.0, 90, 0), BatchBacklog(9.0, 3, 0))


def test_queues_of_all_routers_add_up_for_every_model_that_is_served() -> None:
    models = [CHAT, model("gone", deleted=True)]
    routers = [router(0, queued=2), router(0, queued=3), router(0, queued=9, of="gone")]
    assert queued_interactive(models, routers) == {"chat": 5}
    assert queued_interactive([CHAT], []) == {"chat": 0}


def test_deleted_models_are_not_shown() -> None:
    assert fleet_snapshot(known(model("gone", deleted=True)), NOW).models == ()


@pytest.mark.parametrize("name", ["chiron", "chiron-paper"])
def test_a_spec_without_slos_promises_nothing_and_an_autoscaler_can_still_reckon(name: str) -> None:
    seen = known(model("chat"), node("n"), instance("a", "n"))
    snapshot = fleet_snapshot(seen, NOW)
    [fleet] = snapshot.models
    assert {fleet.ttft_slo_s, fleet.itl_slo_s, fleet.batch_itl_slo_s} == {NEVER_S}
    decision = load_autoscaler(name).decide(snapshot)
    [assessment] = decision.assessments
    assert not any(map(math.isnan, assessment.numbers.values()))
