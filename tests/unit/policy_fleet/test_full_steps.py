"""Instances whose steps are full while slots are free: slots that steps cannot serve do not count."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import FleetDecision, Retire, Start
from chiron.policy.fleet import Chiron, ChironSettings
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

SLOTS, BUDGET = 100, 200
RUNNING = 40


def fleet(*, step_tokens: float, budget: int = BUDGET, waiting: int = 15, instances: int = 2) -> ModelFleet:
    """Each instance runs 40 requests, and has some in its engine's queue although 60 slots are free."""
    ready = tuple(
        FleetInstance(
            f"i{n}",
            "n",
            Role.MIXED,
            Phase.READY,
            SLOTS,
            SLOTS,
            running_interactive=RUNNING,
            waiting_interactive=waiting,
            tokens_per_s=1_000.0,
            step_token_budget=budget,
            step_tokens=step_tokens,
        )
        for n in range(instances)
    )
    return ModelFleet("m", 1, 0, 0, 0.0, 0.2, 2.0, ready, Traffic(1.0), (), 20.0)


def decided(model: ModelFleet, settings: ChironSettings | None = None) -> FleetDecision:
    """At the second tick: the first one has told what requests take of a step."""
    chiron = Chiron(settings)
    chiron.decide(FleetSnapshot(1.0, (model,), {"n": 8}))
    return chiron.decide(FleetSnapshot(2.0, (model,), {"n": 8}))


def started(decision: FleetDecision) -> int:
    return sum(action.count for action in decision.actions if isinstance(action, Start))


def test_instances_are_added_where_steps_are_full_and_slots_are_not() -> None:
    # 110 requests: 55 % of 200 slots. But steps of 200 tokens, full with 40 requests each, hold 80 in all.
    decision = decided(fleet(step_tokens=200.0))
    # 110 / 0.85 needs 129.4 slots of 40 each: two are there.
    assert started(decision) == 2
    numbers = decision.assessments[0].numbers
    assert (numbers["slots"], numbers["step_tokens_each"]) == (pytest.approx(80.0), pytest.approx(5.0))
    assert numbers["ibp"] == pytest.approx(110 / 80)


@pytest.mark.parametrize(
    ("step_tokens", "settings"),
    [
        # Steps are half empty: it is something else that requests wait for.
        (80.0, ChironSettings()),
        # No figure of steps has been reported.
        (0.0, ChironSettings()),
        # Steps do not count.
        (200.0, ChironSettings(step_share=0.0)),
    ],
)
def test_slots_count_whole_where_steps_are_not_full(step_tokens: float, settings: ChironSettings) -> None:
    decision = decided(fleet(step_tokens=step_tokens), settings)
    assert started(decision) == 0
    assert decision.assessments[0].numbers["slots"] == 200.0


def test_a_share_of_the_steps_below_one_leaves_room_in_them() -> None:
    half = decided(fleet(step_tokens=200.0), ChironSettings(step_share=0.5))
    assert half.assessments[0].numbers["slots"] == pytest.approx(40.0)
    with pytest.raises(ValueError, match="step_share"):
        ChironSettings(step_share=1.5)


def test_a_larger_budget_never_asks_for_more_instances() -> None:
    counts = [
        started(decided(fleet(step_tokens=150.0, budget=budget, waiting=40)))
        for budget in range(150, 1200, 50)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_no_instance_goes_whose_share_the_steps_of_the_others_could_not_compute() -> None:
    # Calm: 40 requests each on three instances. By slots two would do, by their steps all three are full.
    chiron, blind = Chiron(), Chiron(ChironSettings(step_share=0.0))
    ended = Traffic(1.0, 15, 0, 0, 15, finished_output_tokens=1_500, finished_output_tokens_sq=150_000.0)
    model = fleet(step_tokens=190.0, waiting=0, instances=3)
    model = ModelFleet("m", 1, 0, 0, 1.0, 0.2, 2.0, model.instances, ended, (), 20.0)
    gone = {True: 0, False: 0}
    for second in range(1, 200):
        for sees, policy in ((True, chiron), (False, blind)):
            decision = policy.decide(FleetSnapshot(float(second), (model,), {"n": 8}))
            gone[sees] += any(isinstance(action, Retire) for action in decision.actions)
    assert gone[True] == 0
    assert gone[False] > 0


@pytest.mark.parametrize(("ttft_slo_s", "by_steps"), [(2.0, True), (30.0, False)])
def test_the_tighter_of_both_limits_bounds_the_queue(ttft_slo_s: float, by_steps: bool) -> None:
    ended = Traffic(1.0, 0, 0, 0, 60, finished_output_tokens=6_000, finished_output_tokens_sq=600_000.0)
    calm = fleet(step_tokens=190.0, waiting=0)
    model = ModelFleet("m", 1, 0, 0, ttft_slo_s, 0.2, 2.0, calm.instances, ended, (), 100.0)
    numbers = decided(model).assessments[0].numbers
    # Steps of 200 tokens are full with 42 of the 100 slots.
    served, per_s = numbers["slots_each"], numbers["requests_per_s_each"]
    assert served == pytest.approx(200 / (190 / RUNNING))
    beyond_slots = SLOTS + 0.4 * ttft_slo_s * per_s
    beyond_steps = served + 0.7 * ttft_slo_s * per_s
    assert (beyond_steps < beyond_slots) is by_steps
    room = served * (1 + numbers["queue_share"])
    assert room == pytest.approx(beyond_steps if by_steps else beyond_slots)
