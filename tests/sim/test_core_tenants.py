"""Tenants in the simulator's router: the queue of live routers, by the same object."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from chiron.config import ConfigError
from chiron.policy.words import RequestClass
from chiron.sim.queue_settings import InvalidSettingError, QueueSettings
from chiron.sim.runs import part_of
from chiron.sim.scenario import read_scenario
from chiron.sim.scenario_toml import scenario_toml
from chiron.sim.workload import InvalidWorkloadError
from tests.support.sim_worlds import requests, run, world

FLOOD, LATER = 60, 6
SCENARIO = """
name = "tenants"
duration_s = 30
[[cluster.gpus]]
name = "g"
nodes = 1
gpus_per_node = 1
price_per_gpu_hour = 1.0
[models.m]
profile = "toy"
initial = { mixed = 1 }
[queues]
tenant_weights = { web = 2.0 }
[[traffic]]
model = "m"
rate_per_s = 2.0
tenant = "web"
[[traffic]]
model = "m"
rate_per_s = 1.0
[[backlog]]
model = "m"
requests = 3
"""


def flooded(**queues: object):
    """Sixty requests of one tenant at once, soon six of another; one slot. Times to their first tokens."""
    workload = requests(*[(0.0, 8, 10)] * FLOOD, *[(0.01, 8, 10)] * LATER)
    names = ("flood",) * FLOOD + ("small",) * LATER
    workload = dataclasses.replace(workload, tenant=names)
    result = run(world(batch_size=1, queues=QueueSettings(**queues), engine_queue=0), workload)  # type: ignore[arg-type]
    waited = np.asarray(result.outcomes.first_token_s) - workload.arrival_s
    return waited[:FLOOD], waited[FLOOD:]


def test_a_tenants_few_requests_do_not_wait_for_anothers_flood() -> None:
    flood, small = flooded()
    assert np.argsort(np.argsort(np.concatenate([flood, small])))[FLOOD:].max() <= 2 * LATER + 2
    assert flood.max() > 5 * small.max()


def test_weights_count() -> None:
    _, equal = flooded()
    _, light = flooded(tenant_weights={"flood": 3.0})
    assert light.max() > 1.5 * equal.max()


def test_one_tenant_is_served_as_if_there_were_none() -> None:
    workload = requests(*[(0.1 * number, 8, 10) for number in range(30)])
    named = dataclasses.replace(workload, tenant=("web",) * 30)
    first, second = (run(world(batch_size=1), each).outcomes.finish_s for each in (workload, named))
    assert list(first) == list(second)


def test_a_scenario_names_tenants_and_what_they_weigh(tmp_path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO)
    scenario = read_scenario(file)
    reading = scenario.reading()
    workload = reading.workload
    assert workload.tenant is not None
    interactive = workload.request_class == RequestClass.INTERACTIVE
    assert {name for name, mine in zip(workload.tenant, interactive, strict=True) if mine} == {"web", ""}
    assert {name for name, mine in zip(workload.tenant, interactive, strict=True) if not mine} == {""}
    assert len(part_of(reading, interactive).workload.tenant or ()) == interactive.sum()
    assert scenario.settings.queues.tenant_weights == {"web": 2.0}
    again = tmp_path / "again.toml"
    again.write_text(scenario_toml(scenario))
    assert dataclasses.replace(read_scenario(again), file=file) == scenario


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("web = 2.0 }", "web = 0 }", "tenant_weights.*'web' must be positive"),
        ("web = 2.0 }", "web = true }", "'web' must be a number, not True"),
        ("requests = 3", 'requests = 3\ntenant = "web"', "tenant"),
    ],
)
def test_a_mistake_names_its_key(tmp_path, old: str, new: str, named: str) -> None:
    file = tmp_path / "s.toml"
    file.write_text(SCENARIO.replace(old, new))
    with pytest.raises(ConfigError, match=named):
        read_scenario(file)


def test_every_request_has_a_tenant_or_none_has() -> None:
    with pytest.raises(InvalidWorkloadError, match="tenant: has 1 entries for 2 requests"):
        dataclasses.replace(requests((0.0, 8, 10), (0.0, 8, 10)), tenant=("a",))
    with pytest.raises(InvalidSettingError, match="tenant_weights"):
        QueueSettings(tenant_weights={"a": float("inf")})
