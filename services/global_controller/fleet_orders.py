"""What an autoscaler's actions change of the wanted state, one action after the other. Pure.

Each function takes one action and says why nothing of it can be done now, or "" when it is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chiron.policy.decisions import Action, Alternative, ChangeRole, Retire, Sleep, Start, Wake
from chiron.store import InstanceRecord, ModelRecord
from services.global_controller.bounds import Bounds
from services.global_controller.decisions.causes import NOTHING
from services.global_controller.fleet import Work, is_failed, is_ready, is_stopping, is_to_sleep, stopped_copy
from services.global_controller.model_roles import api_role, role_name, with_change, with_more
from services.global_controller.restraint import present_instances
from services.global_controller.sleepers import Sleepers, asleep_copy, awake_copy
from services.global_controller.view import Act, ClusterView, Liveness


@dataclass(slots=True)
class Started:
    """A start whose instances have not been placed yet."""

    action: Start
    more: int
    """Instances by which it raised what is wanted."""
    again: int
    """Instances that have failed and whose places it fills again."""
    short: str = ""
    """Why it is fewer than asked for; empty: it is not."""


class Orders:
    """The wanted state as the actions change it."""

    def __init__(self, view: ClusterView, bounds: Mapping[str, Bounds]) -> None:
        self.view = view
        self.bounds = bounds
        self.models = {model.name: model for model in view.models}
        self.instances = {record.instance_id: record for record in view.instances}
        self.acts: list[Act] = []
        self.started: list[Started] = []
        self.present = present_instances(view)
        self._work = Work(view, str)

    def view_now(self) -> ClusterView:
        """The cluster as it is wanted now."""
        return dataclasses.replace(
            self.view, models=tuple(self.models.values()), instances=tuple(self.instances.values())
        )

    def failed(self, model: ModelRecord) -> list[InstanceRecord]:
        """The model's instances that have failed and still have a place.

        None while a roll is not over: it is judged by them.
        """
        if model.roll.active:
            return []
        fresh = self._work.fleet(model).fresh
        now = (self.instances[record.instance_id] for record in fresh if is_failed(record))
        return [record for record in now if not is_stopping(record)]

    def serving(self, instance_id: str) -> InstanceRecord | None:
        """An instance that serves or is about to, as far as is known; None: it has gone or is going."""
        record = self.instances.get(instance_id)
        if record is None or is_stopping(record) or is_to_sleep(record) or is_failed(record):
            return None
        return None if self._work.liveness(record.node_id) is Liveness.DEAD else record

    def sleeper(self, instance_id: str) -> InstanceRecord | None:
        """An instance that sleeps or is about to; None: it does not."""
        record = self.instances.get(instance_id)
        return record if record is not None and is_to_sleep(record) else None

    def sleepers(self) -> Sleepers:
        """What may sleep and what may wake now."""
        return Sleepers(self.view_now())

    def stop(self, record: InstanceRecord) -> None:
        """Makes an instance wanted no more."""
        self.instances[record.instance_id] = stopped_copy(record)

    def explain(
        self,
        action: str,
        record: InstanceRecord,
        reason: str,
        numbers: Mapping[str, float],
        alternatives: tuple[Alternative, ...] = (),
    ) -> None:
        """Says why an instance has changed, and what else was weighed."""
        of = record.model, record.instance_id, record.node_id
        # It follows from what was found of the model, not from an earlier decision.
        self.acts.append(Act(action, reason, *of, numbers, alternatives=alternatives, follows=NOTHING))


def give_up_failed(orders: Orders, name: str) -> None:
    """Takes back the places of instances that have failed: they are no capacity.

    Not below the fewest, nor below what serves: one that is about to be replaced serves until then.
    """
    model = orders.models[name]
    least = max(orders.bounds[name].fewest, orders.present[name])
    for record in orders.failed(model):
        if model.desired_instances <= least:
            break
        orders.stop(record)
        reason = f"it failed on {record.node_id}: {record.observed.reason}"
        orders.explain("give_up", record, reason, {"desired": model.desired_instances - 1})
        model = with_more(model, record.role, -1)
    orders.models[name] = model


def retry_replacements(orders: Orders, name: str) -> None:
    """Gives what has failed another try while a drained instance that serves waits for it.

    The drained one counts as serving, so that no policy asks for another.
    """
    waits = next(
        (
            record
            for record in orders.instances.values()
            if record.model == name and record.draining and is_ready(record) and not is_stopping(record)
        ),
        None,
    )
    if waits is None:
        return
    for record in orders.failed(orders.models[name]):
        orders.stop(record)
        other = f"{waits.instance_id}, which an operator drains, waits for another try"
        reason = f"it failed on {record.node_id}: {record.observed.reason}; {other}"
        orders.explain("give_up", record, reason, {"desired": orders.models[name].desired_instances})


def apply_action(orders: Orders, action: Action) -> str:
    """Changes the wanted state as the action asks."""
    if action.model not in orders.bounds or action.model not in orders.models:
        return f"{action.model} is not the autoscaler's to change"
    return _APPLY.get(type(action), _unable)(orders, action)


def _start(orders: Orders, action: Start) -> str:
    model, bounds = orders.models[action.model], orders.bounds[action.model]
    failed = orders.failed(model)[: action.count]
    for record in failed:
        orders.stop(record)
    asked = action.count - len(failed)
    room = max(0, bounds.most - model.desired_instances)
    more = min(asked, room)
    short = f"at most {bounds.most} may run" if more < asked else ""
    if not more and not failed:
        return short
    orders.models[model.name] = with_more(model, api_role(action.role), more)
    orders.started.append(Started(action, more, len(failed), short))
    return ""


def _retire(orders: Orders, action: Retire) -> str:
    record = orders.serving(action.instance_id)
    model = orders.models[action.model]
    if (sleeper := orders.sleeper(action.instance_id)) is not None:
        # It is none of those that are wanted.
        orders.stop(sleeper)
        orders.explain("retire", sleeper, action.reason, action.numbers, action.alternatives)
        return ""
    if record is None:
        return f"{action.instance_id} has gone or is going"
    fewest = orders.bounds[action.model].fewest
    if model.desired_instances <= fewest:
        return f"{model.desired_instances} are wanted, and at least {fewest} must be"
    orders.stop(record)
    orders.models[model.name] = with_more(model, record.role, -1)
    numbers = dict(action.numbers) | {"desired": model.desired_instances - 1}
    orders.explain("retire", record, action.reason, numbers, action.alternatives)
    return ""


def _change_role(orders: Orders, action: ChangeRole) -> str:
    record = orders.serving(action.instance_id)
    if record is None:
        return f"{action.instance_id} has gone or is going"
    role = api_role(action.role)
    if record.role == role:
        return f"{action.instance_id} is {role_name(record.role)} already"
    orders.models[action.model] = with_change(orders.models[action.model], record.role, role)
    changed = dataclasses.replace(record, role=role, generation=record.generation + 1)
    orders.instances[record.instance_id] = changed
    reason = f"{role_name(changed.role)} instead of {role_name(record.role)}: {action.reason}"
    orders.explain("change_role", record, reason, action.numbers, action.alternatives)
    return ""


def _sleep(orders: Orders, action: Sleep) -> str:
    record, model = orders.serving(action.instance_id), orders.models[action.model]
    if record is None:
        return f"{action.instance_id} has gone or is going"
    fewest = orders.bounds[action.model].fewest
    if model.desired_instances <= fewest:
        return f"{model.desired_instances} are wanted, and at least {fewest} must be"
    if why := orders.sleepers().why_not_sleep(record):
        return why
    orders.instances[record.instance_id] = asleep_copy(record)
    orders.models[model.name] = with_more(model, record.role, -1)
    numbers = dict(action.numbers) | {"desired": model.desired_instances - 1}
    orders.explain("sleep", record, action.reason, numbers, action.alternatives)
    return ""


def _wake(orders: Orders, action: Wake) -> str:
    record, model = orders.sleeper(action.instance_id), orders.models[action.model]
    if record is None:
        return f"{action.instance_id} does not sleep"
    most = orders.bounds[action.model].most
    if model.desired_instances >= most:
        return f"at most {most} may run"
    if why := orders.sleepers().why_not_wake(record):
        return why
    role = api_role(action.role)
    orders.instances[record.instance_id] = awake_copy(record, role)
    orders.models[model.name] = with_more(model, role, 1)
    numbers = dict(action.numbers) | {"desired": model.desired_instances + 1}
    reason = f"{role_name(role)}: {action.reason}"
    orders.explain("wake", record, reason, numbers, action.alternatives)
    return ""


def _unable(orders: Orders, action: Action) -> str:
    return f"{type(action).__name__} cannot be carried out here"


_APPLY: Mapping[type, Callable[[Orders, Any], str]] = {
    Start: _start,
    Retire: _retire,
    ChangeRole: _change_role,
    Sleep: _sleep,
    Wake: _wake,
}
