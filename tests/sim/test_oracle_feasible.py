"""The clairvoyant reference: what it is told, what it reaches, and that nobody else is told it."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest

from chiron.config import ConfigError
from chiron.policy.decisions import Retire, Start
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role
from chiron.sim.autoscalers import BASELINES, Beforehand
from chiron.sim.clairvoyant.fleet import ClairvoyantFleet, Schedule
from chiron.sim.clairvoyant.future import future_of
from chiron.sim.clairvoyant.pace import pace_of, work_of
from chiron.sim.clairvoyant.search import feasible
from chiron.sim.compare import compare
from chiron.sim.paper.case import Case, NoFleetError, simulated
from chiron.sim.policies import POLICIES, PolicyChoice
from chiron.sim.runs import attains
from chiron.sim.scenario import scenario_from
from tests.support.sim_worlds import requests, world

ORACLE = PolicyChoice("oracle-feasible")
DOCUMENT = {
    "name": "waves",
    "seed": 2,
    "duration_s": 90,
    "cluster": {"gpus": [{"name": "g", "nodes": 2, "gpus_per_node": 3}]},
    "models": {
        "m": {
            "profile": "toy",
            "initial": {"mixed": 1},
            "ttft_slo_s": 1.0,
            "itl_slo_s": 0.05,
            "initial_batch_size": 8,
            "max_batch_size": 16,
            "load_time_s": 4.0,
        }
    },
    "traffic": [
        {
            "rate_per_s": 25.0,
            "shape": "spike",
            "spike_factor": 5.0,
            "spike_at_s": 40.0,
            "spike_length_s": 15.0,
            "lengths": "lognormal",
            "prompt_mean": 100.0,
            "output_mean": 100.0,
            "sigma": 0.5,
        }
    ],
}


def scenario(**changes):
    return scenario_from({**DOCUMENT, **changes}, Path("waves.toml"))


def test_it_attains_between_the_lower_bound_and_the_smallest_fixed_fleet():
    (oracle, fixed) = compare(scenario(), [ORACLE, PolicyChoice("fixed")], [2], jobs=1)
    assert oracle.attains
    assert fixed.attains
    assert oracle.oracle_ratio >= 1
    # The spike lasts a sixth of the time: a fleet that comes and goes with it needs much less.
    assert oracle.figures["gpu_hours"] < 0.75 * fixed.figures["gpu_hours"]
    assert oracle.policy == "oracle-feasible"
    assert oracle.figures["parameters"]["policy"]["autoscaler"] == "clairvoyant"


def test_instances_are_ready_when_the_spike_comes_and_not_much_earlier():
    base = scenario()
    best = feasible(base, base.reading())
    assert best is not None
    assert attains(best.result)
    starts = [action.at_s for action in best.result.actions if action.kind == "start"]
    # Loads take 4 s: whoever reacts to the spike alone is late.
    assert 30.0 < starts[0] < 40.0
    assert max(point.ready for point in best.result.timeline if 40 < point.at_s < 55) == 2
    assert min(point.ready for point in best.result.timeline if 60 < point.at_s < 88) == 1


def test_batch_work_waits_for_its_deadline_and_keeps_it():
    backlog = {"requests": 800, "arrive_s": 5.0, "deadline_in_s": 70.0, **LENGTHS}
    quiet = {**DOCUMENT["traffic"][0], "spike_factor": 1.0}
    base = scenario(backlog=[backlog], traffic=[quiet], duration_s=80)
    figures = simulated(Case("e", {}, base, ORACLE, 2))
    assert figures["attains"]
    assert figures["slo_attainment"]["batch"] == 1.0
    assert figures["oracle_lb"]["ratio"] >= 1


LENGTHS = {"lengths": "lognormal", "prompt_mean": 100.0, "output_mean": 100.0, "sigma": 0.5}


def test_no_schedule_is_told_where_none_attains():
    small = {"gpus": [{"name": "g", "nodes": 1, "gpus_per_node": 1}]}
    crowded = scenario(cluster=small, duration_s=5, traffic=[{"rate_per_s": 300.0, **LENGTHS}])
    assert feasible(crowded, crowded.reading()) is None
    (entry,) = compare(crowded, [ORACLE], [2], jobs=1)
    assert entry.figures is None
    with pytest.raises(NoFleetError, match="no schedule that was tried attains"):
        simulated(Case("e", {}, crowded, ORACLE, 2))


def test_no_name_leads_a_policy_to_what_the_reference_is_told():
    assert ORACLE.name not in POLICIES
    assert "clairvoyant" not in BASELINES
    with pytest.raises(ConfigError, match="it is told the workload: chiron sim compare runs it"):
        ORACLE.make()
    with pytest.raises(ConfigError, match="unknown autoscaler 'clairvoyant'"):
        PolicyChoice("fixed", autoscaler="clairvoyant").make()
    # What the makers of policies are handed holds models alone: neither requests nor the true step times.
    assert [field.name for field in dataclasses.fields(Beforehand)] == ["models"]
    assert list(inspect.signature(PolicyChoice.make).parameters) == ["self", "known"]


def test_what_is_told_beforehand_is_the_presumed_load_time(monkeypatch):
    told = []

    class Watched(PolicyChoice):
        def make(self, known=None):
            told.append(known)
            return PolicyChoice("fixed").make(known)

    from chiron.sim.runs import run
    from chiron.sim.variations import vary

    varied = vary(scenario(duration_s=5), "loads-slower,steps-slower")
    run(varied, Watched("fixed"))
    (models,) = (each.models for each in told if each is not None)
    assert models[0].load_s == 4.0
    assert varied.settings.models[0].load_s == 12.0
    assert models[0].profile == scenario().settings.models[0].profile


def test_the_pace_is_that_of_the_engines_at_the_best_limits():
    settings = world().models[0]
    model = dataclasses.replace(settings, profile=TOY, max_batch_size=64, itl_slo_s=1.0)
    prompt, output = np.full(50, 100, np.int32), np.full(50, 100, np.int32)
    pace = pace_of(model, prompt, output, 1.0)
    assert pace.batch_size == 64
    # By hand: a step of 64 requests holds 128 tokens and reads 64 contexts of 148.5 tokens on average.
    step_s = 2.0e-3 + 128 * 0.01e-3 + 64 * (99 * 100 + 99 * 98 / 2) / 99 * TOY.kv_read_s_per_token
    served_per_s = 64 / (100 * step_s)
    each_s = float(work_of(model, prompt, output, 1.0)[0])
    assert pace.work_per_s(64) == pytest.approx(served_per_s * each_s, rel=0.02)
    assert pace.full_itl_s == pytest.approx(step_s, rel=0.02)
    slower = pace_of(model, prompt, output, 1.3)
    assert slower.full_itl_s == pytest.approx(1.3 * pace.full_itl_s)
    assert slower.share == pytest.approx(pace.share)
    tight = pace_of(dataclasses.replace(model, itl_slo_s=0.0025), prompt, output, 1.0)
    assert tight.full_itl_s <= 0.0025
    assert tight.batch_size < 64


TOY = scenario().settings.models[0].profile


def snapshot(now_s, instances, running, backlog=()):
    made = tuple(
        FleetInstance(f"m-{number}", "n", Role.MIXED, Phase.READY, 8, 8, running_interactive=running)
        for number in range(instances)
    )
    fleet = ModelFleet("m", 1, 0, 0, 1.0, 0.05, 2.0, made, Traffic(1.0), backlog, initial_batch_size=8)
    return FleetSnapshot(now_s, (fleet,))


def test_it_starts_a_load_time_ahead_and_stops_what_is_not_needed_for_long():
    calm = [(float(at_s), 50, 50) for at_s in np.arange(0, 100, 0.5)]
    crowd = [(float(at_s), 50, 200) for at_s in np.arange(60, 80, 0.01)]
    settings = world(profile=TOY, model={"load_time_s": 10.0, "ttft_slo_s": 1.0, "max_batch_size": 8})
    known = {"m": future_of(settings, requests(*sorted(calm + crowd)), 0)}
    fleet = ClairvoyantFleet(known, Schedule(least_stop_s=30.0))

    def actions(*at):
        return fleet.decide(snapshot(*at)).actions

    assert actions(20.0, 1, 1) == ()
    (start,) = actions(55.0, 1, 1)
    assert isinstance(start, Start)
    assert start.count > 1
    (stop,) = actions(85.0, 4, 1)
    assert isinstance(stop, Retire)
    # Before the crowd comes nobody goes whom it needs.
    assert actions(45.0, 5, 1) == ()
    nobody = ClairvoyantFleet(known, Schedule(least_stop_s=float("inf")))
    assert nobody.decide(snapshot(85.0, 4, 1)).actions == ()


def test_batch_work_that_would_be_late_starts_instances():
    work = requests(*((float(at_s), 50, 50) for at_s in range(100)), (0.0, 50, 100, 100.0))
    settings = world(profile=TOY, model={"load_time_s": 5.0, "max_batch_size": 8})
    known = {"m": future_of(settings, work, 0)}
    fleet = ClairvoyantFleet(known, Schedule())
    due = [BatchBacklog(60.0, count, 0) for count in (100, 20_000)]
    assert fleet.decide(snapshot(10.0, 1, 1, (due[0],))).actions == ()
    (start,) = fleet.decide(snapshot(10.0, 1, 1, (due[1],))).actions
    assert isinstance(start, Start)


def test_batch_work_with_time_to_spare_waits_until_the_last_instance_must_start():
    work = requests((0.0, 50, 100, 500.0))
    settings = world(profile=TOY, model={"load_time_s": 5.0, "max_batch_size": 8})
    fleet = ClairvoyantFleet({"m": future_of(settings, work, 0)}, Schedule())
    group = (BatchBacklog(400.0, 1000, 0),)
    assert fleet.decide(snapshot(10.0, 0, 0, group)).actions == ()
    soon = (BatchBacklog(12.0, 1000, 0),)
    (start,) = fleet.decide(snapshot(10.0, 0, 0, soon)).actions
    assert isinstance(start, Start)
    # The only instance stays while batch work waits; of two, one may go until it must be back.
    assert fleet.decide(snapshot(10.0, 1, 0, group)).actions == ()
    assert isinstance(fleet.decide(snapshot(10.0, 2, 0, group)).actions[0], Retire)
