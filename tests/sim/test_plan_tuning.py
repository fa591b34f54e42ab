"""Tuning finds what was planted, on other seeds than it reports, and does not praise what chance did."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chiron.cli.sim_options import OutputOptions, PlanOptions, PolicyOptions, TraceOptions
from chiron.cli.sim_plan import run_plan
from chiron.config import ConfigError, load_config
from chiron.sim import autoscalers
from chiron.sim.planning import tune as tuning
from chiron.sim.planning.crew import Crew
from chiron.sim.planning.knobs import given_knobs, knobs_of
from chiron.sim.planning.need import Terms
from chiron.sim.planning.points import Point
from chiron.sim.planning.source import Source
from chiron.sim.planning.told_tuning import settings_to_paste, tuned_sentences
from chiron.sim.planning.trial import Attempt, Misses
from chiron.sim.planning.tune import Difference, Tuned, tune
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import scenario_from
from services.global_controller.config import ControllerConfig
from tests.support.clockwork import clockwork_document
from tests.support.planted_autoscaler import Planted, PlantedSettings

PLANTED = PolicyChoice("chiron", autoscaler="planted", local="static")
CHIRON = PolicyChoice()
FRESH = (101, 102)


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    known = autoscalers.Baseline(lambda settings, _known: Planted(settings), PlantedSettings())
    monkeypatch.setitem(autoscalers.BASELINES, "planted", known)  # type: ignore[arg-type]


def source(duration_s: float = 6, **model: Any) -> Source:
    # 2.4 requests at once: 3 instances do, 8 are there.
    document = clockwork_document(12, **model) | {"duration_s": duration_s}
    return Source(scenario_from(document, Path("clockwork.toml")))


def tuned(policy: PolicyChoice, knobs: Sequence[str], of: Source, seeds: tuple[int, ...] = FRESH) -> Tuned:
    with Crew(jobs=1) as crew:
        found = given_knobs(knobs, policy, of.scenario.settings)
        return tune(of, policy, Terms(seeds), found, crew)


def test_the_planted_setting_is_found_on_other_seeds_and_reported_on_fresh_ones() -> None:
    found = tuned(PLANTED, ["instances=2,3,5,16", "decoy=0.5,2"], source())

    assert found.changes == {"instances": 3.0}
    assert found.better
    # 3 of 8 instances, once the others have gone.
    assert 3 / 8 - 1 < found.gpu_hours.mean < 1 / 2 - 1
    assert {attempt.seed for attempt in (*found.before.attempts, *found.after.attempts)} == set(FRESH)
    assert not set(found.searched) & set(FRESH)
    verdict, seeds = tuned_sentences(found)
    assert verdict.startswith("Better: instances 3 instead of 8: ")
    assert "100 % of the interactive requests attained, before 100 % of the interactive requests; " in verdict
    assert "it attains on 2 of 2 seeds, before on 2" in verdict
    assert seeds == "Searched on the workloads of seeds 1, 2, 3; reported on those of seeds 101, 102."
    # No live controller has this autoscaler, so that there is nothing to paste into its configuration.
    assert settings_to_paste(found) == "# chiron sim run SCENARIO.toml --policy chiron --set instances=3"


def test_a_setting_that_changes_nothing_is_no_better_than_the_default() -> None:
    found = tuned(PLANTED, ["decoy=0.5,2"], source())

    assert found.changes == {}
    assert not found.better
    # As it is, one value less and one more on the first seed, and as it is on both fresh ones: no climb.
    assert found.runs == 1 + 2 + 2
    assert tuned_sentences(found)[0].startswith("No better than the defaults: none of 1 knobs did better")
    assert settings_to_paste(found) == ""


def test_requests_that_were_recorded_are_searched_in_their_first_half_and_reported_in_their_second() -> None:
    scenario, reading = source(duration_s=12).at(1)
    recorded = Source(scenario, reading)

    found = tuned(PLANTED, ["instances=3"], recorded)

    assert found.changes == {"instances": 3.0}
    assert len(found.source.at(101)[1].workload) == len(reading.workload) // 2
    assert found.source.at(101)[1].workload.arrival_s[0] < 0.1
    assert "another day may ask for other values" in tuned_sentences(found)[1]


def test_too_short_a_recording_to_be_cut_is_refused() -> None:
    document = clockwork_document(12) | {"duration_s": 6, "simulation": {"warmup_s": 4}}
    scenario, reading = Source(scenario_from(document, Path("c.toml"))).at(1)

    with pytest.raises(ConfigError, match=r"^c\.toml: too short to be cut in two"):
        tuned(PLANTED, ["instances=3"], Source(scenario, reading))


@pytest.mark.parametrize(
    ("seeds", "told"),
    [((101,), "--seeds: .* needs 2 or more"), ((60, 61), "--first-seed: seeds up to 60 .* 60$")],
)
def test_seeds_that_are_searched_on_are_not_reported(seeds: tuple[int, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tuned(PLANTED, ["instances=3"], source(), seeds)


def attempt(seed: int, gpu_hours: float, interactive: float = 1.0, attains: bool = True) -> Attempt:
    return Attempt(
        seed=seed,
        attains=attains,
        interactive=interactive,
        batch=None,
        gpus_mean=1.0,
        gpus_peak=1,
        gpu_hours=gpu_hours,
        cost_per_hour=None,
        at_limit=0.0,
        ttft_p99_s=None,
        itl_p99_s=None,
        scaling_actions=0,
        oracle_ratio=None,
        misses=Misses(0.0, 0.0, 0.0, 0.0, 0.0),
        wall_s=0.0,
    )


def verdict(before: Sequence[Attempt], after: Sequence[Attempt], policy: PolicyChoice = CHIRON) -> Tuned:
    hours = [b.gpu_hours / a.gpu_hours - 1 for a, b in zip(before, after, strict=True)]
    shares = [(b.interactive or 0) - (a.interactive or 0) for a, b in zip(before, after, strict=True)]
    return Tuned(
        source=source(),
        policy=policy,
        terms=Terms(tuple(each.seed for each in before)),
        searched=(1, 2, 3),
        knobs={"hysteresis": (0.04, 0.08), "payback": (1.0, 2.0)},
        had={"hysteresis": 0.08, "payback": 2.0},
        changes={"hysteresis": 0.04, "payback": 1.0},
        before=Point(8, tuple(before)),
        after=Point(8, tuple(after)),
        gpu_hours=Difference.of(hours),
        attained=Difference.of(shares),
        runs=1,
    )


def test_less_by_as_much_on_every_seed_is_better_and_less_by_chance_is_not() -> None:
    before = [attempt(seed, hours) for seed, hours in ((101, 10.0), (102, 20.0), (103, 15.0))]
    steady = [attempt(seed, hours) for seed, hours in ((101, 9.0), (102, 18.1), (103, 13.6))]
    chance = [attempt(seed, hours) for seed, hours in ((101, 8.0), (102, 20.4), (103, 14.8))]

    assert verdict(before, steady).better
    assert not verdict(before, chance).better
    told = tuned_sentences(verdict(before, chance))[0]
    assert told.startswith("No better than the defaults: the difference is within the spread of the seeds. ")
    assert "The best that was found, hysteresis 0.04 instead of 0.08 and payback 1 instead of 2: " in told


def test_fewer_gpus_at_the_price_of_a_seed_that_does_not_attain_are_not_better() -> None:
    before = [attempt(101, 10.0), attempt(102, 10.0)]
    after = [attempt(101, 5.0), attempt(102, 5.0, interactive=0.98, attains=False)]

    assert not verdict(before, after).better
    assert "it attains on fewer fresh seeds" in tuned_sentences(verdict(before, after))[0]


def test_more_that_attains_is_better_even_with_more_gpus() -> None:
    before = [attempt(seed, 10.0, interactive=0.9, attains=False) for seed in FRESH]
    after = [attempt(seed, 12.0, interactive=1.0) for seed in FRESH]

    assert verdict(before, after).better
    assert not verdict(after, before).better


def test_less_that_attains_is_not_better_even_with_fewer_gpus() -> None:
    before = [attempt(seed, 10.0, interactive=0.97, attains=False) for seed in FRESH]
    after = [attempt(seed, 5.0, interactive=0.9, attains=False) for seed in FRESH]

    assert not verdict(before, after).better
    assert "it does worse on fresh seeds" in tuned_sentences(verdict(before, after))[0]


def test_the_spread_is_the_interval_of_student_s_t() -> None:
    # Mean 2, standard deviation 1, n 3: 4.303 / sqrt(3).
    found = Difference.of([1.0, 2.0, 3.0])

    assert found.mean == 2.0
    assert found.spread == pytest.approx(2.484, abs=0.001)
    assert not found.is_real
    assert Difference.of([2.9, 3.0, 3.1]).is_real
    assert Difference.of([-2.9, -3.0, -3.1]).is_real


def test_what_is_to_be_pasted_is_what_a_live_controller_reads(tmp_path: Path) -> None:
    before = [attempt(seed, 10.0) for seed in FRESH]
    found = verdict(before, [attempt(seed, 9.0) for seed in FRESH])

    text = settings_to_paste(found)

    file = tmp_path / "chiron.toml"
    file.write_text(text, encoding="utf-8")
    live = load_config(ControllerConfig, "controller", file=file, environ={}).autoscaler
    assert (live.policy, live.chiron.hysteresis, live.chiron.payback) == ("chiron", 0.04, 1.0)
    assert tomllib.loads(text)["controller"]["autoscaler"]["chiron"] == {"hysteresis": 0.04, "payback": 1.0}
    assert text.endswith(
        "# chiron sim run SCENARIO.toml --policy chiron --set hysteresis=0.04 --set payback=1"
    )


def test_every_number_of_an_autoscaler_is_a_knob_within_what_it_takes() -> None:
    settings = source().scenario.settings

    knobs = knobs_of(CHIRON, settings)
    assert knobs["payback"] == (0.5, 1.0, 2.0, 4.0, 8.0)
    # By the distance from 1; and no quantile of 0.8 or less is refused.
    assert knobs["theta_quantile"] == (0.8, 0.9, 0.95, 0.975, 0.9875)
    # Four times 0.4 is refused, for it must be below 1.
    assert knobs["ttft_share"] == (0.1, 0.2, 0.4, 0.8)
    assert knobs["step_share"] == (0.25, 0.5, 1.0)
    assert "batch_size" not in knobs
    # The model allows one request in a batch.
    assert set(knobs_of(PLANTED, settings)) == {"instances", "decoy"}
    larger = source(max_batch_size=4).scenario.settings
    assert knobs_of(PLANTED, larger)["batch_size"] == (1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("instances", "--knob: must be NAME=VALUE,…, not 'instances'"),
        ("instances=a", "--knob: must be NAME=VALUE,…, not 'instances=a'"),
        ("speed=1", "--knob: unknown knob 'speed'; known are batch_size, decoy, instances"),
        ("instances=0", "--knob: instances: must be at least 1, got 0"),
        ("instances=1.5", "--knob: 'instances' must be a whole number, not 1.5"),
    ],
)
def test_a_mistake_in_a_knob_is_named(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        given_knobs([text], PLANTED, source().scenario.settings)

    assert str(refused.value) == told


def command(folder: Path, **asked: Any) -> Any:
    scenario, file = folder / "c.json", folder / "tuned.json"
    document = clockwork_document(6, nodes=2) | {"duration_s": 4}
    scenario.write_text(_toml(document), encoding="utf-8")
    output = OutputOptions(json_file=file, plots=folder / "plots", progress=False)
    options = PlanOptions(tune=True, seeds=2, jobs=1, **asked)
    run_plan(scenario, None, options, TraceOptions(), PolicyOptions(), output)
    return json.loads(file.read_text(encoding="utf-8"))


def _toml(document: dict[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(document[key])}" for key in ("name", "seed", "duration_s")]
    inline = json.dumps
    gpus = ", ".join(f"{key} = {inline(value)}" for key, value in document["cluster"]["gpus"][0].items())
    lines += ["[[cluster.gpus]]", *gpus.split(", "), "[models.m]"]
    lines += [
        f"{key} = {inline(value)}" for key, value in document["models"]["m"].items() if key != "initial"
    ]
    lines += ["initial = { mixed = 2 }", "[[traffic]]"]
    lines += [f"{key} = {inline(value)}" for key, value in document["traffic"][0].items()]
    return "\n".join(lines)


def test_the_command_tells_the_answer_the_search_and_both_on_fresh_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = command(tmp_path, knob=["hysteresis=0.04"])

    assert (found["better"], found["changes"], found["settings"]) == (False, {}, "")
    assert found["seeds"] == [101, 102]
    assert found["search"] == {"seeds": [1, 2, 3], "knobs": {"hysteresis": [0.04, 0.08]}}
    assert set(found["before"]["seeds"]) == {"101", "102"}
    shown = capsys.readouterr().out
    assert shown.splitlines()[:2] == found["answer"]
    assert [file.name for file in (tmp_path / "plots").glob("*.svg")] == ["clockwork-chiron-tuned.svg"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"growth": "1,2"}, "--growth: --tune asks about one value each"),
        ({"slo_itl": "50,60"}, "--slo-ttft and --slo-itl: --tune asks about one value each"),
        ({"candidates": ["m=toy"]}, "--candidates: "),
        ({"budgets": "3"}, "--budgets: does not go with --tune"),
    ],
)
def test_what_tuning_does_not_answer_is_refused(asked: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{told}"):
        command(tmp_path, **asked)


def test_knobs_without_tuning_are_refused(tmp_path: Path) -> None:
    scenario = Path(__file__).parents[2] / "examples" / "scenarios" / "tiny.toml"
    asked = PlanOptions(knob=["payback=1"])

    with pytest.raises(ConfigError, match=r"^--knob: goes with --tune$"):
        run_plan(scenario, None, asked, TraceOptions(), PolicyOptions(), OutputOptions(progress=False))


def test_the_search_seeds_are_those_that_no_report_uses() -> None:
    assert set(tuning.SEARCH_SEEDS) < set(range(1, 61))
    assert tuning.FIRST_FRESH > 60
