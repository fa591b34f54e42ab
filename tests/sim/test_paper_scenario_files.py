"""A scenario made in code can be written down, so that its run can be made again from the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from chiron.engine import Speculation
from chiron.policy.fleet import ChironSettings
from chiron.sim.live_times import LiveTimes
from chiron.sim.migration_settings import MigrationSettings
from chiron.sim.paper.experiment import Experiment, Size, SkippedError
from chiron.sim.paper.experiments import EXPERIMENTS
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario, read_scenario
from chiron.sim.scenario_toml import UnwritableError, scenario_toml
from chiron.sim.sources import Replay

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "scenarios").glob("*.toml"))
TINY = read_scenario(next(file for file in EXAMPLES if file.stem == "tiny"))


def read_back(scenario: Scenario, folder: Path) -> Scenario:
    file = folder / "written.toml"
    file.write_text(scenario_toml(scenario), encoding="utf-8")
    return dataclasses.replace(read_scenario(file), file=scenario.file)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_written_as_it_was_read(file: Path, tmp_path: Path) -> None:
    scenario = read_scenario(file)
    # Traces are named in full, for the written file may lie elsewhere.
    replays = tuple(
        dataclasses.replace(each, file=str((file.parent / each.file).absolute())) for each in scenario.replays
    )

    assert read_back(scenario, tmp_path) == dataclasses.replace(scenario, replays=replays)


@pytest.mark.parametrize("size", [Size.QUICK, Size.FULL], ids=lambda size: size.name)
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.name)
def test_every_scenario_of_the_evaluation_can_be_written(
    experiment: Experiment, size: Size, tmp_path: Path
) -> None:
    try:
        cases = experiment.cases(size, None)
    except SkippedError:
        return
    seen: list[Scenario] = []
    for case in cases:
        bare = dataclasses.replace(case.scenario, policy=PolicyChoice())
        if bare not in seen:
            seen.append(bare)
            assert read_back(bare, tmp_path) == bare


def test_what_needs_quotes_and_what_is_endless_survives(tmp_path: Path) -> None:
    (model,) = TINY.settings.models
    profile = model.profile.replace(block_size=8, speculation=Speculation(3, 0.75))
    odd = dataclasses.replace(model, name='8b "x".é\\', profile=profile)
    settings = dataclasses.replace(
        TINY.settings,
        models=(odd,),
        step_time_factor=1.3,
        migration=MigrationSettings(network_bytes_per_s=1.5e9),
        faults=dataclasses.replace(
            TINY.settings.faults, instance_mtbf_s=float("inf"), node_repair_s=1e-3 * 600
        ),
    )
    traffic = tuple(dataclasses.replace(each, model=odd.name) for each in TINY.traffic)
    backlogs = tuple(dataclasses.replace(each, model=odd.name) for each in TINY.backlogs)
    scenario = dataclasses.replace(
        TINY,
        name="line\nbreak \x7f\x01",
        settings=settings,
        traffic=traffic,
        backlogs=backlogs,
        policy=PolicyChoice("llumnix", local="model", preemption=False, parameters={"batch_size": 7.0}),
        output_drift=-0.25,
    )

    assert read_back(scenario, tmp_path) == scenario


def test_a_trace_is_found_from_anywhere(tmp_path: Path) -> None:
    replay = Replay(model="toy", file="trace.csv", format="azure", rate_per_s=2.5)
    scenario = dataclasses.replace(TINY, file=tmp_path / "sub" / "x.toml", replays=(replay,))

    (found,) = read_back(scenario, tmp_path).replays

    assert found == dataclasses.replace(replay, file=str(tmp_path / "sub" / "trace.csv"))


def test_what_no_file_can_say_is_refused_by_name() -> None:
    (model,) = TINY.settings.models
    slower = dataclasses.replace(model, profile=model.profile.replace(load_s=9.0))
    for part, scenario in {
        "load_s": dataclasses.replace(TINY, settings=dataclasses.replace(TINY.settings, models=(slower,))),
        "live": dataclasses.replace(
            TINY, settings=dataclasses.replace(TINY.settings, live=LiveTimes(ticks_s=(1.0,)))
        ),
        "policy": dataclasses.replace(TINY, policy=PolicyChoice(settings=ChironSettings())),
    }.items():
        with pytest.raises(UnwritableError, match=part):
            scenario_toml(scenario)
