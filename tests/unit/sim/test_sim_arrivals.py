"""Arrival processes: their rates over time, their burstiness, and that a seed repeats them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from chiron.sim.arrivals import arrival_times
from chiron.sim.rates import Constant, Diurnal, RateCurve, Steps, spikes

SIGMAS = 5.0
"""A right implementation fails a check once in 1.7 million seeds; the seeds are fixed."""


def draw(curve: RateCurve, until_s: float, cv: float = 1.0, seed: int = 1) -> NDArray[np.float64]:
    return arrival_times(curve, np.random.default_rng(seed), until_s=until_s, cv=cv)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 2.0, 8.0])
def test_the_mean_rate_is_kept_at_any_burstiness(cv: float) -> None:
    expected = 100_000.0
    times = draw(Constant(50.0), expected / 50.0, cv)

    # A renewal count has variance cv² x expected, plus terms that do not grow.
    assert abs(len(times) - expected) <= SIGMAS * max(1.0, cv) * math.sqrt(expected)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < expected / 50.0


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
def test_gaps_have_the_coefficient_of_variation_asked_for(cv: float) -> None:
    gaps = np.diff(draw(Constant(10.0), 20_000.0, cv))

    # Var(s²)/s⁴ = (kurtosis - 1)/n, and a gamma of this CV has kurtosis 3 + 6 cv²; half of that for s, and
    # the mean's own error of cv/sqrt(n) on top.
    error = math.sqrt((2 + 6 * cv**2) / 4 / len(gaps)) + cv / math.sqrt(len(gaps))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=SIGMAS * error)


def test_bursty_arrivals_do_not_begin_with_a_burst() -> None:
    counts = [len(draw(Constant(10.0), 5.0, cv=8.0, seed=seed)) for seed in range(4000)]

    # Stationary from time 0: 50 each. Started at an arrival it would be 50 + (cv² - 1)/2 = 81 and more.
    assert np.mean(counts) == pytest.approx(50.0, abs=SIGMAS * float(np.std(counts)) / math.sqrt(len(counts)))


def test_a_day_has_its_peak_and_its_trough() -> None:
    # The peak stands in the middle of the first quarter, the trough in the middle of the third.
    curve = Diurnal(100.0, swing=0.8, period_s=1000.0, peak_s=125.0)
    peak, _, trough, _ = np.histogram(draw(curve, 1000.0), bins=4, range=(0, 1000))[0]

    # Over a quarter period around a peak the cosine averages sin(pi/4) / (pi/4).
    swing = 0.8 * math.sin(math.pi / 4) / (math.pi / 4)
    for count, share in ((peak, 1 + swing), (trough, 1 - swing)):
        assert count == pytest.approx(25_000 * share, abs=SIGMAS * math.sqrt(25_000 * share))


def test_a_period_brings_the_mean_rate_whatever_the_swing() -> None:
    for swing in (0.0, 0.5, 1.0):
        assert Diurnal(7.0, swing, 3600.0, 900.0).expected(7200.0) == pytest.approx(7.0 * 7200.0)


@pytest.mark.parametrize(
    "curve",
    [
        Constant(3.0),
        Diurnal(3.0, 0.9, 50.0, 10.0),
        Steps(((0.0, 2.0), (5.0, 0.0), (9.0, 4.0))),
        spikes(2.0, factor=5.0, start_s=3.0, length_s=2.0, every_s=10.0, until_s=100.0),
    ],
)
def test_when_undoes_expected(curve: RateCurve) -> None:
    counts = np.linspace(0.01, curve.expected(100.0), 500)

    back = [curve.expected(float(time)) for time in curve.when(counts)]

    np.testing.assert_allclose(back, counts, rtol=0, atol=1e-3)


def test_nothing_arrives_while_the_rate_is_zero() -> None:
    times = draw(Steps(((0.0, 100.0), (5.0, 0.0), (9.0, 100.0))), 14.0)

    assert not ((times >= 5.0) & (times < 9.0)).any()
    assert (times < 5.0).any()
    assert (times >= 9.0).any()
    assert len(draw(Constant(0.0), 100.0)) == 0


def test_spikes_are_as_high_and_as_many_as_said() -> None:
    curve = spikes(10.0, factor=4.0, start_s=100.0, length_s=50.0, every_s=200.0, until_s=600.0)

    # Three spikes start by 600 s (100, 300, 500) and add 3 x 10/s over 50 s each.
    assert curve.expected(600.0) == 10.0 * 600 + 3 * 30.0 * 50
    assert curve.expected(100.0) == 1000.0


def test_the_same_seed_gives_the_same_times_and_another_seed_others() -> None:
    curve = Diurnal(20.0)

    np.testing.assert_array_equal(draw(curve, 600.0, 2.0, seed=3), draw(curve, 600.0, 2.0, seed=3))
    assert not np.array_equal(draw(curve, 600.0, seed=3)[:100], draw(curve, 600.0, seed=4)[:100])


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Constant(-1.0), "rate_per_s"),
        (lambda: Constant(math.nan), "rate_per_s"),
        (lambda: Diurnal(1.0, swing=1.5), "swing"),
        (lambda: Diurnal(1.0, period_s=0.0), "period_s"),
        (lambda: Steps(((1.0, 2.0),)), "levels"),
        (lambda: Steps(((0.0, 2.0), (0.0, 3.0))), "levels"),
        (lambda: spikes(1.0, factor=2.0, start_s=0.0, length_s=9.0, every_s=5.0, until_s=9.0), "every_s"),
        (lambda: draw(Constant(1.0), 10.0, cv=-1.0), "cv"),
        (lambda: draw(Constant(1.0), math.inf), "until_s"),
    ],
)
def test_a_bad_figure_is_named(make: object, key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: "):
        make()  # type: ignore[operator]
