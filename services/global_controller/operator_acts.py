"""What operators ask for, as writes: apply, delete, scale, set a role, drain. Errors are ChironErrors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from chiron.rpc.errors import ChironError, Reason
from chiron.store import InstanceRecord, ModelRecord, NodeRecord, Snapshot
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.controller import Draft
from services.global_controller.fleet import is_failed, is_stopping, stopped_copy
from services.global_controller.specs import (
    MOST_INSTANCES,
    check_spec,
    clamp_instances,
    needs_new_workers,
    normalise,
)
from services.global_controller.view import Act


def apply_model(
    snapshot: Snapshot, spec: cluster_pb2.ModelSpec, unknown: Iterable[InstanceRecord]
) -> tuple[Draft | None, bool]:
    """Creates a model or replaces its spec; failed instances get another try either way.

    Args:
        snapshot: the present state.
        spec: the wanted spec.
        unknown: workers found running; the new version is newer than any that they run, so that what an
            earlier controller started is not taken for it.

    Returns:
        what to write, and whether the spec differs.
    """
    if violations := check_spec(spec):
        raise ChironError.invalid(violations)
    wanted = normalise(spec)
    before = snapshot.models.get(wanted.name)
    if before is not None and before.deleted:
        earlier_version, before = before.spec_version, None
    else:
        earlier_version = before.spec_version if before else 0
    again = _retry_failed(snapshot, wanted.name)
    if before is not None and before.parsed_spec() == wanted:
        act = Act("apply_model", f"{len(again)} failed instances get another try", wanted.name)
        return (Draft(puts=again, acts=[act]) if again else None), False
    seen = [one.spec_version for one in unknown if one.model == wanted.name]
    version = max([earlier_version, *seen]) + 1
    keep_workers = before is not None and not needs_new_workers(before.parsed_spec(), wanted)
    record = ModelRecord(
        name=wanted.name,
        spec=wanted.SerializeToString(deterministic=True),
        spec_version=version,
        rollout_version=before.rollout_version if before and keep_workers else version,
        desired_instances=clamp_instances(before.desired_instances if before else 0, wanted),
    )
    if before is None:
        reason = f"new model, {record.desired_instances} instances wanted"
    elif keep_workers:
        reason = f"spec version {version} needs no new workers, {record.desired_instances} instances wanted"
    else:
        reason = f"spec version {version} replaces {earlier_version}, one instance at a time"
    numbers = {
        "spec_version": version,
        "desired": record.desired_instances,
        "min_instances": wanted.min_instances,
        "max_instances": wanted.max_instances,
        "gpus_per_instance": wanted.gpus_per_instance,
    }
    return Draft(puts=[record, *again], acts=[Act("apply_model", reason, wanted.name, numbers=numbers)]), True


def delete_model(snapshot: Snapshot, name: str) -> Draft:
    """Leaves a tombstone; the reconciler stops the instances."""
    record = dataclasses.replace(_model(snapshot, name), deleted=True, desired_instances=0)
    count = sum(one.model == name and not is_stopping(one) for one in snapshot.instances.values())
    act = Act("delete_model", f"its {count} instances drain and stop", name, numbers={"instances": count})
    return Draft(puts=[record], acts=[act])


def scale_model(snapshot: Snapshot, name: str, instances: int) -> Draft | None:
    """Sets how many instances should run; failed ones get another try."""
    model = _model(snapshot, name)
    spec = model.parsed_spec()
    if clamp_instances(instances, spec) != instances:
        most = spec.max_instances or MOST_INSTANCES
        what = f"must be {spec.min_instances} to {most} as the spec of {name} says, not {instances}"
        raise ChironError.invalid([("instances", what)])
    again = _retry_failed(snapshot, name)
    if instances == model.desired_instances and not again:
        return None
    numbers = {"from": model.desired_instances, "to": instances, "failed": len(again)}
    reason = f"an operator asked for {instances} instances instead of {model.desired_instances}"
    scaled = dataclasses.replace(model, desired_instances=instances)
    return Draft(puts=[scaled, *again], acts=[Act("scale", reason, name, numbers=numbers)])


def set_role(snapshot: Snapshot, instance_id: str, role: types_pb2.Role.ValueType) -> Draft | None:
    """Changes what an instance takes."""
    if role not in types_pb2.Role.values() or role == types_pb2.ROLE_UNSPECIFIED:
        raise ChironError.invalid([("role", "must be interactive, mixed or batch")])
    record = snapshot.instances.get(instance_id)
    if record is None:
        raise ChironError(Reason.INSTANCE_NOT_FOUND, _missing("instance", instance_id, snapshot.instances))
    if is_stopping(record):
        raise ChironError(Reason.BUSY, f"instance {instance_id} is being stopped")
    if record.role == role:
        return None
    changed = dataclasses.replace(record, role=role, generation=record.generation + 1)
    names = [types_pb2.Role.Name(one).removeprefix("ROLE_").lower() for one in (record.role, role)]
    reason = f"an operator asked for {names[1]} instead of {names[0]}"
    return Draft(puts=[changed], acts=[Act("set_role", reason, record.model, instance_id, record.node_id)])


def drain_node(snapshot: Snapshot, node_id: str, *, undo: bool) -> Draft | None:
    """Marks a node so that the reconciler empties it, or takes the mark away."""
    record = node(snapshot, node_id)
    if record.draining is not undo:
        return None
    held = sum(one.node_id == node_id and not is_stopping(one) for one in snapshot.instances.values())
    reason = "an operator took it back into service" if undo else f"its {held} instances move elsewhere"
    act = Act("drain_node", reason, node_id=node_id, numbers={"instances": held})
    return Draft(puts=[dataclasses.replace(record, draining=not undo)], acts=[act])


def node(snapshot: Snapshot, node_id: str) -> NodeRecord:
    """The node's record, or NODE_NOT_FOUND naming those there are."""
    record = snapshot.nodes.get(node_id)
    if record is None:
        raise ChironError(Reason.NODE_NOT_FOUND, _missing("node", node_id, snapshot.nodes))
    return record


def _model(snapshot: Snapshot, name: str) -> ModelRecord:
    record = snapshot.models.get(name)
    if record is None or record.deleted:
        live = [one.name for one in snapshot.models.values() if not one.deleted]
        raise ChironError(Reason.MODEL_NOT_FOUND, _missing("model", name, live))
    return record


def _retry_failed(snapshot: Snapshot, model: str) -> list[InstanceRecord]:
    """Failed instances of the model, stopped: the reconciler then places new ones."""
    return [
        stopped_copy(one)
        for _, one in sorted(snapshot.instances.items())
        if one.model == model and is_failed(one) and not is_stopping(one)
    ]


def _missing(kind: str, name: str, known: Iterable[str]) -> str:
    return f"no {kind} {name!r}; there are: {', '.join(sorted(known)) or 'none'}"
