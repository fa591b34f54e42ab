"""Names with square brackets and other marks: tables and plots show them as they are written."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from chiron.sim.compare import compare, model_ceilings
from chiron.sim.plots import plot_comparison, plot_run
from chiron.sim.policies import PolicyChoice
from chiron.sim.report import ceiling_table, comparison_table, run_table
from chiron.sim.runs import run
from chiron.sim.scenario import Scenario, read_scenario

TINY = Path(__file__).parents[2] / "examples" / "scenarios" / "tiny.toml"


def named(folder: Path, name: str) -> Scenario:
    text = TINY.read_text(encoding="utf-8").replace('name = "tiny"', f'name = "{name}"')
    file = folder / "s.toml"
    file.write_text(text.replace("[models.toy]", f'[models."{name}"]'), encoding="utf-8")
    return read_scenario(file)


def shown(table: Table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=1000).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["[/b]", "tiny [v2]", "[bold]x", ":smile:", "$x^{$"])
def test_names_are_shown_as_they_are_written(name: str, tmp_path: Path) -> None:
    scenario = named(tmp_path, name)
    choice = PolicyChoice("chiron", autoscaler="fixed")
    done = run(scenario, choice)
    entries = compare(scenario, [choice], [1], jobs=1)

    assert f"{name} · chiron[autoscaler=fixed] · seed 1" in shown(run_table(done))
    compared = shown(comparison_table(scenario, entries))
    assert name in compared
    assert "│ chiron[autoscaler=fixed] " in compared
    assert f" {name} │" in shown(ceiling_table(model_ceilings(scenario)))


def test_a_dollar_sign_in_a_name_is_no_formula_of_a_plot(tmp_path: Path) -> None:
    scenario = named(tmp_path, "a $x^{$ b")
    choice = PolicyChoice("fixed")

    files = plot_run(run(scenario, choice), tmp_path)
    files += plot_comparison(scenario.name, compare(scenario, [choice], [1], jobs=1), tmp_path)

    assert all(file.stat().st_size for file in files)
