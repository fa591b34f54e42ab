"""The shipped policies decide alike whatever is hidden: lengths, arrivals and step times to come."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.engine import get_profile
from chiron.policy.fleet import load_autoscaler
from chiron.policy.local import load_local
from chiron.policy.words import Role
from chiron.sim.settings import TelemetrySettings
from tests.support.sim_worlds import requests, run, world

UNTIL_S = 30.0
LARGE_STEP_TOKENS = 1150
"""Until then no step is larger than this, recomputed answers included; prompts that come later are."""
PROFILE = get_profile("toy").replace(
    step_time_ms=((1, 20.0), (LARGE_STEP_TOKENS, 60.0), (2000, 200.0)), load_s=2.0, max_context_tokens=4096
)
OTHER_TRUTH = PROFILE.replace(step_time_ms=((1, 20.0), (LARGE_STEP_TOKENS, 60.0), (2000, 900.0)))


class Recorded:
    """A policy of either kind, and what it decided."""

    def __init__(self, policy, log, time_of):
        self._policy, self._log, self._time_of = policy, log, time_of

    def decide(self, seen):
        decision = self._policy.decide(seen)
        self._log.append((self._time_of(seen), decision))
        return decision


def play(work, profile, fleet, local, seed):
    """The global decisions up to UNTIL_S, each local autoscaler's first decisions, and the outcomes."""
    decided, limits = [], []

    def make_local():
        mine = []
        limits.append(mine)
        return Recorded(load_local(local), mine, lambda sample: len(mine))

    result = run(
        world(
            {Role.MIXED: 2},
            profile=profile,
            batch_size=16,
            model={"ttft_slo_s": 1.0, "itl_slo_s": 0.1, "initial_step_token_budget": 2000},
            seed=seed,
            step_noise=0.05,
            telemetry=TelemetrySettings(delay_s=0.15, noise=0.05, loss=0.05),
        ),
        work,
        Recorded(load_autoscaler(fleet), decided, lambda snapshot: snapshot.now_s),
        local=make_local,
    )
    early = [decision for at_s, decision in decided if at_s <= UNTIL_S]
    return result, early, [tuple(mine[: int(UNTIL_S) - 1]) for mine in limits[:2]]


def draw(rng):
    """Light traffic of short prompts until then, and long ones, many at once, afterwards."""
    rows = []
    for arrival in np.cumsum(rng.exponential(0.12, 400)):
        if arrival > UNTIL_S:
            break
        row = (float(arrival), int(rng.integers(1, 15)), int(rng.integers(5, 200)))
        rows.append((*row, float(arrival) + 60.0) if rng.random() < 0.3 else row)
    late = UNTIL_S + np.cumsum(rng.exponential(0.05, 120))
    rows += [(float(at), int(rng.integers(1200, 1900)), int(rng.integers(5, 100))) for at in late]
    return requests(*rows)


@pytest.mark.parametrize(("fleet", "local"), [("chiron", "model"), ("chiron-paper", "reactive")])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=12, deadline=None)
def test_decisions_do_not_depend_on_hidden_lengths_arrivals_and_step_times(fleet, local, seed):
    rng = np.random.default_rng(seed)
    work = draw(rng)
    first, decided, limits = play(work, PROFILE, fleet, local, seed)
    open_then = ~(first.outcomes.finish_s <= UNTIL_S)
    come = work.arrival_s <= UNTIL_S
    longer = work.output_tokens + np.where(open_then & come, rng.integers(1, 200, len(work)), 0)
    shuffled = np.concatenate([np.flatnonzero(come), rng.permutation(np.flatnonzero(~come))])
    hidden = dataclasses.replace(
        work,
        output_tokens=longer[shuffled].astype(np.int32),
        prompt_tokens=work.prompt_tokens[shuffled],
    )
    second, decided_again, limits_again = play(hidden, OTHER_TRUTH, fleet, local, seed)
    assert decided_again == decided
    assert limits_again == limits
    assert len(decided) > 20
    # What was hidden was no small matter: it shows as soon as it can.
    assert second.outcomes.finish_s[~come].max() != pytest.approx(first.outcomes.finish_s[~come].max())
