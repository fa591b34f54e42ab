"""Parameters of a policy as a user gives them: in a scenario, or with --set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chiron.cli.sim_options import PolicyOptions
from chiron.cli.sim_work import choice_of
from chiron.config import ConfigError
from chiron.sim.runs import run
from chiron.sim.scenario import Scenario, read_scenario
from tests.support.chiron_command import simulate

TINY = Path(__file__).parents[2] / "examples" / "scenarios" / "tiny.toml"


def with_policy(folder: Path, *lines: str) -> Path:
    file = folder / "s.toml"
    file.write_text("\n".join([TINY.read_text(encoding="utf-8"), "[policy]", *lines]), encoding="utf-8")
    return file


def short(folder: Path, *lines: str) -> Scenario:
    return read_scenario(with_policy(folder, *lines))


def test_a_scenarios_parameters_reach_the_run_its_label_and_its_json(tmp_path: Path) -> None:
    scenario = short(tmp_path, 'name = "llumnix"', "[policy.parameters]", "out_below = 20", "batch_size = 16")

    found: dict[str, Any] = json.loads(json.dumps(run(scenario, scenario.policy).to_json()))

    assert found["policy"] == "llumnix[batch_size=16,out_below=20]"
    told = found["parameters"]["policy"]
    assert told["parameters"] == {"batch_size": 16.0, "out_below": 20.0}
    assert told["autoscaler_settings"] == {"out_below": 20.0, "in_above": 60.0, "interval_s": 10.0}
    assert found["parameters"]["settings"]["models"][0]["initial_batch_size"] == 16


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["out_below = 70"], r"\[policy\.parameters\]: out_below: must be below in_above = 60, not 70"),
        (['out_below = "x"'], r"\[policy\.parameters\]: 'out_below' must be a number, not 'x'"),
        (["x = 1"], r"\[policy\.parameters\]: unknown parameter 'x' of autoscaler 'llumnix'; known are "),
        (["batch_size = 1.5"], r"\[policy\.parameters\]: 'batch_size' must be a whole number"),
    ],
)
def test_a_mistake_in_a_scenario_names_the_table_and_the_file(
    tmp_path: Path, lines: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=rf"s\.toml {problem}"):
        short(tmp_path, 'name = "llumnix"', "[policy.parameters]", *lines)


def test_set_goes_before_the_scenario_and_may_be_repeated(tmp_path: Path) -> None:
    file = with_policy(tmp_path, 'name = "llumnix"', "[policy.parameters]", "out_below = 20", "in_above = 70")
    done = simulate("run", file, "--set", "out_below=30", "--set", "interval_s=5", "--json", "-")

    assert done.status == 0, done.stderr
    told = json.loads(done.stdout)["parameters"]["policy"]
    assert told["parameters"] == {"in_above": 70.0, "interval_s": 5.0, "out_below": 30.0}


def test_compare_has_one_row_more_with_set() -> None:
    done = simulate(
        "compare", TINY, "--policies", "llumnix", "--set", "hysteresis=0.2", "--no-ceiling", "--json", "-"
    )

    assert done.status == 0, done.stderr
    assert set(json.loads(done.stdout)["policies"]) == {"llumnix", "chiron[hysteresis=0.2]"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((None, "hysteresis=2"), "--set: hysteresis must be at least 0 and below 1, got 2.0"),
        ((None, "hysteresis"), "--set: must be NAME=VALUE, not 'hysteresis'"),
        (("llumnix", "target=1"), "--set: unknown parameter 'target' of autoscaler"),
        ((None, "batch_size=4096"), "--set: 'batch_size' of model 'toy': initial_batch_size"),
    ],
)
def test_a_mistake_in_set_names_the_option(arguments: tuple[str | None, str], problem: str) -> None:
    policy, assignment = arguments
    scenario = read_scenario(TINY)

    with pytest.raises(ConfigError) as caught:
        choice_of(scenario, scenario.policy, PolicyOptions(assignments=[assignment], policy=policy))

    assert str(caught.value).startswith(problem)


def test_a_replaced_autoscaler_that_lacks_a_scenarios_parameter_names_the_scenario(tmp_path: Path) -> None:
    scenario = short(tmp_path, 'name = "llumnix"', "[policy.parameters]", "out_below = 20")

    with pytest.raises(ConfigError) as caught:
        choice_of(scenario, scenario.policy, PolicyOptions(autoscaler="chiron"))

    assert str(caught.value).startswith(
        f"{scenario.file} [policy.parameters]: unknown parameter 'out_below' of autoscaler 'chiron'"
    )
