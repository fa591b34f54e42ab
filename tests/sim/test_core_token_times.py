"""The times between one request's tokens: their 99th percentile and the longest."""

import numpy as np
import pytest

from chiron.engine import get_profile
from chiron.policy.words import Role
from chiron.sim.settings import Fault, FaultSettings
from tests.support.sim_worlds import FLAT, requests, run, world


def test_a_rare_long_step_is_above_the_percentile_and_a_frequent_one_is_not():
    # Steps of 10 ms; one with a prompt of 3,000 tokens takes 40 ms.
    profile = FLAT.replace(step_time_ms=((1, 10.0), (1001, 10.0), (3001, 40.0), (5001, 40.0)))
    for prompts, p99_ms in ((2, 10.0), (3, 40.0)):
        rows = [(0.0, 10, 201)] + [(0.105 + 0.5 * i, 3000, 1) for i in range(prompts)]
        settings = world(profile=profile.replace(default_step_token_budget=8000))
        result = run(settings, requests(*rows))
        # 200 intervals: two may be longer. The other requests have one token.
        assert result.itl_p99_per_request_ms.p50 == pytest.approx(p99_ms)
        assert result.longest_gap_ms.p50 == pytest.approx(40.0, rel=0.01)
        assert result.itl_ms.p50 == pytest.approx((2000 + 30 * prompts) / 200, rel=0.01)


def test_of_fewer_than_a_hundred_intervals_it_is_the_longest():
    result = run(world(), requests((0.0, 10, 30), (0.1, 10, 60)))
    assert result.itl_p99_per_request_ms == result.longest_gap_ms


def test_runs_of_steps_give_what_single_steps_give():
    rng = np.random.default_rng(7)
    rows = [
        (t, int(rng.integers(1, 400)), int(rng.integers(2, 500)))
        for t in np.cumsum(rng.exponential(0.05, 120))
    ]
    result = {}
    for single in (True, False):
        settings = world(profile=get_profile("toy"), batch_size=32, single_steps=single, step_noise=0.2)
        result[single] = run(settings, requests(*rows)).itl_p99_per_request_ms
    # With single steps each step is on record by itself, which is the reference.
    for name in ("p50", "p90", "p99"):
        assert getattr(result[False], name) == pytest.approx(getattr(result[True], name), rel=0.01)


def test_the_gap_of_a_lost_instance_counts_among_the_intervals():
    # Two requests on two instances, one of which is lost: its request goes on beside the other.
    faults = FaultSettings(planned=(Fault(0.5, "instance"),))
    result = run(world({Role.MIXED: 2}, faults=faults), requests((0.0, 10, 90), (0.0, 10, 90)))
    assert result.retries == 1
    assert result.itl_p99_per_request_ms.p99 == result.longest_gap_ms.p99 > 10.0
