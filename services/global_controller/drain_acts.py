"""What operators want emptied: an instance, or all of a model's with one role. As writes.

Errors are ChironErrors.
"""

from __future__ import annotations

import dataclasses

from chiron.rpc.errors import ChironError
from chiron.store import InstanceRecord, Snapshot
from chiron.v1 import types_pb2
from services.global_controller.decisions.causes import NOTHING
from services.global_controller.fleet import is_failed, is_stopping
from services.global_controller.model_roles import role_name
from services.global_controller.operator_acts import known_instance, live_model
from services.global_controller.view import Act
from services.global_controller.writer import Draft


def drain_instance(snapshot: Snapshot, instance_id: str) -> Draft | None:
    """Marks an instance so that another one takes its place."""
    record = known_instance(snapshot, instance_id)
    if not _stays(record):
        return None
    reason = "an operator wants it empty: another instance takes its place"
    act = Act("drain", reason, record.model, instance_id, record.node_id, follows=NOTHING)
    return Draft(puts=[_marked(record)], acts=[act])


def drain_role(snapshot: Snapshot, model: str, role: types_pb2.Role.ValueType) -> Draft | None:
    """Marks all instances of a model that have a role."""
    live_model(snapshot, model)
    if role not in types_pb2.Role.values() or role == types_pb2.ROLE_UNSPECIFIED:
        raise ChironError.invalid([("role", "must be interactive, mixed or batch")])
    found = drained_by_role(snapshot, model, role)
    if not found:
        return None
    reason = f"an operator wants its {len(found)} {role_name(role)} instances empty: others take their places"
    act = Act("drain", reason, model, numbers={"instances": len(found)})
    return Draft(puts=[_marked(record) for record in found], acts=[act])


def drained_by_role(snapshot: Snapshot, model: str, role: types_pb2.Role.ValueType) -> list[InstanceRecord]:
    """Instances that draining the role would mark."""
    return [
        record
        for _, record in sorted(snapshot.instances.items())
        if record.model == model and record.role == role and _stays(record)
    ]


def _stays(record: InstanceRecord) -> bool:
    return not (record.draining or is_stopping(record) or is_failed(record))


def _marked(record: InstanceRecord) -> InstanceRecord:
    return dataclasses.replace(record, draining=True)
