"""What experiments ask for: cases that can be told apart, on seeds that nothing was chosen by."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from chiron.config import ConfigError
from chiron.policy.words import Phase
from chiron.sim.paper.case import Case, Figures, NoFleetError
from chiron.sim.paper.experiment import REPORTED_SEEDS, TUNING_SEEDS, Experiment, Size, SkippedError
from chiron.sim.paper.experiments import EXPERIMENTS, chosen
from chiron.sim.policies import PolicyChoice
from chiron.sim.runs import attains, fixed_model, run
from chiron.sim.scenario import Scenario, read_scenario

TINY = read_scenario(Path(__file__).parents[2] / "examples" / "scenarios" / "tiny.toml")


def test_a_key_is_made_of_labels_policy_and_seed() -> None:
    case = Case("rates", {"mix": "8b + 70b", "rate": 7.5}, TINY, PolicyChoice("llumnix"), 103)

    assert case.key == "8b-+-70b,7.5,llumnix,103"


def test_a_label_that_repeats_the_policy_is_named_once() -> None:
    case = Case("rates", {"row": "llumnix"}, TINY, PolicyChoice("llumnix"), 103)

    assert case.key == "llumnix,103"


def measured(
    policy: str = "chiron", seed: int = 3, *, timeline: bool = False, scenario: Scenario = TINY
) -> Figures:
    case = Case("tiny", {}, scenario, PolicyChoice(policy), seed, timeline=timeline)
    return case.measure(case)


def test_a_case_runs_at_its_own_seed() -> None:
    third, fourth = measured(seed=3), measured(seed=4)

    assert (third["seed"], fourth["seed"]) == (3, 4)
    assert third["throughput"] != fourth["throughput"]
    assert third == measured(seed=3)


def test_figures_hold_the_timeline_and_the_actions_on_request() -> None:
    assert "timeline" not in measured()

    figures = json.loads(json.dumps(measured(timeline=True)))

    assert figures["timeline"][0]["at_s"] == pytest.approx(1.0)
    assert set(figures["timeline"][0]["held"]) <= {phase.name.lower() for phase in Phase}
    assert len(figures["actions"]) == figures["scaling_actions"]


def test_a_fixed_policy_gets_the_smallest_fleet_that_attains() -> None:
    figures = measured("fixed")

    assert figures["attains"]
    fewer = dataclasses.replace(
        TINY,
        settings=dataclasses.replace(
            TINY.settings, models=(fixed_model(TINY.settings.models[0], figures["fleet"] - 1),)
        ),
    )
    assert not attains(run(fewer.with_seed(3), PolicyChoice("fixed")).result)


def test_no_fleet_that_attains_is_no_figure() -> None:
    model = dataclasses.replace(TINY.settings.models[0], max_instances=1)
    cramped = dataclasses.replace(TINY, settings=dataclasses.replace(TINY.settings, models=(model,)))

    with pytest.raises(NoFleetError):
        measured("fixed", scenario=cramped)


def test_reported_seeds_are_none_of_those_for_tuning() -> None:
    assert not set(REPORTED_SEEDS) & set(TUNING_SEEDS)
    assert Size.FULL.reported(quick=1, full=5) == REPORTED_SEEDS
    assert Size.QUICK.reported(quick=1, full=5) == (101,)
    assert Size("quick", seeds=2).reported(quick=1, full=5) == (101, 102)


@pytest.mark.parametrize("size", [Size.QUICK, Size.FULL], ids=lambda size: size.name)
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_an_experiment_asks_for_cases_of_its_own_with_keys_of_their_own(
    experiment: Experiment, size: Size
) -> None:
    try:
        cases = experiment.cases(size, None)
    except SkippedError:
        return

    assert cases
    assert {case.experiment for case in cases} == {experiment.name}
    assert len({case.key for case in cases}) == len(cases)


def test_every_experiment_has_a_name_of_its_own() -> None:
    names = [each.name for each in EXPERIMENTS]

    assert len(set(names)) == len(names)


def test_an_experiment_tells_of_no_outcome_at_all() -> None:
    for experiment in EXPERIMENTS:
        assert experiment.tell(()).title


def test_experiments_are_chosen_by_name_and_unknown_ones_refused() -> None:
    assert chosen(None) == EXPERIMENTS
    assert chosen(f" {EXPERIMENTS[0].name} ") == EXPERIMENTS[:1]
    with pytest.raises(ConfigError, match=r"--only: unknown experiment 'bogus'; known are .*rates-w-a"):
        chosen("bogus")
