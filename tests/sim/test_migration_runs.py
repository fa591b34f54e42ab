"""Llumnix's migration from a scenario's tables to the figures of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from chiron.config import ConfigError
from chiron.sim.policies import PolicyChoice
from chiron.sim.runs import parameters, run
from chiron.sim.scenario import Scenario, read_scenario

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"
# So that instances come and go, and differ.
FLAPPING = {"out_below": 600, "in_above": 900, "interval_s": 1}


def read(folder: Path, table: str = "") -> Scenario:
    file = folder / "tiny.toml"
    file.write_text((EXAMPLES / "tiny.toml").read_text(encoding="utf-8") + table, encoding="utf-8")
    return dataclasses.replace(read_scenario(file), duration_s=40.0)


def test_instances_that_retire_are_emptied_and_the_run_tells_how(tmp_path: Path) -> None:
    scenario = read(tmp_path, "\n[migration]\nnetwork_bytes_per_s = 1e9\nhandover_s = 0.015\n")
    staying = run(scenario, PolicyChoice("llumnix", parameters=FLAPPING))
    choice = PolicyChoice("llumnix-migration", parameters=FLAPPING)
    moving = run(scenario, choice)

    assert "migrations" not in staying.to_json()
    told = moving.to_json()["migrations"]
    assert told["done"] > 0
    # A rest of up to 16 blocks of 4 KiB a token takes a millisecond.
    assert told["stall_ms"]["p50"] == pytest.approx(15.0, abs=1.1)
    assert parameters(scenario, choice)["settings"]["migration"]["handover_s"] == 0.015
    assert parameters(scenario, choice)["policy"]["migration_thresholds"]["migrate_out_below"] == 3.0


def test_the_same_seed_moves_the_same_requests(tmp_path: Path) -> None:
    scenario = read(tmp_path)
    choice = PolicyChoice("llumnix-priorities", parameters=FLAPPING)
    first, again = (run(scenario, choice).to_json() for _ in range(2))

    del first["wall_s"], again["wall_s"]
    assert first == again


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("network_bytes_per_s = 0", "network_bytes_per_s"),
        ("max_stages = 0", "max_stages"),
        ("rate = 1", "rate"),
    ],
)
def test_a_mistake_in_the_table_is_named(tmp_path: Path, line: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[migration\].*{named}"):
        read(tmp_path, f"\n[migration]\n{line}\n")
