"""Models that share GPUs by sleeping: one awake instance owns a GPU, sleepers keep a small part of it."""

import dataclasses

import numpy as np
import pytest

from chiron.policy.decisions import Retire, Sleep, Start, Wake
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.fleet import load_autoscaler
from chiron.policy.words import Phase, Role
from chiron.sim.gpus import Gpus
from chiron.sim.settings import GpuType, InvalidSettingError, SimModel, SimSettings
from chiron.sim.simulator import simulate
from tests.support.sim_worlds import FLAT, Script, requests, run

# Ready 2 s after its placement, asleep 0.05 s after it has drained, awake again in 0.5 s.
SLEEPY = {"sleep_level": 1, "wake_time_s": 0.5}


def shared(gpus=1, *, host_memory_gb=0.0, budget=0, first=None, second=None, **settings):
    """Models a and b on one node; a has an instance on each GPU."""
    models = (
        SimModel("a", FLAT, initial={Role.MIXED: gpus}, **{**SLEEPY, **(first or {})}),
        SimModel("b", FLAT, **{**SLEEPY, **(second or {})}),
    )
    kind = GpuType("g", 1, gpus, 1.0, host_memory_gb)
    return SimSettings(models=models, gpu_types=(kind,), gpu_budget=budget, **settings)


def of_model(workload, *models):
    return dataclasses.replace(workload, model=np.array(models, dtype=np.int16))


def phases(script, tick):
    known = [each for model in script.snapshots[tick - 1].models for each in model.instances]
    return {each.instance_id: (each.phase, each.can_wake) for each in known}


def test_another_model_loads_where_a_sleeper_lies_and_the_gpu_counts_once():
    script = Script(
        {
            1.0: [Sleep("a", "a-00000", "idle")],
            2.0: [Start("b", Role.MIXED, 1, "demand")],
            6.0: [Sleep("b", "b-00001", "idle")],
            7.0: [Wake("a", "a-00000", Role.MIXED, "demand")],
        }
    )
    result = run(shared(), of_model(requests((5.0, 10, 2), (8.0, 10, 1)), 1, 0), script)
    # b loads from 2 to 4 on the GPU of the sleeper; a wakes from 7 to 7.5.
    assert list(result.outcomes.first_token_s) == pytest.approx([5.01, 8.01])
    assert [script.snapshots[tick - 1].free_gpus for tick in (1, 2, 3, 7, 8)] == [
        {"g-0": 0}, {"g-0": 1}, {"g-0": 0}, {"g-0": 1}, {"g-0": 0},
    ]  # fmt: skip
    assert phases(script, 2)["a-00000"] == (Phase.SLEEPING, True)
    assert phases(script, 5) == {"a-00000": (Phase.SLEEPING, False), "b-00001": (Phase.READY, False)}
    assert phases(script, 7) == {"a-00000": (Phase.SLEEPING, True), "b-00001": (Phase.SLEEPING, True)}
    assert phases(script, 8)["b-00001"] == (Phase.SLEEPING, False)
    assert result.gpus_peak == 1
    # Sleepers alone are paid for, two on one GPU are paid for once.
    assert result.gpu_hours == pytest.approx(result.simulated_s / 3600)


def test_a_wake_or_a_start_on_an_owned_gpu_is_void():
    script = Script(
        {
            1.0: [Sleep("a", "a-00000", "idle")],
            2.0: [Start("b", Role.MIXED, 2, "more than there is room for")],
            3.0: [Wake("a", "a-00000", Role.MIXED, "too late")],
        }
    )
    result = run(shared(), of_model(requests((5.0, 10, 1)), 1), script)
    assert [(action.kind, action.instance_id) for action in result.actions] == [
        ("sleep", "a-00000"),
        ("start", "b-00001"),
    ]


@pytest.mark.parametrize(("residual", "kinds"), [(0.1, ["sleep", "start"]), (0.11, ["sleep"])])
def test_what_sleepers_keep_must_leave_room_for_who_is_awake(residual, kinds):
    # An awake instance takes 0.9 of the memory.
    script = Script({1.0: [Sleep("a", "a-00000", "x")], 2.0: [Start("b", Role.MIXED, 1, "x")]})
    settings = shared(first={"sleep_residual_share": residual}, horizon_s=5.0)
    result = run(settings, of_model(requests((4.5, 10, 1)), 1), script)
    assert [action.kind for action in result.actions] == kinds
    assert script.snapshots[1].free_gpus == {"g-0": len(kinds) - 1}


def test_a_narrow_model_wakes_where_its_own_residue_leaves_no_room_for_a_wide_one():
    class SleepsOnce(Script):
        """Puts its instance to sleep at 1 s; from 2 s on `chiron` decides."""

        def __init__(self):
            super().__init__({1.0: [Sleep("a", "a-00000", "x")]})
            self.chiron = load_autoscaler("chiron")

        def decide(self, snapshot):
            told = super().decide(snapshot)
            return self.chiron.decide(snapshot) if snapshot.now_s >= 2.0 else told

    script = SleepsOnce()
    settings = shared(
        first={"gpu_memory_share": 0.5, "sleep_residual_share": 0.2},
        second={"gpu_memory_share": 0.9},
        horizon_s=60.0,
    )
    result = run(settings, of_model(requests((2.5, 10, 1)), 0), script)
    assert script.snapshots[1].free_gpus == {"g-0": 0}
    assert phases(script, 2)["a-00000"] == (Phase.SLEEPING, True)
    assert [action.kind for action in result.actions][:2] == ["sleep", "wake"]
    assert result.unfinished == 0


def test_weights_of_sleepers_at_level_one_need_host_memory_and_at_level_two_none():
    actions = {1.0: [Sleep("a", "a-00000", "x"), Sleep("a", "a-00001", "x")]}
    slept = {}
    for level in (1, 2):
        script = Script(actions)
        first = {"sleep_level": level, "sleep_host_gb": 16.0}
        settings = shared(2, host_memory_gb=31.0, first=first, horizon_s=4.0)
        slept[level] = run(settings, of_model(requests((3.5, 10, 1)), 0), script).scaling_actions
        told = [[each.can_sleep for each in view.models[0].instances] for view in script.snapshots]
        # Afterwards they sleep, or (the second at level 1) lack the memory.
        assert told[:2] == [[True, True], [False, False]]
    assert slept == {1: 1, 2: 2}


def test_a_model_that_never_sleeps_cannot_be_put_to_sleep():
    script = Script({1.0: [Sleep("a", "a-00000", "x")]})
    result = run(shared(first={"sleep_level": 0}), of_model(requests((2.0, 10, 1)), 0), script)
    assert result.scaling_actions == 0
    assert not script.snapshots[0].models[0].instances[0].can_sleep


def test_a_start_within_the_budget_goes_where_sleepers_are_paid_for_already():
    script = Script({1.0: [Sleep("a", "a-00000", "x")], 2.0: [Start("b", Role.MIXED, 2, "x")]})
    settings = shared(2, budget=2)
    result = run(settings, of_model(requests((5.0, 10, 1)), 1), script)
    assert [action.instance_id for action in result.actions] == ["a-00000", "b-00002"]
    assert result.gpus_peak == 2


def test_a_retired_sleeper_gives_up_what_it_kept():
    script = Script(
        {
            1.0: [Sleep("a", "a-00000", "x")],
            3.0: [Retire("a", "a-00000", "x"), Start("b", Role.MIXED, 1, "x")],
        }
    )
    result = run(shared(first={"sleep_residual_share": 0.5}), of_model(requests((8.0, 10, 1)), 1), script)
    # At 3 the GPU still has the sleeper; it is free from 3.05 on, and nothing holds it.
    assert [action.kind for action in result.actions] == ["sleep", "retire"]
    assert result.unfinished == 1
    assert result.gpu_hours == pytest.approx(3.05 / 3600)


def test_falling_asleep_takes_time_in_which_the_gpu_is_owned():
    script = Script({1.0: [Sleep("a", "a-00000", "x")]})
    run(shared(first={"sleep_time_s": 1.5}), of_model(requests((4.0, 10, 1)), 1), script)
    assert [each.models[0].instances[0].phase for each in script.snapshots[1:3]] == [
        Phase.DRAINING,
        Phase.SLEEPING,
    ]
    assert [each.free_gpus["g-0"] for each in script.snapshots[:3]] == [0, 0, 1]


def test_two_owners_of_one_gpu_are_refused_as_a_defect():
    settings = shared()
    gpus = Gpus(settings)
    claim = ("g-0", (0,))
    gpus.take(claim, "a-0", settings.models[0], 0.0)
    with pytest.raises(AssertionError, match="owned by a-0"):
        gpus.take(claim, "b-0", settings.models[1], 1.0)
    with pytest.raises(AssertionError, match="owned by a-0"):
        gpus.release(claim, "b-0", 1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sleep_level", 3), ("gpu_memory_share", 0.0), ("sleep_residual_share", 0.95), ("sleep_host_gb", -1.0)],
)
def test_impossible_sleep_is_named(key, value):
    with pytest.raises(InvalidSettingError, match=key):
        SimModel("a", FLAT, **{key: value})


def alternating(period_s, seconds):
    """Interactive requests of two models whose peaks alternate: 150 a second at a peak, 10 in between."""
    rng = np.random.default_rng(5)
    rows, models = [], []
    for model in range(2):
        times = rng.uniform(0.0, seconds, int(150 * seconds))
        high = (times // period_s) % 2 == model
        kept = times[high | (rng.random(len(times)) < 10 / 150)]
        rows += [(float(time), 20, 40) for time in kept]
        models += [model] * len(kept)
    order = np.argsort([row[0] for row in rows], kind="stable")
    return of_model(requests(*[rows[i] for i in order]), *[models[i] for i in order])


def test_chiron_lets_models_whose_peaks_alternate_share_gpus():
    # A peak of 150 a second at 0.4 s each holds 60 slots: eight instances of 8 slots, of ten GPUs.
    work = alternating(60.0, 360.0)
    results = {}
    for level in (0, 1):
        options = {"initial_batch_size": 8, "max_batch_size": 8, "sleep_level": level, "load_time_s": 10.0}
        models = tuple(
            SimModel(name, FLAT, initial={Role.MIXED: 2}, wake_time_s=0.5, **options) for name in ("a", "b")
        )
        settings = SimSettings(models=models, gpu_types=(GpuType("g", 1, 12, 1.0),))
        results[level] = simulate(
            settings, work, autoscaler=load_autoscaler("chiron"), dispatcher=LeastExpectedWait()
        )
    kinds = [action.kind for action in results[1].actions]
    assert kinds.count("wake") > 5
    assert not {"sleep", "wake"} & {action.kind for action in results[0].actions}
    asleep, cold = results[1], results[0]
    assert asleep.slo_attainment.interactive > cold.slo_attainment.interactive + 0.05
    # Every request is served in both: what counts is what one that was in time has cost.
    per_attained = [one.gpu_hours / one.slo_attainment.interactive for one in (asleep, cold)]
    assert per_attained[0] < per_attained[1]
