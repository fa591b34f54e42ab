"""The goals' workloads are the scenarios that the examples hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from chiron.sim.paper.experiment import SkippedError
from chiron.sim.paper.goal_rows import CONVERSATIONS, GOALS
from chiron.sim.scenario import read_scenario

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"


@pytest.mark.parametrize("name", GOALS)
def test_a_row_is_the_example_of_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / CONVERSATIONS).touch()
    example = read_scenario(EXAMPLES / f"{name}.toml")
    replays = tuple(dataclasses.replace(each, file=str(tmp_path / each.file)) for each in example.replays)

    made = GOALS[name].scenario(tmp_path)

    kept = {"file": made.file, "description": made.description, "replays": replays}
    assert made.with_seed(1) == dataclasses.replace(example, **kept)


def test_a_row_of_a_trace_says_what_it_needs(tmp_path: Path) -> None:
    row = GOALS["azure-conv-8b-50"]

    with pytest.raises(SkippedError, match="needs --traces, a folder with AzureLLM"):
        row.scenario(None)
    with pytest.raises(SkippedError, match=f"has no {CONVERSATIONS}"):
        row.scenario(tmp_path)
