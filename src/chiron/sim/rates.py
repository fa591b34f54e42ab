"""How an arrival rate changes over time: constant, diurnal, in steps, or with spikes.

A rate curve is known by its integral: `expected(t)` requests arrive before t on average. Arrivals are drawn
in units of that integral and carried back by `when` (time rescaling), which is exact for any curve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

_DIURNAL_POINTS_PER_PERIOD = 4096
"""The integral is interpolated between so many points a period: times are off by less than 1e-6 periods."""


class RateCurve(Protocol):
    """An arrival rate over time."""

    def expected(self, until_s: float) -> float:
        """Requests expected from time 0 to `until_s`."""
        ...

    def when(self, expected: Times) -> Times:
        """Earliest times in seconds at which so many requests are expected; inf: never that many."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """The same rate for ever. Raises ValueError naming the field."""

    rate_per_s: float
    """Requests per second, >= 0."""

    def __post_init__(self) -> None:
        _check_rate("rate_per_s", self.rate_per_s)

    def expected(self, until_s: float) -> float:
        """See `RateCurve.expected`."""
        return self.rate_per_s * until_s

    def when(self, expected: Times) -> Times:
        """See `RateCurve.when`."""
        if self.rate_per_s == 0:
            return np.full(len(expected), math.inf)
        return expected / self.rate_per_s


@dataclass(frozen=True, slots=True)
class Diurnal:
    """rate_per_s * (1 + swing * cos(2 pi (t - peak_s) / period_s)). Raises ValueError naming the field."""

    rate_per_s: float
    """Mean over a period, in requests per second, >= 0."""
    swing: float = 0.5
    """Share of the mean by which the rate rises and falls, 0 to 1."""
    period_s: float = 86_400.0
    peak_s: float = 0.0
    """Time of a peak, in seconds."""

    def __post_init__(self) -> None:
        _check_rate("rate_per_s", self.rate_per_s)
        if not 0 <= self.swing <= 1:
            raise ValueError(f"swing: must be from 0 to 1, not {self.swing:g}")
        _check_positive("period_s", self.period_s)

    def _integral(self, times: Times) -> Times:
        turns = 2 * math.pi / self.period_s
        phase = math.sin(turns * self.peak_s)
        wave = (np.sin(turns * (times - self.peak_s)) + phase) / turns
        return np.asarray(self.rate_per_s * (times + self.swing * wave), dtype=np.float64)

    def expected(self, until_s: float) -> float:
        """See `RateCurve.expected`."""
        return float(self._integral(np.array([until_s]))[0])

    def when(self, expected: Times) -> Times:
        """See `RateCurve.when`."""
        if self.rate_per_s == 0:
            return np.full(len(expected), math.inf)
        # Every period brings the same number, so one period's table serves all.
        per_period = self.rate_per_s * self.period_s
        grid = np.linspace(0.0, self.period_s, _DIURNAL_POINTS_PER_PERIOD + 1)
        periods, rest = np.divmod(expected, per_period)
        return np.asarray(periods * self.period_s + np.interp(rest, self._integral(grid), grid))


@dataclass(frozen=True, slots=True)
class Steps:
    """A rate that is constant between given times. Raises ValueError naming the field."""

    levels: tuple[tuple[float, float], ...]
    """(start in seconds, requests per second), starts ascending from 0; the last level lasts for ever."""

    def __post_init__(self) -> None:
        if not self.levels or self.levels[0][0] != 0:
            raise ValueError("levels: the first must start at 0")
        for number, (start_s, rate) in enumerate(self.levels):
            _check_rate("levels", rate)
            if number and not self.levels[number - 1][0] < start_s < math.inf:
                raise ValueError(f"levels: starts must ascend, got {start_s:g}")

    def _corners(self) -> tuple[Times, Times, Times]:
        starts = np.array([start for start, _ in self.levels])
        rates = np.array([rate for _, rate in self.levels])
        counts = np.concatenate(([0.0], np.cumsum(np.diff(starts) * rates[:-1])))
        return starts, rates, counts

    def expected(self, until_s: float) -> float:
        """See `RateCurve.expected`."""
        starts, rates, counts = self._corners()
        level = int(np.searchsorted(starts, until_s, side="right")) - 1
        return float(counts[level] + (until_s - starts[level]) * rates[level])

    def when(self, expected: Times) -> Times:
        """See `RateCurve.when`."""
        starts, rates, counts = self._corners()
        # A level without arrivals begins and ends at the same count; "left" finds the one before it.
        level = np.maximum(np.searchsorted(counts, expected, side="left") - 1, 0)
        over = expected - counts[level]
        with np.errstate(divide="ignore", invalid="ignore"):
            times = np.where(over > 0, starts[level] + over / rates[level], starts[level])
        return np.asarray(times, dtype=np.float64)


def spikes(
    rate_per_s: float, *, factor: float, start_s: float, length_s: float, every_s: float, until_s: float
) -> Steps:
    """A base rate that is `factor` times as high for `length_s`, first at `start_s`.

    Args:
        rate_per_s: base rate, requests per second.
        factor: height of a spike, times the base rate, >= 0.
        start_s: start of the first spike, in seconds, >= 0.
        length_s: its length, > 0.
        every_s: from one spike's start to the next one's; 0: there is one.
        until_s: no spike starts later.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    _check_rate("rate_per_s", rate_per_s)
    _check_rate("factor", factor)
    _check_rate("start_s", start_s)
    _check_positive("length_s", length_s)
    if every_s and every_s <= length_s:
        raise ValueError(f"every_s: must be 0 or longer than length_s = {length_s:g}, not {every_s:g}")
    levels = [(0.0, rate_per_s)] if start_s > 0 else []
    start = start_s
    while start <= until_s:
        levels += [(start, rate_per_s * factor), (start + length_s, rate_per_s)]
        if not every_s:
            break
        start += every_s
    return Steps(tuple(levels or [(0.0, rate_per_s)]))


def _check_rate(key: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{key}: must be a number >= 0, not {value:g}")


def _check_positive(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{key}: must be a number > 0, not {value:g}")
