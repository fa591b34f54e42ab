"""Instances and nodes fail: requests go on elsewhere, tokens are neither lost nor repeated."""

import pytest

from chiron.policy.decisions import Start
from chiron.policy.words import Role
from chiron.sim.settings import Fault, FaultSettings
from tests.support.sim_worlds import Script, requests, run, world


def test_requests_of_a_failed_instance_go_on_with_the_tokens_they_have():
    # At 0.505 the 51st step is under way; its token counts, and 49 of 100 are left.
    faults = FaultSettings(planned=(Fault(0.505, "instance", 0),))
    settings = world({Role.MIXED: 2}, faults=faults)
    result = run(settings, requests((0.0, 10, 100)))
    assert (result.failures, result.retries) == (1, 1)
    assert result.outcomes.first_token_s[0] == pytest.approx(0.01)
    assert result.outcomes.finish_s[0] == pytest.approx(0.505 + 0.49)


def test_a_failed_node_takes_its_instances_and_no_new_ones_until_it_is_repaired():
    faults = FaultSettings(planned=(Fault(0.5, "node", 0, 5.0), Fault(0.5, "node", 0, 2.0)))
    start = Script({1.0: [Start("m", Role.MIXED, 1, "x")], 3.0: [Start("m", Role.MIXED, 1, "x")]})
    result = run(world({Role.MIXED: 2}, faults=faults), requests((0.0, 10, 100)), start)
    assert result.failures == 2
    # Both nodes are down at 1; the second is back at 2.5.
    assert [action.at_s for action in result.actions] == [3.0]
    assert start.snapshots[0].free_gpus == {}
    assert start.snapshots[2].free_gpus == {"g-1": 4}
    assert result.unfinished == 0


def test_random_failures_under_load_lose_nothing():
    faults = FaultSettings(instance_mtbf_s=3.0, node_mtbf_s=10.0, node_repair_s=2.0)
    script = Script({float(t): [Start("m", Role.MIXED, 1, "x")] for t in range(1, 200)})
    settings = world({Role.MIXED: 3}, faults=faults, step_noise=0.1, model={"load_time_s": 0.5})
    rows = [(i * 0.05, 20, 40) if i % 3 else (i * 0.05, 20, 60, 50.0) for i in range(200)]
    result = run(settings, requests(*rows), script)
    assert result.failures > 3
    assert result.retries > 3
    assert result.unfinished == 0
