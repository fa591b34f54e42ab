"""Golden decisions for hand-worked examples of each formula."""

from __future__ import annotations

import math

import pytest

from chiron.policy.decisions import ChangeRole, Retire, Start, Wake
from chiron.policy.fleet import Chiron, ChironPaper, ChironSettings, UnknownAutoscalerError, load_autoscaler
from chiron.policy.fleet.arrivals import Arrivals
from chiron.policy.fleet.backpressure import (
    BatchSupply,
    GroupWork,
    batch_backpressure,
    interactive_backpressure,
    missing_batch_instances,
)
from chiron.policy.fleet.contention import FreeGpus, GpuRequest, grant
from chiron.policy.fleet.theta import DemandHistory
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role


def instance(key: str, role: Role = Role.MIXED, phase: Phase = Phase.READY, **more: float) -> FleetInstance:
    return FleetInstance(key, "n", role, phase, 100, 100, **more)  # type: ignore[arg-type]


def fleet(name: str = "m", *instances: FleetInstance, **more: object) -> ModelFleet:
    values: dict[str, object] = {
        "gpus_per_instance": 1,
        "min_instances": 0,
        "max_instances": 0,
        "ttft_slo_s": 10.0,
        "itl_slo_s": 0.2,
        "batch_itl_slo_s": 2.0,
        "instances": instances,
        "traffic": Traffic(1.0),
        "load_time_s": 20.0,
        "initial_batch_size": 100,
    }
    return ModelFleet(name, **(values | more))  # type: ignore[arg-type]


def snapshot(*models: ModelFleet, free: int = 100, budget: int = 0) -> FleetSnapshot:
    return FleetSnapshot(0.0, models, {"n": free}, gpu_budget=budget)


@pytest.mark.parametrize(
    ("demand", "capacity", "ibp"), [(150, 200, 0.75), (0, 200, 0.0), (3, 0, 1.0), (0, 0, 0.0)]
)
def test_ibp_is_demand_over_capacity_and_without_capacity_one_if_anything_waits(
    demand: float, capacity: float, ibp: float
) -> None:
    assert interactive_backpressure(demand, capacity) == ibp


def test_bbp_counts_groups_whose_work_is_done_too_late() -> None:
    # 100 tokens/s now and 50 more from 10 s on: 1,000 tokens by 10 s, 4,000 by 30 s.
    supply = BatchSupply(100.0, ((10.0, 50.0),))
    assert supply.tokens_by(30.0) == 4_000.0
    groups = [GroupWork(10.0, 1_000.0), GroupWork(30.0, 4_001.0), GroupWork(-5.0, 4_002.0)]
    assert batch_backpressure(groups, supply) == 2


def test_the_missing_batch_instances_are_what_the_worst_group_lacks() -> None:
    # Until 120 s: 12,000 of 30,000 tokens; one instance adds 90 × (120 - 20) = 9,000: two are missing.
    assert missing_batch_instances(
        [GroupWork(120.0, 30_000.0)], BatchSupply(100.0), 90.0, 20.0
    ) == pytest.approx(2.0)
    # What is late is to be done within two load times: 40 s, 20 of them with a new instance.
    assert missing_batch_instances(
        [GroupWork(-1.0, 5_800.0)], BatchSupply(100.0), 90.0, 20.0
    ) == pytest.approx(1.0)
    assert missing_batch_instances([GroupWork(120.0, 1.0)], BatchSupply(0.0), 0.0, 20.0) == math.inf


def test_theta_leaves_room_for_the_quantile_of_growth_within_one_load_time() -> None:
    history = DemandHistory(history_loads=1000, warmup_loads=20)
    # Demand rises by 5 a second, so by 40 within every load time of 8 s.
    for second in range(300):
        history.record(float(second), 100.0 + 5.0 * second, 8.0)
    theta = history.theta(120.0, 8.0, 0.95, default=0.8, smallest=0.1)
    assert theta.measured
    assert theta.growth == pytest.approx(40.0)
    assert theta.value == pytest.approx(120.0 / 160.0)
    assert history.theta(360.0, 8.0, 0.95, default=0.8, smallest=0.1).value == pytest.approx(0.9)
    assert history.theta(120.0, 8.0, 0.95, default=0.8, smallest=0.8).value == 0.8


def test_theta_is_the_default_until_twenty_load_times_are_known_and_one_for_falling_demand() -> None:
    history = DemandHistory(history_loads=1000, warmup_loads=20)
    for second in range(400):
        assert not history.theta(1.0, 20.0, 0.95, 0.8, 0.3).measured
        history.record(float(second), 1000.0 - second, 20.0)
    history.record(403.0, 500.0, 20.0)
    assert history.theta(1.0, 20.0, 0.95, 0.8, 0.3).value == 1.0


def test_demand_above_theta_adds_the_fewest_instances_that_bring_it_below() -> None:
    # 190 requests at Θ = 0.5 need 380 slots: two instances of 100 are there, two are missing.
    busy = [instance(key, running_interactive=95) for key in "ab"]
    decision = Chiron(ChironSettings(default_theta=0.5, ttft_share=0.0)).decide(snapshot(fleet("m", *busy)))
    (start,) = decision.actions
    assert isinstance(start, Start)
    assert (start.role, start.count) == (Role.MIXED, 2)
    assert start.numbers["ibp"] == pytest.approx(0.95)
    assert start.numbers["theta"] == 0.5
    assert "demand exceeds the target" in start.reason


@pytest.mark.parametrize(("ttft_slo_s", "starts"), [(10.0, 0), (1.0, 1)])
def test_requests_that_wait_within_half_of_the_ttft_slo_have_room(ttft_slo_s: float, starts: int) -> None:
    # About 9 requests a second end: in 5 s some 45 may wait beyond the 100 slots, in half a second 4. At the
    # default Θ of 0.85 that is room for 123 or for 89 requests; there are 120.
    ended = Traffic(1.0, queued_interactive=25, finished_interactive=100, finished_output_tokens=10_000)
    busy = instance("a", running_interactive=95, tokens_per_s=1_000.0)
    half = Chiron(ChironSettings(ttft_share=0.5))
    actions = half.decide(snapshot(fleet("m", busy, traffic=ended, ttft_slo_s=ttft_slo_s))).actions
    assert [type(action) for action in actions] == [Start] * starts


def test_arrivals_settle_over_as_many_load_times_as_agree() -> None:
    arrivals = Arrivals()
    for second in range(400):
        arrivals.record(90 if second % 10 < 5 else 110, 1.0, load_time_s=20.0)
    calm = arrivals.rate(confidence=2.0)
    assert calm is not None
    assert calm.settled == pytest.approx(100.0)
    # Blocks of 5 s at 90 and 110: the spread between neighbours is 20 / √2, over 80 blocks.
    assert calm.settled_error == pytest.approx(20 / math.sqrt(2) / math.sqrt(80))
    for _ in range(20):
        arrivals.record(300, 1.0, load_time_s=20.0)
    risen = arrivals.rate(confidence=2.0)
    assert risen is not None
    assert risen.settled == risen.likely == pytest.approx(300.0)
    assert 200.0 < risen.rising < 300.0


def test_an_empty_batch_instance_goes_while_another_ends_what_it_runs() -> None:
    autoscaler = Chiron(ChironSettings(batch_idle_s=5.0))
    model = fleet("m", instance("busy", Role.BATCH, running_batch=3), instance("empty", Role.BATCH))
    assert autoscaler.decide(FleetSnapshot(0.0, (model,), {"n": 10})).actions == ()
    (retire,) = autoscaler.decide(FleetSnapshot(5.0, (model,), {"n": 10})).actions
    assert isinstance(retire, Retire)
    assert retire.instance_id == "empty"


def test_waiting_requests_count_and_loading_instances_are_supply() -> None:
    busy = instance("a", running_interactive=90, waiting_interactive=10)
    loading = instance("b", phase=Phase.LOADING, ready_in_s=5.0)
    autoscaler = Chiron(ChironSettings(default_theta=0.5, ttft_share=0.0))
    assert autoscaler.decide(snapshot(fleet("m", busy, loading))).actions == ()


def test_the_first_request_of_a_model_without_instances_starts_one() -> None:
    model = fleet("m", traffic=Traffic(1.0, arrived_interactive=1, queued_interactive=1))
    decision = Chiron().decide(snapshot(model))
    assert [(type(a), getattr(a, "count", 0)) for a in decision.actions] == [(Start, 1)]
    assert decision.assessments[0].numbers["ibp"] == 1.0


def test_cheapest_first_change_a_role_then_wake_then_start() -> None:
    model = fleet(
        "m",
        instance("busy", running_interactive=100, waiting_interactive=150),
        instance("batch", Role.BATCH, running_batch=50),
        instance("asleep", phase=Phase.SLEEPING, can_wake=True),
        instance("stuck", phase=Phase.SLEEPING),
    )
    # 250 requests at Θ = 0.65 need 385 slots, one is there: three instances are missing.
    actions = Chiron(ChironSettings(default_theta=0.65, ttft_share=0.0)).decide(snapshot(model)).actions
    assert [type(action) for action in actions] == [ChangeRole, Wake, Start]
    assert [getattr(a, "instance_id", "") for a in actions] == ["batch", "asleep", ""]
    assert isinstance(actions[2], Start)
    assert actions[2].count == 1


def test_batch_instances_come_for_deadlines_and_all_go_when_no_batch_request_is_left() -> None:
    autoscaler = Chiron(ChironSettings(batch_idle_s=0.0))
    late = fleet("m", backlog=(BatchBacklog(300.0, 5_000, 0),))
    (start,) = autoscaler.decide(snapshot(late)).actions
    assert isinstance(start, Start)
    assert start.role is Role.BATCH
    assert start.numbers["bbp"] == 1.0
    done = fleet("m", instance("x", Role.BATCH), instance("y", Role.BATCH))
    gone = autoscaler.decide(snapshot(done)).actions
    assert [type(a) for a in gone] == [Retire, Retire]
    assert all("no batch request is left" in a.reason for a in gone)


def test_limits_of_the_model_the_nodes_and_the_budget_hold() -> None:
    waiting = Traffic(1.0, queued_interactive=1_000)
    for model, cluster_free, budget, expected in (
        (fleet("m", traffic=waiting, max_instances=3), 100, 0, 3),
        (fleet("m", traffic=waiting), 4, 0, 4),
        (fleet("m", traffic=waiting), 100, 2, 2),
        (fleet("m", traffic=waiting, gpus_per_instance=4), 7, 0, 1),
        (fleet("m", min_instances=2), 100, 0, 2),
    ):
        actions = Chiron().decide(snapshot(model, free=cluster_free, budget=budget)).actions
        assert sum(a.count for a in actions if isinstance(a, Start)) == expected


def test_gpus_go_by_priority_then_by_deficit_per_gpu() -> None:
    urgent = GpuRequest(fleet("urgent", priority=0), Role.MIXED, 1, 0.1)
    small = GpuRequest(fleet("small", priority=1), Role.MIXED, 4, 0.8)
    large = GpuRequest(fleet("large", priority=1, gpus_per_instance=4), Role.MIXED, 2, 0.9)
    assert grant([small, large, urgent], FreeGpus(snapshot(free=3))) == [2, 0, 1]
    # Once half of its deficit is served, 0.4 per GPU of `small` still goes before 0.225 of `large`.
    assert grant([small, large, urgent], FreeGpus(snapshot(free=9))) == [4, 1, 1]


def test_a_more_urgent_model_takes_gpus_from_a_less_urgent_one_batch_first() -> None:
    urgent = fleet("urgent", priority=0, traffic=Traffic(1.0, queued_interactive=50))
    other = fleet(
        "other", instance("b", Role.BATCH, running_batch=9), instance("i", running_interactive=9), priority=1
    )
    (retire,) = Chiron().decide(snapshot(urgent, other, free=0)).actions
    assert isinstance(retire, Retire)
    assert retire.instance_id == "b"
    assert "contention: urgent (priority 0)" in retire.reason
    equal = fleet("urgent", priority=1, traffic=Traffic(1.0, queued_interactive=50))
    assert Chiron().decide(snapshot(equal, other, free=0)).actions == ()


def test_the_paper_counts_instances_that_run_anything_interactive() -> None:
    busy = [instance(key, running_interactive=1) for key in "abc"]
    decision = ChironPaper(ChironSettings(default_theta=0.5)).decide(
        snapshot(fleet("m", *busy, instance("idle")))
    )
    (start,) = decision.actions
    assert isinstance(start, Start)
    assert start.count == 2
    assert decision.assessments[0].numbers["ibp"] == 0.75


def test_every_assessment_carries_its_reason_and_the_three_numbers() -> None:
    model = fleet("m", instance("a", running_interactive=10), backlog=(BatchBacklog(60.0, 10, 0),))
    for name in ("chiron", "chiron-paper"):
        decision = load_autoscaler(name).decide(snapshot(model))
        for explained in (*decision.assessments, *decision.actions):
            assert explained.reason
            assert {"ibp", "bbp", "theta"} <= explained.numbers.keys()


def test_unknown_autoscalers_are_refused_by_name_and_others_load_from_a_module() -> None:
    with pytest.raises(UnknownAutoscalerError, match="known are chiron, chiron-paper, or module:Class"):
        load_autoscaler("chyron")
    with pytest.raises(UnknownAutoscalerError, match="no method decide"):
        load_autoscaler("chiron.policy.fleet:ChironSettings")
    with pytest.raises(UnknownAutoscalerError, match="nowhere"):
        load_autoscaler("nowhere:Class")
    assert isinstance(load_autoscaler("chiron.policy.fleet:Chiron"), Chiron)


@pytest.mark.parametrize(
    "field", ["theta_quantile", "hysteresis", "payback", "wait_quantile", "batch_idle_s"]
)
def test_a_bad_setting_names_its_field(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ChironSettings(**{field: -1.0})  # type: ignore[arg-type]
