"""The goals: who runs on which rows, how baselines are tuned, and who is said to win."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.compared import BASELINES, OURS
from chiron.sim.paper.compared import TUNED as TUNED_POLICIES
from chiron.sim.paper.experiment import REPORTED_SEEDS, Size
from chiron.sim.paper.experiments import goals
from chiron.sim.paper.experiments.goal_telling import (
    CEILING,
    FIXED,
    PUBLISHED,
    REFERENCE,
    TUNED,
    TUNING,
    goals_section,
)
from chiron.sim.paper.goal_floor import steady_need
from chiron.sim.paper.goal_rows import GOALS
from chiron.sim.paper.sections import Finding
from chiron.sim.policies import PolicyChoice
from tests.support.paper_figures import figures

ROW = "w_b-70b-22k"
SCENARIO = GOALS[ROW].scenario(None)


def outcome(
    policy: str | PolicyChoice, gpu_hours: float, variant: str = PUBLISHED, seed: int = 101, **more: Any
) -> Outcome:
    choice = PolicyChoice(policy) if isinstance(policy, str) else policy
    case = Case(goals.NAME, {"row": ROW, "variant": variant}, SCENARIO, choice, seed)
    return Outcome(case, figures(gpu_hours, **more), f"again {choice.label} {seed}")


def found(outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    """The goal's, and with rivals that of who needs less."""
    return goals_section(outcomes).findings


def test_ours_runs_on_five_reported_seeds_beside_every_baseline() -> None:
    cases = [case for case in goals.cases(Size.FULL, None) if case.labels["row"] == ROW]

    ours = [case.seed for case in cases if case.policy.name == OURS and case.labels["variant"] == PUBLISHED]
    assert tuple(ours) == REPORTED_SEEDS
    assert {case.policy.name for case in cases} >= {*BASELINES, FIXED}


def test_what_takes_longest_runs_when_all_goals_have_their_figures() -> None:
    full = goals.cases(Size.FULL, None)
    soon = [case for case in full if not case.late]
    heavy = {name for name, row in GOALS.items() if row.heavy}

    traces = {name for name, row in GOALS.items() if row.replays}
    assert {case.labels["row"] for case in full} == set(GOALS) - traces
    assert {case.labels["row"] for case in soon} == set(GOALS) - traces - heavy
    assert {case.policy.name for case in soon} == {OURS}
    for row in set(GOALS) - traces - heavy:
        seeds = [c.seed for c in soon if (c.labels["row"], c.labels["variant"]) == (row, PUBLISHED)]
        assert tuple(seeds) == REPORTED_SEEDS
    assert {case.labels["row"] for case in goals.cases(Size.QUICK, None)} < set(GOALS) - traces


def test_the_plan_tells_what_is_left_out_and_what_would_run_it() -> None:
    told = goals.left_out(Size.FULL, None)

    assert "w_a-8b-700, " in goals.left_out(Size.QUICK, None).partition(" altogether")[0]
    assert "baselines on w_b-8b-1m, w_b-8b-200k, w_a-8b-700" in told
    assert "--goals-full runs them too" in told
    assert "azure-conv-8b-50 needs --traces" in told
    assert goals.left_out(Size("full", every_goal=True), Path()) == ""


def test_baselines_are_tuned_on_seeds_that_are_not_reported_and_run_again_on_those_that_are() -> None:
    # The more requests in flight, or slots in use, the fewer GPUs, until it does not attain any more.
    def ran(case: Case) -> Outcome:
        given = case.policy.parameters
        most = {"in-flight": ("target", 200), "utilization": ("target", 0.7)}.get(case.policy.name)
        if most is None:
            return Outcome(case, figures(50.0))
        return Outcome(case, figures(2000 / given[most[0]], attains=given[most[0]] <= most[1]))

    done = [outcome(OURS, 10.0), outcome("in-flight", 40.0)]
    keys: set[str] = set()
    while new := [case for case in goals.next_cases(Size.FULL, done) if case.key not in keys]:
        keys |= {case.key for case in new}
        done += map(ran, new)

    tuning = [each.case for each in done if each.case.labels["variant"] == TUNING]
    last = {each.case.policy.name: each.case for each in done if each.case.labels["variant"] == TUNED}
    assert {case.seed for case in tuning} == {goals.TUNING_SEEDS[0]}
    assert not {case.seed for case in tuning} & set(REPORTED_SEEDS)
    assert {case.policy.name for case in tuning} == set(last) == set(TUNED_POLICIES)
    assert {case.seed for case in last.values()} == {101}
    # The searches climb to the last values that attain.
    assert last["in-flight"].policy.parameters["target"] == 192
    assert last["utilization"].policy.parameters["target"] == 0.7
    assert goals.next_cases(Size.QUICK, done) == []


def test_a_goal_is_met_by_the_median_with_every_seed_attaining() -> None:
    ratios = (1.10, 1.14, 1.20)
    ours = [outcome(OURS, 10.0, seed=101 + place, ratio=each) for place, each in enumerate(ratios)]

    assert found(ours)[0].verdict == "met"
    assert "1.140, 3 of 3 attain" in found(ours)[0].found

    one_fails = [*ours[:2], outcome(OURS, 10.0, seed=103, ratio=1.0, attains=False)]
    assert found(one_fails)[0].verdict == "not met"
    assert found([outcome(OURS, 10.0, ratio=1.16)])[0].verdict == "not met"


def test_a_goal_below_what_a_busy_engine_needs_is_not_reachable() -> None:
    ceiling = outcome(OURS, 0.0, CEILING, seed=1)
    ceiling = Outcome(ceiling.case, {"ratio": 1.16})

    assert found([outcome(OURS, 10.0, ratio=1.17), ceiling])[0].verdict == "not reachable"


def test_the_row_names_the_baseline_that_wins_and_what_it_did_otherwise() -> None:
    tuned = outcome(PolicyChoice("in-flight", parameters={"target": 128}), 9.0, TUNED, gpus_peak=8)
    outcomes = [outcome(OURS, 10.0), outcome("utilization", 12.0), tuned]

    _, beside, _ = found(outcomes)

    assert beside.verdict == "not met"
    assert beside.found == "in-flight[target=128], tuned wins with 10.0% fewer GPU-hours than ours"
    assert "GPUs at the peak: 12 against 8" in beside.why


@pytest.mark.parametrize("variant", [REFERENCE, TUNING])
def test_neither_a_reference_nor_a_tuning_run_is_a_rival(variant: str) -> None:
    policy = FIXED if variant == REFERENCE else "in-flight"
    outcomes = [outcome(OURS, 10.0), outcome("utilization", 12.0), outcome(policy, 5.0, variant)]

    assert found(outcomes)[1].found == "utilization comes nearest and holds +20.0% GPU-hours over ours"


def test_a_baseline_that_does_not_attain_is_no_rival_but_named() -> None:
    outcomes = [outcome(OURS, 10.0), outcome("llumnix", 5.0, attains=False)]

    _, beside = found(outcomes)

    assert (beside.verdict, beside.found) == ("met", "ours alone attains")
    assert beside.why == "these do not attain: llumnix"


def test_rivals_are_compared_on_common_seeds_alone() -> None:
    outcomes = [outcome(OURS, 10.0), outcome(OURS, 30.0, seed=102), outcome("utilization", 11.0)]

    assert found(outcomes)[1].found == "utilization comes nearest and holds +10.0% GPU-hours over ours"


def test_a_row_without_ours_attaining_is_not_met() -> None:
    outcomes = [outcome(OURS, 10.0, attains=False), outcome("utilization", 12.0)]

    assert found(outcomes)[1].verdict == "not met"


@pytest.mark.parametrize(
    ("actions", "reversals", "verdict"), [(4, 1, "met"), (5, 1, "not met"), (4, 2, "not met")]
)
def test_scaling_is_judged_by_a_third_of_what_the_reference_does(
    actions: int, reversals: int, verdict: str
) -> None:
    theirs = outcome("utilization", 12.0, scaling_actions=12, reversals=3)
    ours = [
        outcome(OURS, 10.0, scaling_actions=actions, reversals=reversals),
        # On a seed that the reference has not run on.
        outcome(OURS, 10.0, seed=102, scaling_actions=1000),
    ]

    calm = found([*ours, theirs])[2]

    # Two hours are simulated.
    assert calm.expected == "a third of utilization's at most, which are 6.0 and 1.5"
    assert calm.verdict == verdict


def test_an_unmet_goal_says_what_whole_instances_the_arrivals_need() -> None:
    # 11 requests a second on instances of 4 GPUs that serve 8 each: two, and one bridges 10 s x 8 / 3.
    ceiling = Outcome(outcome(OURS, 0.0, CEILING, seed=1).case, {"ratio": 1.2, "interactive_per_gpu_s": 2.0})
    ours = outcome(OURS, 12.0, ratio=1.5)

    why = found([ours, ceiling])[0].why

    assert "need 2 instances all the time (with one fewer they wait beyond the TTFT SLO within 27 s)" in why
    # 8 GPUs for 4,800 s after the warm-up over a bound of 8 GPU-hours.
    assert why.endswith(f"which is {8 * 4800 / 3600 / 8:.3f}")


@pytest.mark.parametrize("changed", [{"cv": 4.0}, {"shape": "diurnal", "swing": 0.5, "period_s": 600.0}])
def test_arrivals_that_are_not_steady_need_no_instances_all_the_time(changed: dict[str, Any]) -> None:
    (traffic,) = SCENARIO.traffic
    unsteady = dataclasses.replace(SCENARIO, traffic=(dataclasses.replace(traffic, **changed),))

    assert steady_need(SCENARIO, 2.0) is not None
    assert steady_need(unsteady, 2.0) is None
    # With 40 GPUs of work a queue bridges the lack of one for long.
    many = dataclasses.replace(SCENARIO, traffic=(dataclasses.replace(traffic, rate_per_s=72.1),))
    assert steady_need(many, 2.0) is None
