"""What a policy takes for done when its decisions are kept from being carried out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chiron.policy.decisions import Retire
from chiron.policy.fleet import Chiron
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

LOAD_S = 20.0
IDLE = ModelFleet(
    "m",
    gpus_per_instance=1,
    min_instances=0,
    max_instances=0,
    ttft_slo_s=10.0,
    itl_slo_s=0.2,
    batch_itl_slo_s=2.0,
    instances=tuple(FleetInstance(key, "n", Role.MIXED, Phase.READY, 100, 100) for key in "ab"),
    traffic=Traffic(1.0),
    load_time_s=LOAD_S,
    initial_batch_size=100,
)


def advised(policy: Chiron, now_s: float, model: ModelFleet) -> tuple[set[str], str]:
    """Who is to go, and what is found of the model."""
    decision = policy.decide(FleetSnapshot(now_s, (model,), {"n": 4}))
    ids = {action.instance_id for action in decision.actions if isinstance(action, Retire)}
    return ids, decision.assessments[0].reason


def idle_until_some_go(policy: Chiron) -> tuple[int, set[str]]:
    for second in range(3_000):
        if ids := advised(policy, float(second), IDLE)[0]:
            return second, ids
    raise AssertionError("an idle fleet is kept for ever")


def test_nothing_cools_down_where_nothing_went() -> None:
    policy = Chiron()
    second, ids = idle_until_some_go(policy)
    for later in range(second + 1, second + 40):
        again, reason = advised(policy, float(later), IDLE)
        assert (again, "what went" in reason) == (ids, False)


@pytest.mark.parametrize("phase", [Phase.DRAINING, Phase.SLEEPING])
def test_what_is_left_takes_over_from_what_went(phase: Phase) -> None:
    policy = Chiron()
    busy = replace(IDLE, min_instances=1)
    for second in range(3_000):
        ids, _ = advised(policy, float(second), busy)
        if ids:
            break
    left = tuple(replace(one, phase=phase) if one.instance_id in ids else one for one in busy.instances)
    went = replace(busy, instances=left)
    for later in range(second + 1, second + int(LOAD_S)):
        assert "what is left takes over what went" in advised(policy, float(later), went)[1]
    assert "what went" not in advised(policy, second + LOAD_S, went)[1]
