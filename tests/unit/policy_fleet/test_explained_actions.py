"""Every kind of action says why, and on what numbers it rests."""

from __future__ import annotations

from chiron.policy.decisions import Action, ChangeRole, Retire, Sleep, Start, Wake
from chiron.policy.fleet import Chiron
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role


def instance(key: str, role: Role = Role.MIXED, phase: Phase = Phase.READY, **more: object) -> FleetInstance:
    return FleetInstance(key, "n", role, phase, 50, 50, **more)  # type: ignore[arg-type]


def fleet(name: str, priority: int, queued: int, *instances: FleetInstance, fewest: int = 0) -> ModelFleet:
    return ModelFleet(
        name,
        1,
        fewest,
        0,
        10.0,
        0.2,
        2.0,
        instances,
        Traffic(1.0, queued_interactive=queued),
        load_time_s=20.0,
        initial_batch_size=50,
        priority=priority,
    )


def what(action: Action) -> str:
    contended = "contention" if action.reason.startswith("contention") else ""
    return f"{type(action).__name__} {contended}".strip()


def test_each_kind_of_action_carries_its_reason_and_its_numbers() -> None:
    sleeper = instance("sleeper", phase=Phase.SLEEPING, can_wake=True)
    starts = fleet("starts", 0, 10)
    changes = fleet("changes", 1, 10, instance("changed", Role.BATCH, running_batch=5), fewest=1)
    wakes = fleet("wakes", 1, 10, sleeper)
    gives = fleet(
        "gives",
        2,
        0,
        instance("retired", running_interactive=1),
        instance("put-to-sleep", running_interactive=2, can_sleep=True),
    )
    asks = fleet("asks", 0, 50)
    autoscaler = Chiron()
    actions = [
        *autoscaler.decide(FleetSnapshot(0.0, (starts,), {"n": 1})).actions,
        *autoscaler.decide(FleetSnapshot(1.0, (changes, wakes), {"n": 1})).actions,
        *autoscaler.decide(FleetSnapshot(2.0, (asks, gives), {"n": 0})).actions,
        # Nobody has used the sleeper's GPU for longer than a load takes.
        *autoscaler.decide(FleetSnapshot(3.0, (fleet("wakes", 1, 0, sleeper),), {"n": 1})).actions,
        *autoscaler.decide(FleetSnapshot(99.0, (fleet("wakes", 1, 0, sleeper),), {"n": 1})).actions,
    ]
    assert {type(action) for action in actions} == {Start, ChangeRole, Wake, Retire, Sleep}
    assert sorted(map(what, actions)) == [
        "ChangeRole",
        "Retire",
        "Retire contention",
        "Sleep contention",
        "Start",
        "Wake",
    ]
    for action in actions:
        assert action.reason.strip()
        assert {"ibp", "bbp", "theta"} <= action.numbers.keys()
    for contended in (action for action in actions if what(action).endswith("contention")):
        assert "asks (priority 0) is more urgent than gives (priority 2)" in contended.reason
        assert (contended.numbers["urgent_gpus"], contended.numbers["urgent_node_free"]) == (1.0, 0.0)
