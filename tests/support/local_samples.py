"""Samples for local autoscalers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chiron.policy.snapshots import InstanceSample

_FULL = InstanceSample(
    interval_s=1.0,
    batch_size=256,
    max_batch_size=1024,
    step_token_budget=2048,
    max_step_token_budget=8192,
    running_interactive=256,
    running_batch=0,
    waiting_interactive=8,
    waiting_batch=0,
    steps=50,
    output_tokens=5000,
    prompt_tokens=2400,
    itl_mean_s=0.02,
    itl_p95_s=0.03,
    itl_slo_s=0.2,
    kv_usage=0.3,
    kv_capacity_tokens=430_000,
    preemptions=0,
    saturated=True,
)


def sample(**fields: Any) -> InstanceSample:
    """A saturated second of a plausible engine, with these fields changed."""
    return replace(_FULL, **fields)
