"""With requests that move all the time, fast-forwarding a cluster equals single steps."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.engine import get_profile
from chiron.policy.decisions import Retire, Sleep, Start, Wake
from chiron.policy.words import Role
from chiron.sim.baselines.migration import Pair
from chiron.sim.migration_settings import MigrationSettings
from chiron.sim.settings import Fault, FaultSettings
from tests.support.sim_worlds import Script, requests, run, world

# KV space for a few requests, so that it runs out.
TIGHT = get_profile("toy").replace(kv_capacity_tokens=1024, load_s=0.4)


class Restless:
    """Moves the shortest or the longest request to the next instance, whatever that one has to do."""

    interval_s = 0.0531

    def __init__(self):
        self._turn = 0

    def pairs(self, instances):
        self._turn += 1
        names = [view.instance_id for view in instances]
        ready = [view.instance_id for view in instances if not view.draining]
        if not ready:
            return []
        return [Pair(name, ready[(place + self._turn) % len(ready)]) for place, name in enumerate(names)][:2]

    def choose(self, movable):
        pick = min if self._turn % 2 else max
        return pick(movable, key=lambda each: (each.tokens, each.request_id)).request_id if movable else None


def random_world(seed):
    """Traffic, retirements, sleep and faults drawn from a seed; times are such that no two coincide."""
    rng = np.random.default_rng(seed)
    rows = []
    for arrival in np.cumsum(rng.exponential(0.02, 60)):
        row = (float(arrival), int(rng.integers(1, 200)), int(rng.integers(1, 120)))
        rows.append((*row, float(arrival) + 30.0) if rng.random() < 0.3 else row)
    names = [f"m-{number:05d}" for number in range(4)]
    kinds = (
        lambda name: Start("m", Role.MIXED, 1, "x"),
        lambda name: Retire("m", name, "x"),
        lambda name: Sleep("m", name, "x"),
        lambda name: Wake("m", name, Role.MIXED, "x"),
    )
    actions = {
        round(tick * 0.173, 6): [kinds[int(rng.integers(len(kinds)))](names[int(rng.integers(3))])]
        for tick in range(3, 12)
    }
    actions[round(12 * 0.173, 6)] = [Start("m", Role.MIXED, 2, "enough to end")]
    planned = (Fault(float(rng.uniform(0.1, 2.0)), "instance", int(rng.integers(5))),)
    costs = MigrationSettings(
        network_bytes_per_s=float(rng.choice([3e6, 2e7, 1e9])),
        handover_s=float(rng.choice([0.0, 0.0123])),
        last_stage_blocks=int(rng.integers(0, 3)),
        max_stages=int(rng.integers(1, 5)),
    )
    return (
        world(
            {Role.MIXED: 3},
            profile=TIGHT,
            batch_size=4,
            model={"wake_time_s": 0.211, "sleep_level": 1, "sleep_time_s": 0.0371},
            seed=seed,
            tick_s=0.173,
            local_interval_s=0.267,
            step_noise=float(rng.choice([0.0, 0.2])),
            faults=FaultSettings(planned=planned if rng.random() < 0.5 else ()),
            migration=costs,
        ),
        requests(*rows),
        actions,
    )


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_a_cluster_with_migrations_fast_forwarded_equals_single_steps(seed):
    world_settings, work, actions = random_world(seed)
    results = []
    for single in (False, True):
        chosen = dataclasses.replace(world_settings, single_steps=single)
        # Requests and tokens are conserved, or the run fails.
        results.append(run(chosen, work, Script(actions), migration=Restless()))
    fast, slow = results
    for name in ("first_token_s", "finish_s"):
        assert getattr(fast.outcomes, name) == pytest.approx(
            getattr(slow.outcomes, name), rel=1e-9, nan_ok=True
        )
    assert (fast.migrations.done, fast.migrations.given_up) == (
        slow.migrations.done,
        slow.migrations.given_up,
    )
    assert fast.longest_gap_ms.p99 == pytest.approx(slow.longest_gap_ms.p99, nan_ok=True)
    assert fast.gpu_hours == pytest.approx(slow.gpu_hours)
    assert (fast.preemptions, fast.retries) == (slow.preemptions, slow.retries)


def test_in_these_worlds_requests_move_and_migrations_are_given_up():
    found = []
    for seed in range(6):
        world_settings, work, actions = random_world(seed)
        found.append(run(world_settings, work, Script(actions), migration=Restless()).migrations)
    assert sum(each.done for each in found) >= 20
    assert sum(each.given_up for each in found) >= 5
