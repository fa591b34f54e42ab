"""Baselines that count replicas: each published rule of Kubernetes, KEDA and Ray Serve by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from chiron.policy.decisions import Action, Retire, Start
from chiron.policy.dispatch import Decision, DispatchRequest, InstanceView, Refusal, RefusalKind
from chiron.policy.fleet import GlobalAutoscaler
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, RequestClass, Role
from chiron.sim.baselines.hpa import HpaBehavior, HpaSettings, desired_by_average, desired_by_pods
from chiron.sim.baselines.in_flight import InFlightAutoscaler, InFlightSettings
from chiron.sim.baselines.least_requests import LeastRequestsDispatcher
from chiron.sim.baselines.queue_length import QueueLengthAutoscaler, QueueLengthSettings
from chiron.sim.baselines.replicas import most_replicas
from chiron.sim.baselines.utilization import UtilizationAutoscaler, UtilizationSettings

BATCH_SIZE = 100


def instances(
    count: int, *, running: int = 0, waiting: int = 0, kv_usage: float = 0.0, loading: int = 0
) -> tuple[FleetInstance, ...]:
    """So many ready ones, all alike, and so many that load."""
    ready = [
        FleetInstance(
            f"r{number}",
            "n",
            Role.MIXED,
            Phase.READY,
            BATCH_SIZE,
            BATCH_SIZE,
            running_interactive=running,
            waiting_interactive=waiting,
            kv_usage=kv_usage,
            kv_capacity_tokens=1000,
            phase_age_s=100.0,
        )
        for number in range(count)
    ]
    new = [
        FleetInstance(f"l{number}", "n", Role.MIXED, Phase.LOADING, BATCH_SIZE, BATCH_SIZE)
        for number in range(loading)
    ]
    return (*ready, *new)


def fleet(
    now_s: float,
    of: Iterable[FleetInstance] = (),
    *,
    queued: int = 0,
    backlog: int = 0,
    arrived: int = 0,
    free: int = 40,
    **limits: int,
) -> FleetSnapshot:
    model = ModelFleet(
        "m",
        limits.get("gpus", 1),
        limits.get("least", 0),
        limits.get("most", 0),
        10.0,
        0.2,
        2.0,
        tuple(of),
        Traffic(1.0, arrived_interactive=arrived, queued_interactive=queued),
        (BatchBacklog(3600.0, backlog, backlog),) if backlog else (),
    )
    return FleetSnapshot(now_s, (model,), free_gpus={"n": free}, gpu_budget=limits.get("budget", 0))


def net(actions: Iterable[Action]) -> int:
    """Replicas that come, less those that go."""
    return sum(
        each.count if isinstance(each, Start) else -1 for each in actions if isinstance(each, Start | Retire)
    )


def change(autoscaler: GlobalAutoscaler, snapshot: FleetSnapshot) -> int:
    return net(autoscaler.decide(snapshot).actions)


# The arithmetic of Kubernetes.


@pytest.mark.parametrize(
    ("values", "missing", "desired"),
    [
        ([0.8, 0.8], 0, 2),
        # ceil(2 x 1.2 / 0.8) = 3; ceil(4 x 0.2 / 0.8) = 1.
        ([1.2, 1.2], 0, 3),
        ([0.2] * 4, 0, 1),
        # Within 10 %: nothing, however many there are; just beyond: one.
        ([0.88] * 20, 0, 20),
        ([0.72] * 20, 0, 20),
        ([0.89] * 20, 0, 23),
        # A pod without a metric is idle in a scale-up: (2 x 1.6 + 0) / 3 / 0.8 = 1.33 of 3.
        ([1.6, 1.6], 1, 4),
        # Here that would turn it round, (1.2 + 0 + 0) / 3 < 0.8: no change.
        ([1.2], 2, 3),
        # In a scale-down it is on target: (4 x 0.2 + 2 x 0.8) / 6 / 0.8 = 0.5 of 6.
        ([0.2] * 4, 2, 3),
        ([], 2, 2),
    ],
)
def test_desired_replicas_of_a_metric_of_pods(values: list[float], missing: int, desired: int) -> None:
    assert desired_by_pods(values, missing, target=0.8, tolerance=0.1) == desired


@pytest.mark.parametrize(
    ("total", "current", "desired"), [(50.0, 4, 10), (20.0, 4, 4), (22.0, 4, 4), (23.0, 4, 5), (0.0, 4, 0)]
)
def test_desired_replicas_of_a_metric_of_nobody(total: float, current: int, desired: int) -> None:
    assert desired_by_average(total, current, target=5.0, tolerance=0.1) == desired


def test_a_scale_up_adds_four_pods_or_doubles_in_a_period() -> None:
    behavior = HpaBehavior(HpaSettings())

    assert behavior.replicas(100, current=1, least=1, most=200, now_s=0.0) == 5
    # Five are no more than four on top of the one with which the period began.
    assert behavior.replicas(100, current=5, least=1, most=200, now_s=10.0) == 5
    assert behavior.replicas(100, current=5, least=1, most=200, now_s=15.0) == 10
    assert behavior.replicas(100, current=10, least=1, most=200, now_s=30.0) == 20
    assert behavior.replicas(100, current=20, least=1, most=30, now_s=45.0) == 30


def test_a_scale_down_waits_until_the_highest_recommendation_is_older_than_the_window() -> None:
    behavior = HpaBehavior(HpaSettings())

    found = [
        behavior.replicas(desired, current=10, least=1, most=50, now_s=now_s)
        for now_s, desired in ((0.0, 10), (100.0, 8), (200.0, 4), (299.0, 2), (300.0, 2))
    ]
    # At 300 s the 10 of the beginning is out of the window, the 8 is not.
    assert found == [10, 10, 10, 10, 8]
    assert behavior.replicas(2, current=8, least=1, most=50, now_s=400.0) == 4
    # All of them may go at once, but for the least.
    assert behavior.replicas(0, current=4, least=1, most=50, now_s=701.0) == 1


def test_the_first_recommendation_is_what_there_is() -> None:
    behavior = HpaBehavior(HpaSettings())

    assert behavior.replicas(1, current=6, least=1, most=50, now_s=0.0) == 6


def test_a_scale_down_may_be_limited_to_a_share_in_a_period() -> None:
    behavior = HpaBehavior(HpaSettings(stabilization_s=0.0, down_share=0.5, down_period_s=60.0))

    assert behavior.replicas(0, current=8, least=1, most=50, now_s=0.0) == 4
    assert behavior.replicas(0, current=4, least=1, most=50, now_s=30.0) == 4
    assert behavior.replicas(0, current=4, least=1, most=50, now_s=60.0) == 2


def test_a_scale_up_may_wait_too() -> None:
    behavior = HpaBehavior(HpaSettings(up_stabilization_s=60.0))

    assert behavior.replicas(4, current=2, least=1, most=50, now_s=0.0) == 2
    assert behavior.replicas(4, current=2, least=1, most=50, now_s=30.0) == 2
    assert behavior.replicas(5, current=2, least=1, most=50, now_s=60.0) == 4


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sync_s": 0.0}, "sync_s"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"down_share": 1.5}, "down_share"),
        ({"stabilization_s": float("inf")}, "stabilization_s"),
        ({"target": 0.0}, "target"),
        ({"batch_weight": -1.0}, "batch_weight"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        UtilizationSettings(**settings)


# utilization


WITH_WAITING = UtilizationSettings(waiting_weight=1.0)


def test_utilization_counts_slots_in_use() -> None:
    # All of 100 slots are taken: ceil(4 x 1.0 / 0.8) = 5, whatever waits.
    assert change(UtilizationAutoscaler(), fleet(0.0, instances(4, running=100))) == 1
    assert (
        change(UtilizationAutoscaler(), fleet(0.0, instances(4, running=100, waiting=70), backlog=500)) == 1
    )


def test_utilization_may_count_what_wants_slots() -> None:
    # 90 run and 70 wait for 100 slots: ceil(2 x 1.6 / 0.8) = 4.
    assert change(UtilizationAutoscaler(WITH_WAITING), fleet(0.0, instances(2, running=90, waiting=70))) == 2
    # What waits in the routers is shared out among the pods.
    assert change(UtilizationAutoscaler(WITH_WAITING), fleet(0.0, instances(2, running=90), queued=140)) == 2
    assert change(UtilizationAutoscaler(WITH_WAITING), fleet(0.0, instances(2, running=90), backlog=140)) == 2
    lighter = UtilizationSettings(waiting_weight=1.0, batch_weight=0.0)
    assert change(UtilizationAutoscaler(lighter), fleet(0.0, instances(2, running=85), backlog=140)) == 0


def test_utilization_follows_the_fuller_of_slots_and_kv_cache() -> None:
    decision = UtilizationAutoscaler().decide(fleet(0.0, instances(2, running=10, kv_usage=0.95)))

    (start,) = decision.actions
    assert isinstance(start, Start)
    assert (start.count, start.role) == (1, Role.MIXED)
    assert start.numbers["kv_cache"] == pytest.approx(0.95)


def test_utilization_looks_every_fifteen_seconds() -> None:
    autoscaler = UtilizationAutoscaler(WITH_WAITING)
    busy = instances(2, running=100, waiting=60)

    assert [change(autoscaler, fleet(now_s, busy)) for now_s in (0.0, 5.0, 14.0, 15.0)] == [2, 0, 0, 2]


def test_utilization_counts_those_that_load() -> None:
    # (2 x 1.6 + 2 x 0) / 4 is on target.
    busy = instances(2, running=100, waiting=60, loading=2)

    assert change(UtilizationAutoscaler(WITH_WAITING), fleet(0.0, busy)) == 0


def test_utilization_keeps_one_and_retires_the_least_loaded() -> None:
    autoscaler = UtilizationAutoscaler(UtilizationSettings(stabilization_s=0.0))
    idle = (*instances(2, running=9), instances(3, running=3)[2])

    decision = autoscaler.decide(fleet(0.0, idle))

    assert [each.instance_id for each in decision.actions if isinstance(each, Retire)] == ["r2", "r0"]
    assert change(UtilizationAutoscaler(UtilizationSettings(stabilization_s=0.0)), fleet(0.0)) == 1


def test_what_loads_goes_before_what_serves() -> None:
    autoscaler = UtilizationAutoscaler(UtilizationSettings(stabilization_s=0.0))
    decision = autoscaler.decide(fleet(0.0, instances(2, running=1, loading=1)))

    # (0.01 + 0.01 + 0.8) / 3 / 0.8 = 0.34 of three: two.
    assert [each.instance_id for each in decision.actions if isinstance(each, Retire)] == ["l0"]


# Limits of all of them.


def test_no_more_replicas_are_wanted_than_gpus_or_the_model_allow() -> None:
    there = instances(2)

    def most(**others: int) -> int:
        snapshot = fleet(0.0, there, **others)
        return most_replicas(snapshot.models[0], snapshot)

    assert most(free=7) == 9
    assert most(free=7, most=5) == 5
    assert most(free=7, gpus=2) == 5
    assert most(free=7, budget=6) == 6
    assert most(free=7, budget=2) == 2


# queue-length


def test_keda_asks_for_one_replica_per_five_that_wait() -> None:
    assert change(QueueLengthAutoscaler(), fleet(0.0, instances(2, waiting=10))) == 2
    assert change(QueueLengthAutoscaler(), fleet(0.0, instances(2, running=100))) == 0
    assert change(QueueLengthAutoscaler(), fleet(0.0, instances(2), queued=20)) == 2
    assert change(QueueLengthAutoscaler(), fleet(0.0, instances(2), backlog=20)) == 2
    assert (
        change(
            QueueLengthAutoscaler(QueueLengthSettings(batch_weight=0.1)), fleet(0.0, instances(1), backlog=50)
        )
        == 0
    )


def test_keda_leaves_an_empty_queue_one_replica_after_the_window() -> None:
    autoscaler = QueueLengthAutoscaler()

    moves = [
        change(autoscaler, fleet(float(now_s), instances(3, running=50), arrived=5))
        for now_s in range(0, 310, 15)
    ]
    # Three was recommended at 0 s, and none since.
    assert moves == [0] * 20 + [-2]


def test_keda_starts_the_first_replica_at_the_next_poll() -> None:
    autoscaler = QueueLengthAutoscaler()

    assert change(autoscaler, fleet(0.0)) == 0
    assert change(autoscaler, fleet(3.0, queued=40)) == 0
    assert change(autoscaler, fleet(15.0, queued=40)) == 1


def test_keda_removes_the_last_replica_after_the_cool_down() -> None:
    autoscaler = QueueLengthAutoscaler()

    there = 1
    gone_s = None
    for now_s in range(700):
        move = change(autoscaler, fleet(float(now_s), instances(there), arrived=now_s == 0))
        there += move
        gone_s = now_s if move else gone_s
        assert there in (0, 1)

    # An arrival keeps the trigger active for 60 s; the first poll more than 360 s later is that of 435 s.
    assert (there, gone_s) == (0, 435)


def test_keda_keeps_the_least() -> None:
    autoscaler = QueueLengthAutoscaler()

    assert change(autoscaler, fleet(0.0, instances(1), least=2)) == 1
    assert change(QueueLengthAutoscaler(), fleet(0.0, least=2)) == 2
    moves = [change(autoscaler, fleet(float(now_s), instances(2), least=2)) for now_s in range(15, 900, 15)]
    assert set(moves) == {0}


# in-flight


def test_ray_serve_averages_over_the_look_back() -> None:
    autoscaler = InFlightAutoscaler(InFlightSettings(target=10.0, upscale_delay_s=0.0))

    # 20 on two replicas are the target; a moment with 80 makes (29 x 20 + 80) / 30 = 22.
    for now_s in range(29):
        assert change(autoscaler, fleet(float(now_s), instances(2, running=10))) == 0
    assert change(autoscaler, fleet(29.0, instances(2, running=40))) == 1


def test_ray_serve_adds_what_was_asked_for_throughout_the_delay() -> None:
    autoscaler = InFlightAutoscaler(InFlightSettings(target=10.0, look_back_s=1.0))

    moves = [change(autoscaler, fleet(float(now_s), instances(2, running=20))) for now_s in range(31)]
    assert moves == [0] * 30 + [2]


def test_ray_serve_begins_a_delay_anew_after_one_decision_on_target() -> None:
    autoscaler = InFlightAutoscaler(InFlightSettings(target=10.0, look_back_s=1.0))

    moves = [
        change(autoscaler, fleet(float(now_s), instances(2, running=10 if now_s == 20 else 20)))
        for now_s in range(52)
    ]
    assert moves == [0] * 51 + [2]


def test_ray_serve_removes_after_ten_minutes_and_the_last_one_alone() -> None:
    autoscaler = InFlightAutoscaler()

    moves = [change(autoscaler, fleet(float(now_s), instances(3))) for now_s in range(601)]
    assert moves == [0] * 600 + [-2]
    moves = [change(autoscaler, fleet(float(now_s), instances(1))) for now_s in range(601, 1202)]
    assert moves == [0] * 600 + [-1]


def test_ray_serve_starts_the_first_replica_at_once() -> None:
    autoscaler = InFlightAutoscaler()

    assert change(autoscaler, fleet(0.0)) == 0
    assert change(autoscaler, fleet(1.0, queued=10)) == 1
    assert change(InFlightAutoscaler(), fleet(0.0, least=2)) == 2


def test_ray_serve_counts_what_waits_anywhere() -> None:
    settings = InFlightSettings(target=10.0, upscale_delay_s=0.0)

    assert change(InFlightAutoscaler(settings), fleet(0.0, instances(1, running=10, waiting=20))) == 2
    assert (
        change(InFlightAutoscaler(settings), fleet(0.0, instances(1, running=10), queued=5, backlog=15)) == 2
    )


def test_ray_serve_goes_part_of_the_way_with_its_factors() -> None:
    up = InFlightSettings(target=10.0, upscale_delay_s=0.0, upscaling_factor=0.5)
    down = InFlightSettings(target=10.0, downscale_delay_s=0.0, downscaling_factor=0.1)

    # Eight are asked for: two, and half of six.
    assert change(InFlightAutoscaler(up), fleet(0.0, instances(2, running=40))) == 3
    # A tenth of two would be none.
    assert change(InFlightAutoscaler(down), fleet(0.0, instances(4, running=5))) == -1


# least-requests


def view(
    name: str, *, running: int = 0, waiting: int = 0, reserved: int = 0, role: Role = Role.MIXED
) -> InstanceView:
    return InstanceView(name, role, 4, running, waiting, 0, reserved, 8, 16_000, 0.0, 2.0)


def test_a_request_goes_where_the_fewest_are() -> None:
    request = DispatchRequest(RequestClass.BATCH, 160)

    chosen = LeastRequestsDispatcher().pick(
        request, [view("a", running=4, waiting=1), view("b", running=2, reserved=2), view("c", running=4)]
    )

    assert isinstance(chosen, Decision)
    assert chosen.instance_id == "b"
    # All slots of "b" are taken or promised: one of four must end, two seconds each; two of "a".
    assert chosen.scores == {"a": 1.0, "b": 0.5, "c": 0.5}


def test_least_requests_refuses_what_it_must() -> None:
    request = DispatchRequest(RequestClass.INTERACTIVE, 160, excluded=frozenset({"a"}))

    kinds = [
        LeastRequestsDispatcher().pick(request, views)
        for views in ([], [view("a")], [view("b", role=Role.BATCH)], [view("b", running=4, waiting=8)])
    ]

    assert [refusal.kind for refusal in kinds if isinstance(refusal, Refusal)] == [
        RefusalKind.NO_INSTANCE,
        RefusalKind.EXCLUDED,
        RefusalKind.NO_ROLE,
        RefusalKind.FULL,
    ]
