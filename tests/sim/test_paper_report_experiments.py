"""What experiments tell of real, tiny runs, and what they conclude from runs that are made up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from chiron.sim.convergence import Loop
from chiron.sim.paper.case import Case, Outcome, simulated
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments import convergence, estimator
from chiron.sim.paper.experiments.ablation import ABLATION, BOTH, GLOBAL, LOCAL, NEITHER, contributions
from chiron.sim.paper.experiments.burstiness import BURSTINESS
from chiron.sim.paper.experiments.convergence import CONVERGENCE
from chiron.sim.paper.experiments.estimator import ESTIMATOR, accuracy
from chiron.sim.paper.experiments.head_of_line import HEAD_OF_LINE
from chiron.sim.paper.experiments.hysteresis import HYSTERESIS
from chiron.sim.paper.experiments.optimisations import OPTIMISATIONS
from chiron.sim.paper.experiments.rate_tables import again
from chiron.sim.paper.experiments.slo_sweep import SLO_SWEEP
from chiron.sim.paper.experiments.telling import middle
from chiron.sim.paper.sections import Finding
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario

SIMULATED = (BURSTINESS, SLO_SWEEP, ABLATION, HYSTERESIS, HEAD_OF_LINE, OPTIMISATIONS)


def tiny(case: Case) -> Case:
    """The same case in seconds: few requests, early, and soon over."""
    scenario = case.scenario
    replace = dataclasses.replace
    waves = {"period_s": 6.0, "peak_s": 2.0}
    small = replace(
        scenario,
        duration_s=10.0,
        traffic=tuple(
            replace(each, rate_per_s=3.0, **(waves if each.shape == "diurnal" else {}))
            for each in scenario.traffic
        ),
        backlogs=tuple(replace(each, requests=5, arrive_s=3.0) for each in scenario.backlogs),
        settings=replace(scenario.settings, warmup_s=1.0, horizon_s=200.0),
    )
    # Searching the smallest fleet is the same for every experiment, and tested with the runs.
    policy = PolicyChoice("chiron-static") if case.policy.name == "fixed" else case.policy
    return replace(case, scenario=small, policy=policy)


def outcomes_of(cases: Sequence[Case]) -> list[Outcome]:
    return [Outcome(case, json.loads(json.dumps(case.measure(case))), f"run {case.key}") for case in cases]


@pytest.mark.parametrize("experiment", SIMULATED, ids=lambda each: each.name)
def test_every_run_is_in_a_row_that_says_how_to_repeat_it(experiment: Experiment) -> None:
    outcomes = outcomes_of([tiny(case) for case in experiment.cases(Size.QUICK, None)])

    section = experiment.tell(outcomes)

    commands = {line for table in section.tables for row in table.rows for line in row.command.splitlines()}
    assert commands == {each.command for each in outcomes}
    drawn = [point.y for plot in section.plots for series in plot.series for point in series.points]
    assert drawn
    assert None not in drawn


def test_convergence_tells_of_tiny_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "_LOOP", Loop(warm_up_s=10, measured_s=20))
    monkeypatch.setattr(convergence, "_QUICK_GRID", ((96, 384), (128, 512)))
    every = CONVERGENCE.cases(Size("quick", seeds=1), None)
    cases = [case for case in every if case.labels.get("start", 32.0) == 32.0]

    section = CONVERGENCE.tell(outcomes_of(cases))

    assert [row.cells[:2] for row in section.tables[0].rows] == [
        (f"{slo} ms", local) for slo in ("20", "50", "200", "2000") for local in ("reactive", "model")
    ]
    # Thirty decisions are too few to be sure of a hundred calm ones.
    assert {finding.verdict for finding in section.findings} == {"not met"}
    assert all(row.cells[4] is not None for row in section.tables[0].rows)


def test_a_loop_that_stays_and_yields_enough_has_settled_and_arrived() -> None:
    steady = [(1.0, 1000, 0.02)] * 160
    slow = [(1.0, 100, 0.02)] * 8 + steady[8:]
    static = {"pairs": [{"pair": [256, 512], "tokens_per_s": 1000.0, "attained": [1.0] * 4}]}
    loop = {"tokens_per_s": 900.0, "itl_attainment": 1.0, "limits": [[9, 9]] * 7 + [[256, 512]] * 153}
    made = [
        made_up(CONVERGENCE, static, local="static"),
        made_up(
            CONVERGENCE,
            {**loop, "settled": 7, "intervals": slow},
            local="model",
            itl_slo_ms=200.0,
            start=32.0,
        ),
    ]

    section = CONVERGENCE.tell(made)

    cells = section.tables[0].rows[0].cells
    assert cells[:3] == ("200 ms", "model", "7")
    # From the eighth second on every window of twenty seconds yields nine tenths or more.
    assert cells[3] == "6"
    assert cells[4] == "0.900"
    assert section.findings[0].verdict == "met"


def test_estimates_are_taken_from_the_queue_after_the_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimator, "BINS", ((2, 20), (20, 40), (40, 60), (60, 10_000)))
    monkeypatch.setattr(estimator, "QUICK", estimator.Scale((1, 2), (100.0, 200.0), 20.0))
    cases = ESTIMATOR.cases(Size("quick", seeds=3), None)
    assert {case.measure for case in cases} == {estimator.estimates}
    small = [short_queues(case) for case in cases]

    outcomes = outcomes_of(small)

    pairs = [pair for each in outcomes for pair in each.figures["pairs"]]
    assert pairs
    assert all(wait > 0 and ahead > 2 for ahead, _, _, wait in pairs)
    assert ESTIMATOR.tell(outcomes).tables[1].rows
    (first, *_) = small
    learning = dataclasses.replace(first, labels={**first.labels, "learned_s": 1e6})
    assert learning.measure(learning)["pairs"] == []


def short_queues(case: Case) -> Case:
    """Files of a few requests on an engine with a few slots, so that they wait."""
    scenario = case.scenario
    (model,) = scenario.settings.models
    settings = dataclasses.replace(
        scenario.settings,
        models=(dataclasses.replace(model, initial_batch_size=8, max_batch_size=8),),
        queues=dataclasses.replace(scenario.settings.queues, estimate_every=1),
        horizon_s=scenario.duration_s,
    )
    traffic = tuple(
        dataclasses.replace(each, step_at_s=0.1)
        if each.request_class == "batch"
        else dataclasses.replace(each, rate_per_s=4.0)
        for each in scenario.traffic
    )
    return dataclasses.replace(
        case, scenario=dataclasses.replace(scenario, settings=settings, traffic=traffic, duration_s=60.0)
    )


def test_seeds_draw_different_troubles_the_same_each_time() -> None:
    drawn = [estimator.scenario_drawn(seed, estimator.QUICK) for seed in range(101, 121)]

    assert {trouble for trouble, _, _ in drawn} == set(estimator.TROUBLES)
    assert {fleet for _, fleet, _ in drawn} == set(estimator.FLEETS)
    assert drawn[3] == estimator.scenario_drawn(104, estimator.QUICK)


def test_accuracy_is_of_all_pairs_together() -> None:
    exact = accuracy([(10, 5.0, 9.0, 5.0), (30, 20.0, 19.0, 20.0)])
    assert (exact.pairs, exact.r2, exact.error, exact.covered) == (2, 1.0, 0.0, 0.5)

    # Twice the wait of one of two: 1 - 25/50 over the mean of 10.
    half = accuracy([(10, 10.0, 9.0, 5.0), (30, 15.0, 20.0, 15.0)])
    assert half.r2 == pytest.approx(0.5)
    # Position alone says 20 s / 40 requests ahead: exactly right here.
    assert half.position == pytest.approx(1.0)
    assert accuracy([]).r2 is None


SCENARIO = HYSTERESIS.cases(Size.QUICK, None)[0].scenario


def made_up(
    experiment: Experiment,
    figures: Mapping[str, Any],
    policy: PolicyChoice | None = None,
    scenario: Scenario = SCENARIO,
    **labels: str | float,
) -> Outcome:
    return Outcome(
        Case(experiment.name, labels, scenario, policy or PolicyChoice("chiron"), 101), figures, "again"
    )


def run_figures(
    attained: float = 1.0,
    per_gpu_hour: float = 1000.0,
    *,
    actions: int = 0,
    reversals: int = 0,
    ttft_s: float = 1.0,
) -> dict[str, Any]:
    return {
        "attains": attained >= 0.99,
        "slo_attainment": {"all": attained, "interactive": attained, "batch": None},
        "throughput": {"requests_per_gpu_hour": per_gpu_hour},
        "gpu_hours": 1000.0 / per_gpu_hour,
        "oracle_lb": {"ratio": 1500.0 / per_gpu_hour},
        "gpus_peak": 4,
        # One in the warm-up and one when no more requests arrive do not count.
        "actions": [{"at_s": at_s} for at_s in (10.0, *[300.0] * actions, 900.0)],
        "reversals": reversals,
        "simulated_s": 1800.0,
        "preemptions": 0,
        "ttft_ms": dict.fromkeys(("p50", "p90", "p99"), 1e3 * ttft_s),
    }


def ablated(**efficiency: float) -> list[Outcome]:
    names = {"neither": NEITHER, "local": LOCAL, "alone": GLOBAL, "both": BOTH}
    return [
        made_up(ABLATION, run_figures(per_gpu_hour=value), workload="W", variant=names[name])
        for name, value in efficiency.items()
    ]


def verdicts(findings: Sequence[Finding]) -> list[str]:
    return [finding.verdict for finding in findings]


def test_an_autoscalers_part_is_the_mean_of_coming_first_and_second() -> None:
    found = contributions(ablated(neither=100.0, local=140.0, alone=150.0, both=200.0))

    # Local adds 40 first and 50 second, global 50 first and 60 second, of 100 in all.
    assert found == pytest.approx((0.4, 0.5, 1.0, 0.45, 0.55))
    assert verdicts(ABLATION.tell(ablated(neither=100.0, local=140.0, alone=150.0, both=200.0)).findings) == [
        "met",
        "met",
    ]


def test_a_part_beyond_what_is_published_is_not_met_and_says_whose_it_is() -> None:
    found = ABLATION.tell(ablated(neither=100.0, local=110.0, alone=190.0, both=200.0)).findings

    assert verdicts(found) == ["not met", "not met"]
    assert found[0].why == "less than published: the global one adds 90%"


@pytest.mark.parametrize(
    "outcomes",
    [ablated(neither=100.0, both=200.0), ablated(neither=100.0, local=90.0, alone=90.0, both=90.0)],
)
def test_no_part_is_told_without_all_variants_or_without_a_gain(outcomes: list[Outcome]) -> None:
    assert contributions(outcomes)[3:] == (None, None)
    assert verdicts(ABLATION.tell(outcomes).findings) == ["no figure", "no figure"]


@pytest.mark.parametrize(("actions", "verdict"), [(10, "met"), (11, "not met")])
def test_scaling_is_calm_when_it_acts_a_third_as_often_as_utilization(actions: int, verdict: str) -> None:
    outcomes = [
        made_up(HYSTERESIS, run_figures(actions=actions), traffic="waves"),
        made_up(HYSTERESIS, run_figures(actions=30), PolicyChoice("utilization"), traffic="waves"),
    ]

    found = HYSTERESIS.tell(outcomes).findings

    assert found[0].found == f"{6 * actions}.0"
    assert verdicts(found) == [verdict, "met"]
    assert found[0].why == "GPU-hours over the lower bound: chiron 1.50, utilization 1.50"


def test_blocking_has_ended_when_interactive_requests_wait_less() -> None:
    def told(shared_s: float, apart_s: float) -> list[str]:
        shared, apart = "one queue for both", "a queue for each class"
        outcomes = [
            made_up(HEAD_OF_LINE, run_figures(ttft_s=shared_s), queues=shared, discipline="fcfs"),
            made_up(HEAD_OF_LINE, run_figures(ttft_s=apart_s), queues=apart, discipline="edf"),
        ]
        return verdicts(HEAD_OF_LINE.tell(outcomes).findings)

    assert told(30.0, 0.5) == ["met"]
    assert told(0.5, 0.5) == ["not met"]


def test_bursts_and_slos_are_met_by_every_value_or_the_report_says_which_are_not() -> None:
    bursts = [made_up(BURSTINESS, run_figures(0.995), cv=1.0), made_up(BURSTINESS, run_figures(0.97), cv=8.0)]
    (found,) = BURSTINESS.tell(bursts).findings
    assert (found.verdict, found.why) == ("not met", "97.00% at CV 8.")
    assert verdicts(BURSTINESS.tell(bursts[:1]).findings) == ["met"]

    slos = [
        made_up(SLO_SWEEP, run_figures(share), slo=slo) for slo, share in (("tight", 0.9), ("loose", 0.99))
    ]
    assert verdicts(SLO_SWEEP.tell(slos).findings) == ["not met", "met"]


def test_a_faster_engine_is_to_cost_less_and_attain_as_well() -> None:
    def told(attained: float, per_gpu_hour: float) -> Finding:
        outcomes = [
            made_up(OPTIMISATIONS, run_figures(), workload="W", variant="neither"),
            made_up(OPTIMISATIONS, run_figures(attained, per_gpu_hour), workload="W", variant="both"),
        ]
        (found,) = OPTIMISATIONS.tell(outcomes).findings
        return found

    assert told(1.0, 1250.0).verdict == "met"
    assert told(0.5, 1250.0).why == "attainment is 50.00%"
    assert told(1.0, 1000.0).why == "it takes no fewer GPU-hours"


def test_what_never_comes_is_later_than_anything_that_does() -> None:
    assert middle([3, None, 5]) == "5 [3–never]"
    assert middle([None]) == "never"
    assert middle([4, 4]) == "4"
    assert middle([]) is None


def test_a_row_names_a_few_commands_each_once() -> None:
    many = [dataclasses.replace(made_up(ABLATION, {}), command=f"run {number % 7}") for number in range(20)]

    assert again(many).splitlines() == [f"run {number}" for number in range(5)]
    assert again([dataclasses.replace(many[0], command="")]) == ""


def test_plots_of_the_whole_report_have_names_of_their_own() -> None:
    names = [
        plot.name for experiment in (*SIMULATED, CONVERGENCE, ESTIMATOR) for plot in experiment.tell(()).plots
    ]

    assert len(names) == len(set(names))


def test_what_experiments_ask_for_alike_is_one_run() -> None:
    asking = [
        experiment.name
        for experiment in SIMULATED
        for case in experiment.cases(Size.QUICK, None)
        if (case.scenario, case.policy, case.measure) == (SCENARIO, PolicyChoice("chiron"), simulated)
        and not case.timeline
    ]

    assert asking == ["burstiness", "slo-sweep", "ablation", "optimisations"]
