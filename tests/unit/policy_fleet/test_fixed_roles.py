"""A role that an operator has set is no capacity that a change of role could bring."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import Action, ChangeRole, Start
from chiron.policy.fleet import Chiron
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role


def instance(key: str, role: Role, *, fixed: bool, running: int = 0) -> FleetInstance:
    return FleetInstance(key, "n-a", role, Phase.READY, 50, 50, running_interactive=running, role_fixed=fixed)


def decide(
    *instances: FleetInstance,
    queued: int = 0,
    backlog: int = 0,
    now_s: float = 1.0,
    chiron: Chiron | None = None,
) -> tuple[Action, ...]:
    model = ModelFleet(
        "m",
        1,
        min_instances=1,
        max_instances=0,
        ttft_slo_s=10.0,
        itl_slo_s=0.2,
        batch_itl_slo_s=2.0,
        instances=instances,
        traffic=Traffic(1.0, queued_interactive=queued),
        backlog=(BatchBacklog(60.0, backlog, 100 * backlog),) if backlog else (),
        load_time_s=5.0,
        initial_batch_size=50,
    )
    return (chiron or Chiron()).decide(FleetSnapshot(now_s, (model,), {"n-a": 4}, {"n-a": "gpu"})).actions


def test_interactive_requests_get_an_instance_of_their_own_beside_a_fixed_batch_one() -> None:
    [start] = decide(instance("b", Role.BATCH, fixed=True), queued=10)
    assert isinstance(start, Start)
    assert (start.role, start.count) == (Role.MIXED, 1)
    assert ("make a batch instance mixed", "an operator has set the role") in [
        (other.action, other.why_not) for other in start.alternatives
    ]


def test_of_several_batch_instances_those_become_mixed_whose_roles_are_free() -> None:
    fixed, free = instance("a", Role.BATCH, fixed=True), instance("b", Role.BATCH, fixed=False)
    [change] = decide(fixed, free, queued=10)
    assert isinstance(change, ChangeRole)
    assert (change.instance_id, change.role) == ("b", Role.MIXED)


@pytest.mark.parametrize("fixed", [False, True])
def test_batch_work_gets_an_instance_of_its_own_where_the_interactive_one_must_stay_closed(
    fixed: bool,
) -> None:
    actions = decide(instance("i", Role.INTERACTIVE, fixed=fixed), backlog=20)
    if not fixed:
        assert [type(action) for action in actions] == [ChangeRole]
        return
    [start] = actions
    assert isinstance(start, Start)
    assert start.role is Role.BATCH
    assert ("open interactive instances to batch work", "an operator has set the role") in [
        (other.action, other.why_not) for other in start.alternatives
    ]


@pytest.mark.parametrize("fixed", [False, True])
def test_a_fixed_batch_instance_that_stays_for_the_minimum_is_not_asked_to_change(fixed: bool) -> None:
    chiron = Chiron()
    batch = instance("b", Role.BATCH, fixed=fixed)
    decide(batch, backlog=1, chiron=chiron)
    later = decide(batch, now_s=60.0, chiron=chiron)
    assert [type(action) for action in later] == ([] if fixed else [ChangeRole])
