"""Settings and workloads that make no sense are refused with an error that names the key."""

import numpy as np
import pytest

from chiron.engine import get_profile
from chiron.policy.custom import PolicyError
from chiron.policy.decisions import Start
from chiron.policy.disciplines import UnknownDisciplineError
from chiron.policy.words import Role
from chiron.sim.settings import (
    Fault,
    FaultSettings,
    GpuType,
    InvalidSettingError,
    SimModel,
    SimSettings,
    TelemetrySettings,
)
from chiron.sim.workload import InvalidWorkloadError, Workload
from tests.support.sim_worlds import Script, requests, run, world

TOY = get_profile("toy")


@pytest.mark.parametrize(
    ("key", "make"),
    [
        ("ttft_slo_s", lambda: SimModel("m", TOY, ttft_slo_s=0.0)),
        ("itl_slo_s", lambda: SimModel("m", TOY, itl_slo_s=float("inf"))),
        ("max_instances", lambda: SimModel("m", TOY, min_instances=3, max_instances=2)),
        ("initial_batch_size", lambda: SimModel("m", TOY, initial_batch_size=2000)),
        ("initial", lambda: SimModel("m", TOY, initial={Role.BATCH: -1})),
        ("load_time_s", lambda: SimModel("m", TOY, load_time_s=-1.0)),
        ("gpus_per_node", lambda: GpuType("g", 1, 0)),
        ("price_per_gpu_hour", lambda: GpuType("g", 1, 1, -1.0)),
        ("loss", lambda: TelemetrySettings(loss=1.0)),
        ("delay_s", lambda: TelemetrySettings(delay_s=-0.1)),
        ("kind", lambda: Fault(1.0, "router")),
        ("node_mtbf_s", lambda: FaultSettings(node_mtbf_s=0.0)),
        ("gpu_types", lambda: SimSettings((SimModel("m", TOY),), ())),
        ("models", lambda: SimSettings((), (GpuType("g", 1, 1),))),
        ("tick_s", lambda: world(tick_s=0.0)),
        ("seed", lambda: world(seed=-1)),
        ("resume_cost", lambda: world(resume_cost="free")),
        ("gpu_type", lambda: world(model={"gpu_type": "h100"})),
        ("gpus_per_node", lambda: world(profile=TOY.replace(gpus=5))),
    ],
)
def test_a_bad_setting_is_named(key, make):
    with pytest.raises(InvalidSettingError) as caught:
        make()
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("array", "changes"),
    [
        ("arrival_s", {"arrival_s": np.array([1.0, 0.5])}),
        ("arrival_s", {"arrival_s": np.array([-1.0, 0.5])}),
        ("output_tokens", {"output_tokens": np.array([3, 0], dtype=np.int32)}),
        ("prompt_tokens", {"prompt_tokens": np.array([3], dtype=np.int32)}),
        ("request_class", {"request_class": np.array([1, 7], dtype=np.int8)}),
        ("deadline_s", {"deadline_s": np.array([5.0, np.inf])}),
    ],
)
def test_a_bad_array_is_named(array, changes):
    good = requests((0.0, 1, 1), (1.0, 1, 1))
    arrays = {name: getattr(good, name) for name in Workload.__slots__} | changes
    with pytest.raises(InvalidWorkloadError) as caught:
        Workload(**arrays)
    assert caught.value.array == array


def test_a_request_that_fits_into_no_engine_is_named():
    with pytest.raises(InvalidWorkloadError, match=r"request 1 needs 5001 tokens.*holds 4096"):
        run(world(), requests((0.0, 1, 1), (1.0, 5000, 1)))


def test_initial_instances_need_gpus():
    with pytest.raises(InvalidSettingError, match="no room for 9 instances"):
        run(world({Role.MIXED: 9}), requests((0.0, 1, 1)))
    with pytest.raises(InvalidSettingError, match="gpu_budget is 2"):
        run(world({Role.MIXED: 3}, gpu_budget=2), requests((0.0, 1, 1)))


def test_unknown_names_are_refused():
    with pytest.raises(UnknownDisciplineError, match="lifo"):
        run(world(discipline="lifo"), requests((0.0, 1, 1)))
    with pytest.raises(PolicyError, match="'other'"):
        run(world(), requests((2.0, 1, 1)), Script({1.0: [Start("other", Role.MIXED, 1, "x")]}))


def test_the_gpu_budget_bounds_what_starts():
    script = Script({1.0: [Start("m", Role.MIXED, 5, "more")]})
    result = run(world(gpu_budget=3), requests((5.0, 1, 1)), script)
    assert (result.gpus_peak, result.scaling_actions) == (3, 2)
