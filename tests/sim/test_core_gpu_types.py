"""Several GPU types in one cluster, each with its price: models run on the type that they need."""

import dataclasses

import numpy as np
import pytest

from chiron.policy.decisions import Start
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.fleet import load_autoscaler
from chiron.policy.words import Role
from chiron.sim.settings import GpuType, InvalidSettingError, SimModel, SimSettings
from chiron.sim.simulator import simulate
from tests.support.sim_worlds import FLAT, Script, requests, run

TYPES = (GpuType("a100", 2, 2, 2.0), GpuType("h100", 1, 2, 5.0))


def cluster(**small):
    models = (
        SimModel("big", FLAT.replace(gpus=2), gpu_type="h100", initial={Role.MIXED: 1}, priority=0),
        SimModel("small", FLAT, initial={Role.MIXED: 1}, priority=3, **small),
    )
    return SimSettings(models=models, gpu_types=TYPES, tick_s=0.5)


def both(*rows):
    work = requests(*rows)
    return dataclasses.replace(work, model=np.arange(len(rows), dtype=np.int16) % 2)


def test_each_model_is_placed_on_its_type_and_each_type_has_its_price():
    script = Script({1.0: [Start("big", Role.MIXED, 1, "x"), Start("small", Role.MIXED, 9, "x")]})
    result = run(cluster(), both((2.0, 10, 1), (2.5, 10, 1)), script)
    # The two h100 are taken: no second big instance; three of the four a100 are left for small ones.
    kinds = [(action.kind, action.model) for action in result.actions]
    assert kinds == [("start", "small")] * 3
    nodes = {model.name: {i.node_id for i in model.instances} for model in script.snapshots[-1].models}
    assert nodes == {"big": {"h100-0"}, "small": {"a100-0", "a100-1"}}
    end_s = result.simulated_s
    assert end_s == pytest.approx(2.51)
    a100_s = end_s + 3 * (end_s - 1.0)
    assert result.gpu_cost == pytest.approx((2.0 * a100_s + 5.0 * 2 * end_s) / 3600)
    assert result.gpu_hours == pytest.approx((a100_s + 2 * end_s) / 3600)


def test_snapshots_tell_types_contexts_and_priorities():
    script = Script()
    run(cluster(), both((1.0, 10, 1), (1.1, 10, 1)), script)
    view = script.snapshots[0]
    assert view.gpu_types == {"a100-0": "a100", "a100-1": "a100", "h100-0": "h100"}
    assert [(m.gpu_type, m.priority, m.max_context_tokens) for m in view.models] == [
        ("h100", 0, FLAT.max_context_tokens),
        ("a100", 3, FLAT.max_context_tokens),
    ]
    assert view.free_gpus == {"a100-0": 1, "a100-1": 2, "h100-0": 0}


def test_chiron_starts_no_more_than_the_type_has_room_for():
    # Both models are far short of slots from the start.
    rows = [(0.5 + 0.01 * i, 10, 40) for i in range(600)]
    result = simulate(
        cluster(initial_batch_size=4, max_batch_size=4),
        both(*rows),
        autoscaler=load_autoscaler("chiron"),
        dispatcher=LeastExpectedWait(),
    )
    started = [action.model for action in result.actions if action.kind == "start"]
    assert started.count("small") == 3
    assert started.count("big") == 0
    assert not any(action.model == "small" and action.kind == "retire" for action in result.actions[:3])


def test_a_type_that_no_node_has_is_named():
    with pytest.raises(InvalidSettingError, match="gpu_type: 'b200' of model 'x' is unknown"):
        SimSettings(models=(SimModel("x", FLAT, gpu_type="b200"),), gpu_types=TYPES)
    with pytest.raises(InvalidSettingError, match=r"gpus_per_node: .*needs 4 GPUs on one node"):
        SimSettings(models=(SimModel("x", FLAT.replace(gpus=4)),), gpu_types=TYPES)
