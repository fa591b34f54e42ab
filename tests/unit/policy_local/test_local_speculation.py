"""The local autoscaler with speculative decoding: steps compute drafts, of which some are output."""

from __future__ import annotations

from functools import lru_cache

import pytest

from chiron.engine import Speculation, get_profile
from chiron.policy.local import ModelAutoscaler
from chiron.policy.local.learning import Learning
from chiron.sim.saturated_engine import SaturatedEngine, Tally
from tests.support.local_samples import sample

SPECULATION = Speculation(draft_tokens=3, acceptance_rate=0.7)
PROFILE = get_profile("llama3-8b@a100").replace(speculation=SPECULATION)
BUDGETS = (512, 1280, 2048, 2816)
WARM_UP_S, MEASURED_S = 60, 80


def engine(batch_size: int, budget: int) -> SaturatedEngine:
    return SaturatedEngine(PROFILE, batch_size=batch_size, step_token_budget=budget, seed=7)


@lru_cache
def static(batch_size: int, budget: int) -> Tally:
    run = engine(batch_size, budget)
    run.run(WARM_UP_S)
    return run.run(MEASURED_S)


@pytest.mark.parametrize("slo_s", [0.05, 0.2])
def test_the_model_ends_near_the_best_static_pair_with_drafts(slo_s: float) -> None:
    # Of a sweep over budgets: batches around those with which every step is filled.
    tallies = [static(round(part * budget / 5.2), budget) for budget in BUDGETS for part in (0.85, 1.15)]
    best = max(tally.tokens_per_s for tally in tallies if tally.attained(slo_s) >= 0.99)
    run, autoscaler, measured = engine(32, 2048), ModelAutoscaler(), Tally()
    for second in range(WARM_UP_S + MEASURED_S):
        tally = run.run(1.0)
        if second >= WARM_UP_S:
            measured.add(tally)
        run.apply(autoscaler.decide(run.sample(tally, slo_s)))
    assert measured.tokens_per_s >= 0.98 * best
    assert measured.attained(slo_s) >= 0.99


def learned(**fields: int) -> Learning:
    """After some seconds of 50 steps with 100 requests each."""
    learning = Learning()
    for _ in range(10):
        learning.observe(sample(running_interactive=100, kv_usage=0.0, **fields))
    return learning


def test_the_knee_counts_the_requests_whose_drafts_and_prompts_fill_a_step() -> None:
    # Each of the 100 requests computes 4 tokens in a step, of which 2.5 are output, and 5 of a prompt.
    learning = learned(output_tokens=12_500, draft_tokens=15_000, accepted_tokens=7_500, prompt_tokens=25_000)
    assert learning.knee(1800) == pytest.approx(200)
    # Without drafts each computes one token, and 5 of a prompt.
    assert learned(output_tokens=5_000, prompt_tokens=25_000).knee(1800) == pytest.approx(300)


def test_throughput_is_that_of_the_output_and_not_of_the_steps() -> None:
    drafting = learned(output_tokens=12_500, draft_tokens=15_000, accepted_tokens=7_500, prompt_tokens=0)
    plain = learned(output_tokens=20_000, prompt_tokens=0)
    # Steps of 400 tokens take as long, whether they are of 400 requests or of 100 with three drafts each.
    assert drafting.predict(100, 2048)[1] == pytest.approx(plain.predict(400, 2048)[1] / 1.6)


def test_drafts_accepted_beyond_the_end_of_an_answer_are_no_work_undone() -> None:
    # One step in which each request accepts three drafts and ends with its first: less output than accepted.
    odd = sample(running_interactive=100, steps=1, output_tokens=100, draft_tokens=300, accepted_tokens=300)
    assert (odd.decodes, odd.computed_tokens) == (0, 300 + odd.prompt_tokens)
    autoscaler = ModelAutoscaler()
    for each in [odd, sample(), odd, *[sample()] * 5]:
        limits = autoscaler.decide(each)
        assert 1 <= limits.batch_size <= each.max_batch_size
