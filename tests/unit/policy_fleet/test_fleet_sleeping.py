"""Who sleeps instead of going, who wakes, and who sleeps in vain."""

from __future__ import annotations

from chiron.policy.decisions import Retire, Sleep, Start, Wake
from chiron.policy.fleet import Chiron, ChironSettings
from chiron.policy.fleet.contention import FreeGpus
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role


def instance(key: str, phase: Phase = Phase.READY, role: Role = Role.MIXED, **more: object) -> FleetInstance:
    return FleetInstance(key, "n", role, phase, 100, 100, **more)  # type: ignore[arg-type]


def fleet(name: str, *instances: FleetInstance, **more: object) -> ModelFleet:
    values: dict[str, object] = {"traffic": Traffic(1.0), "load_time_s": 20.0, "initial_batch_size": 100}
    return ModelFleet(name, 1, 0, 0, 10.0, 0.2, 2.0, instances, **(values | more))  # type: ignore[arg-type]


def decide(autoscaler: Chiron, now_s: float, *models: ModelFleet, free: int = 0) -> list[object]:
    return list(autoscaler.decide(FleetSnapshot(now_s, models, {"n": free}, {"n": "a100"})).actions)


def idle_batch(key: str, **more: object) -> FleetInstance:
    return instance(key, role=Role.BATCH, **more)


def test_what_is_done_sleeps_where_another_model_may_use_its_gpus() -> None:
    autoscaler = Chiron(ChironSettings(batch_idle_s=0.0))
    models = (
        fleet("a", idle_batch("able", can_sleep=True), idle_batch("unable")),
        fleet("b"),
    )
    actions = decide(autoscaler, 0.0, *models)
    assert [(type(action), action.instance_id) for action in actions] == [  # type: ignore[attr-defined]
        (Sleep, "able"),
        (Retire, "unable"),
    ]
    assert "no batch request is left" in actions[0].reason  # type: ignore[attr-defined]


def test_with_nobody_to_share_with_it_retires() -> None:
    done = idle_batch("able", can_sleep=True)
    for others in ((), (fleet("b", gpu_type="h100"),)):
        autoscaler = Chiron(ChironSettings(batch_idle_s=0.0))
        actions = decide(autoscaler, 0.0, fleet("a", done, gpu_type="a100"), *others)
        assert [type(action) for action in actions] == [Retire]


def test_a_sleeper_alone_goes_after_a_load_time_and_one_in_company_stays() -> None:
    autoscaler = Chiron()
    alone, covered = (instance("x", Phase.SLEEPING, can_wake=can_wake) for can_wake in (True, False))
    gone = {}
    for now_s, sleeper in ((0.0, alone), (19.0, alone), (19.5, covered), (40.0, alone), (59.0, alone)):
        gone[now_s] = decide(autoscaler, now_s, fleet("a", sleeper), fleet("b"))
    assert not any(gone.values())
    (action,) = decide(autoscaler, 60.0, fleet("a", alone), fleet("b"))
    assert isinstance(action, Retire)
    assert "20 s" in action.reason


def test_two_sleepers_on_one_gpu_do_not_both_wake() -> None:
    waiting = Traffic(1.0, arrived_interactive=1, queued_interactive=1)
    models = [fleet(name, instance(name, Phase.SLEEPING, can_wake=True), traffic=waiting) for name in "ab"]
    actions = decide(Chiron(), 0.0, *models, free=1)
    assert [(type(action), action.instance_id) for action in actions] == [(Wake, "a")]  # type: ignore[attr-defined]


WAITING = Traffic(1.0, arrived_interactive=1, queued_interactive=1)


def test_a_sleeper_wakes_on_gpus_that_nobody_counts_as_free() -> None:
    sleeper = fleet("a", instance("a", Phase.SLEEPING, can_wake=True), traffic=WAITING)
    (action,) = decide(Chiron(), 0.0, sleeper, free=0)
    assert (type(action), action.instance_id) == (Wake, "a")  # type: ignore[attr-defined]


def test_a_sleeper_wakes_on_gpus_of_which_too_few_are_counted_until_those_are_promised() -> None:
    sleeper = instance("x", Phase.SLEEPING, can_wake=True)
    assert FreeGpus(FleetSnapshot(0.0, (), {"n": 1})).wake(sleeper, 2)
    free = FreeGpus(FleetSnapshot(0.0, (), {"n": 1}))
    assert free.take(1, "")
    assert not free.wake(sleeper, 2)
    free = FreeGpus(FleetSnapshot(0.0, (), {"n": 1}))
    assert free.wake(sleeper, 1)
    assert not free.take(1, "")
    assert not free.wake(sleeper, 1)


def test_a_sleeper_stays_while_its_model_waits_for_gpus() -> None:
    autoscaler = Chiron()
    sleeper = instance("x", Phase.SLEEPING, can_wake=True)
    for now_s in (0.0, 30.0, 60.0):
        urgent, waits = fleet("u", traffic=WAITING), fleet("a", sleeper, traffic=WAITING, priority=1)
        actions = decide(autoscaler, now_s, urgent, waits, free=1)
        assert [type(action) for action in actions] == [Start]
    calm = fleet("a", sleeper)
    assert not decide(autoscaler, 70.0, calm, fleet("u"))
    assert [type(action) for action in decide(autoscaler, 90.0, calm, fleet("u"))] == [Retire]


def test_a_wake_leaves_the_gpus_to_a_more_urgent_start() -> None:
    waiting = Traffic(1.0, arrived_interactive=1, queued_interactive=1)
    sleeper = fleet("a", instance("a", Phase.SLEEPING, can_wake=True), traffic=waiting, priority=1)
    urgent = fleet("b", traffic=waiting, priority=0)
    actions = decide(Chiron(), 0.0, sleeper, urgent, free=1)
    assert [(action.model, type(action).__name__) for action in actions] == [("b", "Start")]  # type: ignore[attr-defined]


def test_gpus_of_a_sleeper_are_counted_on_its_own_node() -> None:
    view = FleetSnapshot(0.0, (), {"n": 2, "other": 2}, gpu_budget=3)
    free = FreeGpus(view)
    sleeper = instance("x", Phase.SLEEPING)
    assert free.wake(sleeper, 2)
    assert not free.wake(sleeper, 2)
    assert not free.take(2, "")
    assert free.take(1, "")
    assert not free.take(1, "")
