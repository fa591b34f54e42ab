"""One trial: so much hardware, one policy, one seed; and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from chiron.policy.words import RequestClass
from chiron.sim.planning.sized import Hardware
from chiron.sim.planning.source import Source
from chiron.sim.policies import PolicyChoice
from chiron.sim.results import SimResult
from chiron.sim.runs import INTERACTIVE_GOAL, Run, run
from chiron.sim.settings import SimSettings
from chiron.sim.workload import Workload

_EARLY = 3.0
"""Times what a fleet takes to grow once, from a report to an instance that is ready."""


@dataclass(frozen=True, slots=True)
class Misses:
    """Why requests missed; each counts once, by the first of these that applies. Shares of their class."""

    refused: float
    """Of the interactive requests."""
    late_first_token: float
    """Of the interactive requests: none came, or after the TTFT SLO."""
    slow_tokens: float
    """Of the interactive requests: their mean ITL was beyond its SLO, or they never finished."""
    late_batch: float
    """Of the batch requests: refused, or not finished by their deadline."""
    early: float
    """Of the interactive requests that missed: came so early in the time that counts that a fleet
    which is too small at first cannot have grown, three times, yet."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one trial found."""

    seed: int
    attains: bool
    interactive: float | None
    """Share of the interactive requests that attained; None: there were none."""
    batch: float | None
    """Share of the batch requests that were done by their deadline; None: there were none."""
    gpus_mean: float
    """GPUs held on average, of the time that counts."""
    gpus_peak: int
    gpu_hours: float
    cost_per_hour: float | None
    """Of the GPUs held; None: they have no price."""
    at_limit: float
    """Share of the ticks that count at which all GPUs that it may hold were held."""
    ttft_p99_s: float | None
    itl_p99_s: float | None
    scaling_actions: int
    oracle_ratio: float | None
    misses: Misses
    wall_s: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What one process does; a result comes back, not the run."""

    source: Source
    hardware: Hardware
    policy: PolicyChoice
    seed: int
    goal: float = INTERACTIVE_GOAL
    """Share of the interactive requests that must attain; of the batch deadlines all must be met."""

    def __call__(self) -> Attempt:
        """Simulates it. Raises ConfigError for a policy or a trace that cannot be used."""
        scenario, reading = self.hardware.of(*self.source.at(self.seed))
        return attempt_of(run(scenario, self.policy, reading=reading), self.hardware.gpus, self.goal)


def attempt_of(done: Run, gpus: int, goal: float) -> Attempt:
    """What a run says about so many GPUs."""
    result, settings = done.result, done.scenario.settings
    shares = result.slo_attainment
    measured_h = max(result.simulated_s - settings.warmup_s, 0.0) / 3600
    counted = [point for point in result.timeline if point.at_s >= settings.warmup_s]
    cost = done.gpu_cost
    return Attempt(
        seed=result.seed,
        attains=(shares.interactive is None or shares.interactive >= goal)
        and (shares.batch is None or shares.batch == 1.0),
        interactive=shares.interactive,
        batch=shares.batch,
        gpus_mean=result.gpu_hours / measured_h if measured_h else 0.0,
        gpus_peak=result.gpus_peak,
        gpu_hours=result.gpu_hours,
        cost_per_hour=None if cost is None or not measured_h else cost / measured_h,
        at_limit=sum(point.gpus >= gpus for point in counted) / len(counted) if counted else 0.0,
        ttft_p99_s=_seconds(result.ttft_ms.p99),
        itl_p99_s=_seconds(result.itl_ms.p99),
        scaling_actions=result.scaling_actions,
        oracle_ratio=done.oracle_ratio,
        misses=misses_of(settings, done.reading.workload, result),
        wall_s=result.wall_s,
    )


def misses_of(settings: SimSettings, workload: Workload, result: SimResult) -> Misses:
    """Why the requests that count have missed."""
    outcomes = result.outcomes
    interactive = (workload.request_class == RequestClass.INTERACTIVE) & outcomes.counted
    batch = (workload.request_class == RequestClass.BATCH) & outcomes.counted
    missed = interactive & ~outcomes.attained
    ttft_slo_s = np.array([model.ttft_slo_s for model in settings.models])[workload.model]
    # A comparison with NaN, no token, is false.
    in_time = outcomes.first_token_s - workload.arrival_s <= ttft_slo_s
    seen_s = settings.tick_s + settings.telemetry.interval_s + settings.telemetry.delay_s
    growing_s = seen_s + max(model.load_s for model in settings.models)
    early = missed & (workload.arrival_s < settings.warmup_s + _EARLY * growing_s)
    refused = missed & outcomes.refused
    late = missed & ~refused & ~in_time
    return Misses(
        refused=_share(refused, interactive),
        late_first_token=_share(late, interactive),
        slow_tokens=_share(missed & ~refused & ~late, interactive),
        late_batch=_share(batch & ~outcomes.attained, batch),
        early=_share(early, missed),
    )


def _share(some: Any, of: Any) -> float:
    total = int(np.count_nonzero(of))
    return int(np.count_nonzero(some)) / total if total else 0.0


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
