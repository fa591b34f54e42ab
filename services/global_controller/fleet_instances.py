"""One instance as the global autoscaler sees it, from its record and its agent's last report. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.policy.snapshots import FleetInstance
from chiron.policy.words import Phase, Role
from chiron.store import InstanceRecord
from chiron.v1 import cluster_pb2
from services.global_controller.phases import Standing
from services.global_controller.specs import initial_batch_size


@dataclass(frozen=True, slots=True)
class Expected:
    """What is expected of a model's instances, in seconds."""

    load_time_s: float
    wake_time_s: float


def fleet_instance(
    record: InstanceRecord,
    standing: Standing,
    reported: cluster_pb2.InstanceStatus | None,
    *,
    report_age_s: float,
    expected: Expected,
    can_wake: bool,
    can_sleep: bool,
    now: float,
) -> FleetInstance:
    """What is known of an instance that holds capacity.

    Args:
        record: what is wanted of it and what was seen.
        standing: its phase.
        reported: its agent's last report; None: it has not reported it yet.
        report_age_s: time since that report.
        expected: of its model.
        can_wake: it sleeps, and its GPUs have room for it awake.
        can_sleep: it serves, its model may sleep, and its node has host memory for it.
        now: the controller's monotonic time, in seconds.
    """
    status = reported if reported is not None else cluster_pb2.InstanceStatus()
    load = status.load
    # Before an engine has loaded it has no limit in force; this one it will start with.
    batch_size = load.batch_size or initial_batch_size(cluster_pb2.ModelSpec.FromString(record.spec))
    phase_age_s = now - standing.since_s
    ready_in_s = 0.0
    if standing.phase is Phase.LOADING:
        takes_s = expected.wake_time_s if standing.waking else expected.load_time_s
        ready_in_s = max(0.0, takes_s - phase_age_s)
    return FleetInstance(
        instance_id=record.instance_id,
        node_id=record.node_id,
        role=Role(status.role or record.role),
        phase=standing.phase,
        batch_size=batch_size,
        safe_batch_size=load.safe_batch_size or batch_size,
        running_interactive=load.running.interactive,
        running_batch=load.running.batch,
        waiting_interactive=load.waiting.interactive,
        waiting_batch=load.waiting.batch,
        tokens_per_s=load.tokens_per_s,
        step_token_budget=load.step_token_budget,
        step_tokens=load.step_tokens,
        kv_usage=load.kv_usage,
        kv_capacity_tokens=load.kv_capacity_tokens,
        ready_in_s=ready_in_s,
        phase_age_s=phase_age_s,
        can_wake=can_wake,
        can_sleep=can_sleep,
        report_age_s=report_age_s + status.load_age_ms / 1e3,
        role_fixed=record.role_pinned,
    )
