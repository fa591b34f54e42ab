"""Headlines: the largest gain is judged by the paper's figure and by what physics allows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from chiron.sim.paper.case import Case, Figures, Outcome
from chiron.sim.paper.experiment import TUNING_SEEDS, Size
from chiron.sim.paper.experiments import headline, physical
from chiron.sim.paper.experiments.headline import HEADLINE, OURS, RUN, TUNING
from chiron.sim.paper.experiments.physical import best_rates, ceiling_per_gpu_s, ceiling_table
from chiron.sim.paper.headlines import Judged, Served, as_well, judged
from chiron.sim.policies import PolicyChoice
from chiron.sim.tuning import Aim


def served(who: str, cell: str = "W", **changes: Any) -> Served:
    plain = {"attained": 1.0, "attains": True, "gpu_hours": 1.0, "per_gpu_s": 10.0, "ceiling_per_gpu_s": 20.0}
    return Served(cell, who, **{**plain, **changes})


def against(ours: Served, theirs: Served, *more: Served) -> tuple[Judged, Judged, Judged]:
    attainment, throughput, gpus = judged((ours, theirs, *more), "ours", "theirs")
    return attainment, throughput, gpus


def test_attainment_is_judged_in_points() -> None:
    found, *_ = against(served("ours"), served("theirs", attained=0.05, attains=False))
    assert (found.verdict, found.largest and found.largest.gain) == ("met", pytest.approx(0.95))

    # Twenty times as much, but not ninety points: a baseline that attains half leaves no room for them.
    found, *_ = against(served("ours", attained=1.0), served("theirs", attained=0.5))
    assert found.verdict == "not reachable"
    assert "not reachable with this calibration, ceiling 50 points higher" in found.why


def test_throughput_beyond_the_ceiling_is_not_reachable_and_the_ceiling_is_told() -> None:
    _, found, _ = against(served("ours", per_gpu_s=15.0), served("theirs", per_gpu_s=10.0))
    assert found.verdict == "not reachable"
    assert found.finding().found == "50 % higher at the most (W)"
    assert found.finding().why.startswith("not reachable with this calibration, ceiling 100 % higher")


def test_a_gain_that_physics_allows_and_nobody_has_is_not_met() -> None:
    _, found, _ = against(
        served("ours", per_gpu_s=15.0), served("theirs", per_gpu_s=4.0, ceiling_per_gpu_s=20.0)
    )
    assert found.verdict == "not met"
    assert found.why.startswith("ceiling 400 % higher")

    _, found, _ = against(served("ours", per_gpu_s=16.0), served("theirs", per_gpu_s=4.0))
    assert found.verdict == "met"


def test_gpu_hours_are_compared_only_where_ours_attains() -> None:
    saving = served("ours", gpu_hours=0.2, attains=False)
    _, _, found = against(saving, served("theirs", per_gpu_s=2.0))
    assert found.verdict == "no figure"
    assert found.why == "no workload of which both have figures and which ours attains"

    _, _, found = against(dataclasses.replace(saving, attains=True), served("theirs", per_gpu_s=2.0))
    assert (found.verdict, found.largest and found.largest.gain) == ("met", pytest.approx(0.8))
    _, _, found = against(served("ours", gpu_hours=0.9), served("theirs", per_gpu_s=18.0))
    assert (found.verdict, found.ceiling) == ("not reachable", pytest.approx(0.1))


def test_a_loss_is_called_one() -> None:
    attainment, throughput, gpus = against(
        served("ours", attained=0.97, gpu_hours=1.1, per_gpu_s=9.0), served("theirs")
    )
    assert attainment.finding().found == "3 points lower at the most (W)"
    assert throughput.finding().found == "10 % lower at the most (W)"
    assert gpus.finding().found == "10 % more at the most (W)"
    assert gpus.finding().expected == "up to 70 % fewer"


def test_the_largest_gain_of_all_workloads_counts_and_so_does_the_largest_ceiling() -> None:
    attainment, *_ = against(
        served("ours"),
        served("theirs", attained=0.9),
        served("ours", "V"),
        served("theirs", "V", attained=0.2, attains=False),
    )
    assert attainment.largest is not None
    assert (attainment.largest.cell, attainment.ceiling) == ("V", pytest.approx(0.8))


def test_without_a_ceiling_nothing_is_called_unreachable() -> None:
    _, found, _ = against(served("ours"), served("theirs", ceiling_per_gpu_s=None))
    assert (found.verdict, found.ceiling, found.why) == ("not met", None, "")


def test_who_attains_with_as_few_gpu_hours_is_named() -> None:
    told = as_well(
        (
            served("ours", gpu_hours=1.0),
            served("fixed", gpu_hours=1.02),
            served("tuned", gpu_hours=1.03),
            served("cheap", gpu_hours=0.1, attains=False),
        ),
        "ours",
    )
    assert told == ("W: fixed attains with 1.02 GPU-hours, ours takes 1.00.",)

    (told_where_ours_fails,) = as_well(
        (served("ours", attains=False, gpu_hours=0.5), served("fixed", gpu_hours=2.0)), "ours"
    )
    assert told_where_ours_fails.endswith("ours takes 0.50, and does not attain.")


def test_the_ceiling_of_a_mix_is_of_its_requests_at_their_own_slos() -> None:
    _, mixed = headline.own_workloads(quick=True)
    interactive, batch = mixed.traffic[0].rate_per_s * mixed.duration_s, mixed.backlogs[0].requests

    found = ceiling_per_gpu_s(mixed, {("8b", 0.2): 20.0, ("8b", 2.0): 25.0})

    assert found == pytest.approx((interactive + batch) / (interactive / 20.0 + batch / 25.0))
    assert ceiling_per_gpu_s(mixed, {("8b", 0.2): 20.0}) is None

    (traffic,) = mixed.traffic
    later = dataclasses.replace(traffic, request_class="batch", deadline_in_s=600.0)
    all_batch = dataclasses.replace(mixed, traffic=(later,))
    assert ceiling_per_gpu_s(all_batch, {("8b", 2.0): 25.0}) == pytest.approx(25.0)


def test_the_ceilings_are_asked_for_first_and_come_from_the_engine_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(physical, "_QUICK_SIZES", (16, 32))
    monkeypatch.setattr(physical, "_QUICK_BUDGETS", (256,))
    monkeypatch.setattr(physical, "_REQUESTS", 3 * (256 + 64))
    first, second, *others = HEADLINE.cases(Size.QUICK, None)
    assert [case.labels.get("model") for case in (first, second)] == ["8b", "70b"]
    assert all(case.labels["what"] == RUN for case in others)

    outcome = Outcome(first, first.measure(first), "again")

    best = best_rates([outcome])
    assert set(best) == {("8b", slo_s) for slo_s in physical.ITL_SLOS_S}
    strict, *_, loose = (best["8b", slo_s] for slo_s in physical.ITL_SLOS_S)
    # The pair of static policies is always among those tried.
    assert loose >= outcome.figures["slos"][-1]["static"]
    assert strict <= loose
    assert [row.command for row in ceiling_table([outcome]).rows] == ["again"] * 3


def figures(attained: float = 1.0, gpu_hours: float = 1.0, per_gpu_s: float = 10.0) -> dict[str, Any]:
    return {
        "attains": attained >= 0.99,
        "slo_attainment": {"all": attained, "interactive": attained, "batch": None},
        "throughput": {"requests_per_gpu_hour": 3600 * per_gpu_s, "requests_per_s": 50.0},
        "gpu_hours": gpu_hours,
    }


def outcome(case: Case, found: Figures) -> Outcome:
    return Outcome(case, found, f"run {case.key}")


def test_llumnix_is_tuned_on_other_seeds_and_its_best_is_run_on_the_reported_one() -> None:
    first = [
        outcome(case, figures()) for case in HEADLINE.cases(Size.QUICK, None) if case.labels["what"] == RUN
    ]

    trials = HEADLINE.next_cases(Size.QUICK, first)

    assert trials
    assert {case.labels["what"] for case in trials} == {TUNING}
    assert {case.seed for case in trials} <= set(TUNING_SEEDS)
    # The third candidate alone attains; the last one serves the most.
    figures_of = {
        case.key: figures(1.0 if place % len(trials) == 2 else 0.5) for place, case in enumerate(trials)
    }
    tried = [outcome(case, figures_of[case.key]) for case in trials]
    best = [case for case in HEADLINE.next_cases(Size.QUICK, first + tried) if case.labels["what"] == RUN]
    chosen = next(case for case in best if case.labels["who"] == headline._AIMS[Aim.ATTAINMENT])
    assert chosen.policy == trials[2].policy
    assert chosen.seed == 101
    reported = [outcome(case, figures(0.99)) for case in best]
    assert HEADLINE.next_cases(Size.QUICK, first + tried + reported) == best


def test_the_section_names_each_baseline_each_ceiling_and_who_does_as_well() -> None:
    runs = []
    for case in HEADLINE.cases(Size.QUICK, None):
        if case.labels["what"] == RUN and not case.scenario.backlogs:
            ours = case.policy == PolicyChoice(OURS)
            runs.append(outcome(case, figures() if ours else figures(0.05, 2.0, 5.0)))
    slos = [
        {"itl_slo_s": slo_s, "best": 12.0, "pair": (512, 512), "static": 11.0, "static_pair": (256, 2048)}
        | {"static_attains": 1.0, "gain": 12 / 11, "bound": 13.0}
        for slo_s in physical.ITL_SLOS_S
    ]
    ceilings = [
        outcome(case, {"slos": slos}) for case in HEADLINE.cases(Size.QUICK, None) if "model" in case.labels
    ]

    section = HEADLINE.tell([*ceilings, *runs])

    verdicts = {finding.claim: finding.verdict for finding in section.findings}
    assert verdicts["SLO attainment against llumnix"] == "met"
    # 12 requests at the ceiling over the baseline's 5.
    assert verdicts["request throughput per GPU against llumnix"] == "not reachable"
    assert verdicts["GPU-hours against llumnix"] == "not reachable"
    assert section.paragraphs[-1].startswith("Nobody else attains")
    assert [row.cells[0] for row in section.tables[1].rows] == ["8b"] * 3 + ["70b"] * 3
    assert all(row.command for row in section.tables[2].rows)
