"""Sleep and wake of one instance by an operator's word, as writes. Pure; errors are ChironErrors."""

from __future__ import annotations

from chiron.rpc.errors import ChironError, Reason
from chiron.store import InstanceRecord, ModelRecord, Snapshot
from services.global_controller.controller import Draft
from services.global_controller.decisions.causes import NOTHING
from services.global_controller.model_roles import with_more
from services.global_controller.operator_acts import changeable_instance, live_model, pinned
from services.global_controller.sleep_costs import sleep_costs
from services.global_controller.sleepers import Sleepers, asleep_copy, awake_copy
from services.global_controller.specs import MOST_INSTANCES
from services.global_controller.view import Act, ClusterView
from services.global_controller.wording import counted


def set_sleeping(snapshot: Snapshot, view: ClusterView, instance_id: str, *, sleeping: bool) -> Draft:
    """Puts an instance to sleep or wakes it; one instance less or more of its model is wanted then.

    That sets no number: of an autoscaled model the autoscaler may decide otherwise from then on.

    BUSY says what stands in the way, INVALID_ARGUMENT that the model's spec does not allow it.
    """
    record = changeable_instance(snapshot, instance_id)
    model = live_model(snapshot, record.model)
    if sleeping and not sleep_costs(model.parsed_spec()).level:
        what = f"{record.model} may not sleep: autoscaling.sleep_level of its spec is 0"
        raise ChironError.invalid([("instance_id", what)])
    sleepers = Sleepers(view)
    why = sleepers.why_not_sleep(record) if sleeping else sleepers.why_not_wake(record)
    if why:
        raise ChironError(Reason.BUSY, why)
    return _sleep(model, record) if sleeping else _wake(model, record)


def _sleep(model: ModelRecord, record: InstanceRecord) -> Draft:
    spec, left = model.parsed_spec(), model.desired_instances - 1
    if left < spec.min_instances:
        what = f"{model.name} must run at least {counted(spec.min_instances, 'instance')} (min_instances)"
        raise ChironError.invalid([("instance_id", what)])
    act = _asked("sleep", record, {"desired": left})
    return Draft(puts=[asleep_copy(record), _counted(model, record, -1)], acts=[act])


def _wake(model: ModelRecord, record: InstanceRecord) -> Draft:
    most, wanted = model.parsed_spec().max_instances or MOST_INSTANCES, model.desired_instances + 1
    if wanted > most:
        what = f"{model.name} may run at most {counted(most, 'instance')} (max_instances)"
        raise ChironError.invalid([("instance_id", what)])
    act = _asked("wake", record, {"desired": wanted})
    return Draft(puts=[awake_copy(record, record.role), _counted(model, record, 1)], acts=[act])


def _asked(action: str, record: InstanceRecord, numbers: dict[str, float]) -> Act:
    of = record.model, record.instance_id, record.node_id
    return Act(action, "an operator asked for it", *of, numbers, follows=NOTHING)


def _counted(model: ModelRecord, record: InstanceRecord, change: int) -> ModelRecord:
    """The model with so many more wanted: a number that an operator has set moves along, else the autoscaler
    goes on from the new one."""
    moved = with_more(model, record.role, change)
    kept = model.autoscaling.pinned_instances
    return moved if kept is None else pinned(moved, moved.desired_instances)
