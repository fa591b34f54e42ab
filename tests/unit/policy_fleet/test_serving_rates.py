"""What serves a queue, by hand-worked fleets."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from chiron.policy.serving import ServingInstance, ServingRates
from chiron.policy.words import RequestClass, Role

INTERACTIVE, BATCH = RequestClass.INTERACTIVE, RequestClass.BATCH
MIXED = ServingInstance("a", Role.MIXED, batch_size=100, running=100, tokens_per_s=5_000.0)
FLEET = (
    MIXED,
    ServingInstance("b", Role.INTERACTIVE, 100, 100, 4_000.0),
    ServingInstance("c", Role.BATCH, 100, 100, 6_000.0),
)


def seen(*instances: ServingInstance, arrived: int = 0, seconds: int = 120) -> ServingRates:
    rates = ServingRates()
    for _ in range(seconds):
        rates.observe(instances, arrived, 1.0)
    return rates


def test_each_class_has_the_instances_that_take_it() -> None:
    rates = seen(*FLEET, seconds=3_600)
    # A third of what is taken for an instance's own is what all three make on average, 5,000.
    assert rates.capacity(FLEET, INTERACTIVE, 100.0).tokens_per_s == pytest.approx(9_333.0, rel=0.03)
    assert rates.capacity(FLEET, BATCH, 100.0).tokens_per_s == pytest.approx(10_667.0, rel=0.03)


def test_batch_work_gets_what_arriving_interactive_requests_leave() -> None:
    rates = seen(*FLEET, arrived=60, seconds=3_600)
    assert rates.interactive_per_s == pytest.approx(60.0)
    # 60 a second of 100 tokens each, of which the interactive instance makes 4,333.
    assert rates.capacity(FLEET, BATCH, 100.0).tokens_per_s == pytest.approx(9_000.0, rel=0.03)
    # However many come, the batch instance is left; as long as few come, the mixed one is too.
    assert rates.capacity(FLEET, BATCH, 1_000.0).tokens_per_s == pytest.approx(5_667.0, rel=0.03)
    assert rates.capacity(FLEET, BATCH, 50.0).tokens_per_s == pytest.approx(10_667.0, rel=0.03)


def test_arrivals_that_fluctuate_make_the_rest_uncertain() -> None:
    rates = ServingRates()
    for second in range(600):
        rates.observe(FLEET, 10 if second // 30 % 2 else 30, 1.0)
    uneven = rates.capacity(FLEET, BATCH, 100.0)
    # Blocks of 30 s at 10 and at 30 a second: a standard deviation of 10 × 100 tokens/s.
    assert uneven.noise == pytest.approx(1_000.0**2 * 30.0, rel=0.02)
    assert 0 < uneven.drift < 1_000.0
    even = seen(*FLEET, arrived=20, seconds=600).capacity(FLEET, BATCH, 100.0)
    assert even.noise == pytest.approx(0.0, abs=1e-3)
    assert rates.capacity(FLEET, INTERACTIVE, 100.0).noise == 0.0


def test_a_loading_instance_comes_later_with_all_its_slots_free() -> None:
    rates = seen(MIXED)
    loading = replace(MIXED, instance_id="new", running=0, tokens_per_s=0.0, ready_in_s=12.0)
    capacity = rates.capacity((MIXED, loading), INTERACTIVE, 100.0)
    assert capacity.tokens_per_s == pytest.approx(5_000.0)
    (step,) = capacity.later
    assert (step.in_s, step.slots) == (12.0, 100)
    assert step.tokens_per_s == pytest.approx(5_000.0)


def test_what_an_instance_made_while_half_empty_says_nothing_of_its_capacity() -> None:
    rates = seen(MIXED)
    for _ in range(60):
        rates.observe((replace(MIXED, running=50, tokens_per_s=3_500.0),), 0, 1.0)
    assert rates.capacity((MIXED,), INTERACTIVE, 100.0).tokens_per_s == pytest.approx(5_000.0, rel=1e-3)


def test_what_an_instance_makes_while_its_batch_is_new_teaches_little() -> None:
    rates = seen(MIXED)
    rates.observe((replace(MIXED, running=50, tokens_per_s=2_500.0),), 0, 1.0)
    reading_prompts = replace(MIXED, tokens_per_s=2_500.0)
    for _ in range(5):
        rates.observe((reading_prompts,), 0, 1.0)
    # Both its own rate and the curve move slowly, at first even more so.
    assert rates.capacity((MIXED,), BATCH, 100.0).tokens_per_s > 4_600.0
    for _ in range(1_800):
        rates.observe((reading_prompts,), 0, 1.0)
    assert rates.capacity((MIXED,), BATCH, 100.0).tokens_per_s == pytest.approx(2_500.0, rel=0.05)


def test_an_instance_that_fills_up_says_nothing_of_its_capacity() -> None:
    rates = seen(MIXED)
    for running in (20, 40, 60, 80, 100):
        # The requests are there, and most of them have no token yet.
        rates.observe((replace(MIXED, running=running, tokens_per_s=100.0),), 0, 1.0)
    assert rates.capacity((MIXED,), BATCH, 100.0).tokens_per_s == pytest.approx(5_000.0, rel=1e-9)


def test_arrivals_that_are_high_now_are_expected_to_come_back_to_their_mean() -> None:
    rates = seen(MIXED, arrived=20, seconds=3_600)
    for _ in range(30):
        rates.observe((MIXED,), 40, 1.0)
    capacity = rates.capacity((MIXED,), BATCH, 100.0)
    mean = rates.interactive_per_s
    assert 20.0 < mean < 22.0
    # 80 % of the excess is expected in 30 s, 64 % in 60, 0.8⁴ and 0.8⁸ of it in two and four minutes.
    left = [
        0.8 * (40.0 - mean),
        0.64 * (40.0 - mean),
        0.4096 * (40.0 - mean),
        0.16777216 * (40.0 - mean),
        0.0,
    ]
    assert capacity.tokens_per_s == pytest.approx(5_000.0 - 100.0 * (mean + left[0]))
    assert [step.in_s for step in capacity.later] == [45.0, 75.0, 135.0, 255.0]
    assert [step.tokens_per_s for step in capacity.later] == pytest.approx(
        [100.0 * (before - after) for before, after in pairwise(left)]
    )
    assert all(step.slots == 0 for step in capacity.later)


def test_an_interactive_queue_is_drained_at_the_pace_of_what_is_sent() -> None:
    rates = seen(MIXED)
    for _ in range(600):
        rates.observe((MIXED,), 0, 1.0)
        rates.admitted((MIXED,), 3_000.0, 1.0)
    # 3,000 of 5,000 a second, of late: over 60 s / ln 2 = 87 s, against 10 s at which all is presumed.
    share = (3_000.0 * 87 + 5_000.0 * 10) / (5_000.0 * 97)
    interactive = rates.capacity((MIXED,), INTERACTIVE, 100.0).tokens_per_s
    assert interactive == pytest.approx(5_000.0 * share, rel=0.01)
    assert rates.capacity((MIXED,), BATCH, 100.0).tokens_per_s == pytest.approx(5_000.0)


def test_an_instance_that_was_full_for_a_moment_is_taken_to_be_like_the_others() -> None:
    rates = seen(MIXED)
    new = replace(MIXED, instance_id="new", tokens_per_s=1_000.0)
    rates.observe((MIXED, new), 0, 1.0)
    assert rates.capacity((new,), INTERACTIVE, 100.0).tokens_per_s > 4_000.0


def test_an_instance_that_was_never_full_is_judged_by_the_curve_and_an_unknown_one_presumed() -> None:
    half = replace(MIXED, running=50, tokens_per_s=3_500.0)
    by_curve = seen(half).capacity((half,), INTERACTIVE, 100.0).tokens_per_s
    assert 3_500.0 < by_curve < 7_000.0
    assert ServingRates().capacity((half,), INTERACTIVE, 100.0).tokens_per_s == 1_000.0


@pytest.mark.parametrize("key", ["half_life_s", "arrivals_half_life_s"])
def test_a_half_life_out_of_range_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        ServingRates(**{key: 0.0})


def test_a_queue_that_stood_says_nothing_of_instances_that_come_to_a_model_of_which_none_serves() -> None:
    rates = seen(MIXED)
    for _ in range(30):
        rates.admitted([MIXED], 0.0, 1.0)
    loading = replace(MIXED, instance_id="b", running=0, tokens_per_s=0.0, ready_in_s=5.0)
    [comes] = rates.capacity([loading], INTERACTIVE, 100.0).later
    assert comes.tokens_per_s == pytest.approx(5_000.0, rel=0.05)
