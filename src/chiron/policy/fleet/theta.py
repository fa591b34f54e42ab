"""Θ: how full interactive capacity may be, from how much demand has grown within one load time.

Θ = D / (D + G): capacity must hold today's demand D and the growth G that the next load time may bring, the
q-quantile of max(0, demand at t + L - demand at t), L the load time. The paper (arXiv 2501.08090) sets Θ from
historical bursts; this estimator is reconstructed. Growth counts in requests and not as a factor, because
what arrives within a load time does not depend on how many requests run already: a quiet moment that doubled
is no reason to expect that a busy one will. Only times count whose demand was at least half of today's, so
that a night says nothing about a day. The first load times after nothing was asked do not count either: then
demand fills up, however steady the arrivals are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SAMPLES_PER_LOAD = 8
_COMPARABLE = 0.5
_FILLING_LOADS = 3.0


@dataclass(frozen=True, slots=True)
class Theta:
    """The largest share of interactive capacity that demand may occupy."""

    value: float
    growth: float
    """The growth within one load time that it leaves room for, in requests, >= 0."""
    measured: bool
    """False: there is too little history, and this is the configured default."""


class DemandHistory:
    """A model's interactive demand (requests that run or wait), sampled a few times per load time."""

    def __init__(self, history_loads: float, warmup_loads: float) -> None:
        """Both in load times: how far back samples are kept, and how much of them a measured Θ needs."""
        self._history_loads = history_loads
        self._warmup_loads = warmup_loads
        self._times: list[float] = []
        self._demands: list[float] = []
        self._idle_s: float | None = None

    def record(self, now_s: float, demand: float, load_time_s: float) -> None:
        """Remember the demand, in requests, unless the last sample is too recent for another."""
        if not demand or self._idle_s is None:
            self._idle_s = now_s
        if self._times and now_s - self._times[-1] < load_time_s / _SAMPLES_PER_LOAD:
            return
        self._times.append(now_s)
        filling = now_s - self._idle_s < _FILLING_LOADS * load_time_s
        self._demands.append(0.0 if filling else demand)
        oldest = now_s - self._history_loads * load_time_s
        if self._times[0] < oldest - load_time_s:
            keep = int(np.searchsorted(self._times, oldest))
            del self._times[:keep], self._demands[:keep]

    def theta(
        self, demand: float, load_time_s: float, quantile: float, default: float, smallest: float
    ) -> Theta:
        """Θ at this demand, in requests; not below `smallest`."""
        span = self._times[-1] - self._times[0] if self._times else 0.0
        if span < self._warmup_loads * load_time_s:
            return Theta(default, demand * (1 / default - 1), measured=False)
        growths = _growths(np.asarray(self._times), np.asarray(self._demands), load_time_s, demand)
        if not len(growths):
            return Theta(default, demand * (1 / default - 1), measured=False)
        growth = float(np.quantile(growths, quantile))
        value = max(smallest, demand / (demand + growth) if demand else 0.0)
        return Theta(value, demand * (1 / value - 1), measured=True)


def _growths(
    times: NDArray[np.float64], demands: NDArray[np.float64], load_time_s: float, demand: float
) -> NDArray[np.float64]:
    # Sampling jitter must not turn "one load time later" into one sample more.
    later = np.searchsorted(times, times + load_time_s * (1 - 1e-6))
    paired = (later < len(times)) & (demands > 0) & (demands >= _COMPARABLE * demand)
    grown: NDArray[np.float64] = np.maximum(0.0, demands[later[paired]] - demands[paired])
    return grown
