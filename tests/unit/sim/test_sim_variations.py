"""Variations of scenarios: what they change of the world, and what policies are told all the same."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from chiron.config import ConfigError
from chiron.policy.decisions import FleetDecision, Start
from chiron.policy.words import Role
from chiron.sim.runs import parameters, run
from chiron.sim.scenario import read_scenario, scenario_from
from chiron.sim.variations import ROBUSTNESS, VARIATIONS, vary
from tests.support.sim_worlds import requests, world
from tests.support.sim_worlds import run as simulate

TINY = read_scenario(Path(__file__).parents[3] / "examples" / "scenarios" / "tiny.toml")


def itl_ms(scenario):
    """Median of the requests' mean times between tokens."""
    return run(scenario, scenario.policy).to_json()["itl_ms"]["p50"]


def test_every_variation_changes_what_a_run_is_made_of_and_its_name_and_leaves_the_scenario_alone():
    before = parameters(TINY, TINY.policy)
    found = []
    for name in VARIATIONS:
        varied = vary(TINY, name)
        assert varied.name == f"tiny, {name}"
        found.append(parameters(varied, TINY.policy))
    assert all(one not in [before, *found[:place]] for place, one in enumerate(found))
    assert parameters(TINY, TINY.policy) == before
    assert len(ROBUSTNESS) == 7


def test_steps_take_longer_in_truth_and_the_profile_is_as_it_was():
    for name, factor in (("steps-slower", 1.3), ("steps-faster", 0.7)):
        varied = vary(TINY, name)
        assert varied.settings.models == TINY.settings.models
        base = dataclasses.replace(TINY, duration_s=3.0, backlogs=())
        assert itl_ms(vary(base, name)) / itl_ms(base) == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize(("name", "at_the_end"), [("lengths-growing", 1.5), ("lengths-shrinking", 0.5)])
def test_output_lengths_drift_evenly_over_the_run_and_nothing_else_does(name, at_the_end):
    plain, varied = TINY.reading().workload, vary(TINY, name).reading().workload
    assert np.array_equal(plain.arrival_s, varied.arrival_s)
    assert np.array_equal(plain.prompt_tokens, varied.prompt_tokens)
    end_s = plain.arrival_s[-1]
    for share in (0.25, 0.5, 0.9):
        near = np.abs(plain.arrival_s - share * end_s) < 0.05 * end_s
        ratio = varied.output_tokens[near].sum() / plain.output_tokens[near].sum()
        assert ratio == pytest.approx(1 + (at_the_end - 1) * share, abs=0.03)


def test_loads_take_three_times_as_long_and_policies_reckon_with_the_configured_time_until_one_is_over():
    model = vary(TINY, "loads-slower").settings.models[0]
    assert (model.load_s, model.presumed_load_s) == (15.0, 5.0)
    told = []

    class Starter:
        def decide(self, snapshot):
            told.append((snapshot.now_s, snapshot.models[0].load_time_s))
            start = Start("m", Role.MIXED, 1, "first")
            return FleetDecision((start,) if len(told) == 1 else (), ())

    truth = {"load_time_s": 6.0, "presumed_load_time_s": 2.0}
    simulate(world(model=truth), requests((0.0, 10, 10), (9.5, 10, 10)), Starter())
    assert {load_s for at_s, load_s in told if at_s < 7} == {2.0}
    assert {load_s for at_s, load_s in told if at_s > 7} == {6.0}


def test_late_telemetry_reaches_the_autoscaler_late_and_goes_together_with_others():
    late = vary(TINY, "telemetry-late").settings.telemetry
    assert (late.delay_s, late.view_delay_s) == (5.0, TINY.settings.telemetry.view_delay_s)
    both = vary(TINY, "telemetry-late,lengths-growing")
    assert dataclasses.replace(both, name="") == dataclasses.replace(vary(TINY, "late-and-growing"), name="")


def test_shared_beginnings_are_computed_once_and_drafts_give_more_tokens_a_step():
    plain = run(TINY, TINY.policy)
    cached = run(vary(TINY, "prefix-caching"), TINY.policy)
    assert cached.oracle_gpu_hours < plain.oracle_gpu_hours
    workload = vary(TINY, "prefix-caching").reading().workload
    assert workload.prefix is not None
    block = TINY.settings.models[0].profile.block_size
    shares = [len(each) * block for each in workload.prefix]
    assert np.all(np.abs(np.array(shares) - 0.5 * workload.prompt_tokens) <= block)
    # One source's beginnings are its own: eight of traffic, eight of the backlog.
    assert len({each[0] for each in workload.prefix if each}) == 16
    quick = run(vary(TINY, "speculation"), TINY.policy)
    assert quick.result.to_json()["itl_ms"]["p50"] < 0.7 * plain.result.to_json()["itl_ms"]["p50"]


def test_mistakes_are_told_by_name():
    with pytest.raises(ConfigError, match=r"unknown variation 'slower'; known are steps-slower"):
        vary(TINY, "steps-slower, slower")
    model = dataclasses.replace(TINY.settings.models[0], itl_slo_s=0.0025)
    tight = dataclasses.replace(TINY, settings=dataclasses.replace(TINY.settings, models=(model,)))
    with pytest.raises(ConfigError, match=r"tiny.toml, steps-slower \[models.toy\]: itl_slo_s"):
        vary(tight, "steps-slower")
    for key, value, problem in (
        ("output_drift", -1.0, "output_drift: must be above -1"),
        ("output_drift", 100.0, "output_drift: must be above -1"),
    ):
        with pytest.raises(ConfigError, match=problem):
            scenario_from({"name": "x", key: value, **DOCUMENT}, Path("x.toml"))
    for given, problem in (({"shared_prefixes": -1}, "from 0 to"), ({"prefix_share": 1.1}, "from 0 to 1")):
        document = {**DOCUMENT, "traffic": [{"rate_per_s": 1.0, **given}]}
        with pytest.raises(ConfigError, match=problem):
            scenario_from({"name": "x", **document}, Path("x.toml"))


DOCUMENT = {
    "duration_s": 10,
    "cluster": {"gpus": [{"name": "g", "nodes": 1, "gpus_per_node": 1}]},
    "models": {"m": {"profile": "toy"}},
    "traffic": [{"rate_per_s": 1.0}],
}
