"""Baselines: hand-worked decisions of `fixed` and `llumnix`."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import Retire, Start
from chiron.policy.dispatch import Decision, DispatchRequest, InstanceView, Refusal, RefusalKind
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, RequestClass, Role
from chiron.sim.baselines.fixed import FixedFleet
from chiron.sim.baselines.llumnix import (
    FreenessAutoscaler,
    FreenessDispatcher,
    FreenessThresholds,
    freeness,
)


def instance(
    number: int,
    *,
    running: int = 0,
    kv_usage: float = 0.0,
    phase: Phase = Phase.READY,
    role: Role = Role.MIXED,
) -> FleetInstance:
    return FleetInstance(
        instance_id=f"i{number}",
        node_id="n",
        role=role,
        phase=phase,
        batch_size=256,
        safe_batch_size=256,
        running_interactive=running,
        kv_usage=kv_usage,
        kv_capacity_tokens=16_000,
    )


def fleet(
    *instances: FleetInstance,
    now_s: float = 100.0,
    queued: int = 0,
    backlog: tuple[BatchBacklog, ...] = (),
    most: int = 0,
) -> FleetSnapshot:
    traffic = Traffic(1.0, queued_interactive=queued, finished_interactive=10, finished_prompt_tokens=1600)
    model = ModelFleet("m", 1, 0, most, 10.0, 0.2, 2.0, instances, traffic, backlog)
    return FleetSnapshot(now_s, (model,))


def view(
    name: str, *, running: int = 0, waiting: int = 0, kv_free_tokens: int = 16_000, role: Role = Role.MIXED
) -> InstanceView:
    return InstanceView(name, role, 4, running, waiting, 0, 0, 8, kv_free_tokens, 0.0, 2.0)


def test_freeness_is_free_blocks_less_waiting_demand_over_running_requests() -> None:
    assert freeness(free_blocks=1000, waiting=0, running=50, prompt_tokens=160) == 20.0
    # Thirty that wait need 30 x 10 blocks; a started block counts whole.
    assert freeness(free_blocks=1000, waiting=30, running=50, prompt_tokens=160) == 14.0
    assert freeness(free_blocks=1000, waiting=30, running=50, prompt_tokens=161) == 13.4
    assert freeness(free_blocks=1000, waiting=200, running=50, prompt_tokens=160) == -20.0
    assert freeness(free_blocks=1000, waiting=0, running=0, prompt_tokens=160) == 1000.0


def test_below_ten_an_instance_is_added() -> None:
    # Half of 1000 blocks free on each, 60 run on each on average: 500 / 60 = 8.3.
    decision = FreenessAutoscaler().decide(
        fleet(instance(1, running=100, kv_usage=0.5), instance(2, running=20, kv_usage=0.5))
    )

    (start,) = decision.actions
    assert isinstance(start, Start)
    assert (start.model, start.role, start.count) == ("m", Role.MIXED, 1)
    assert start.numbers["freeness"] == pytest.approx(500 / 60)
    assert "below 10" in start.reason


def test_waiting_demand_brings_the_fleet_below_ten() -> None:
    calm = fleet(instance(1, running=40, kv_usage=0.5))
    queue = fleet(instance(1, running=40, kv_usage=0.5), queued=11)
    backlog = fleet(instance(1, running=40, kv_usage=0.5), backlog=(BatchBacklog(3600.0, 11, 1760),))

    # 500 / 40 = 12.5; with eleven that wait (500 - 110) / 40 = 9.75.
    assert FreenessAutoscaler().decide(calm).actions == ()
    assert len(FreenessAutoscaler().decide(queue).actions) == 1
    assert len(FreenessAutoscaler().decide(backlog).actions) == 1


def test_above_sixty_the_least_loaded_instance_is_retired_but_not_the_last() -> None:
    decision = FreenessAutoscaler().decide(
        fleet(instance(1, running=10, kv_usage=0.1), instance(2, running=3, kv_usage=0.1))
    )

    (retire,) = decision.actions
    assert isinstance(retire, Retire)
    assert retire.instance_id == "i2"
    assert FreenessAutoscaler().decide(fleet(instance(1))).actions == ()


def test_one_action_per_interval() -> None:
    autoscaler = FreenessAutoscaler(FreenessThresholds(interval_s=10.0))
    busy = instance(1, running=100, kv_usage=0.5)

    assert len(autoscaler.decide(fleet(busy, now_s=0.0)).actions) == 1
    assert autoscaler.decide(fleet(busy, now_s=9.0)).actions == ()
    assert len(autoscaler.decide(fleet(busy, now_s=10.0)).actions) == 1


def test_nothing_is_retired_while_an_instance_loads_and_nothing_added_beyond_the_most() -> None:
    idle = (instance(1, running=1), instance(2), instance(3, phase=Phase.LOADING))
    busy = (instance(1, running=100, kv_usage=0.5),)

    assert FreenessAutoscaler().decide(fleet(*idle)).actions == ()
    assert FreenessAutoscaler().decide(fleet(*busy, most=1)).actions == ()


def test_a_fleet_of_none_starts_one_when_something_waits() -> None:
    assert FreenessAutoscaler().decide(fleet()).actions == ()
    (start,) = FreenessAutoscaler().decide(fleet(queued=1)).actions
    assert isinstance(start, Start)


def test_llumnix_dispatches_to_the_highest_freeness() -> None:
    request = DispatchRequest(RequestClass.INTERACTIVE, 160)
    # 100 blocks over 2 requests is 50; 300 over 4 is 75; with 40 that wait (300 - 400) / 4 is negative.
    views = [
        view("a", running=2, kv_free_tokens=1600),
        view("b", running=4, kv_free_tokens=4800),
    ]

    chosen = FreenessDispatcher().pick(request, views)
    crowded = FreenessDispatcher().pick(
        request, [views[0], view("b", running=4, waiting=7, kv_free_tokens=800)]
    )

    assert isinstance(chosen, Decision)
    assert chosen.instance_id == "b"
    # All four slots of "b" are taken: one of four must end, two seconds each.
    assert chosen.scores == {"a": 0.0, "b": 0.5}
    assert isinstance(crowded, Decision)
    assert crowded.instance_id == "a"


def test_llumnix_refuses_what_it_must() -> None:
    dispatcher = FreenessDispatcher()
    request = DispatchRequest(RequestClass.INTERACTIVE, 160, excluded=frozenset({"a"}))

    kinds = [
        dispatcher.pick(request, views)
        for views in ([], [view("a")], [view("b", role=Role.BATCH)], [view("b", running=4, waiting=8)])
    ]

    assert [refusal.kind for refusal in kinds if isinstance(refusal, Refusal)] == [
        RefusalKind.NO_INSTANCE,
        RefusalKind.EXCLUDED,
        RefusalKind.NO_ROLE,
        RefusalKind.FULL,
    ]


def test_a_fixed_fleet_only_replaces_what_it_has_lost() -> None:
    policy = FixedFleet()

    assert policy.decide(fleet(instance(1), instance(2), instance(3, role=Role.BATCH))).actions == ()
    decision = policy.decide(fleet(instance(1, phase=Phase.DRAINING), instance(2, phase=Phase.LOADING)))

    assert {(start.role, start.count) for start in decision.actions if isinstance(start, Start)} == {
        (Role.MIXED, 1),
        (Role.BATCH, 1),
    }


def test_thresholds_that_cross_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^out_below: "):
        FreenessThresholds(out_below=60.0, in_above=60.0)
