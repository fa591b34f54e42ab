"""A batch that has just come, before any report tells of its first requests running."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import Start
from chiron.policy.fleet import Chiron
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role


def starts(*, role: Role, running: int, deadline_s: float = 120.0) -> int:
    """Instances that the first tick starts, with one ready and eighty batch requests waiting."""
    there = FleetInstance("i", "n", role, Phase.READY, 8, 8, running_interactive=running)
    model = ModelFleet(
        "m",
        1,
        1,
        0,
        10.0,
        0.2,
        2.0,
        (there,),
        Traffic(1.0, arrived_batch=80),
        backlog=(BatchBacklog(deadline_s, 80, 8000),),
        load_time_s=3.0,
        initial_batch_size=8,
    )
    decision = Chiron().decide(FleetSnapshot(1.0, (model,), {"n": 8}))
    return sum(action.count for action in decision.actions if isinstance(action, Start))


@pytest.mark.parametrize("role", [Role.MIXED, Role.BATCH])
def test_with_room_for_the_first_requests_they_tell_how_long_the_work_is(role: Role) -> None:
    assert starts(role=role, running=0) == 0


def test_without_room_for_any_capacity_is_added_at_once() -> None:
    assert starts(role=Role.MIXED, running=8) > 0


def test_where_the_deadline_is_near_nobody_waits_to_learn() -> None:
    assert starts(role=Role.MIXED, running=0, deadline_s=6.0) > 0


def added_for(waiting: int, *, deadline_s: float = 40.0, itl_s: float = 0.1) -> int:
    """Batch instances that are started for so many that wait, while a full mixed instance of 8 runs on.

    The lengths are not known yet (256 tokens), so that a request takes 25.6 s at 0.1 s a token.
    """
    full = FleetInstance(
        "i",
        "n",
        Role.MIXED,
        Phase.READY,
        8,
        8,
        running_interactive=4,
        running_batch=4,
        waiting_interactive=4,
        tokens_per_s=8 / itl_s,
    )
    policy = Chiron()
    for tick in range(4):
        model = ModelFleet(
            "m",
            1,
            1,
            0,
            10.0,
            0.2,
            2.0,
            (full,),
            Traffic(1.0),
            backlog=(BatchBacklog(deadline_s, waiting, 100 * waiting),),
            load_time_s=3.0,
            initial_batch_size=8,
        )
        decision = policy.decide(FleetSnapshot(1.0 + tick, (model,), {"n": 64}))
        starts = [one for one in decision.actions if isinstance(one, Start) and one.role is Role.BATCH]
        if starts:
            return sum(one.count for one in starts)
    return 0


def test_no_more_instances_are_added_than_run_at_once_all_that_waits() -> None:
    # What the instance that is there runs would be late too, and does not move.
    assert added_for(1) == 1
    assert added_for(8) == 1
    assert added_for(9) == 2


def test_where_full_instances_are_too_slow_for_a_deadline_emptier_ones_are_added() -> None:
    assert 1 < added_for(8, deadline_s=20.0) <= 8
