"""What the agent reports of an instance. Pure."""

from __future__ import annotations

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent.condition import Have, Process
from services.local_agent.desired import Goal, Want


def status_of(want: Want, have: Have, node_id: str) -> cluster_pb2.InstanceStatus:
    """The instance's status; FAILED is final until the controller wants something else, and no process of
    the instance is left then."""
    state, reason = _state_of(want, have)
    alive = have.process is not Process.NONE
    given_up = state == types_pb2.INSTANCE_STATE_FAILED
    status = cluster_pb2.InstanceStatus(
        instance_id=want.instance_id,
        model=want.spec.name,
        node_id=node_id,
        gpu_indexes=(() if given_up else want.gpus) if have.gpus is None else have.gpus,
        role=have.heard.role or want.role,
        state=state,
        reason=reason,
        generation=want.generation,
        incarnation=have.incarnation,
        restarts=have.restarts,
        spec_version=have.spec_version if alive else want.spec_version,
    )
    if alive:
        status.address = have.heard.address
        if have.heard.load is not None:
            status.load.CopyFrom(have.heard.load)
            # Until a local autoscaler has judged it the limit in force stands for what is safe.
            status.load.safe_batch_size = status.load.batch_size
        if have.kept is not None:
            status.kept.gpu_bytes, status.kept.host_bytes = have.kept.gpu_bytes, have.kept.host_bytes
    return status


def _state_of(want: Want, have: Have) -> tuple[types_pb2.InstanceState.ValueType, str]:
    stopping = want.goal is Goal.STOPPED
    if have.dozing and (stopping or (have.leaving and have.process is not Process.NONE)):
        # Others may own its GPUs until it is gone: DRAINING would say that it does.
        return types_pb2.INSTANCE_STATE_SLEEPING, ""
    if have.process is Process.NONE:
        if stopping:
            # A process that is nobody's holds the GPUs as well as a worker does.
            if have.gpus is not None and not have.clear:
                return types_pb2.INSTANCE_STATE_DRAINING, have.occupied
            return types_pb2.INSTANCE_STATE_STOPPED, ""
        if have.gave_up:
            reasons = (given_up_reason(have), have.occupied)
            return types_pb2.INSTANCE_STATE_FAILED, "; ".join(filter(None, reasons))
        return types_pb2.INSTANCE_STATE_PENDING, have.blocked or have.occupied or _backoff_reason(have)
    if stopping or have.leaving:
        return types_pb2.INSTANCE_STATE_DRAINING, ""
    if have.process is Process.EXITED:
        return types_pb2.INSTANCE_STATE_PENDING, f"the worker failed: {have.exit_reason}"
    if have.heard.state == types_pb2.INSTANCE_STATE_FAILED:
        # Not FAILED yet: whether it is given up is decided once its processes are gone.
        return types_pb2.INSTANCE_STATE_PENDING, f"the worker failed: {have.heard.reason}"
    if have.heard.state == types_pb2.INSTANCE_STATE_UNSPECIFIED:
        return types_pb2.INSTANCE_STATE_LOADING, ""
    if have.dozing:
        return types_pb2.INSTANCE_STATE_SLEEPING, have.blocked or have.complaint
    if have.slept or have.heard.state == types_pb2.INSTANCE_STATE_SLEEPING:
        # It is awake for others as long as it owns its GPUs.
        if want.goal is Goal.SLEEPING:
            return types_pb2.INSTANCE_STATE_DRAINING, have.occupied or have.complaint
        return types_pb2.INSTANCE_STATE_LOADING, have.occupied or have.complaint
    return have.heard.state, have.heard.reason or have.complaint


def refusal(desired: control_pb2.DesiredInstance, node_id: str, reason: str) -> cluster_pb2.InstanceStatus:
    """The status of an instance that cannot be carried out."""
    return cluster_pb2.InstanceStatus(
        instance_id=desired.instance_id,
        model=desired.spec.name,
        node_id=node_id,
        gpu_indexes=desired.gpu_indexes,
        state=types_pb2.INSTANCE_STATE_FAILED,
        reason=reason,
        generation=desired.generation,
        spec_version=desired.spec_version,
    )


def given_up_reason(have: Have) -> str:
    """Why the agent tries no more."""
    times = "once" if have.failures == 1 else f"{have.failures} times in a row"
    return f"failed {times}; last: {have.last_failure}"


def _backoff_reason(have: Have) -> str:
    if not have.last_failure:
        return ""
    return f"waits for restart {have.failures} of {have.failure_limit} after: {have.last_failure}"
