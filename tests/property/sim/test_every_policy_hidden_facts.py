"""No policy with a name decides or places otherwise for what is hidden: lengths, arrivals, steps to come."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from chiron.engine import get_profile
from chiron.policy.words import Role
from chiron.sim.clairvoyant.fleet import ClairvoyantFleet, Schedule
from chiron.sim.clairvoyant.future import future_of
from chiron.sim.policies import POLICIES
from chiron.sim.settings import TelemetrySettings
from tests.support.sim_hidden_facts import first_difference, other_future, play_named
from tests.support.sim_worlds import requests, world

UNTIL_S = 12.0
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""No seed is simpler than another."""
BUSY = get_profile("toy").replace(
    step_time_ms=((1, 40.0), (512, 60.0), (513, 75.0), (2000, 200.0)),
    load_s=2.0,
    kv_read_bytes_per_s=1e11,
)


def three(seed, **changes):
    """Three instances, GPUs for five, and steps that vary; reports are noisy or lost, but not late."""
    return world(
        {Role.MIXED: 3},
        profile=BUSY,
        gpus=6,
        batch_size=16,
        model={
            "ttft_slo_s": 2.0,
            "itl_slo_s": 0.15,
            "max_batch_size": 64,
            "initial_step_token_budget": 512,
            "max_step_token_budget": 1024,
        },
        seed=seed,
        step_noise=0.05,
        gpu_budget=5,
        telemetry=TelemetrySettings(delay_s=0.0, noise=0.02, loss=0.05),
        horizon_s=UNTIL_S + 3.0,
        **changes,
    )


def crowd(rng):
    """More and more requests of both classes, more than three instances serve in the end."""
    rows = []
    for at_s in np.cumsum(rng.exponential(1 / 45, 800)):
        row = (float(at_s), int(rng.integers(20, 200)), int(rng.integers(10, 60)))
        rows.append((*row, float(at_s + rng.uniform(10, 100))) if rng.random() < 0.3 else row)
    return requests(*(row for row in rows if row[0] <= UNTIL_S + 2.0))


@pytest.mark.parametrize("name", POLICIES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=2, deadline=None, phases=NO_SHRINKING)
def test_what_is_hidden_changes_no_decision_and_no_placement_before_it_shows(name, seed):
    rng = np.random.default_rng(seed)
    work = crowd(rng)
    first, log = play_named(three(seed), work, name, UNTIL_S)
    hidden = other_future(rng, work, first.outcomes, UNTIL_S)
    _, again = play_named(three(seed), hidden, name, UNTIL_S, log.known_steps)
    assert first_difference(log, again) is None
    assert len(log.fleet) == UNTIL_S
    assert len(log.placed) > 200
    # What was hidden was no small matter: it shows at the next occasion.
    assert again.entries[: again.known + 3] != log.entries[: log.known + 3]


def test_a_policy_that_is_told_what_is_hidden_is_found_out():
    rng = np.random.default_rng(3)
    work = crowd(rng)
    settings_now = three(3)

    def told(requests_to_come):
        known = {"m": future_of(settings_now, requests_to_come, 0)}
        return ClairvoyantFleet(known, Schedule(least_stop_s=5.0))

    first, log = play_named(settings_now, work, "fixed", UNTIL_S, fleet=told(work))
    hidden = other_future(rng, work, first.outcomes, UNTIL_S, share=0)
    _, again = play_named(settings_now, hidden, "fixed", UNTIL_S, log.known_steps, fleet=told(hidden))
    assert first_difference(log, again) is not None
