"""Where `chiron sim` writes: what cannot be written is one line, and no run is lost by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.chiron_command import only_error, simulate
from tests.support.python_path import python_path

TINY = Path(__file__).parents[2] / "examples" / "scenarios" / "tiny.toml"
PRINTS = """
print("imported")


class Prints:
    def __init__(self):
        print("made")

    def decide(self, snapshot):
        from chiron.policy.decisions import FleetDecision

        print("asked")
        return FleetDecision((), ())
"""


def test_a_run_whose_figures_cannot_be_written_still_shows_its_table_and_its_plot(tmp_path: Path) -> None:
    done = simulate("run", TINY, "--json", "/dev/full", "--plots", tmp_path)

    assert done.status == 1
    assert "GPU-hours" in done.stdout
    assert done.stderr.endswith("error: cannot write /dev/full: No space left on device\n")
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_plots_that_cannot_be_written_are_one_line_after_the_figures(tmp_path: Path) -> None:
    in_the_way = tmp_path / "tiny-fixed-timeline.png"
    in_the_way.mkdir()

    done = simulate("run", TINY, "--policy", "fixed", "--json", tmp_path / "f.json", "--plots", tmp_path)

    assert only_error(done, 1) == f"cannot write plots: {in_the_way}: Is a directory"
    assert json.loads((tmp_path / "f.json").read_text())["policy"] == "fixed"
    assert "GPU-hours" in done.stdout


def test_a_name_longer_than_a_file_s_is_cut_in_its_plots(tmp_path: Path) -> None:
    scenario = tmp_path / "s.toml"
    text = TINY.read_text(encoding="utf-8")
    scenario.write_text(text.replace('name = "tiny"', f'name = "{"n" * 400}"'), encoding="utf-8")

    done = simulate("run", scenario, "--policy", "fixed", "--plots", tmp_path)

    assert done.status == 0, done.stderr
    (plot,) = tmp_path.glob("*.svg")
    assert plot.name.startswith("n" * 80 + "-")
    assert plot.name.endswith("-fixed-timeline.svg")


def test_plots_without_their_library_are_refused_before_the_run(tmp_path: Path) -> None:
    library = tmp_path / "matplotlib"
    library.mkdir()
    (library / "__init__.py").write_text("raise ImportError('none')", encoding="utf-8")
    (tmp_path / "mine.py").write_text("import os\nos.abort()\n", encoding="utf-8")

    done = simulate(
        "run",
        TINY,
        "--plots",
        tmp_path,
        "--autoscaler",
        "mine:X",
        variables={"PYTHONPATH": python_path(tmp_path)},
    )

    assert only_error(done, 2) == "plots need matplotlib: install chiron-serving[sim]"


@pytest.mark.parametrize(
    "command", [("run",), ("compare", "--policies", "chiron,llumnix", "--jobs", "2", "--no-ceiling")]
)
def test_what_a_policy_prints_stays_out_of_the_figures(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PRINTS, encoding="utf-8")
    name, *options = command

    done = simulate(name, TINY, *options, "--autoscaler", "mine:Prints", "--json", "-", folder=tmp_path)

    assert done.status == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert {"imported", "made", "asked"} <= set(done.stderr.split())


def test_a_comparison_says_that_no_fixed_fleet_attains(tmp_path: Path) -> None:
    scenario = tmp_path / "s.toml"
    text = TINY.read_text(encoding="utf-8")
    scenario.write_text(text.replace("load_time_s", "max_instances = 1\nload_time_s"), encoding="utf-8")

    done = simulate("compare", scenario, "--policies", "fixed", "--no-ceiling")

    assert done.status == 0, done.stderr
    assert done.stderr == "warning: fixed, seed 1: no fixed fleet that the scenario allows attains\n"


def test_a_log_of_decisions_that_finds_the_disk_full_is_one_line() -> None:
    done = simulate("run", TINY, "--decisions", "/dev/full")

    assert only_error(done, 1) == "cannot write /dev/full: No space left on device"


def test_a_policy_that_fails_to_read_a_file_is_not_blamed_on_the_log_of_decisions(tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(
        "class Reader:\n    def decide(self, snapshot):\n        open('/nowhere/at/all')\n",
        encoding="utf-8",
    )

    done = simulate(
        "run", TINY, "--autoscaler", "reader:Reader", "--decisions", tmp_path / "d.jsonl", folder=tmp_path
    )

    assert done.status != 0
    assert "d.jsonl" not in done.stderr
    assert "/nowhere/at/all" in done.stderr
