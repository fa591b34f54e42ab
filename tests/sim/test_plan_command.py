"""`chiron sim plan` as a user meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chiron.cli.sim_options import OutputOptions, PlanOptions, PolicyOptions, TraceOptions
from chiron.cli.sim_plan import run_plan
from chiron.config import ConfigError
from tests.support.chiron_command import only_error, simulate

TINY = Path(__file__).parents[2] / "examples" / "scenarios" / "tiny.toml"
SMALL = """
name = "small"
seed = 4
duration_s = 8
cluster = { gpus = [{ name = "g", nodes = 4, gpus_per_node = 1, price_per_gpu_hour = 3.0 }] }

[models.m]
profile = "toy"
initial = { mixed = 2 }
ttft_slo_s = 1.0
initial_batch_size = 1
max_batch_size = 1
load_time_s = 1.0

[simulation]
warmup_s = 3

[[traffic]]
rate_per_s = 6
lengths = "lognormal"
prompt_mean = 10
output_mean = 100
sigma = 0.2

[[backlog]]
requests = 4
arrive_s = 4
deadline_in_s = 30
lengths = "lognormal"
prompt_mean = 10
output_mean = 100
"""
NUMBERS = {"mean", "low", "high"}


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL, encoding="utf-8")
    return file


def test_the_answer_comes_first_whatever_the_number_of_processes(scenario: Path, tmp_path: Path) -> None:
    done = simulate("plan", scenario, "--seeds", 2, "--jobs", 2, "--json", tmp_path / "p.json")

    assert done.status == 0, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert done.stdout.startswith(f"At least {found['gpus']} GPU")
    assert done.stdout.splitlines()[: len(found["answer"])] == found["answer"]
    here = in_this_process(scenario, folder=tmp_path, seeds=2)
    assert without_wall_times(here) == without_wall_times(found)


def test_every_figure_is_in_the_json_and_the_plots(scenario: Path, tmp_path: Path) -> None:
    found = in_this_process(scenario, folder=tmp_path, plots=True, seeds=2, growth="1,2", slo_itl="200,100")

    assert found["seeds"] == [4, 5]
    assert (found["goal"], found["most_gpus"], found["scenario"]) == (0.99, 4, "small")
    sizes = [point["gpus"] for point in found["curve"]]
    assert sizes == sorted(set(sizes))
    for point in found["curve"]:
        assert set(point["seeds"]) == {"4", "5"}
        assert set(point["interactive"]) == set(point["batch"]) == NUMBERS
        assert point["attains"] == all(seed["attains"] for seed in point["seeds"].values())
        assert point["cost_per_hour"]["mean"] == pytest.approx(3.0 * point["gpus_mean"]["mean"])
        assert set(point["misses"]) == {"refused", "late_first_token", "slow_tokens", "late_batch", "early"}
    assert next(point["gpus"] for point in found["curve"] if point["attains"]) == found["gpus"]
    assert [each["factor"] for each in found["growth"]] == [1.0, 2.0]
    assert [each["itl_slo_s"] for each in found["slos"]] == [0.2, 0.1]
    assert found["fixed"]["price_per_hour"] == 3.0 * found["fixed"]["gpus"]
    assert found["parameters"]["policy"]["autoscaler"] == "chiron"
    plots = {file.name for file in tmp_path.glob("*.png")}
    assert plots == {"small-chiron-plan.png", "small-chiron-growth.png"}


def without_wall_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_wall_times(value) for key, value in found.items() if key != "wall_s"}
    return [without_wall_times(each) for each in found] if isinstance(found, list) else found


def in_this_process(
    workload: Path, *, folder: Path, trace_format: str | None = None, plots: bool = False, **asked: Any
) -> Any:
    file = folder / "here.json"
    options = PlanOptions(**asked, jobs=1)
    output = OutputOptions(json_file=file, plots=folder if plots else None, progress=False)
    run_plan(workload, trace_format, options, TraceOptions(), PolicyOptions(), output)
    return json.loads(file.read_text(encoding="utf-8"))


def test_mixes_are_in_the_answer_the_tables_and_the_json(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "fast.toml"
    profile.write_text('name = "toy@g"\nlike = "toy"\nstep_time_factor = 0.8\n', encoding="utf-8")

    found = in_this_process(scenario, folder=tmp_path, seeds=1, candidates=[f"m={profile}"])

    (mix,) = found["mixes"]
    assert mix["profiles"] == {"m": "toy@g"}
    assert mix["price_per_hour"] == 3.0 * mix["types"][0]["gpus"]
    (told,) = [text for text in found["answer"] if text.startswith("The cheapest: m as toy@g: ")]
    shown = capsys.readouterr().out
    assert told in shown
    assert "mixes" in shown


def test_a_trace_is_planned_for_with_the_options_of_replay(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    rows = "".join(f"2023-11-16 18:15:{second:02},100,20\n" for second in range(20))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}", encoding="utf-8")
    cluster = ("--profile", "toy", "--nodes", 1, "--gpus", 2, "--price", 1.5)

    done = simulate(
        "plan", trace, "--format", "azure", *cluster, "--seeds", 1, "--jobs", 1, "--policy", "llumnix"
    )

    assert done.status == 0, done.stderr
    assert done.stdout.startswith(
        "At least 1 GPU: 100 % of the interactive requests attained, with 1.0 held on average, 1.50 an hour."
    )
    assert "replay of t.csv · llumnix" in done.stdout


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"growth": "0"}, "--growth: must be above 0, not 0"),
        ({"growth": "-1"}, "--growth: must be above 0, not -1"),
        ({"growth": "nan"}, "--growth: must be above 0, not nan"),
        ({"growth": "1,two"}, "--growth: must be numbers separated by commas, not '1,two'"),
        ({"growth": "2,2"}, "--growth: 2 is there twice"),
        ({"slo_ttft": "-5"}, "--slo-ttft: must be above 0, not -5"),
        ({"slo_itl": ""}, "--slo-itl: must be numbers separated by commas, not ''"),
        ({"goal": 1.5}, "--goal: must be above 0 and at most 1, not 1.5"),
        ({"budgets": "1.5"}, "--budgets: must be whole numbers, not 1.5"),
    ],
)
def test_a_mistake_in_an_option_names_it(asked: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
        in_this_process(TINY, folder=tmp_path, **asked)


def test_a_mistake_is_one_line() -> None:
    told = only_error(simulate("plan", TINY, "--rate", 5), 2)

    assert told == "--rate: goes with --format, for a recorded trace"


def test_a_recording_needs_the_cluster_that_served_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--cluster: needs the cluster's snapshots"):
        in_this_process(tmp_path, folder=tmp_path, trace_format="chiron")
