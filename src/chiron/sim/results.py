"""What a simulation found: figures as evaluation reports define them, and the arrays behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chiron.policy.words import Phase, RequestClass


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of each request: parallel arrays in the workload's order."""

    first_token_s: NDArray[np.float64]
    """Simulated time of the first token; NaN: none came."""
    finish_s: NDArray[np.float64]
    """Simulated time of the last token; NaN: it did not finish."""
    refused: NDArray[np.bool_]
    attained: NDArray[np.bool_]
    """Interactive: TTFT and mean ITL within their SLOs. Batch: finished by its deadline."""
    counted: NDArray[np.bool_]
    """Arrived after the warm-up."""


@dataclass(frozen=True, slots=True)
class TimelinePoint:
    """The cluster at one tick of the global autoscaler."""

    at_s: float
    gpus: int
    """Held: by loading, ready, draining and sleeping instances."""
    ready: int
    """Instances."""
    loading: int
    """Instances."""
    running: int
    """Requests in batches."""
    queued_interactive: int
    """Requests at the router."""
    queued_batch: int
    """Requests at the router."""
    held: Mapping[Phase, float]
    """GPUs by the phase of the instance that has them; one that several share is the awake one's, else the
    sleepers' in equal parts."""


@dataclass(frozen=True, slots=True)
class ActionRecord:
    """One scaling action that was carried out, and why."""

    at_s: float
    kind: str
    """start, retire, change-role, wake or sleep."""
    model: str
    instance_id: str
    reason: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a figure over requests; None when there is no request."""

    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Percentiles:
        """The percentiles of these values, linear between neighbours."""
        if not len(values):
            return cls(None, None, None)
        return cls(*(float(value) for value in np.percentile(values, (50, 90, 99))))


@dataclass(frozen=True, slots=True)
class SloAttainment:
    """Share of requests that attained their SLO, 0 to 1; None when there is no such request."""

    interactive: float | None
    batch: float | None
    all: float | None


@dataclass(frozen=True, slots=True)
class Throughput:
    """Work done over the time that counts."""

    requests_per_s: float
    """Finished requests."""
    tokens_per_s: float
    """Output tokens of all requests, finished or not."""
    requests_per_gpu_hour: float
    """Finished requests per GPU-hour held."""


@dataclass(frozen=True, slots=True)
class Refusals:
    """Requests that admission turned away, those of the warm-up included."""

    queue_full: int
    slo_out_of_reach: int
    """Of callers that asked to be told at once."""
    retry_after_s: Percentiles
    """The delay that they were told to keep before the next attempt."""


@dataclass(frozen=True, slots=True)
class EstimatedWait:
    """One estimate and the wait that came, times in seconds."""

    at_s: float
    """When it was made: its request was queued."""
    request_class: RequestClass
    ahead: int
    """Requests that were to be served before."""
    tokens: float
    """Expected work ahead, in output tokens."""
    mean_s: float
    sd_s: float
    quantile_s: float
    scores: tuple[float, ...]
    """Learned quantiles of the standardised error: see `chiron.policy.waiting.WaitEstimate`."""
    told_s: float | None
    """The mean as it would have been, had the later fleet been known: see `chiron.sim.told_fleet`. None: the
    known instances would never have come to this request."""
    actual_s: float


@dataclass(frozen=True, slots=True)
class EstimatorFigures:
    """Estimated waits in the routers' queues against what came."""

    n: int
    """Estimates whose requests have left their queue."""
    unknown: int
    """Requests for which there was no estimate, because no instance served or loaded."""
    unanswered: int
    """Estimates whose requests wait still at the end."""
    r2: float | None
    """1 - Σ (wait - estimate)² / Σ (wait - mean wait)², of those behind more than 2,000 requests."""
    r2_n: int
    """How many those are."""
    median_relative_error: float | None
    """Of |estimate - wait| / wait, of the same."""
    quantile: float
    """Nominal: the share of waits that the estimated quantile is to cover."""
    coverage: float | None
    """The share that it covers, of the same."""
    waits: tuple[EstimatedWait, ...]
    """In the order in which the waits ended, router by router."""


@dataclass(frozen=True, slots=True)
class MigrationFigures:
    """Running requests that moved to another instance, those of the warm-up included."""

    done: int
    given_up: int
    """Begun, and the request ended or stopped decoding, or the destination had no room any more."""
    stall_ms: Percentiles
    """From the last step at the source until all of the KV cache was at the destination."""


@dataclass(frozen=True, slots=True)
class HandOverFigures:
    """Running requests that went on elsewhere as their instance was to go, those of the warm-up included."""

    done: int
    """One that moved twice counts twice."""
    gap_ms: Percentiles
    """From the last token at one instance to the first at the next, wait and prefill included."""


@dataclass(frozen=True, slots=True)
class SimResult:
    """The figures of one run. Same settings, workload and policies: the same but for `wall_s`."""

    policy: str
    seed: int
    requests: int
    """All in the workload, those of the warm-up included."""
    counted: int
    """Those that arrived after the warm-up; the figures of service cover them alone."""
    slo_attainment: SloAttainment
    """Refused, failed and unfinished requests have missed."""
    refused: int
    unfinished: int
    """Neither finished nor refused when the run ended."""
    gpu_hours: float
    """Held by loading, ready, draining and sleeping instances, from the end of the warm-up until the last
    request has finished or missed its deadline."""
    gpus_peak: int
    gpu_cost: float
    throughput: Throughput
    ttft_ms: Percentiles
    """Of counted interactive requests that got a token, from arrival."""
    itl_ms: Percentiles
    """Of the mean ITL of counted interactive requests that finished, over those with two tokens or more."""
    longest_gap_ms: Percentiles
    """Of the longest time between two tokens of the same requests."""
    itl_p99_per_request_ms: Percentiles
    """Of the 99th percentile of the times between one request's tokens, over about 4,000 of the same: every
    so-manieth, all of them in a small run."""
    scaling_actions: int
    """Starts, retirements, role changes, wakes and sleeps carried out."""
    reversals: int
    """Actions that gave back within one load time what an earlier one had taken, or took back what it had
    given."""
    preemptions: int
    """Running requests put back, for an interactive request or for lack of KV space."""
    failures: int
    """Instances lost to faults."""
    retries: int
    """Requests that a fault sent back to the router."""
    simulated_s: float
    events: int
    wall_s: float
    refusals: Refusals
    estimator: EstimatorFigures | None
    """None: no estimate was asked for."""
    migrations: MigrationFigures | None
    """None: the policy moves nothing."""
    hand_overs: HandOverFigures | None
    """None: nothing was handed over."""
    outcomes: Outcomes
    timeline: tuple[TimelinePoint, ...]
    actions: tuple[ActionRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures without the arrays, ready for json.dump, always in the same order.

        `migrations` is left out where the policy moves nothing, `hand_overs` where nothing was handed over.
        """
        figures: dict[str, Any] = {}
        for name in self.__slots__:
            if name in ("outcomes", "timeline", "actions"):
                continue
            value = getattr(self, name)
            nested = isinstance(value, Percentiles | SloAttainment | Throughput)
            if name in ("migrations", "hand_overs") and value is None:
                continue
            if isinstance(value, Refusals | EstimatorFigures | MigrationFigures | HandOverFigures):
                value, nested = asdict(value), False
            figures[name] = {key: getattr(value, key) for key in value.__slots__} if nested else value
        return figures
