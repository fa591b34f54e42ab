"""What a local autoscaler sees, made from what its worker reports. Pure."""

from __future__ import annotations

from dataclasses import replace

from chiron.internal.v1 import worker_pb2
from chiron.policy.snapshots import HANDED_OVER, InstanceSample
from chiron.v1 import types_pb2

WHOLE = 0.9
"""Share of the control interval from which on a sample covers enough of it."""


def sample_of(statistics: worker_pb2.WatchStatisticsResponse) -> InstanceSample | None:
    """One message as a sample; None when it covers no time, or its worker has no engine yet."""
    load = statistics.load
    if statistics.interval_ms <= 0 or not load.batch_size:
        return None
    return InstanceSample(
        interval_s=statistics.interval_ms / 1e3,
        batch_size=load.batch_size,
        max_batch_size=statistics.max_batch_size,
        step_token_budget=load.step_token_budget,
        max_step_token_budget=statistics.max_step_token_budget,
        running_interactive=load.running.interactive,
        running_batch=load.running.batch,
        waiting_interactive=load.waiting.interactive,
        waiting_batch=load.waiting.batch,
        steps=statistics.steps,
        output_tokens=statistics.output_tokens,
        prompt_tokens=statistics.prompt_tokens - statistics.cached_prompt_tokens,
        itl_mean_s=load.itl_mean_ms / 1e3,
        itl_p95_s=load.itl_p95_ms / 1e3,
        itl_slo_s=statistics.tightest_itl_slo_ms / 1e3,
        kv_usage=load.kv_usage,
        kv_capacity_tokens=load.kv_capacity_tokens,
        preemptions=statistics.preemptions,
        saturated=statistics.saturated,
        draft_tokens=statistics.draft_tokens,
        accepted_tokens=statistics.accepted_tokens,
    )


class Gatherer:
    """Makes samples of whole control intervals out of one worker's messages, some of which come early.

    A worker tells at once when its state, role or limits change. What such a message covers is counted into
    the next sample, unless it shows other limits than the message before: that part was made with the old
    ones, and a sample that mixes two pairs of limits shows what neither of them does.
    """

    def __init__(self, interval_s: float) -> None:
        """`interval_s`: the control interval."""
        self._whole_s = WHOLE * interval_s
        self._limits: tuple[int, int] | None = None
        self._early: InstanceSample | None = None
        self.changes = 0
        """Times that a message has shown other limits than the one before."""

    def add(self, statistics: worker_pb2.WatchStatisticsResponse) -> InstanceSample | None:
        """A sample once the interval is over; None before, and for a worker that does not serve."""
        if statistics.state != types_pb2.INSTANCE_STATE_READY:
            self._early = None
            return None
        limits = (statistics.load.batch_size, statistics.load.step_token_budget)
        before, self._limits = self._limits, limits
        if limits != before:
            self._early = None
            if before is not None:
                self.changes += 1
                return None
        sample = sample_of(statistics)
        if sample is None:
            return None
        if self._early is not None:
            sample = _joined(self._early, sample)
        whole = sample.interval_s >= self._whole_s
        self._early = None if whole else sample
        return sample if whole else None


def _joined(early: InstanceSample, late: InstanceSample) -> InstanceSample:
    """Two samples in a row as one. The 95th percentile is that of the worse: no other is known."""
    interval_s = early.interval_s + late.interval_s
    tokens = early.output_tokens + late.output_tokens
    itl_sum_s = early.itl_mean_s * early.output_tokens + late.itl_mean_s * late.output_tokens
    full_s = early.saturated * early.interval_s + late.saturated * late.interval_s
    return replace(
        late,
        interval_s=interval_s,
        steps=early.steps + late.steps,
        output_tokens=tokens,
        prompt_tokens=early.prompt_tokens + late.prompt_tokens,
        draft_tokens=early.draft_tokens + late.draft_tokens,
        accepted_tokens=early.accepted_tokens + late.accepted_tokens,
        itl_mean_s=itl_sum_s / tokens if tokens else max(early.itl_mean_s, late.itl_mean_s),
        itl_p95_s=max(early.itl_p95_s, late.itl_p95_s),
        preemptions=early.preemptions + late.preemptions,
        saturated=full_s >= HANDED_OVER * interval_s,
    )
