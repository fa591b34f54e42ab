"""What a local autoscaler sees, made from what its worker reports. Pure."""

from __future__ import annotations

from chiron.internal.v1 import worker_pb2
from chiron.policy.snapshots import InstanceSample


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
    )
