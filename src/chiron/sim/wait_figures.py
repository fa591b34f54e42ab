"""What came of estimated waits and of admission, as figures."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from chiron.policy.admission import AdmissionRefusalKind
from chiron.sim.queue_settings import QueueSettings
from chiron.sim.results import EstimatedWait, EstimatorFigures, Percentiles, Refusals
from chiron.sim.router import ModelRouter
from chiron.sim.told_fleet import told_wait_s
from chiron.sim.waits import FleetChange, WaitPair

LONG_QUEUE = 2000
"""Requests ahead beyond which an estimate counts: sums over fewer are noise of their lengths."""


def refusals_of(routers: Sequence[ModelRouter]) -> Refusals:
    """Sums the refusals up."""
    refusals = [refusal for router in routers for refusal in router.refusals]
    kinds = [refusal.kind for refusal in refusals]
    delays = np.array([refusal.retry_after_s for refusal in refusals], dtype=np.float64)
    return Refusals(
        kinds.count(AdmissionRefusalKind.QUEUE_FULL),
        kinds.count(AdmissionRefusalKind.SLO_OUT_OF_REACH),
        Percentiles.of(delays),
    )


def estimator_figures(routers: Sequence[ModelRouter], queues: QueueSettings) -> EstimatorFigures | None:
    """Compares estimates with waits; None when none was asked for."""
    if not queues.estimate_every:
        return None
    found = [router.waits for router in routers if router.waits is not None]
    made = [pair for waits in found for pair in waits.pairs]
    pairs = [pair for pair in made if pair.estimate.mean_s < inf]
    long = [pair for pair in pairs if pair.ahead > LONG_QUEUE]
    estimated = np.array([pair.estimate.mean_s for pair in long], dtype=np.float64)
    actual = np.array([pair.actual_s for pair in long], dtype=np.float64)
    covered = [pair.actual_s <= pair.estimate.quantile_s for pair in long]
    return EstimatorFigures(
        n=len(pairs),
        unknown=len(made) - len(pairs),
        unanswered=sum(waits.unanswered for waits in found),
        r2=r_squared(estimated, actual),
        r2_n=len(long),
        median_relative_error=median_relative_error(estimated, actual),
        quantile=queues.estimate_quantile,
        coverage=sum(covered) / len(covered) if covered else None,
        waits=tuple(
            _estimated(pair, waits.changes)
            for waits in found
            for pair in waits.pairs
            if pair.estimate.mean_s < inf
        ),
    )


def _estimated(pair: WaitPair, changes: Sequence[FleetChange]) -> EstimatedWait:
    estimate = pair.estimate
    told_s = told_wait_s(pair, changes)
    return EstimatedWait(
        pair.at_s,
        estimate.request_class,
        pair.ahead,
        estimate.tokens,
        estimate.mean_s,
        estimate.sd_s,
        estimate.quantile_s,
        estimate.scores,
        told_s if told_s < inf else None,
        pair.actual_s,
    )


def r_squared(estimated: NDArray[np.float64], actual: NDArray[np.float64]) -> float | None:
    """1 - Σ (actual - estimated)² / Σ (actual - mean)²; None where nothing varies."""
    total = float(np.sum((actual - actual.mean()) ** 2)) if len(actual) else 0.0
    return 1 - float(np.sum((actual - estimated) ** 2)) / total if total else None


def median_relative_error(estimated: NDArray[np.float64], actual: NDArray[np.float64]) -> float | None:
    """Median of |estimated - actual| / actual over waits that are not 0; None: there is none."""
    waited = actual > 0
    if not waited.any():
        return None
    return float(np.median(np.abs(estimated[waited] / actual[waited] - 1)))
