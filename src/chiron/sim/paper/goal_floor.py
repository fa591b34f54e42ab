"""The whole instances that steady arrivals need all the time, and what holding them costs at least."""

from __future__ import annotations

import math
from dataclasses import dataclass

from chiron.sim.scenario import Scenario

_LOADS = 2.0
"""Load times: fewer instances for no longer than this gain nothing, since one that comes back has to load."""


@dataclass(frozen=True, slots=True)
class SteadyNeed:
    """Of one model under Poisson arrivals at one rate."""

    instances: int
    gpu_hours: float
    """Of holding them from the end of the warm-up to the last arrival."""
    late_after_s: float
    """With one instance fewer, requests wait beyond the TTFT SLO after so many seconds, on average."""


def steady_need(scenario: Scenario, most_per_gpu_s: float | None) -> SteadyNeed | None:
    """What interactive arrivals alone need of instances that serve so much at most.

    Args:
        scenario: of one model.
        most_per_gpu_s: requests that a GPU serves within the interactive ITL SLO, at most; None: unknown.

    Returns:
        None where arrivals are not steady, or where a queue could bridge more than two load times with one
        instance fewer, so that fewer GPUs might do.
    """
    if most_per_gpu_s is None or scenario.replays or len(scenario.settings.models) != 1:
        return None
    interactive = [each for each in scenario.traffic if each.request_class == "interactive"]
    if not interactive or any(each.cv != 1 or each.shape != "constant" for each in interactive):
        return None
    (model,) = scenario.settings.models
    rate = sum(each.rate_per_s for each in interactive)
    one = most_per_gpu_s * model.profile.gpus
    instances = math.ceil(rate / one)
    fewer = (instances - 1) * one
    late_after_s = model.ttft_slo_s * fewer / (rate - fewer)
    if late_after_s > _LOADS * model.profile.load_s:
        return None
    span_s = scenario.duration_s - scenario.settings.warmup_s
    return SteadyNeed(instances, instances * model.profile.gpus * span_s / 3600, late_after_s)
