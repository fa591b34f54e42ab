"""Forecasts of a load that is counted in intervals of equal length.

`constant` foretells what was last. `holt-winters` smooths exponentially, with a damped trend and, where the
length of a season is given, additive seasons (Holt, 1957; Winters, 1960; as in Hyndman and Athanasopoulos,
"Forecasting: Principles and Practice", 3rd edition, sections 8.2 to 8.4). Its smoothing factors are not
fitted by an optimiser: a bank of smoothers runs side by side, and the one whose forecasts of the next
interval have been closest speaks (reconstructed). So an observation costs the same whatever the history, the
same observations always give the same forecast, and old errors are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_LEVELS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
_TRENDS = (0.0, 0.05, 0.2, 0.5)
_SEASONS = (0.05, 0.2, 0.5)
_DAMPING = 0.9
"""Share of the trend that is left one interval later."""
_MEMORY = 0.95
"""Share of an error that still counts one interval later."""
_ENOUGH = 5
"""Observations before which no smoother is known to be better than the last value."""


class Forecaster(Protocol):
    """Foretells one series. Pure: what it says follows from what it was told, in that order."""

    def observe(self, value: float) -> None:
        """Take the value of one more interval."""
        ...

    def ahead(self, intervals: int) -> float | None:
        """The value so many intervals after the last one, >= 0; None: nothing has been observed."""
        ...


class Constant:
    """Foretells that the next intervals will be as the last one."""

    def __init__(self) -> None:
        self._last: float | None = None

    def observe(self, value: float) -> None:
        """See `Forecaster.observe`."""
        self._last = value

    def ahead(self, intervals: int) -> float | None:
        """See `Forecaster.ahead`."""
        return None if self._last is None else max(0.0, self._last)


class HoltWinters:
    """Foretells level, damped trend and season."""

    def __init__(self, season: int = 0) -> None:
        """season: of how many intervals, which are a cycle; 0: there is none. ValueError for fewer than 2.

        Seasons count from the second cycle on: the first tells what is usual in each of its intervals.
        """
        if season < 0 or season == 1:
            raise ValueError(f"season: must be 0 or at least 2, not {season}")
        bank = list(product(_LEVELS, _TRENDS, _SEASONS if season else (0.0,)))
        self._alpha, self._beta, self._gamma = np.array(bank).T
        self._level: NDArray[np.float64] | None = None
        self._trend = np.zeros(len(bank))
        self._errors = np.zeros(len(bank))
        self._first: list[float] = []
        self._season: NDArray[np.float64] = np.zeros((season, len(bank)))
        self._seen = 0
        self._last = 0.0

    def observe(self, value: float) -> None:
        """See `Forecaster.observe`. O(smoothers)."""
        cycle, place = len(self._season), self._place(0)
        if self._level is None:
            self._level = np.full(len(self._alpha), value)
        else:
            before = self._level + _DAMPING * self._trend
            usual = self._season[place] if cycle else 0.0
            self._errors = _MEMORY * self._errors + (value - before - usual) ** 2
            level = self._alpha * (value - usual) + (1 - self._alpha) * before
            self._trend = self._beta * (level - self._level) + (1 - self._beta) * _DAMPING * self._trend
            self._level = level
            if self._seen >= cycle > 0:
                self._season[place] += self._gamma * (value - before - usual)
        self._seen += 1
        self._last = value
        if self._seen <= cycle:
            self._first.append(value)
            if self._seen == cycle:
                self._begin_seasons()

    def _begin_seasons(self) -> None:
        """Take what each interval of the first cycle differed from their mean; no trend is left in it."""
        first = np.array(self._first)
        self._season[:] = (first - first.mean())[:, None]
        self._level = np.full(len(self._alpha), first.mean())
        self._trend[:] = 0.0
        self._errors[:] = 0.0

    def _place(self, ahead: int) -> int:
        """Which interval of its cycle comes so many after the next one."""
        return (self._seen + ahead) % len(self._season) if len(self._season) else 0

    def ahead(self, intervals: int) -> float | None:
        """See `Forecaster.ahead`."""
        if self._level is None:
            return None
        if self._seen < _ENOUGH:
            return max(0.0, self._last)
        # Of smoothers that have done equally well the first one, which is the calmest.
        best = int(np.argmin(self._errors))
        damped = sum(_DAMPING**step for step in range(1, intervals + 1))
        usual = self._season[self._place(intervals - 1), best] if len(self._season) else 0.0
        return max(0.0, float(self._level[best] + damped * self._trend[best] + usual))


_BUILT_IN: Mapping[str, Callable[[int], Forecaster]] = {
    "constant": lambda _season: Constant(),
    "holt-winters": HoltWinters,
}


class UnknownForecasterError(ValueError):
    """No forecaster has this name; the text lists those there are."""


def load_forecaster(name: str, season: int = 0) -> Forecaster:
    """Makes a forecaster by its name.

    season: intervals in a cycle, for those that know seasons; 0: none. Raises UnknownForecasterError.
    """
    if name not in _BUILT_IN:
        raise UnknownForecasterError(f"unknown forecaster {name!r}: known are {', '.join(sorted(_BUILT_IN))}")
    return _BUILT_IN[name](season)
