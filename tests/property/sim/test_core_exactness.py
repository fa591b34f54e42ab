"""Fast-forwarding a whole cluster equals taking every engine step by itself, whatever happens meanwhile."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.engine import get_profile
from chiron.policy.decisions import ChangeRole, Limits, Retire, Sleep, Start, Wake
from chiron.policy.words import Role
from chiron.sim.settings import Fault, FaultSettings
from tests.support.sim_worlds import Script, requests, run, world

# KV space for a few requests, so that it runs out.
TIGHT = get_profile("toy").replace(kv_capacity_tokens=1024, load_s=0.4)


class Rotating:
    """A local autoscaler that changes its mind at every sample."""

    def __init__(self):
        self._turn = 0

    def decide(self, sample):
        self._turn += 1
        batch_size = (2, 7, 4)[self._turn % 3]
        return Limits(batch_size, (64, 300)[self._turn % 2], batch_size, "turn")


def random_world(seed):
    """Traffic, scaling, faults and limits drawn from a seed; times are such that no two coincide."""
    rng = np.random.default_rng(seed)
    rows = []
    for arrival in np.cumsum(rng.exponential(0.02, 60)):
        row = (float(arrival), int(rng.integers(1, 200)), int(rng.integers(1, 120)))
        rows.append((*row, float(arrival) + 30.0) if rng.random() < 0.5 else row)
    names = [f"m-{number:05d}" for number in range(4)]
    kinds = (
        lambda name, role: Start("m", role, 1, "x"),
        lambda name, role: Retire("m", name, "x"),
        lambda name, role: Sleep("m", name, "x"),
        lambda name, role: Wake("m", name, role, "x"),
        lambda name, role: ChangeRole("m", name, role, "x"),
    )
    actions = {}
    for tick in range(1, 12):
        kind = kinds[int(rng.integers(len(kinds)))]
        known = names[: 2 if tick < 4 else 3]
        role = Role(int(rng.integers(1, 4)))
        actions[round(tick * 0.173, 6)] = [kind(known[int(rng.integers(2))], role)]
    actions[round(12 * 0.173, 6)] = [Start("m", Role.MIXED, 2, "enough to end")]
    planned = (Fault(float(rng.uniform(0.1, 2.0)), "instance", int(rng.integers(5))),)
    world_settings = world(
        {Role.MIXED: 1, Role.BATCH: 1},
        profile=TIGHT,
        batch_size=4,
        model={"wake_time_s": 0.211, "sleep_level": 1, "sleep_time_s": 0.0371},
        seed=seed,
        tick_s=0.173,
        local_interval_s=0.267,
        step_noise=float(rng.choice([0.0, 0.2])),
        faults=FaultSettings(planned=planned if rng.random() < 0.5 else ()),
        resume_cost="kv-reload" if rng.random() < 0.3 else "recompute",
    )
    return world_settings, requests(*rows), actions


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_cluster_fast_forwarded_equals_single_steps(seed):
    world_settings, work, actions = random_world(seed)
    results = []
    for single in (False, True):
        chosen = dataclasses.replace(world_settings, single_steps=single)
        results.append(run(chosen, work, Script(actions), local=Rotating))
    fast, slow = results
    for name in ("first_token_s", "finish_s"):
        assert getattr(fast.outcomes, name) == pytest.approx(
            getattr(slow.outcomes, name), rel=1e-9, nan_ok=True
        )
    assert [(a.at_s, a.kind, a.instance_id) for a in fast.actions] == [
        (a.at_s, a.kind, a.instance_id) for a in slow.actions
    ]
    assert (fast.preemptions, fast.retries, fast.failures) == (slow.preemptions, slow.retries, slow.failures)
    assert fast.gpu_hours == pytest.approx(slow.gpu_hours)
    assert fast.longest_gap_ms.p99 == pytest.approx(slow.longest_gap_ms.p99, nan_ok=True)


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_same_seed_gives_the_same_bytes(seed):
    world_settings, work, actions = random_world(seed)
    texts = set()
    for _ in range(2):
        result = run(world_settings, work, Script(actions), local=Rotating)
        texts.add(json.dumps(dataclasses.replace(result, wall_s=0.0).to_json()))
    assert len(texts) == 1


def test_another_seed_gives_other_noise():
    work = requests(*[(0.1 * i, 10, 20) for i in range(20)])
    finishes = {tuple(run(world(seed=seed, step_noise=0.1), work).outcomes.finish_s) for seed in (1, 2)}
    assert len(finishes) == 2
