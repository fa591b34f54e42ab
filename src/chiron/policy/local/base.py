"""What a local autoscaler is, and what counts as evidence for it."""

from __future__ import annotations

from math import inf
from typing import Protocol

from chiron.policy.decisions import Limits
from chiron.policy.snapshots import InstanceSample

_MEASURED = (
    "steps",
    "output_tokens",
    "prompt_tokens",
    "itl_mean_s",
    "itl_slo_s",
    "kv_usage",
    "preemptions",
    "draft_tokens",
    "accepted_tokens",
)


class LocalAutoscaler(Protocol):
    """Sets one instance's batch size and step-token budget; one object per incarnation of an instance.

    It may remember what it has seen: the same samples in the same order give the same decisions. A decision
    is meant to be in force before the next sample; one that is not (late, or overridden by an operator)
    shows in that sample, and the sample is what counts.
    """

    def decide(self, sample: InstanceSample) -> Limits:
        """Return the limits from now on. Raises SampleError for a sample that no engine could make."""
        ...


class SampleError(ValueError):
    """A field of a sample has a value that no engine could report; the text names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


def check(sample: InstanceSample) -> None:
    """Raise SampleError for a figure that no engine could report.

    The interval must be positive, each limit between 1 and its ceiling, and the figures that are measured
    finite and not negative: one that is not would spoil for good what is learned by averages.
    """
    if not 0 < sample.interval_s < inf:
        raise SampleError("interval_s", f"must be positive, got {sample.interval_s}")
    for field in _MEASURED:
        if not 0 <= getattr(sample, field) < inf:
            raise SampleError(field, f"must be a number >= 0, got {getattr(sample, field)}")
    for field, value, ceiling in (
        ("batch_size", sample.batch_size, sample.max_batch_size),
        ("step_token_budget", sample.step_token_budget, sample.max_step_token_budget),
    ):
        if not 1 <= value <= ceiling:
            raise SampleError(field, f"must be from 1 to the ceiling of {ceiling}, got {value}")


def is_evidence(sample: InstanceSample) -> bool:
    """Tell whether the sample shows what the limits in force can do.

    Only an interval throughout which slots were full or requests waited does: with room to spare,
    throughput and ITL are those of the demand, and a larger batch size could be neither earned nor refuted.
    """
    return sample.saturated and sample.steps > 0 and sample.decodes > 0 and sample.itl_slo_s > 0


def clamp(value: float, ceiling: int) -> int:
    """Round to a whole number from 1 to the ceiling."""
    return max(1, min(ceiling, round(value)))


def untried_safe(sample: InstanceSample) -> int:
    """Return the safe batch size without a model: the one in force, less as far as ITL exceeds the SLO."""
    if sample.itl_slo_s <= 0 or sample.itl_mean_s <= sample.itl_slo_s:
        return sample.batch_size
    return max(1, int(sample.batch_size * sample.itl_slo_s / sample.itl_mean_s))
