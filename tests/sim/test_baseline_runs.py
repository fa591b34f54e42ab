"""Every baseline serves an easy workload: it grows when it must, and every request keeps its SLOs."""

from __future__ import annotations

import pytest

from chiron.sim.autoscalers import Beforehand
from chiron.sim.policies import POLICIES, PREEMPTING, PolicyChoice
from chiron.sim.simulator import simulate
from tests.support.sim_worlds import requests, world

NAMES = ("utilization", "queue-length", "in-flight", "dynamo-like")
# Dynamo's planner adds when an SLO is about to be missed, not before: it is told a tighter one.
PARAMETERS = {"dynamo-like": {"slo_share": 0.5}}
RATE_PER_S = 25
STEPS = 40


@pytest.mark.parametrize("name", [*NAMES, *(name + PREEMPTING for name in NAMES)])
def test_a_baseline_grows_and_keeps_the_slos(name: str) -> None:
    # 25 a second for 0.4 s each: ten run at once, and an instance has eight slots.
    settings = world(batch_size=8, seed=1)
    work = requests(*((number / RATE_PER_S, 10, STEPS) for number in range(120 * RATE_PER_S)))
    parameters = PARAMETERS.get(name.removesuffix(PREEMPTING), {})
    policy = PolicyChoice(name, parameters=parameters).make(Beforehand(settings.models))

    result = simulate(
        policy.settings(settings),
        work,
        autoscaler=policy.autoscaler,
        dispatcher=policy.dispatcher,
        local=policy.local,
    )

    assert result.slo_attainment.interactive == 1.0
    assert 2 <= result.gpus_peak <= 8
    assert result.scaling_actions >= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_baselines_requests_wait_at_instances_and_its_variants_at_the_router(name: str) -> None:
    assert POLICIES[name].pinned
    assert not POLICIES[name + PREEMPTING].pinned
    assert POLICIES[name].autoscaler == POLICIES[name + PREEMPTING].autoscaler == name
