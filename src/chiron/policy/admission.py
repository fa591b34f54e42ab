"""Admission: queues are bounded, and who asked to be told at once is told at once.

A request is refused when the queue is full, or when its caller wants an early refusal and the estimate says
that its SLO cannot be met (reconstructed; the paper, arXiv 2501.08090, admits everything).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from chiron.policy.waiting import WaitEstimate


class AdmissionRefusalKind(Enum):
    """Why a request is not admitted."""

    QUEUE_FULL = "the queue is full"
    SLO_OUT_OF_REACH = "the SLO cannot be met"


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request may wait."""

    estimate: WaitEstimate


@dataclass(frozen=True, slots=True)
class AdmissionRefusal:
    """The request is refused (RESOURCE_EXHAUSTED); a later attempt may fare better."""

    kind: AdmissionRefusalKind
    reason: str
    estimate: WaitEstimate
    retry_after_s: float
    """Wait before the next attempt, in seconds, > 0."""


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """Bounds of one model's queue."""

    queue_limit: int = 1024
    """Most requests of a class that may wait."""
    min_retry_s: float = 0.1
    max_retry_s: float = 60.0

    def __post_init__(self) -> None:
        if self.queue_limit < 1:
            raise ValueError(f"queue_limit must be at least 1, got {self.queue_limit}")
        if not 0 < self.min_retry_s <= self.max_retry_s:
            raise ValueError(
                f"min_retry_s must be positive and at most max_retry_s, got {self.min_retry_s} and "
                f"{self.max_retry_s}"
            )

    def admit(
        self, *, queued: int, estimate: WaitEstimate, budget_s: float, refuse_if_late: bool
    ) -> Admitted | AdmissionRefusal:
        """Decide on one request.

        queued: requests that wait already. estimate: of this request's wait. budget_s: time it may wait and
        still keep its SLO, inf if it has none. refuse_if_late: the caller asked for an early refusal.
        The retry delay is the time after which a queue drained at the estimated pace leaves the request
        room: the wait that is too much, or one place's share of the whole wait if the queue is full. An
        infinite estimate means that nothing serves the queue yet: unknown is not never, and a refusal would
        hide the demand that brings capacity, so that the request waits.
        """
        wait_s = estimate.quantile_s
        if queued >= self.queue_limit:
            delay_s = wait_s / queued
            reason = f"{queued} requests wait, the limit is {self.queue_limit}"
            return AdmissionRefusal(AdmissionRefusalKind.QUEUE_FULL, reason, estimate, self._bounded(delay_s))
        if refuse_if_late and budget_s < wait_s < math.inf:
            delay_s = wait_s - max(0.0, budget_s)
            reason = f"the wait is estimated at {wait_s:.1f} s and may be at most {budget_s:.1f} s"
            return AdmissionRefusal(
                AdmissionRefusalKind.SLO_OUT_OF_REACH, reason, estimate, self._bounded(delay_s)
            )
        return Admitted(estimate)

    def _bounded(self, delay_s: float) -> float:
        return (
            self.max_retry_s if math.isnan(delay_s) else min(self.max_retry_s, max(self.min_retry_s, delay_s))
        )
