"""The goals: GPU-hours over the lower bound, beside every autoscaling baseline at equal attainment."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from chiron.sim.compare import model_ceilings
from chiron.sim.paper.case import Case, Figures, Outcome
from chiron.sim.paper.compared import BASELINES, COMPARED_QUICKLY, OURS, PAPER, TUNED
from chiron.sim.paper.experiment import Experiment, Later, Size, SkippedError
from chiron.sim.paper.experiments.goal_telling import (
    CEILING,
    CLAIRVOYANT,
    FIXED,
    PUBLISHED,
    REFERENCE,
    TUNING,
    goals_section,
)
from chiron.sim.paper.experiments.goal_telling import TUNED as TUNED_ONE
from chiron.sim.paper.goal_rows import GOALS
from chiron.sim.paper.speed import expected_requests
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.tuned import LLUMNIX, tuned
from chiron.sim.tuning import Trial

NAME = "goals"
QUICK_ROWS = ("w_a-8b-30", "azure-conv-8b-50", "w_b-70b-22k")
"""Rows of a quick run."""
QUICKLY_COMPARED = ("w_b-70b-22k",)
"""Where a quick run has baselines too."""
COMPARED_ROWS = ("w_b-8b-20k", "w_a-8b-30", "azure-conv-8b-50", "w_a-70b-78", "w_b-70b-22k")
"""Where a full run has them: the shorter ones."""
LONG_ROWS = ("w_b-8b-20k",)
"""Of these, those where it has a few alone."""
ON_LONG_ROWS = (PAPER, "utilization", "in-flight", "dynamo-like", LLUMNIX)
FLEET_ROWS = ("w_a-8b-30", "azure-conv-8b-50", "w_b-70b-22k")
"""Where it searches the smallest fixed fleet too: those of a few GPUs, which pay for whole ones."""
TUNED_ROWS = ("w_b-70b-22k",)
"""Where baselines are tuned too, unless all rows are asked for."""
ORACLE_ROWS = ("w_a-8b-30", "w_b-70b-22k")
"""Where a clairvoyant schedule is searched too, likewise."""
TUNING_SEEDS = (1, 2)
_CEILING_S = 900.0
_SEARCH_RUNS, _SHORT_SEARCH_RUNS = 16, 8
"""That one search takes, about, with all rounds and seeds, or with few."""


def ceiling_figures(case: Case) -> Figures:
    """× oracle-lb of an engine that never idles, at the best limits that are tried; None: none keeps the SLO.

    Under the tightest ITL SLO; with batch requests under the loosest, for they may run apart from the others.
    And how many requests a GPU serves each second under the tightest.
    """
    (found,) = model_ceilings(case.scenario.with_seed(case.seed)).values()
    bound = found[-1] if case.scenario.backlogs else found[0]
    best = None if bound.best is None else bound.best.requests_per_gpu_s
    tight = found[0].best
    return {
        "ratio": best and bound.bound_requests_per_gpu_s / best,
        "interactive_per_gpu_s": None if tight is None else tight.requests_per_gpu_s,
    }


def cases(size: Size, traces: Path | None) -> Sequence[Case]:
    """Ours on all seeds, the rest on fewer and later; rows without their trace are left out."""
    found: list[Case] = []
    for name in _rows(size):
        try:
            scenario = GOALS[name].scenario(traces)
        except SkippedError:
            continue
        beside = _compared(size, name)
        late = GOALS[name].heavy
        ours = size.reported(quick=1, full=5 if size.every_goal or not late else 3)
        found += [_case(name, PUBLISHED, scenario, OURS, seed, late=late) for seed in ours]
        short = dataclasses.replace(scenario, duration_s=min(_CEILING_S, scenario.duration_s))
        found.append(
            Case(
                NAME,
                {"row": name, "variant": CEILING},
                short,
                PolicyChoice(OURS),
                TUNING_SEEDS[0],
                measure=ceiling_figures,
                late=late,
            )
        )
        others = _beside_seeds(size)
        found += [
            _case(name, variant, scenario, policy, seed, late=True)
            for variant, policies in ((PUBLISHED, beside), (REFERENCE, _references(size, name)))
            for policy in policies
            for seed in others
        ]
    return found


def _beside_seeds(size: Size) -> tuple[int, ...]:
    return size.reported(quick=1, full=5 if size.every_goal else 1)


def _compared(size: Size, row: str) -> tuple[str, ...]:
    """Who runs beside ours."""
    if size.quick and not size.every_goal:
        return tuple(each for each in COMPARED_QUICKLY if each != OURS) if row in QUICKLY_COMPARED else ()
    if not (size.every_goal or row in COMPARED_ROWS):
        return ()
    return ON_LONG_ROWS if row in LONG_ROWS and not size.every_goal else (PAPER, *BASELINES, LLUMNIX)


def _references(size: Size, row: str) -> tuple[str, ...]:
    """Who knows what is to come."""
    if size.every_goal:
        return (FIXED, CLAIRVOYANT)
    if size.quick:
        return ()
    fleet, oracle = (FIXED,) if row in FLEET_ROWS else (), (CLAIRVOYANT,) if row in ORACLE_ROWS else ()
    return (*fleet, *oracle)


def _rows(size: Size) -> list[str]:
    return [name for name in GOALS if size.every_goal or not size.quick or name in QUICK_ROWS]


def _case(
    row: str, variant: str, scenario: Scenario, policy: str | PolicyChoice, seed: int, *, late: bool = False
) -> Case:
    choice = PolicyChoice(policy) if isinstance(policy, str) else policy
    return Case(NAME, {"row": row, "variant": variant}, scenario, choice, seed, late=late)


def next_cases(size: Size, outcomes: Sequence[Outcome]) -> Sequence[Case]:
    """Baselines again, tuned: runs on tuning seeds, then the best one on reported seeds."""
    found: list[Case] = []
    for row in _tuned_rows(size):
        scenario = next((each.case.scenario for each in outcomes if _is(each, row, PUBLISHED)), None)
        if scenario is None:
            continue
        for policy in TUNED:
            # Where not all is asked for, the first values race, and one seed decides.
            seeds, rounds = (TUNING_SEEDS, 2) if size.every_goal else (TUNING_SEEDS[:1], 1)
            search = tuned(policy, scenario.settings.models, seeds=seeds, rounds=rounds)
            done = {
                trial_of(each.case): each.figures
                for each in outcomes
                if _is(each, row, TUNING) and each.case.policy.name == policy
            }
            trials = search.next_trials(done)
            if trials:
                found += [
                    _case(row, TUNING, scenario, search.choice(trial), trial.seed, late=True)
                    for trial in trials
                ]
            else:
                best = search.best(done).choice
                found += [
                    _case(row, TUNED_ONE, scenario, best, seed, late=True) for seed in _beside_seeds(size)
                ]
    return found


def _tuned_rows(size: Size) -> tuple[str, ...]:
    if size.every_goal:
        return tuple(GOALS)
    return () if size.quick else TUNED_ROWS


def _is(outcome: Outcome, row: str, variant: str) -> bool:
    labels = outcome.case.labels
    return labels["row"] == row and labels["variant"] == variant


def trial_of(case: Case) -> Trial:
    """The trial that a tuning case is."""
    return Trial(tuple(case.policy.parameters.items()), case.seed)


def later(size: Size) -> Later:
    """About what the searches take, and the best ones on reported seeds."""
    rows = _tuned_rows(size)
    if not rows:
        return Later(0)
    search = _SEARCH_RUNS if size.every_goal else _SHORT_SEARCH_RUNS
    runs = len(rows) * len(TUNED) * (search + len(_beside_seeds(size)))
    # A row that needs a trace is as long as its neighbours.
    known = [expected_requests(GOALS[name].scenario(None)) for name in rows if not GOALS[name].replays]
    return Later(runs, runs * statistics.fmean(known))


def left_out(size: Size, traces: Path | None) -> str:
    """Rows, and rows without baselines, that take too long for the size or need a trace."""
    missing = [name for name in GOALS if name not in _rows(size)]
    alone = [name for name in _rows(size) if not _compared(size, name)]
    told = []
    if missing:
        told.append(f"{', '.join(missing)} altogether")
    if alone:
        told.append(f"baselines on {', '.join(alone)}")
    few = [name for name in _rows(size) if not size.every_goal and not size.quick and name in LONG_ROWS]
    if few:
        told.append(f"some baselines on {', '.join(few)}")
    if told:
        told.append("--goals-full runs them too")
    if traces is None:
        told.append(f"{', '.join(name for name, row in GOALS.items() if row.replays)} needs --traces")
    return "; ".join(told)


GOALS_TABLE = Experiment(
    NAME,
    "The goals",
    "GPU-hours over what no schedule can go below, at 99 % interactive attainment and every deadline met, "
    "with one configuration for all workloads; and whether any autoscaling baseline of equal attainment "
    "needs less.",
    cases,
    goals_section,
    next_cases,
    later,
    left_out,
)
