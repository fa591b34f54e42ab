"""What operators ask for, as writes: apply, roll back, delete, scale, set a role, drain.

Errors are ChironErrors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from chiron.rpc.errors import ChironError, Reason
from chiron.store import InstanceRecord, ModelRecord, NodeRecord, Record, Roll, Snapshot, SpecVersion
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.bounds import is_autoscaled
from services.global_controller.controller import Draft
from services.global_controller.decisions.causes import NOTHING
from services.global_controller.fleet import is_current, is_failed, is_stopping, stopped_copy
from services.global_controller.model_roles import with_change, with_desired
from services.global_controller.owed import without_owed
from services.global_controller.rolls import start_roll
from services.global_controller.specs import (
    MOST_INSTANCES,
    check_spec,
    clamp_instances,
    needs_new_workers,
    normalise,
)
from services.global_controller.versions import (
    kept_versions,
    next_version,
    pointed_at,
    version_to_return_to,
)
from services.global_controller.view import Act
from services.global_controller.wording import counted


def apply_model(
    snapshot: Snapshot,
    spec: cluster_pb2.ModelSpec,
    unknown: Iterable[InstanceRecord],
    *,
    rollback_on_failure: bool = False,
    now_unix_ms: int = 0,
) -> tuple[Draft | None, bool]:
    """Creates a model or replaces its spec; failed instances and a stalled roll get another try either way.

    Args:
        snapshot: the present state.
        spec: the wanted spec.
        unknown: workers found running; the new version is newer than any that they run, so that what an
            earlier controller started is not taken for it.
        rollback_on_failure: return to the version before when the new one fails.
        now_unix_ms: wall clock, for the model's history.

    Returns:
        what to write, and whether the spec differs.
    """
    if violations := check_spec(spec):
        raise ChironError.invalid(violations)
    wanted = normalise(spec)
    stored = snapshot.models.get(wanted.name)
    before = None if stored is None or stored.deleted else stored
    again = _retry_failed(snapshot, wanted.name)
    if before is not None and before.parsed_spec() == wanted:
        return _try_again(before, again, rollback_on_failure), False
    version = next_version(stored, [one.spec_version for one in unknown if one.model == wanted.name])
    applied = SpecVersion(wanted.SerializeToString(deterministic=True), version, version, now_unix_ms)
    acts: list[Act] = []
    if before is None:
        record = ModelRecord(
            name=wanted.name,
            spec=applied.spec,
            spec_version=version,
            rollout_version=version,
            desired_instances=clamp_instances(0, wanted),
            applied_unix_ms=now_unix_ms,
            newest_version=version,
            roll=Roll(number=stored.roll.number if stored else 0),
        )
        reason = f"new model, {counted(record.desired_instances, 'instance')} wanted"
    else:
        before = without_owed(before, wanted, snapshot.instances.values())
        applied = dataclasses.replace(applied, rollout_version=_served_by(before, wanted, version))
        if applied.rollout_version == before.rollout_version:
            record = pointed_at(before, applied, _resumed(before.roll, version, rollback_on_failure))
            reason = (
                f"spec version {version} needs no new workers, "
                f"{counted(record.desired_instances, 'instance')} wanted"
            )
        else:
            roll = start_roll(before, applied, rollback_on_failure=rollback_on_failure)
            record = pointed_at(before, applied, roll)
            reason = f"spec version {version} replaces {before.spec_version}, one instance at a time"
            acts.append(_begins(snapshot, before, record))
    numbers = {
        "spec_version": version,
        "desired": record.desired_instances,
        "min_instances": wanted.min_instances,
        "max_instances": wanted.max_instances,
        "gpus_per_instance": wanted.gpus_per_instance,
    }
    act = Act("apply_model", reason, wanted.name, numbers=numbers)
    return Draft(puts=[record, *again], acts=[act, *acts]), True


def rollback_model(snapshot: Snapshot, name: str, to_version: int) -> Draft | None:
    """Returns to an earlier version of the spec; failed instances get another try.

    Args:
        snapshot: the present state.
        name: the model.
        to_version: a version that is kept; 0: the newest one before the present one.
    """
    before = live_model(snapshot, name)
    version = version_to_return_to(before, to_version)
    if version.spec_version == before.spec_version:
        return _try_again(before, _retry_failed(snapshot, name), before.roll.rollback_on_failure)
    reason = f"an operator asked for version {version.spec_version} again"
    if version.rollout_version == before.rollout_version:
        # The workers stay, and so does a roll that goes on.
        roll = _resumed(before.roll, version.spec_version, before.roll.rollback_on_failure)
    else:
        roll = start_roll(before, version, rollback_on_failure=False, reason=reason)
    record = pointed_at(before, version, roll)
    return Draft(
        puts=[record, *_retry_failed(snapshot, name)], acts=[_begins(snapshot, before, record, reason)]
    )


def delete_model(snapshot: Snapshot, name: str) -> Draft:
    """Leaves a tombstone; the reconciler stops the instances."""
    before = live_model(snapshot, name)
    record = dataclasses.replace(
        before, deleted=True, desired_instances=0, history=(), roll=Roll(number=before.roll.number)
    )
    count = sum(one.model == name and not is_stopping(one) for one in snapshot.instances.values())
    act = Act(
        "delete_model", f"{counted(count, 'instance')} to drain and stop", name, numbers={"instances": count}
    )
    return Draft(puts=[record], acts=[act])


def scale_model(snapshot: Snapshot, name: str, instances: int) -> Draft | None:
    """Sets how many instances should run; failed ones get another try."""
    model = live_model(snapshot, name)
    spec = model.parsed_spec()
    if clamp_instances(instances, spec) != instances:
        most = spec.max_instances or MOST_INSTANCES
        what = f"must be {spec.min_instances} to {most} as the spec of {name} says, not {instances}"
        raise ChironError.invalid([("instances", what)])
    again = _retry_failed(snapshot, name)
    stays = not is_autoscaled(model) or model.autoscaling.pinned_instances == instances
    if instances == model.desired_instances and stays and not again:
        return None
    numbers = {"from": model.desired_instances, "to": instances, "failed": len(again)}
    reason = f"an operator asked for {counted(instances, 'instance')} instead of {model.desired_instances}"
    scaled = with_desired(model, instances)
    if is_autoscaled(model):
        scaled = pinned(scaled, instances)
        reason += ": it stays so until it is given back to the autoscaler"
    return Draft(puts=[scaled, *again], acts=[Act("scale", reason, name, numbers=numbers)])


def set_role(snapshot: Snapshot, instance_id: str, role: types_pb2.Role.ValueType) -> Draft | None:
    """Changes what an instance takes."""
    if role not in types_pb2.Role.values() or role == types_pb2.ROLE_UNSPECIFIED:
        raise ChironError.invalid([("role", "must be interactive, mixed or batch")])
    record = changeable_instance(snapshot, instance_id)
    if record.role == role:
        if record.role_pinned:
            return None
        return Draft(puts=[dataclasses.replace(record, role_pinned=True)])
    changed = dataclasses.replace(record, role=role, generation=record.generation + 1, role_pinned=True)
    puts: list[Record] = [changed]
    if (model := snapshot.models.get(record.model)) is not None and not model.deleted:
        puts.append(with_change(model, record.role, role))
    names = [types_pb2.Role.Name(one).removeprefix("ROLE_").lower() for one in (record.role, role)]
    reason = f"an operator asked for {names[1]} instead of {names[0]}"
    of = record.model, instance_id, record.node_id
    return Draft(puts=puts, acts=[Act("set_role", reason, *of, follows=NOTHING)])


def give_back_role(snapshot: Snapshot, instance_id: str) -> Draft | None:
    """Lets the autoscaler change an instance's role again."""
    record = known_instance(snapshot, instance_id)
    if not record.role_pinned:
        return None
    of = record.model, instance_id, record.node_id
    act = Act("set_role", "its role is the autoscaler's again", *of, follows=NOTHING)
    return Draft(puts=[dataclasses.replace(record, role_pinned=False)], acts=[act])


def give_back_count(snapshot: Snapshot, name: str) -> Draft | None:
    """Lets the autoscaler set the number of instances again."""
    model = live_model(snapshot, name)
    _need_autoscaling(model)
    if model.autoscaling.pinned_instances is None:
        return None
    act = Act("scale", "the number of instances is the autoscaler's again", name)
    return Draft(puts=[pinned(model, None)], acts=[act])


def set_autoscaling(snapshot: Snapshot, name: str, *, paused: bool, reason: str) -> Draft | None:
    """Suspends the autoscaler's acts on a model, or lets it act again."""
    model = live_model(snapshot, name)
    _need_autoscaling(model)
    orders = dataclasses.replace(
        model.autoscaling, paused=paused, pause_reason=" ".join(reason.split()) if paused else ""
    )
    if orders == model.autoscaling:
        return None
    why = f"an operator asked for it{f': {orders.pause_reason}' if orders.pause_reason else ''}"
    act = Act("pause" if paused else "resume", why, name, numbers={"desired": model.desired_instances})
    return Draft(puts=[dataclasses.replace(model, autoscaling=orders)], acts=[act])


def pinned(model: ModelRecord, instances: int | None) -> ModelRecord:
    """The model with its number of instances set by an operator; None: by the autoscaler."""
    return dataclasses.replace(
        model, autoscaling=dataclasses.replace(model.autoscaling, pinned_instances=instances)
    )


def _need_autoscaling(model: ModelRecord) -> None:
    if not is_autoscaled(model):
        text = f"{model.name} is not autoscaled: its spec does not set autoscaling.enabled"
        raise ChironError.invalid([("name", text)])


def changeable_instance(snapshot: Snapshot, instance_id: str) -> InstanceRecord:
    """The instance's record, or INSTANCE_NOT_FOUND naming those there are; BUSY for one that stops."""
    record = known_instance(snapshot, instance_id)
    if is_stopping(record):
        raise ChironError(Reason.BUSY, f"instance {instance_id} is being stopped")
    return record


def drain_node(snapshot: Snapshot, node_id: str, *, undo: bool) -> Draft | None:
    """Marks a node so that the reconciler empties it, or takes the mark away."""
    record = node(snapshot, node_id)
    if record.draining is not undo:
        return None
    held = sum(one.node_id == node_id and not is_stopping(one) for one in snapshot.instances.values())
    reason = (
        "an operator took it back into service" if undo else f"{counted(held, 'instance')} to move elsewhere"
    )
    act = Act("drain_node", reason, node_id=node_id, numbers={"instances": held})
    return Draft(puts=[dataclasses.replace(record, draining=not undo)], acts=[act])


def node(snapshot: Snapshot, node_id: str) -> NodeRecord:
    """The node's record, or NODE_NOT_FOUND naming those there are."""
    record = snapshot.nodes.get(node_id)
    if record is None:
        raise ChironError(Reason.NODE_NOT_FOUND, _missing("node", node_id, snapshot.nodes))
    return record


def known_instance(snapshot: Snapshot, instance_id: str) -> InstanceRecord:
    """The instance's record, or INSTANCE_NOT_FOUND naming those there are."""
    record = snapshot.instances.get(instance_id)
    if record is None:
        raise ChironError(Reason.INSTANCE_NOT_FOUND, _missing("instance", instance_id, snapshot.instances))
    return record


def live_model(snapshot: Snapshot, name: str) -> ModelRecord:
    """The model's record, or MODEL_NOT_FOUND naming those there are."""
    record = snapshot.models.get(name)
    if record is None or record.deleted:
        live = [one.name for one in snapshot.models.values() if not one.deleted]
        raise ChironError(Reason.MODEL_NOT_FOUND, _missing("model", name, live))
    return record


def _served_by(before: ModelRecord, wanted: cluster_pb2.ModelSpec, version: int) -> int:
    """The version whose workers serve the spec: one that is kept and asked for the same, else the new one."""
    for known in [before.version, *kept_versions(before)]:
        if not needs_new_workers(known.parsed_spec(), wanted):
            return known.rollout_version
    return version


def _try_again(
    before: ModelRecord, again: Sequence[InstanceRecord], rollback_on_failure: bool
) -> Draft | None:
    """Another try of the present version: for what has failed, and for a roll that has stalled."""
    acts = []
    if again or before.roll.stalled:
        acts.append(
            Act("apply_model", f"another try for {counted(len(again), 'failed instance')}", before.name)
        )
    roll = _resumed(before.roll, before.spec_version, rollback_on_failure)
    record = dataclasses.replace(before, roll=roll)
    if before.roll.stalled:
        numbers = {"from_version": roll.from_version, "to_version": roll.to_version}
        acts.append(Act("roll", "goes on: it gets another try", before.name, numbers=numbers))
    puts: list[Record] = [*([record] if record != before else []), *again]
    return Draft(puts=puts, acts=acts) if puts else None


def _resumed(roll: Roll, to_version: int, rollback_on_failure: bool) -> Roll:
    """A roll that goes on; one that is over stays so."""
    if not roll.active:
        return roll
    return dataclasses.replace(
        roll,
        state=cluster_pb2.ROLL_STATE_ROLLING,
        to_version=to_version,
        rollback_on_failure=rollback_on_failure,
        reason="" if roll.stalled else roll.reason,
    )


def _begins(snapshot: Snapshot, before: ModelRecord, record: ModelRecord, why: str = "") -> Act:
    remaining = sum(
        one.model == record.name and not is_stopping(one) and not is_current(record, one.spec_version)
        for one in snapshot.instances.values()
    )
    reason = (
        f"from spec version {before.spec_version} to {record.spec_version}, "
        f"{counted(remaining, 'instance')} to replace"
    )
    if before.roll.active and record.roll.number != before.roll.number:
        reason += f"; takes the place of the roll to {before.roll.to_version}"
    if why:
        reason += f"; {why}"
    numbers = {
        "from_version": before.spec_version,
        "to_version": record.spec_version,
        "replaced": 0,
        "remaining": remaining,
        "desired": record.desired_instances,
    }
    return Act("roll", reason, record.name, numbers=numbers)


def _retry_failed(snapshot: Snapshot, model: str) -> list[InstanceRecord]:
    """Failed instances of the model, stopped: the reconciler then places new ones."""
    return [
        stopped_copy(one)
        for _, one in sorted(snapshot.instances.items())
        if one.model == model and is_failed(one) and not is_stopping(one)
    ]


def _missing(kind: str, name: str, known: Iterable[str]) -> str:
    return f"no {kind} {name!r}; there are: {', '.join(sorted(known)) or 'none'}"
