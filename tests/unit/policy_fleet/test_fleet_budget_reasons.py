"""What an assessment says of instances that get no GPUs."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.policy.fleet import Chiron
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

SHORT = ModelFleet(
    "m",
    gpus_per_instance=1,
    min_instances=3,
    max_instances=0,
    ttft_slo_s=10.0,
    itl_slo_s=0.2,
    batch_itl_slo_s=2.0,
    instances=(FleetInstance("a", "n", Role.MIXED, Phase.READY, 100, 100),),
    traffic=Traffic(1.0),
    load_time_s=20.0,
    initial_batch_size=100,
)


@pytest.mark.parametrize(
    ("free", "budget", "why"),
    [
        (4, 1, "2 mixed wait for GPUs: the GPU budget leaves none for them, and min_instances is 3"),
        (4, 2, "1 mixed wait for GPUs: the GPU budget leaves none for them, and min_instances is 3"),
        (0, 0, "2 mixed wait for GPUs: no GPU is left for them, and min_instances is 3"),
        (0, 9, "2 mixed wait for GPUs: no GPU is left for them, and min_instances is 3"),
    ],
)
def test_the_budget_is_named_where_it_is_the_cause_and_so_is_the_minimum(
    free: int, budget: int, why: str
) -> None:
    decision = Chiron().decide(FleetSnapshot(0.0, (SHORT,), {"n": free}, gpu_budget=budget))
    [found] = decision.assessments
    assert found.reason.endswith(why)
    assert any(why.split(": ")[1].split(", and")[0] == other.why_not for other in found.alternatives)


def test_a_wish_that_is_met_in_part_names_the_budget_and_demand_no_minimum() -> None:
    decision = Chiron().decide(FleetSnapshot(0.0, (SHORT,), {"n": 4}, gpu_budget=2))
    [start] = decision.actions
    assert start.alternatives[-1].why_not == "the GPU budget leaves none for more"
    busy = dataclasses.replace(SHORT.instances[0], running_interactive=100, waiting_interactive=400)
    asked = dataclasses.replace(SHORT, min_instances=0, instances=(busy,))
    [found] = Chiron().decide(FleetSnapshot(0.0, (asked,), {"n": 4}, gpu_budget=1)).assessments
    assert found.reason.endswith("the GPU budget leaves none for them")
