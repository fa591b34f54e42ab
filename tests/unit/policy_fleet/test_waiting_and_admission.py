"""Waiting times by hand-worked examples; admission by what they say."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from chiron.policy.admission import AdmissionPolicy, AdmissionRefusal, AdmissionRefusalKind, Admitted
from chiron.policy.waiting import LaterCapacity, LengthModel, WaitEstimate, WaitingTimeEstimator
from chiron.policy.words import RequestClass

BATCH = RequestClass.BATCH
RATE = 2_000.0


def taught(quantile: float = 0.95) -> WaitingTimeEstimator:
    """10^12 requests of mean 100 and standard deviation 50 seen: the error of the mean does not matter."""
    estimator = WaitingTimeEstimator(quantile)
    for kind in RequestClass:
        estimator.lengths[kind].observe(10**12, 100.0 * 10**12, (100.0**2 + 50.0**2) * 10**12)
    return estimator


def test_the_wait_is_work_ahead_over_throughput_with_the_presumed_quantile() -> None:
    estimate = taught(0.95).estimate({BATCH: 400}, RATE)
    # 400 × 100 tokens at 2,000/s; √400 × 50 = 1,000 tokens, that is 0.5 s, and 8 % of 20 s for what nobody
    # has seen yet; 3.2 standard deviations are presumed to be exceeded by 5 %, and by a half that the wait
    # is 0.35 of one shorter than the mean.
    assert estimate.mean_s == pytest.approx(20.0)
    assert estimate.sd_s == pytest.approx(math.hypot(0.5, 1.6), rel=1e-3)
    assert estimate.quantile_s == pytest.approx(20.0 + 3.2 * math.hypot(0.5, 1.6), rel=1e-3)
    assert estimate.at(0.5) == pytest.approx(20.0 - 0.35 * math.hypot(0.5, 1.6), rel=1e-3)
    # Half way between two levels, and beyond the last one.
    assert estimate.at(0.925) == pytest.approx(20.0 + (1.2 + 3.2) / 2 * math.hypot(0.5, 1.6), rel=1e-3)
    assert estimate.at(0.999) == estimate.at(0.99)
    assert estimate.at(0.95) == pytest.approx(estimate.quantile_s)


def test_who_is_first_in_line_waits_until_a_slot_comes_free() -> None:
    estimator = taught()
    # 100 tokens of each request at 2,000/s: one ends each 50 ms.
    known = estimator.until_a_slot({BATCH: 0}, RATE, BATCH)
    assert estimator.estimate({BATCH: 0}, RATE, known).mean_s == pytest.approx(0.05)
    assert estimator.until_a_slot({BATCH: 1}, RATE, BATCH) == 0.0, "behind others, their work is waited for"
    # An instance that comes is empty.
    known = estimator.until_a_slot({}, 0.0, BATCH)
    later = (LaterCapacity(5.0, RATE, 8),)
    assert estimator.estimate({}, 0.0, known, later=later).mean_s == pytest.approx(5.0, abs=0.001)
    assert estimator.estimate({}, 0.0, known).mean_s == math.inf


def test_an_instance_that_loads_takes_its_slots_at_once_and_its_throughput_from_then_on() -> None:
    later = (LaterCapacity(5.0, 2_000.0, slots=100.0),)
    # 40,000 tokens: 10,000 in 5 s, 100 requests of 100 into the free slots, the rest at 4,000/s.
    assert taught().estimate({BATCH: 400}, 2_000.0, later=later).mean_s == pytest.approx(5.0 + 5.0)
    # Served before it is ready: it makes no difference.
    assert taught().estimate({BATCH: 40}, 2_000.0, later=later).mean_s == pytest.approx(2.0)
    # From zero: whoever fits into the slots waits for the load alone.
    assert taught().estimate({BATCH: 100}, 0.0, later=later).mean_s == pytest.approx(5.0)
    assert taught().estimate({BATCH: 300}, 0.0, later=later).mean_s == pytest.approx(5.0 + 10.0)


def test_uncertain_throughput_widens_the_estimate() -> None:
    estimate = taught().estimate({BATCH: 400}, 2_000.0, noise=50_000.0, drift=100.0)
    # Over 20 s: √(50,000 × 20) = 1,000 tokens, and 100 × 20 = 2,000 tokens, that is 0.5 s and 1 s.
    assert estimate.sd_s == pytest.approx(math.sqrt(0.5**2 + 0.5**2 + 1.0**2 + 1.6**2), rel=1e-3)


def test_tokens_of_requests_under_way_lengthen_the_mean_of_those_that_ended() -> None:
    lengths = LengthModel(prior_mean=100.0)
    lengths.made(0.0, 0)
    lengths.observe(10, 1_000.0, 100_000.0)
    lengths.made(3_000.0, 10)
    # The prior counts as 10 requests of 100; 3,000 tokens for the 10 that ended since, and these are half of
    # what ended or runs.
    by_ended, by_made = (1_000.0 + 1_000.0) / 20, (1_000.0 + 3_000.0) / 20
    assert lengths.mean == pytest.approx((by_ended + by_made) / 2, rel=1e-3)
    lengths.made(0.0, 0)
    assert lengths.mean == pytest.approx(by_made, rel=1e-3)


def test_fewer_tokens_than_have_ended_shorten_no_mean() -> None:
    lengths = LengthModel(prior_mean=100.0)
    lengths.made(0.0, 0)
    lengths.observe(10, 3_000.0, 900_000.0)
    lengths.made(1_000.0, 0)
    assert lengths.mean == pytest.approx((1_000.0 + 3_000.0) / 20, rel=1e-3)


def test_the_prior_holds_until_requests_have_ended() -> None:
    lengths = LengthModel(prior_mean=100.0)
    lengths.made(0.0, 0)
    lengths.made(50_000.0, 500)
    assert lengths.mean == pytest.approx(100.0)
    # A tenth of a batch has ended, of 20 tokens each: far less is known than 60,000 / 60 would tell.
    lengths.observe(50, 1_000.0, 20_000.0)
    lengths.made(10_000.0, 450)
    assert 30.0 < lengths.mean < 150.0


def test_capacity_about_to_come_never_makes_a_wait_longer_nor_more_requests_a_shorter_one() -> None:
    later = (LaterCapacity(60.0, 45_000.0),)
    estimator = WaitingTimeEstimator()
    waits = [estimator.estimate({BATCH: count}, 10_000.0, later=later) for count in range(2_000, 2_700, 10)]
    # The instance is ready in the midst of these waits.
    assert waits[0].mean_s < 60.0 < waits[-1].mean_s
    for field in ("mean_s", "quantile_s"):
        values = [getattr(wait, field) for wait in waits]
        assert values == sorted(values)
        more = [
            getattr(estimator.estimate({BATCH: 2_600}, 10_000.0, later=(LaterCapacity(60.0, add),)), field)
            for add in (0.0, 100.0, 1_000.0, 5_000.0, 90_000.0)
        ]
        assert more == sorted(more, reverse=True)


def test_what_runs_already_does_not_move_into_the_slots_of_an_instance_that_loads() -> None:
    later = (LaterCapacity(5.0, 1_000.0, slots=50.0),)
    # 20,000 tokens that run and 100 requests of 100: 5,000 in 5 s, 50 requests at once, 20,000 at 2,000/s.
    estimate = taught().estimate({BATCH: 100}, 1_000.0, known_tokens=20_000.0, later=later)
    assert estimate.mean_s == pytest.approx(5.0 + 10.0)


def test_classes_and_known_work_add_up() -> None:
    estimate = taught().estimate({BATCH: 100, RequestClass.INTERACTIVE: 100}, RATE, known_tokens=20_000.0)
    assert estimate.mean_s == pytest.approx(20.0)


def test_an_empty_queue_waits_nothing_and_an_unknown_throughput_forever() -> None:
    estimator = WaitingTimeEstimator()
    assert estimator.estimate({}, 0.0).quantile_s == 0.0
    assert estimator.estimate({BATCH: 1}, 0.0).quantile_s == math.inf


def test_few_observations_widen_the_estimate() -> None:
    unsure, sure = WaitingTimeEstimator(), WaitingTimeEstimator()
    for estimator, count in ((unsure, 20), (sure, 20_000)):
        lengths = estimator.lengths[BATCH]
        lengths.observe(count, 256.0 * count, 256.0**2 * (1 + 1.3**2) * count)
    assert unsure.work({BATCH: 1000})[1] > 5 * sure.work({BATCH: 1000})[1]


def test_many_waits_under_way_teach_the_same_lesson_once() -> None:
    estimator = taught()
    made = [estimator.estimate({BATCH: 400}, RATE) for _ in range(2_000)]
    for estimate in made:
        estimator.observe_wait(estimate, 30.0)
    assert estimator.estimate({BATCH: 400}, RATE).mean_s == pytest.approx(30.0, rel=0.05)


def test_the_errors_of_one_class_leave_the_other_alone() -> None:
    estimator = taught()
    for _ in range(500):
        estimator.observe_wait(estimator.estimate({BATCH: 400}, RATE), 30.0)
    interactive = estimator.estimate({BATCH: 400}, RATE, request_class=RequestClass.INTERACTIVE)
    assert interactive.mean_s == pytest.approx(20.0)


def test_estimates_that_come_true_too_late_lengthen_the_next_ones() -> None:
    estimator = taught()
    before = estimator.estimate({BATCH: 400}, RATE)
    for _ in range(2_000):
        estimator.observe_wait(estimator.estimate({BATCH: 400}, RATE), 30.0)
    after = estimator.estimate({BATCH: 400}, RATE)
    assert before.mean_s == pytest.approx(20.0)
    assert after.mean_s == pytest.approx(30.0, rel=0.02)


def test_scattered_waits_widen_the_quantile_to_its_nominal_coverage() -> None:
    generator = np.random.default_rng(7)
    estimator = taught(0.9)
    covered = []
    for number in range(3_000):
        estimate = estimator.estimate({BATCH: 400}, RATE)
        actual_s = max(0.0, generator.normal(22.0, 4.0))
        if number >= 1_000:
            covered.append(actual_s <= estimate.quantile_s)
        estimator.observe_wait(estimate, actual_s)
    assert np.mean(covered) == pytest.approx(0.9, abs=0.03)


def test_quantiles_of_errors_that_are_not_normal_are_learned_at_every_level() -> None:
    generator = np.random.default_rng(8)
    estimator = taught()
    covered: dict[float, list[bool]] = {0.5: [], 0.9: [], 0.95: []}
    for number in range(6_000):
        estimate = estimator.estimate({BATCH: 400}, RATE)
        # One wait in ten is half as long again, the others come close.
        actual_s = generator.normal(20.0, 0.4) * (1.5 if generator.random() < 0.1 else 1.0)
        if number >= 2_000:
            for level, found in covered.items():
                found.append(actual_s <= estimate.at(level))
        estimator.observe_wait(estimate, actual_s)
    for level, found in covered.items():
        assert np.mean(found) == pytest.approx(level, abs=0.03)


def test_the_tail_of_lengths_is_that_of_the_lognormal_with_their_moments() -> None:
    lengths = LengthModel()
    mean, cv_sq = 338.0, math.e - 1
    lengths.observe(10**9, mean * 10**9, mean**2 * (1 + cv_sq) * 10**9)
    # σ = 1, so the median is 338 / √e = 205, and 1 % exceed 205 × e^2.326.
    assert lengths.tail(0.5) == pytest.approx(205.0, rel=1e-3)
    assert lengths.tail(0.01) == pytest.approx(205.0 * math.exp(NormalDist().inv_cdf(0.99)), rel=1e-3)


def test_what_ended_without_tokens_teaches_nothing() -> None:
    lengths = LengthModel(prior_mean=100.0)
    lengths.observe(5, 0.0, 0.0)
    assert (lengths.mean, lengths.weight) == (100.0, 10.0)


@pytest.mark.parametrize(("bad", "named"), [(0.4, "quantile"), (1.0, "quantile")])
def test_a_quantile_out_of_range_is_refused(bad: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        WaitingTimeEstimator(bad)


def wait(seconds: float) -> WaitEstimate:
    return WaitEstimate(seconds, 0.0, seconds, 0.95)


POLICY = AdmissionPolicy(queue_limit=10, min_retry_s=0.5, max_retry_s=60.0)


def test_a_request_whose_slo_is_out_of_reach_is_refused_with_the_estimate_when_its_caller_asked() -> None:
    decision = POLICY.admit(queued=3, estimate=wait(12.0), budget_s=10.0, refuse_if_late=True)
    assert isinstance(decision, AdmissionRefusal)
    assert decision.kind is AdmissionRefusalKind.SLO_OUT_OF_REACH
    assert decision.estimate.quantile_s == 12.0
    assert decision.retry_after_s == pytest.approx(2.0)
    assert "12.0 s" in decision.reason


def test_while_nothing_serves_the_queue_nobody_is_refused_for_being_late() -> None:
    unknown = WaitEstimate(math.inf, math.inf, math.inf, 0.95)
    decision = AdmissionPolicy().admit(queued=3, estimate=unknown, budget_s=3600.0, refuse_if_late=True)
    assert isinstance(decision, Admitted)
    # A queue that is full is full all the same.
    full = POLICY.admit(queued=10, estimate=unknown, budget_s=3600.0, refuse_if_late=True)
    assert isinstance(full, AdmissionRefusal)
    assert full.retry_after_s == 60.0


def test_a_caller_that_would_rather_wait_is_admitted() -> None:
    assert isinstance(
        POLICY.admit(queued=3, estimate=wait(12.0), budget_s=10.0, refuse_if_late=False), Admitted
    )


def test_a_full_queue_refuses_everybody_until_about_one_place_is_free() -> None:
    decision = POLICY.admit(queued=10, estimate=wait(20.0), budget_s=math.inf, refuse_if_late=False)
    assert isinstance(decision, AdmissionRefusal)
    assert decision.kind is AdmissionRefusalKind.QUEUE_FULL
    assert decision.retry_after_s == pytest.approx(2.0)


@pytest.mark.parametrize(("wait_s", "retry_s"), [(10.1, 0.5), (500.0, 60.0)])
def test_the_retry_delay_is_bounded(wait_s: float, retry_s: float) -> None:
    decision = POLICY.admit(queued=1, estimate=wait(wait_s), budget_s=10.0, refuse_if_late=True)
    assert isinstance(decision, AdmissionRefusal)
    assert decision.retry_after_s == retry_s


@pytest.mark.parametrize(
    ("settings", "named"), [({"queue_limit": 0}, "queue_limit"), ({"min_retry_s": 0.0}, "min_retry_s")]
)
def test_a_bad_admission_setting_names_its_field(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AdmissionPolicy(**settings)  # type: ignore[arg-type]
