"""From an autoscaler's actions to what is written. Pure: view and actions in, plan out.

What the actions change of the wanted state is written together with the reconciler's answer to it, so that
the reconciler finds nothing to undo: a start wants more instances of a role and the reconciler's own rules
place them; a retired instance is wanted no more, and neither is its place. What does not fit is not owed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from chiron.policy.decisions import Action
from chiron.store import ModelRecord
from services.global_controller.bounds import Bounds
from services.global_controller.fleet import Work
from services.global_controller.fleet_orders import (
    Orders,
    Started,
    apply_action,
    give_up_failed,
    retry_replacements,
)
from services.global_controller.model_roles import Role, RoleSeats, api_role, role_name, with_more
from services.global_controller.reconcile import reconcile
from services.global_controller.rolls import missing
from services.global_controller.view import Act, ClusterView, Plan


@dataclass(frozen=True, slots=True)
class Carried:
    """What becomes of actions."""

    plan: Plan
    void: tuple[tuple[Action, str], ...] = ()
    """Actions that cannot be carried out now, or not in full, and why."""


def carry_out(
    view: ClusterView,
    actions: Sequence[Action],
    new_id: Callable[[str], str],
    *,
    bounds: Mapping[str, Bounds],
    may_start: Collection[str] = (),
) -> Carried:
    """What is written so that the actions take effect.

    Args:
        view: the cluster, settled.
        actions: carried out in their order; those that make no sense any more are void.
        new_id: as for `reconcile`.
        bounds: of the models that the autoscaler may change. What of these has failed beyond the fewest
            instances is given up; actions on others are void.
        may_start: those of them whose failed starts keep none from starting now: what has failed in the place
            of a drained instance is tried again.
    """
    orders = Orders(view, bounds)
    for name in sorted(bounds.keys() & orders.models.keys()):
        give_up_failed(orders, name)
        if name in may_start:
            retry_replacements(orders, name)
    void = [(action, why) for action in actions if (why := apply_action(orders, action))]
    before = {record.instance_id: record for record in view.instances}
    changed = {key: record for key, record in orders.instances.items() if record is not before[key]}
    if not changed and not orders.started:
        return Carried(Plan(), tuple(void))
    plan = reconcile(orders.view_now(), new_id)
    dropped = _drop_what_has_no_place(orders, plan)
    reasons = plan.reasons
    if any(dropped.values()):
        plan = reconcile(orders.view_now(), new_id)
    models = {model.name: model for model in (*orders.models.values(), *plan.models)}
    acts: list[Act] = []
    for one in orders.started:
        name = one.action.model
        act, why = _outcome(one, dropped[name], reasons.get(name, ""), models[name])
        acts += [act] if act else []
        void += [(one.action, why)] if why else []
    whole = dataclasses.replace(
        plan,
        puts=tuple((changed | {record.instance_id: record for record in plan.puts}).values()),
        models=tuple(models[model.name] for model in view.models if models[model.name] != model),
        acts=(*orders.acts, *acts, *plan.acts),
        reasons={},
    )
    return Carried(whole, tuple(void))


def _drop_what_has_no_place(orders: Orders, plan: Plan) -> dict[str, Counter[Role]]:
    """Wants no more what was asked for and the plan has no place for; returns that, by model and role."""
    by_model: dict[str, list[Started]] = defaultdict(list)
    for started in orders.started:
        by_model[started.action.model].append(started)
    work = Work(_written(orders.view_now(), plan), str) if by_model else None
    dropped: dict[str, Counter[Role]] = {}
    for name, starts in by_model.items():
        assert work is not None
        model = orders.models[name]
        beyond = max(0, model.desired_instances - orders.bounds[name].fewest)
        most = min(sum(one.more for one in starts), beyond)
        orders.models[name], dropped[name] = _without_place(work, model, most)
    return dropped


def _without_place(work: Work, model: ModelRecord, most: int) -> tuple[ModelRecord, Counter[Role]]:
    """The model without those that have no place, at most so many, and which roles these had."""
    lack = missing(work, model, work.fleet(model))
    seats = RoleSeats(model, lack.held)
    dropped: Counter[Role] = Counter(seats.take() for _ in range(min(most, lack.short)))
    for role, count in dropped.items():
        model = with_more(model, role, -count)
    return model, dropped


def _outcome(
    started: Started, dropped: Counter[Role], why: str, model: ModelRecord
) -> tuple[Act | None, str]:
    """The decision to record, if anything starts, and why it is less than was asked for."""
    action, role = started.action, api_role(started.action.role)
    left_out = min(started.more, dropped[role])
    dropped[role] -= left_out
    count = started.more - left_out + started.again
    short = "; ".join(filter(None, [started.short, why if left_out else ""]))
    if not count:
        return None, short
    numbers = dict(action.numbers)
    numbers |= {"asked": action.count, "started": count, "desired": model.desired_instances}
    what = f"{count} {role_name(role)}"
    if count < action.count:
        what += f" of {action.count} ({short})"
    reason = f"{what}: {action.reason}"
    return Act("start", reason, model.name, numbers=numbers, alternatives=action.alternatives), short


def _written(view: ClusterView, plan: Plan) -> ClusterView:
    """The view once the plan is on record."""
    records = {record.instance_id: record for record in (*view.instances, *plan.puts)}
    models = {model.name: model for model in (*view.models, *plan.models)}
    return dataclasses.replace(view, models=tuple(models.values()), instances=tuple(records.values()))
