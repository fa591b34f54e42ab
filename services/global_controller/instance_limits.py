"""Limits of one instance that an operator sets by hand, as a write. Pure; errors are ChironErrors."""

from __future__ import annotations

import dataclasses

from chiron.requests.validation import Violation
from chiron.rpc.errors import ChironError
from chiron.store import InstanceRecord, Snapshot
from chiron.v1 import cluster_pb2
from services.global_controller.controller import Draft
from services.global_controller.decisions.causes import NOTHING
from services.global_controller.operator_acts import changeable_instance
from services.global_controller.specs import DEFAULT_MAX_BATCH_SIZE
from services.global_controller.view import Act

_FIELDS = (("batch_size", "batch size"), ("step_token_budget", "step-token budget"))


def set_instance_limits(
    snapshot: Snapshot,
    request: cluster_pb2.SetInstanceLimitsRequest,
    reported: cluster_pb2.InstanceStatus | None,
) -> Draft | None:
    """Sets what the request names; 0 gives a limit back to the instance's local autoscaler.

    Args:
        snapshot: the present state.
        request: what an operator asks for.
        reported: the last report of the instance, which knows what its engine allocated for.
    """
    record = changeable_instance(snapshot, request.instance_id)
    if not any(request.HasField(field) for field, _ in _FIELDS):  # type: ignore[arg-type]
        raise ChironError.invalid([("batch_size", "this or step_token_budget is required; 0 gives one back")])
    if violations := _violations(request, record, reported):
        raise ChironError.invalid(violations)
    asked = {field: getattr(request, field) for field, _ in _FIELDS if request.HasField(field)}  # type: ignore[arg-type]
    changed = dataclasses.replace(record, **asked)
    if changed == record:
        return None
    changed = dataclasses.replace(changed, generation=record.generation + 1)
    load = reported.load if reported is not None else cluster_pb2.InstanceLoad()
    said: list[str] = []
    numbers: dict[str, float] = {}
    for field, name in _FIELDS:
        before, now, in_force = getattr(record, field), getattr(changed, field), getattr(load, field)
        numbers |= {field: now, f"{field}_before": before, f"{field}_in_force": in_force}
        if before != now:
            instead = f"instead of {before}" if before else f"in place of the autoscaler's {in_force or '?'}"
            said.append(f"{name} {now} {instead}" if now else f"the {name} back to the local autoscaler")
    reason = f"an operator asked for {' and '.join(said)}"
    of = record.model, record.instance_id, record.node_id
    act = Act("set_limits", reason, *of, numbers, follows=NOTHING)
    return Draft(puts=[changed], acts=[act])


def _violations(
    request: cluster_pb2.SetInstanceLimitsRequest,
    record: InstanceRecord,
    reported: cluster_pb2.InstanceStatus | None,
) -> list[Violation]:
    """Where a limit is above its ceiling: the engine's where it is known, else the spec's."""
    local = reported.local if reported is not None else cluster_pb2.LocalControl()
    spec = cluster_pb2.ModelSpec.FromString(record.spec)
    ceilings = {
        "batch_size": local.max_batch_size or spec.max_batch_size or DEFAULT_MAX_BATCH_SIZE,
        "step_token_budget": local.max_step_token_budget,
    }
    return [
        (field, f"must be at most {most}, the ceiling of {record.instance_id}, not {getattr(request, field)}")
        for field, most in ceilings.items()
        if most and getattr(request, field) > most
    ]
