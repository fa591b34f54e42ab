"""The shipped policies see and decide alike whatever is hidden: lengths, arrivals and step times to come."""

import dataclasses

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from chiron.engine import get_profile
from chiron.policy.decisions import Start
from chiron.policy.words import Role
from chiron.sim.settings import TelemetrySettings
from tests.support.sim_hidden_facts import first_difference, other_future, play
from tests.support.sim_worlds import requests, world

UNTIL_S = 16.0
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""No seed is simpler than another."""
SHIPPED = [("chiron", "model"), ("chiron-paper", "reactive")]
BUSY = get_profile("toy").replace(
    step_time_ms=((1, 40.0), (512, 60.0), (513, 75.0), (2000, 200.0)),
    load_s=2.0,
    kv_read_bytes_per_s=1e11,
)
LARGE_STEP_TOKENS = 1150
"""In light traffic no step is larger than this before the moment; prompts that come later are."""
LIGHT = get_profile("toy").replace(
    step_time_ms=((1, 20.0), (LARGE_STEP_TOKENS, 60.0), (2000, 200.0)), load_s=2.0, max_context_tokens=4096
)
OTHER_LIGHT = LIGHT.replace(step_time_ms=((1, 20.0), (LARGE_STEP_TOKENS, 60.0), (2000, 900.0)))


def busy(seed):
    """Two instances at first, GPUs for four, and steps that vary; reports are noisy or lost, but not late."""
    return world(
        {Role.MIXED: 2},
        profile=BUSY,
        gpus=4,
        batch_size=48,
        model={
            "ttft_slo_s": 2.0,
            "itl_slo_s": 0.15,
            "max_batch_size": 160,
            "initial_step_token_budget": 512,
            "max_step_token_budget": 1024,
        },
        seed=seed,
        step_noise=0.05,
        telemetry=TelemetrySettings(delay_s=0.0, noise=0.02, loss=0.05),
        horizon_s=UNTIL_S + 5.0,
    )


def overload(rng):
    """More than four instances serve; some callers ask to be refused when it takes too long."""
    rows = []
    for at_s in np.cumsum(rng.exponential(1 / 140, 4000)):
        row = (float(at_s), int(rng.integers(20, 200)), int(rng.integers(10, 150)))
        rows.append((*row, float(at_s + rng.uniform(20, 200))) if rng.random() < 0.4 else row)
    work = requests(*(row for row in rows if row[0] <= UNTIL_S + 4.0))
    return dataclasses.replace(work, refuse_late=rng.random(len(work)) < 0.2)


def light(seed, profile):
    """Two instances that are never full; reports come noisy, late or not at all."""
    return world(
        {Role.MIXED: 2},
        profile=profile,
        batch_size=16,
        model={"ttft_slo_s": 1.0, "itl_slo_s": 0.1, "initial_step_token_budget": 2000},
        seed=seed,
        step_noise=0.05,
        telemetry=TelemetrySettings(delay_s=0.15, noise=0.05, loss=0.05),
    )


def trickle(rng):
    """Few requests with short prompts until the moment, and long ones, many at once, afterwards."""
    rows = []
    for at_s in np.cumsum(rng.exponential(0.12, 400)):
        if at_s > UNTIL_S:
            break
        row = (float(at_s), int(rng.integers(1, 15)), int(rng.integers(5, 200)))
        rows.append((*row, float(at_s) + 60.0) if rng.random() < 0.3 else row)
    late = UNTIL_S + np.cumsum(rng.exponential(0.05, 120))
    rows += [(float(at_s), int(rng.integers(1200, 1900)), int(rng.integers(5, 100))) for at_s in late]
    return requests(*rows)


@pytest.mark.parametrize("policies", SHIPPED)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=8, deadline=None, phases=NO_SHRINKING)
def test_under_overload_nothing_hidden_shows_in_what_policies_see_and_decide(policies, seed):
    rng = np.random.default_rng(seed)
    work = overload(rng)
    first, log = play(busy(seed), work, policies, UNTIL_S)
    hidden = other_future(rng, work, first.outcomes, UNTIL_S)
    second, again = play(busy(seed), hidden, policies, UNTIL_S, log.known_steps)
    assert first_difference(log, again) is None
    come = int((work.arrival_s <= UNTIL_S).sum())
    assert (second.outcomes.refused[:come] == first.outcomes.refused[:come]).all()
    # What was hidden was no small matter: it shows at the next occasion.
    assert again.entries[: again.known + 3] != log.entries[: log.known + 3]
    # And there was much to tell it by: queues, starts and refusals; for the model, also trust and probes.
    assert any(snapshot.models[0].traffic.queued_interactive for snapshot, _ in log.fleet)
    assert any(snapshot.models[0].backlog for snapshot, _ in log.fleet)
    assert any(isinstance(action, Start) for _, decision in log.fleet for action in decision.actions)
    assert first.outcomes.refused[:come].any()
    if policies == SHIPPED[0]:
        reasons = [limits.reason for _, limits in log.local]
        assert sum(reason.startswith("probe") for reason in reasons) >= 3
        assert sum(not reason.startswith("model not trusted") for reason in reasons) > len(reasons) / 2


@pytest.mark.parametrize("policies", SHIPPED)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=6, deadline=None, phases=NO_SHRINKING)
def test_in_light_traffic_it_does_not_either_nor_do_steps_larger_than_any_so_far(policies, seed):
    rng = np.random.default_rng(seed)
    work = trickle(rng)
    first, log = play(light(seed, LIGHT), work, policies, UNTIL_S)
    hidden = other_future(rng, work, first.outcomes, UNTIL_S)
    second, again = play(light(seed, OTHER_LIGHT), hidden, policies, UNTIL_S)
    assert first_difference(log, again) is None
    nobody = other_future(rng, work, first.outcomes, UNTIL_S, share=0)
    _, alone = play(light(seed, LIGHT), nobody, policies, UNTIL_S)
    assert first_difference(log, alone) is None
    assert len(log.fleet) == UNTIL_S
    assert len(log.local) > UNTIL_S
    come = int((work.arrival_s <= UNTIL_S).sum())
    slow = second.outcomes.finish_s[come:] - hidden.arrival_s[come:]
    usual = first.outcomes.finish_s[come:] - work.arrival_s[come:]
    assert slow.max() > usual.max()
