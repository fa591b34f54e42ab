"""With streams that are handed over, fast-forwarding a cluster equals single steps, and all is conserved."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.engine import get_profile
from chiron.policy.decisions import Retire, Sleep, Start, Wake
from chiron.policy.words import Role
from chiron.sim.migration_settings import MigrationSettings
from chiron.sim.settings import Fault, FaultSettings
from tests.support.sim_worlds import Script, requests, run, world

TIGHT = get_profile("toy").replace(kv_capacity_tokens=4096, load_s=0.4)


def random_world(seed):
    """Traffic, drains and faults drawn from a seed; times are such that no two coincide."""
    rng = np.random.default_rng(seed)
    rows = []
    for arrival in np.cumsum(rng.exponential(0.03, 50)):
        row = (float(arrival), int(rng.integers(1, 200)), int(rng.integers(1, 300)))
        rows.append((*row, float(arrival) + 30.0) if rng.random() < 0.3 else row)
    names = [f"m-{number:05d}" for number in range(4)]
    kinds = (
        lambda name: Start("m", Role.MIXED, 1, "x"),
        lambda name: Retire("m", name, "x", hand_over=True),
        lambda name: Retire("m", name, "x", hand_over=True),
        lambda name: Sleep("m", name, "x", hand_over=True),
        lambda name: Wake("m", name, Role.MIXED, "x"),
    )
    actions = {
        round(tick * 0.173, 6): [kinds[int(rng.integers(len(kinds)))](names[int(rng.integers(3))])]
        for tick in range(2, 12)
    }
    actions[round(12 * 0.173, 6)] = [Start("m", Role.MIXED, 2, "enough to end")]
    planned = (Fault(float(rng.uniform(0.1, 2.0)), "instance", int(rng.integers(5))),)
    return (
        world(
            {Role.MIXED: 3},
            profile=TIGHT,
            batch_size=12,
            model={"wake_time_s": 0.211, "sleep_level": 1, "sleep_time_s": 0.0371},
            seed=seed,
            tick_s=0.173,
            local_interval_s=0.267,
            step_noise=float(rng.choice([0.0, 0.2])),
            faults=FaultSettings(planned=planned if rng.random() < 0.5 else ()),
            migration=MigrationSettings(resume_s=float(rng.choice([0.0, 0.0123]))),
        ),
        requests(*rows),
        actions,
    )


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_cluster_that_hands_over_fast_forwarded_equals_single_steps(seed):
    world_settings, work, actions = random_world(seed)
    results = []
    for single in (False, True):
        chosen = dataclasses.replace(world_settings, single_steps=single)
        # Requests and tokens are conserved, or the run fails.
        results.append(run(chosen, work, Script(actions)))
    fast, slow = results
    for name in ("first_token_s", "finish_s"):
        assert getattr(fast.outcomes, name) == pytest.approx(
            getattr(slow.outcomes, name), rel=1e-9, nan_ok=True
        )
    assert (fast.hand_overs is None) == (slow.hand_overs is None)
    if fast.hand_overs is not None:
        assert fast.hand_overs.done == slow.hand_overs.done
        assert fast.hand_overs.gap_ms.p99 == pytest.approx(slow.hand_overs.gap_ms.p99)
    assert fast.longest_gap_ms.p99 == pytest.approx(slow.longest_gap_ms.p99, nan_ok=True)
    assert fast.gpu_hours == pytest.approx(slow.gpu_hours)


def test_in_these_worlds_streams_are_handed_over():
    moved = 0
    for seed in range(10):
        world_settings, work, actions = random_world(seed)
        found = run(world_settings, work, Script(actions)).hand_overs
        moved += found.done if found is not None else 0
    assert moved > 10
