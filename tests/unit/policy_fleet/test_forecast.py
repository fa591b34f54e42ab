"""Forecasts: constant loads, trends, seasons, and what noise must not do."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from chiron.policy.forecast import Constant, Forecaster, HoltWinters, UnknownForecasterError, load_forecaster


def fed(forecaster: Forecaster, values: list[float]) -> Forecaster:
    for value in values:
        forecaster.observe(value)
    return forecaster


def said(forecaster: Forecaster, intervals: int = 1) -> float:
    found = forecaster.ahead(intervals)
    assert found is not None
    return found


@pytest.mark.parametrize("forecaster", [Constant(), HoltWinters(), HoltWinters(4)])
def test_nothing_is_foretold_of_nothing(forecaster: Forecaster) -> None:
    assert forecaster.ahead(1) is None


@pytest.mark.parametrize("forecaster", [Constant(), HoltWinters(), HoltWinters(4)])
def test_a_load_that_never_changes_goes_on(forecaster: Forecaster) -> None:
    fed(forecaster, [7.0] * 30)

    assert [said(forecaster, ahead) for ahead in (1, 5)] == pytest.approx([7.0, 7.0])


def test_constant_foretells_the_last_value_and_never_less_than_none() -> None:
    assert said(fed(Constant(), [3.0, 9.0, 4.0]), 10) == 4.0
    assert said(fed(Constant(), [-4.0])) == 0.0


def test_with_little_seen_it_goes_on_as_it_was() -> None:
    assert said(fed(HoltWinters(), [10.0, 30.0, 10.0, 20.0]), 3) == 20.0


def test_the_smoother_that_has_been_closest_speaks() -> None:
    # Every smoother has foretold 10: of equals the calmest, with a smoothing factor of 0.05 and no trend.
    assert said(fed(HoltWinters(), [10.0] * 5 + [20.0])) == pytest.approx(0.05 * 20 + 0.95 * 10)
    # Only one with a factor of 1 and no trend has expected the second 20.
    assert said(fed(HoltWinters(), [10.0] * 5 + [20.0] * 2)) == pytest.approx(20.0)


def test_a_trend_goes_on_and_wears_off() -> None:
    rising = fed(HoltWinters(), [10.0 * step for step in range(40)])

    # Last was 390.
    steps = np.diff([390.0] + [said(rising, ahead) for ahead in range(1, 7)])
    assert 7 < steps[0] < 11
    assert list(steps[1:] / steps[:-1]) == pytest.approx([0.9] * 5, rel=0.05)


def test_a_trend_is_foretold_better_than_by_the_last_value() -> None:
    ramp = [100 + 5.0 * step for step in range(60)]

    errors = {}
    for name in ("constant", "holt-winters"):
        forecaster = load_forecaster(name)
        errors[name] = 0.0
        for before, value in itertools.pairwise(ramp):
            forecaster.observe(before)
            errors[name] += abs(said(forecaster) - value)
    assert errors["holt-winters"] < 0.5 * errors["constant"]


def test_seasons_come_back() -> None:
    day = [50 + 40 * math.sin(2 * math.pi * hour / 24) for hour in range(24)]

    forecaster = fed(HoltWinters(24), day * 3)

    assert [said(forecaster, ahead) for ahead in range(1, 49)] == pytest.approx(day * 2, abs=0.5)


def test_seasons_that_change_are_learned_anew() -> None:
    forecaster = fed(HoltWinters(4), [10.0, 20.0, 30.0, 20.0] * 3 + [30.0, 20.0, 10.0, 20.0] * 20)

    assert [said(forecaster, ahead) for ahead in range(1, 5)] == pytest.approx(
        [30.0, 20.0, 10.0, 20.0], abs=2.0
    )


def test_noise_is_smoothed_away() -> None:
    rng = np.random.default_rng(1)
    values = rng.poisson(100, 200).astype(float)

    smooth, last = HoltWinters(), Constant()
    told: dict[str, list[float]] = {"smooth": [], "last": []}
    for value in values:
        smooth.observe(value)
        last.observe(value)
        told["smooth"].append(said(smooth) - 100)
        told["last"].append(said(last) - 100)
    assert np.std(told["smooth"][50:]) < 0.6 * np.std(told["last"][50:])


def test_a_step_is_learned() -> None:
    forecaster = fed(HoltWinters(), [100.0] * 30 + [200.0] * 10)

    assert said(forecaster) == pytest.approx(200.0, rel=0.02)


def test_a_falling_load_is_never_foretold_below_none() -> None:
    forecaster = fed(HoltWinters(), [100.0 - 10 * step for step in range(11)])

    assert said(forecaster, 20) == 0.0


@pytest.mark.parametrize("season", [-1, 1])
def test_a_season_of_one_interval_is_none(season: int) -> None:
    with pytest.raises(ValueError, match=r"^season: "):
        HoltWinters(season)


def test_unknown_names_are_refused() -> None:
    assert isinstance(load_forecaster("holt-winters", 4), HoltWinters)
    with pytest.raises(UnknownForecasterError, match="known are constant, holt-winters"):
        load_forecaster("prophet")
