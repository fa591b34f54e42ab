"""Runs beside their references: the lower bound, and the smallest fixed fleet."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from chiron.cli.sim_work import guarded
from chiron.policy.words import Role
from chiron.sim import runs
from chiron.sim.policies import PolicyChoice
from chiron.sim.runs import OracleViolatedError, attains, fixed_model, run, smallest_fleet
from chiron.sim.scenario import Scenario, read_scenario

ROOT = Path(__file__).parents[2]
FIXED = PolicyChoice("fixed")


@pytest.fixture
def tiny() -> Scenario:
    return read_scenario(ROOT / "examples" / "scenarios" / "tiny.toml")


def fleet_of(scenario: Scenario, count: int) -> Scenario:
    models = (fixed_model(scenario.settings.models[0], count),)
    return dataclasses.replace(scenario, settings=dataclasses.replace(scenario.settings, models=models))


def test_the_smallest_fleet_attains_and_one_less_does_not(tiny: Scenario) -> None:
    reading = tiny.reading()

    found = smallest_fleet(tiny, FIXED, reading)

    assert found is not None
    count = found.settings.models[0].initial[Role.MIXED]
    assert count > 1
    assert attains(run(found, FIXED, reading=reading).result)
    assert not attains(run(fleet_of(tiny, count - 1), FIXED, reading=reading).result)


def test_there_is_no_fleet_when_all_gpus_are_too_few(tiny: Scenario) -> None:
    one_gpu = dataclasses.replace(tiny, settings=dataclasses.replace(tiny.settings, gpu_budget=1))

    assert smallest_fleet(one_gpu, FIXED, one_gpu.reading()) is None


@pytest.mark.parametrize(("limits", "count"), [({"max_instances": 1}, None), ({"min_instances": 4}, 4)])
def test_the_smallest_fleet_stays_within_the_limits_of_its_model(
    limits: dict[str, int], count: int | None, tiny: Scenario
) -> None:
    models = (dataclasses.replace(tiny.settings.models[0], **limits),)
    limited = dataclasses.replace(tiny, settings=dataclasses.replace(tiny.settings, models=models))

    found = smallest_fleet(limited, FIXED, limited.reading())

    assert (None if found is None else found.settings.models[0].initial[Role.MIXED]) == count


def test_a_price_of_nothing_is_a_price(tiny: Scenario) -> None:
    def cost(price: float | None) -> float | None:
        gpus = (dataclasses.replace(tiny.settings.gpu_types[0], price_per_gpu_hour=price),)
        priced = dataclasses.replace(tiny, settings=dataclasses.replace(tiny.settings, gpu_types=gpus))
        return run(priced, FIXED).gpu_cost

    assert cost(0.0) == 0.0
    assert cost(None) is None


def test_a_run_below_the_lower_bound_is_a_defect(tiny: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = run(tiny, FIXED)
    assert honest.oracle_ratio is not None
    assert honest.oracle_ratio >= 1.0
    monkeypatch.setattr(runs, "oracle_served_gpu_s", lambda *_: honest.result.gpu_hours * 3600 * 1.01)

    with pytest.raises(OracleViolatedError, match=r"tiny under fixed, seed 1: .* less than the lower bound"):
        run(tiny, FIXED)


def test_a_block_computed_in_the_warm_up_is_not_charged_to_those_who_use_it_later(tmp_path: Path) -> None:
    row = {"input_length": 3584, "output_length": 1, "hash_ids": list(range(7))}
    rows = [json.dumps({"timestamp": time_ms, **row}) for time_ms in (0, *[10_000] * 6)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows), encoding="utf-8")
    file = tmp_path / "s.toml"
    file.write_text(
        """
        name = "shared"
        cluster = { gpus = [{ name = "g", nodes = 1, gpus_per_node = 1 }] }
        models = { m = { profile = "toy", initial = { mixed = 1 } } }
        replay = [{ file = "t.jsonl", format = "mooncake" }]
        simulation = { warmup_s = 10.0 }
        """,
        encoding="utf-8",
    )

    done = run(read_scenario(file), FIXED)

    assert done.result.counted == 6
    assert done.oracle_ratio is not None
    assert done.oracle_ratio >= 1.0


def test_a_violated_bound_is_told_in_one_line_as_a_defect(capsys: pytest.CaptureFixture[str]) -> None:
    def violated() -> None:
        raise OracleViolatedError("tiny under fixed, seed 1: less")

    with pytest.raises(typer.Exit) as left:
        guarded(violated)

    assert left.value.exit_code == 1
    told = "error: a defect of the simulator, please report it: tiny under fixed, seed 1: less\n"
    assert capsys.readouterr().err == told


def test_a_fixed_fleet_holds_its_gpus_throughout(tiny: Scenario) -> None:
    done = run(fleet_of(tiny, 3), FIXED)

    assert {point.gpus for point in done.result.timeline} == {3}
    # Until the last request has finished, which is not later than the last deadline at 70 s.
    assert done.result.gpu_hours == pytest.approx(3 * done.result.simulated_s / 3600)


def test_the_length_fit_reproduces_a_trace(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    prompt = np.maximum(1, generator.lognormal(6, 1, 3000)).astype(int)
    output = np.maximum(1, generator.lognormal(4, 1, 3000)).astype(int)
    rows = [f"2023-11-16 18:15:46,{i},{o}" for i, o in zip(prompt, output, strict=True)]
    file = tmp_path / "trace.csv"
    file.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]), encoding="utf-8")

    tool = [sys.executable, str(ROOT / "tools" / "fit_lengths.py"), str(file), "--name", "MADE"]
    told = subprocess.run(tool, capture_output=True, text=True, check=True, timeout=55).stdout

    means = [float(share) for share in re.findall(r"mean [0-9.]+ ([+-][0-9.]+)%", told)]
    gaps = [float(gap) for gap in re.findall(r"largest gap ([0-9.]+)", told)]
    assert len(means) == len(gaps) == 2
    # 24 knots on a smooth distribution: the mean within 2 %, no probability off by more than 2 points.
    assert max(map(abs, means)) < 2.0
    assert max(gaps) < 0.02
    for constant in ("MADE_PROMPT = ((0, ", "MADE_OUTPUT = ((0, ", "MADE_CORRELATION = "):
        assert constant in told
