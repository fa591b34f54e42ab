"""The paper's rule, by hand."""

from __future__ import annotations

import pytest

from chiron.policy.local import ReactiveAutoscaler, ReactiveGains, SampleError
from tests.support.local_samples import sample

# No smoothing and a gain of 1, so that each step can be worked out by hand.
PLAIN = ReactiveGains(smoothing=1.0, throughput_smoothing=1.0, gain=1.0, most_change=0.5)


def test_the_first_saturated_interval_is_judged_by_its_itl_alone() -> None:
    # LBP = 40 / 50 = 0.8, so 100 x (1 + 1 - 0.8) = 120.
    limits = ReactiveAutoscaler(PLAIN).decide(sample(batch_size=100, itl_mean_s=0.040, itl_slo_s=0.050))
    assert limits.numbers["lbp"] == pytest.approx(0.8)
    assert limits.batch_size == 120
    assert limits.step_token_budget == 2048


def test_throughput_that_grows_less_than_the_itl_nears_the_slo_decides() -> None:
    autoscaler = ReactiveAutoscaler(PLAIN)
    autoscaler.decide(sample(batch_size=100, itl_mean_s=0.02, itl_slo_s=0.05, output_tokens=4500))
    # LBP = max(20 / 50, 4500 / 5000) = 0.9, so 110 x 1.1 = 121.
    limits = autoscaler.decide(sample(batch_size=110, itl_mean_s=0.02, itl_slo_s=0.05, output_tokens=5000))
    assert limits.numbers["lbp"] == pytest.approx(0.9)
    assert limits.batch_size == 121


def test_backpressure_above_one_shrinks() -> None:
    # LBP = 60 / 50 = 1.2, so 100 x 0.8 = 80; safe is 100 x 50 / 60.
    limits = ReactiveAutoscaler(PLAIN).decide(sample(batch_size=100, itl_mean_s=0.060, itl_slo_s=0.050))
    assert (limits.batch_size, limits.safe_batch_size) == (80, 83)
    assert "above 1" in limits.reason


def test_one_decision_changes_the_batch_size_by_its_bound_at_most() -> None:
    limits = ReactiveAutoscaler(PLAIN).decide(sample(batch_size=100, itl_mean_s=0.5, itl_slo_s=0.05))
    assert limits.batch_size == 50


def test_smoothing_averages_backpressure() -> None:
    autoscaler = ReactiveAutoscaler(ReactiveGains(smoothing=0.5, gain=1.0, most_change=0.5))
    autoscaler.decide(sample(batch_size=100, itl_mean_s=0.060, itl_slo_s=0.050))
    # (1.2 + 0.8) / 2: after a shrink for the ITL's sake the throughput is not compared.
    limits = autoscaler.decide(sample(batch_size=100, itl_mean_s=0.040, itl_slo_s=0.050))
    assert limits.numbers["lbp_smoothed"] == pytest.approx(1.0)
    assert limits.batch_size == 100


def test_the_fall_of_throughput_that_a_shrink_causes_is_no_backpressure() -> None:
    autoscaler = ReactiveAutoscaler(PLAIN)
    autoscaler.decide(sample(batch_size=100, output_tokens=5000, itl_mean_s=0.05, itl_slo_s=0.1))
    shrunk = autoscaler.decide(sample(batch_size=100, output_tokens=4000, itl_mean_s=0.05, itl_slo_s=0.1))
    assert shrunk.batch_size == 75
    after = autoscaler.decide(sample(batch_size=75, output_tokens=3000, itl_mean_s=0.05, itl_slo_s=0.1))
    assert after.numbers["lbp"] == 1.0
    assert after.batch_size == 75


def test_throughputs_across_an_unsaturated_interval_are_not_compared() -> None:
    autoscaler = ReactiveAutoscaler(PLAIN)
    autoscaler.decide(sample(output_tokens=9000, itl_mean_s=0.02, itl_slo_s=0.05))
    autoscaler.decide(sample(output_tokens=10, saturated=False, itl_mean_s=0.02, itl_slo_s=0.05))
    limits = autoscaler.decide(sample(output_tokens=3000, itl_mean_s=0.02, itl_slo_s=0.05))
    assert limits.numbers["lbp"] == pytest.approx(0.4)


def test_spare_slots_never_grow_the_batch_size_but_a_missed_slo_shrinks_it() -> None:
    spare = sample(batch_size=100, saturated=False, itl_mean_s=0.01, itl_slo_s=0.05)
    assert ReactiveAutoscaler(PLAIN).decide(spare).batch_size == 100
    missed = sample(batch_size=100, saturated=False, itl_mean_s=0.06, itl_slo_s=0.05)
    assert ReactiveAutoscaler(PLAIN).decide(missed).batch_size == 80


@pytest.mark.parametrize(
    ("field", "value"), [("interval_s", 0.0), ("batch_size", 0), ("step_token_budget", 9000)]
)
def test_an_impossible_sample_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(SampleError, match=field):
        ReactiveAutoscaler().decide(sample(**{field: value}))


def test_a_looser_slo_frees_the_batch_size_that_a_tighter_one_held_down() -> None:
    """At a batch size that stays, throughput stays too: compared with it, nothing would ever grow again."""
    autoscaler = ReactiveAutoscaler(PLAIN)
    for _ in range(3):
        held = autoscaler.decide(sample(batch_size=10, output_tokens=500, itl_mean_s=0.02, itl_slo_s=0.02))
    assert held.batch_size == 10
    # LBP = 20 / 200 = 0.1.
    freed = autoscaler.decide(sample(batch_size=10, output_tokens=500, itl_mean_s=0.02, itl_slo_s=0.2))
    assert (freed.batch_size, freed.numbers["lbp_smoothed"]) == (15, pytest.approx(0.1))


def test_an_slo_that_is_hardly_looser_is_the_same_regime() -> None:
    autoscaler = ReactiveAutoscaler(PLAIN)
    for slo_s in (0.02, 0.02, 0.025):
        limits = autoscaler.decide(sample(batch_size=10, output_tokens=500, itl_mean_s=0.02, itl_slo_s=slo_s))
    assert limits.numbers["lbp"] == 1.0


@pytest.mark.parametrize(("ceiling", "expected"), [(1024, 2), (1, 1)])
def test_a_batch_of_one_can_grow(ceiling: int, expected: int) -> None:
    only = sample(batch_size=1, max_batch_size=ceiling, running_interactive=1, itl_mean_s=0.01, itl_slo_s=0.1)
    assert ReactiveAutoscaler(ReactiveGains()).decide(only).batch_size == expected


def test_a_batch_of_one_stays_where_little_speaks_for_growth() -> None:
    only = sample(batch_size=1, running_interactive=1, itl_mean_s=0.095, itl_slo_s=0.1)
    assert ReactiveAutoscaler(ReactiveGains()).decide(only).batch_size == 1
