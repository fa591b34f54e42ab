"""The search for a policy's best parameters: which runs it wants, and what it makes of their figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import read_scenario
from chiron.sim.tuning import Aim, Ladders, Search, Trial, attained, grid, tune

TINY = Path(__file__).parents[3] / "examples" / "scenarios" / "tiny.toml"


def figures(
    gpu_hours: float, *, interactive: float | None = 1.0, batch: float | None = None, rate: float = 10.0
) -> dict[str, object]:
    return {
        "slo_attainment": {"interactive": interactive, "batch": batch, "all": None},
        "gpu_hours": gpu_hours,
        "throughput": {"requests_per_s": rate},
    }


def search(count: int = 5, **others: object) -> Search:
    return Search(lambda parameters: PolicyChoice("llumnix"), grid(x=range(count)), **others)  # type: ignore[arg-type]


def x(value: float, seed: int) -> Trial:
    return Trial((("x", value),), seed)


def test_a_grid_has_every_combination() -> None:
    assert grid(a=(1, 2), b=(3,)) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_all_candidates_run_on_the_first_seed_and_the_better_part_on_the_others() -> None:
    race = search(5, seeds=(4, 7, 9), keep=0.4)
    done = {}

    first = race.next_trials(done)
    assert first == [x(value, 4) for value in range(5)]
    done |= {trial: figures(10.0 - trial.parameters[0][1]) for trial in first[:-1]}
    assert race.next_trials(done) == [x(4, 4)]
    done[x(4, 4)] = figures(1.0, interactive=0.5)
    # 3 and 2 attain with the fewest GPU-hours; 4 does not attain.
    assert race.next_trials(done) == [x(3, 7), x(3, 9), x(2, 7), x(2, 9)]
    with pytest.raises(ValueError, match="not ended"):
        race.best(done)
    done |= {x(3, 7): figures(7.0), x(3, 9): figures(7.0), x(2, 7): figures(1.0), x(2, 9): figures(1.0)}
    assert race.next_trials(done) == []
    best = race.best(done)
    assert (best.parameters, best.attains, best.runs) == ({"x": 2}, True, 9)
    assert best.gpu_hours == pytest.approx(10 / 3)


def test_one_that_misses_on_a_further_seed_is_not_the_best() -> None:
    race = search(2, seeds=(1, 2), keep=1.0)
    done = {x(0, 1): figures(1.0), x(0, 2): figures(1.0, interactive=0.98)}
    done |= {x(1, 1): figures(3.0), x(1, 2): figures(3.0)}

    assert race.best(done).parameters == {"x": 1}


def test_if_none_attains_the_best_comes_nearest() -> None:
    race = search(3, seeds=(1,))
    done = {
        x(0, 1): figures(1.0, batch=0.2),
        x(1, 1): figures(9.0, batch=0.9),
        x(2, 1): figures(5.0, interactive=0.5, batch=1.0),
    }

    best = race.best(done)
    assert (best.parameters, best.attains, best.attained) == ({"x": 1}, False, 0.9)


def test_throughput_counts_rate_first_and_then_gpu_hours_whatever_is_attained() -> None:
    race = search(4, seeds=(1,), aim=Aim.THROUGHPUT)
    done = {
        x(0, 1): figures(9.0, rate=100.0),
        x(1, 1): figures(5.0, rate=99.5, interactive=0.1),
        x(2, 1): figures(1.0, rate=50.0),
        x(3, 1): figures(4.9, rate=98.0),
    }

    assert race.best(done).parameters == {"x": 1}


def test_attained_is_the_worse_share_of_what_is_asked_for() -> None:
    assert attained(figures(1.0, interactive=0.99, batch=1.0)) == 1.0
    assert attained(figures(1.0, interactive=0.495, batch=1.0)) == pytest.approx(0.5)
    assert attained(figures(1.0, interactive=1.0, batch=0.999)) == 0.999
    assert attained(figures(1.0, interactive=None)) == 1.0


@pytest.mark.parametrize("seeds", [(), (1, 1), (101,), (0,)])
def test_seeds_of_reports_are_refused(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="seeds"):
        search(seeds=seeds)


def test_a_search_without_candidates_or_survivors_is_refused() -> None:
    with pytest.raises(ValueError, match="candidates"):
        search(0)
    with pytest.raises(ValueError, match="keep"):
        search(keep=0.0)


def test_a_search_runs_on_a_scenario_with_its_own_seeds() -> None:
    scenario = dataclasses.replace(read_scenario(TINY), duration_s=5.0, backlogs=())
    policies = {1.0: PolicyChoice("chiron"), 0.0: PolicyChoice("fixed")}
    race = Search(lambda parameters: policies[parameters["scaled"]], grid(scaled=(0, 1)), seeds=(3, 5))

    told: list[Trial] = []
    best, done = tune(race, scenario, jobs=1, progress=lambda trial, _: told.append(trial))

    assert told == list(done)
    assert [figures["seed"] for figures in done.values()] == [3, 3, 5]
    assert best.choice in policies.values()
    assert best.runs == len(done)


def valley(trial: Trial, lowest: float) -> dict[str, object]:
    return figures(1.0 + abs(trial.parameters[0][1] - lowest))


def test_a_search_climbs_from_the_best_candidate_until_its_neighbours_are_worse() -> None:
    ladders = Ladders({"x": (0, 1, 2, 3, 4, 5, 6)})
    race = Search(
        lambda parameters: PolicyChoice("llumnix"), grid(x=(0, 6)), (1, 2), neighbours=ladders, rounds=9
    )
    done: dict[Trial, dict[str, object]] = {}

    asked = []
    while wanted := race.next_trials(done):
        asked.append([trial.parameters[0][1] for trial in wanted])
        done |= {trial: valley(trial, 4) for trial in wanted}
    # From 6 over 5 to 4, whose other neighbour is 3; a fifth of the five goes on to the other seed.
    assert asked == [[0, 6], [5], [4], [3], [4]]
    assert race.best(done).parameters == {"x": 4}
    assert race.best(done).runs == len(done)
    # Two to begin with, at most nine rounds of one neighbour each as 0 has, and a fifth of them again.
    assert race.most_runs == 11 + 3


def test_a_search_climbs_no_more_often_than_it_may() -> None:
    race = Search(
        lambda parameters: PolicyChoice("llumnix"),
        grid(x=(0,)),
        (1,),
        neighbours=Ladders({"x": range(9)}),
        rounds=2,
    )
    done: dict[Trial, dict[str, object]] = {}
    while wanted := race.next_trials(done):
        done |= {trial: valley(trial, 8) for trial in wanted}

    assert race.best(done).parameters == {"x": 2}


def test_neighbours_are_one_value_away_alone_or_together() -> None:
    ladders = Ladders(
        {"low": (1, 2, 3), "high": (2, 4)}, [("low", "high")], lambda each: each["low"] < each["high"]
    )

    # Down alone is 1 and 4; up alone is 3; the other one down is 2, no longer above; both down is 1 and 2.
    assert ladders({"low": 2, "high": 4}) == [
        {"low": 1, "high": 4},
        {"low": 3, "high": 4},
        {"low": 1, "high": 2},
    ]
    # From between two values it goes to either.
    assert ladders({"low": 1.5, "high": 4})[:2] == [{"low": 1, "high": 4}, {"low": 2, "high": 4}]


def test_rounds_go_with_neighbours() -> None:
    with pytest.raises(ValueError, match="rounds"):
        search(rounds=1)
