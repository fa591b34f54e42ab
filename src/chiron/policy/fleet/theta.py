"""Θ: how full interactive capacity may be, from how much demand has grown within one load time.

Θ = D / (D + G): capacity must hold today's demand D and the growth G that the next load time may bring, the
q-quantile of max(0, demand at t + L - demand at t), L the load time. What counts as demand is up to the
caller: `chiron` counts what arrived within the last load time, `chiron-paper` what runs or waits. The paper
(arXiv 2501.08090) sets Θ from historical bursts; this estimator is reconstructed. Growth counts in requests
and not as a factor, because what arrives within a load time does not depend on how many requests run
already: a quiet moment that doubled is no reason to expect that a busy one will. Only times count whose
demand was at least half of today's, so that a night says nothing about a day. The first load times after
nothing was asked do not count either: then demand fills up, however steady the arrivals are.

G falls where a time of large growth stops counting, so that D + G(D) alone would ask for less capacity as
demand rises. What is needed is therefore the largest d + G(d) of all d up to D.
"""

from __future__ import annotations

from bisect import insort
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
        """Θ at this demand, in requests; not below `smallest`. Demand over Θ never falls as demand rises."""
        span = self._times[-1] - self._times[0] if self._times else 0.0
        if span < self._warmup_loads * load_time_s:
            return Theta(default, demand * (1 / default - 1), measured=False)
        levels, growths = _growths(np.asarray(self._times), np.asarray(self._demands), load_time_s)
        comparable = growths[levels >= _COMPARABLE * demand]
        needed = _needed_below(levels, growths, demand, quantile)
        if len(comparable):
            needed = max(needed, demand + _quantile(np.sort(comparable).tolist(), quantile))
        else:
            needed = max(needed, demand / default)
        value = max(smallest, demand / needed if demand else 0.0)
        return Theta(value, demand * (1 / value - 1), measured=bool(len(comparable)))


def _growths(
    times: NDArray[np.float64], demands: NDArray[np.float64], load_time_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Demands, and by how much each had grown one load time later."""
    # Sampling jitter must not turn "one load time later" into one sample more.
    later = np.searchsorted(times, times + load_time_s * (1 - 1e-6))
    paired = (later < len(times)) & (demands > 0)
    levels = demands[paired]
    return levels, np.maximum(0.0, demands[later[paired]] - levels)


def _needed_below(
    levels: NDArray[np.float64], growths: NDArray[np.float64], demand: float, quantile: float
) -> float:
    """The largest d + G(d) of the d below `demand` where a time counts for the last time, else 0.

    Between two of them G stays as it is, so that no other d needs more.
    """
    if not len(levels):
        return 0.0
    ends = levels / _COMPARABLE
    # No end further below can need more than demand itself does.
    near = (ends < demand) & (ends + growths.max() > demand)
    if not near.any():
        return 0.0
    order = np.argsort(-ends[near], kind="stable")
    counted: list[float] = np.sort(growths[ends >= demand]).tolist()
    most = 0.0
    ending = list(zip(ends[near][order].tolist(), growths[near][order].tolist(), strict=True))
    for index, (end, growth) in enumerate(ending):
        insort(counted, growth)
        # Times of the same demand stop counting together.
        if index + 1 == len(ending) or ending[index + 1][0] < end:
            most = max(most, end + _quantile(counted, quantile))
    return most


def _quantile(ordered: list[float], quantile: float) -> float:
    """Of numbers in rising order, interpolated between neighbours."""
    position = quantile * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
