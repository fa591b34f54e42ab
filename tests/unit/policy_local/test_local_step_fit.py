"""What the model autoscaler learns, against figures worked out by hand."""

from __future__ import annotations

import pytest

from chiron.policy.local.fit import StepFit
from chiron.policy.local.learning import Learning
from chiron.policy.local.mix import WorkMix
from chiron.policy.local.pairs import budgets, fit_batch, full_batch, largest_batch
from chiron.policy.snapshots import InstanceSample
from tests.support.local_samples import sample


def staircase() -> StepFit:
    """10 ms at 128 tokens, 15 ms at 192, and 0.1 us per KV token, seen at two KV levels each."""
    fit = StepFit()
    for tokens, base_s in ((128, 0.010), (192, 0.015)):
        for kv_tokens in (10_000, 30_000):
            fit.observe(tokens, kv_tokens, base_s + 1e-7 * kv_tokens, even=True)
    return fit


def test_time_per_kv_token_is_told_apart_from_the_staircase() -> None:
    fit = staircase()
    assert fit.kv_s == pytest.approx(1e-7)
    assert fit.base_s(128) == pytest.approx(0.010)
    assert fit.base_s(192) == pytest.approx(0.015)


def test_below_the_buckets_a_probe_may_hope_for_the_slope_between_them() -> None:
    fit = staircase()
    # 5 ms over 64 tokens: 7.5 ms at 96, where 0.3 of that slope is expected; a step of 1 token takes a
    # quarter of 10 ms.
    assert fit.least_s(96) == pytest.approx(0.0075)
    assert fit.base_s(96) == pytest.approx(0.00925)
    assert fit.least_s(1) == pytest.approx(0.0025)
    assert fit.least_s(160) == fit.base_s(160)


def test_between_buckets_the_base_is_interpolated_and_beyond_them_the_slope_continues() -> None:
    fit = staircase()
    assert fit.base_s(160) == pytest.approx(0.0125)
    # 5 ms over 64 tokens, for 64 more.
    assert fit.base_s(256) == pytest.approx(0.020)


def test_the_upper_envelope_never_falls_although_the_base_does() -> None:
    fit = StepFit()
    for tokens, step_s in ((128, 0.013), (136, 0.018), (192, 0.017)):
        fit.observe(tokens, 0, step_s, even=True)
    assert fit.base_s(192) == pytest.approx(0.017)
    assert fit.upper_s(192) == pytest.approx(0.018)


def test_an_even_measurement_nearby_replaces_a_mean_over_uneven_steps() -> None:
    fit = StepFit()
    fit.observe(140, 0, 0.030, even=False)
    assert fit.base_s(140) == pytest.approx(0.030)
    fit.observe(128, 0, 0.010, even=True)
    fit.observe(160, 0, 0.012, even=True)
    assert fit.base_s(140) == pytest.approx(0.010 + 0.002 * 12 / 32)


def test_old_data_is_discounted() -> None:
    fit = StepFit()
    for _ in range(100):
        fit.observe(128, 0, 0.010, even=True)
    for _ in range(60):
        fit.observe(128, 0, 0.020, even=True)
    # A mean over all would be 13.75 ms.
    assert fit.base_s(128) == pytest.approx(0.020, rel=0.01)


def test_prompt_that_fills_new_slots_does_not_count_as_lasting() -> None:
    mix = WorkMix()
    # 0.5 prompt tokens per output token, and 160 for each slot that is new.
    for grown in (100, 50, 10, 0, 0):
        prompt = 500 + 160 * grown
        mix.observe(
            output=1000, prompt=prompt, steps=10, running=200, grown=grown, kv_tokens=50_000, kv_grown=0
        )
    # Without the growth it would be 6.1; slots of which too few are new to tell leave a little of it.
    assert mix.prompt_share == pytest.approx(0.5, abs=0.1)


def test_settled_kv_follows_from_what_is_released() -> None:
    mix = WorkMix()
    # Each step writes 150 tokens (100 decodes, share 0.5) and releases a 400th of 60,000: settled.
    for _ in range(5):
        mix.observe(output=1000, prompt=500, steps=10, running=100, grown=0, kv_tokens=60_000, kv_grown=0)
    assert mix.kv_per_request == pytest.approx(600)


def test_a_young_batch_is_expected_to_hold_more_but_at_most_three_times_as_much() -> None:
    mix = WorkMix()
    mix.observe(output=1000, prompt=500, steps=10, running=100, grown=0, kv_tokens=20_000, kv_grown=1500)
    assert mix.kv_per_request == pytest.approx(3 * 200)


def learned(prompt_share: float = 0.5) -> Learning:
    """Knows the staircase and the mix; 500 KV tokens a request."""
    learning = Learning()
    learning.fit = staircase()
    learning.mix.prompt_share = prompt_share
    learning.mix.kv_per_request = 500
    return learning


def test_prediction_with_every_step_filled_to_the_budget() -> None:
    # Knee 192 / 1.5 = 128 requests; 15 ms + 128 x 500 x 0.1 us = 21.4 ms; 128 / 21.4 ms = 5,981 tokens/s.
    itl_s, tokens_per_s = learned().predict(200, 192)
    assert itl_s == pytest.approx(0.0214)
    assert tokens_per_s == pytest.approx(5981, abs=1)


def test_prediction_below_the_knee_mixes_filled_steps_and_plain_decodes() -> None:
    # 96 decodes owe 48 prompt tokens a step into a room of 96: half the steps are filled. Base at 96 tokens:
    # 10 ms less 32 tokens of 0.3 times the slope 5 ms / 64 = 9.25 ms. Nothing is known of the bias: 1.02.
    # 1.02 x (15 + 9.25) / 2 + 96 x 500 x 0.1 us.
    itl_s, _ = learned().predict(96, 192)
    assert itl_s == pytest.approx(0.0171675)


def test_batch_size_for_a_budget_is_the_knee_with_slack_or_what_the_slo_allows() -> None:
    learning = learned()
    assert fit_batch(learning, 192, 1.0, 1024).batch_size == full_batch(learning, 192) == 148
    # With 96 requests half the steps carry prompt, in times heavy with prompts 3/4: 1.02 x (9.25 + 3/4 of
    # 5.75) ms + 4.8 ms = 18.63 ms, and 18.75 ms with 97. The target is 99 % of 18.83 ms: 18.64 ms.
    pair = fit_batch(learning, 192, 0.01883, 1024)
    assert pair.batch_size == 96
    assert pair.on_target


def test_safe_batch_size_grows_with_the_slo_to_the_bound() -> None:
    learning = learned()
    grid = budgets(8192)
    sizes = [largest_batch(learning, grid, slo_s, 600) for slo_s in (0.001, 0.02, 0.05, 0.2, 2.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] == 600


def test_budgets_are_multiples_of_64_within_the_ceiling() -> None:
    assert budgets(300) == (64, 128, 192, 256)
    assert budgets(50) == (50,)


def test_an_engine_that_may_have_idled_teaches_nothing() -> None:
    learning = Learning()
    for _ in range(10):
        learning.observe(sample(saturated=False, running_interactive=5))
    assert learning.samples == 0
    assert not learning.trusted


def test_a_busy_engine_with_spare_slots_teaches_what_a_step_costs() -> None:
    learning = Learning()
    for _ in range(10):
        learning.observe(sample(saturated=False, running_interactive=100))
    assert learning.trusted
    # 1 s / 50 steps, of (5,000 + 2,400) / 50 = 148 tokens each.
    base_s = learning.fit.base_s(148)
    assert base_s + learning.fit.kv_s * 0.3 * 430_000 == pytest.approx(0.02)


def test_preemptions_lower_the_kv_share_at_once() -> None:
    learning = Learning()
    learning.observe(sample(preemptions=3))
    assert learning.kv_share == pytest.approx(0.95)


def test_a_fit_whose_predictions_stop_coming_true_is_forgotten() -> None:
    learning = Learning()
    for _ in range(30):
        learning.observe(sample())
    assert learning.trusted
    assert learning.forgotten == 0
    while not learning.forgotten:
        # Steps take twice as long from one interval to the next.
        learning.observe(sample(steps=25, output_tokens=2500, prompt_tokens=1200, itl_mean_s=0.04))
        assert learning.samples < 40
    assert not learning.trusted


def settled_learning() -> Learning:
    """Thirty seconds of steps of 148 tokens and 20 ms that fill the budget, then some with fewer."""
    learning = Learning()
    for _ in range(30):
        learning.observe(sample(step_token_budget=148))
    for _ in range(5):
        learning.observe(sample(step_token_budget=148, prompt_tokens=1500))
    assert learning.trusted
    return learning


def slowed(factor: int, prompt_tokens: int = 2400) -> InstanceSample:
    """A second in which steps take so many times as long."""
    return sample(
        step_token_budget=148,
        steps=50 // factor,
        output_tokens=5000 // factor,
        prompt_tokens=prompt_tokens // factor,
        itl_mean_s=0.02 * factor,
    )


@pytest.mark.parametrize("factor", [2, 5, 25])
@pytest.mark.parametrize("prompt_tokens", [2400, 1500])
def test_one_stall_keeps_what_was_learned(factor: int, prompt_tokens: int) -> None:
    learning = settled_learning()
    assert 148 in learning.bias
    known = learning.fit.base_s(148), learning.fit.base_s(100), learning.fit.kv_s, dict(learning.bias)
    learning.observe(slowed(factor, prompt_tokens))
    assert known == (learning.fit.base_s(148), learning.fit.base_s(100), learning.fit.kv_s, learning.bias)
    assert learning.trusted
    assert learning.forgotten == 0


def test_stalls_forget_nothing_while_an_interval_as_usual_lies_between_them() -> None:
    learning = settled_learning()
    for _ in range(20):
        learning.observe(slowed(5))
        learning.observe(slowed(5))
        learning.observe(sample(step_token_budget=148))
    assert learning.forgotten == 0
    assert learning.trusted


def test_a_third_slow_interval_in_a_row_forgets_and_the_assumed_kv_read_time_is_there_again() -> None:
    learning = settled_learning()
    for _ in range(2):
        learning.observe(slowed(2))
    assert learning.forgotten == 0
    learning.observe(slowed(2))
    assert learning.forgotten == 1
    assert learning.samples == 1
    assert not learning.bias
    # Reading all of the 430,000 tokens is assumed to take 30 ms again.
    assert learning.fit.kv_s == pytest.approx(0.03 / 430_000)
    assert learning.fit.base_s(148) == pytest.approx(0.04 - 0.3 * 0.03)
    for _ in range(5):
        learning.observe(slowed(2))
    assert learning.trusted
    assert learning.fit.kv_s == pytest.approx(0.03 / 430_000)


def after_itls(*itls_s: float) -> Learning:
    """Has seen these mean ITLs over and over, in seconds with the same limits and even steps."""
    learning = Learning()
    for _ in range(200):
        for itl_s in itls_s:
            learning.observe(sample(step_token_budget=148, itl_mean_s=itl_s))
    return learning


def test_the_margin_under_the_slo_follows_the_spread_of_the_itl_between_intervals() -> None:
    # Nothing seen: 1.1 times an assumed 2 %.
    assert Learning().target_s(0.2) == pytest.approx(0.2 * (1 - 0.022))
    # None: the least, 1 %. 20 ms give or take 3 %: 1.1 times that. 20 %: the most, 10 %.
    assert after_itls(0.02).target_s(0.2) == pytest.approx(0.2 * 0.99)
    assert after_itls(0.0194, 0.0206).target_s(0.2) == pytest.approx(0.2 * (1 - 0.033), rel=0.003)
    assert after_itls(0.016, 0.024).target_s(0.2) == pytest.approx(0.2 * 0.9)
