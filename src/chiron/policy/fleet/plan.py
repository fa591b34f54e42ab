"""One model's wishes at one tick, before the GPUs are shared out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from chiron.policy.decisions import Alternative, ChangeRole, GroupEstimate, Retire
from chiron.policy.fleet.batch import BatchNeed, assess_batch
from chiron.policy.fleet.interactive import InteractiveNeed, assess_interactive
from chiron.policy.fleet.retire import drains_soonest
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.spare import spare_instances
from chiron.policy.fleet.state import ModelState
from chiron.policy.fleet.supply import Supply
from chiron.policy.fleet.taper import Taper, not_spared_for_batch, taper_batch
from chiron.policy.fleet.weighed import (
    next_candidate,
    no_gpu,
    open_to_batch,
    role_change,
    start_instead,
)
from chiron.policy.snapshots import FleetInstance, ModelFleet
from chiron.policy.words import Role


@dataclass(slots=True)
class Wish:
    """Further instances of one role."""

    role: Role
    count: int
    """Those that are still without GPUs."""
    deficit: float
    """Share of the demand that goes unserved without them, 0 to 1."""
    reason: str
    weighed: tuple[Alternative, ...] = ()
    """What else was weighed before."""
    one_fewer: Callable[[int], Alternative] | None = None
    """See `InteractiveNeed.one_fewer`."""
    left_out: int = 0
    """Those that are wished for no more: the model may have no further ones."""
    for_minimum: bool = False
    """Whether nothing but the fewest instances asks for them."""

    def others(self, without: int = 0) -> tuple[Alternative, ...]:
        """What else was weighed, one fewer than are started included; `without`: of `count`, not started."""
        if self.one_fewer is None:
            return self.weighed
        return (*self.weighed, self.one_fewer(self.left_out + without))


@dataclass(slots=True)
class Plan:
    """What a model does at once, and what it wishes for."""

    model: ModelFleet
    supply: Supply
    numbers: Mapping[str, float]
    reason: str
    changes: list[ChangeRole] = field(default_factory=list)
    """Role changes: they need no GPU."""
    wishes: list[Wish] = field(default_factory=list)
    retire: list[Retire] = field(default_factory=list)
    weighed: list[Alternative] = field(default_factory=list)
    """What would have been done had the figures been others, or had there been GPUs."""
    groups: tuple[GroupEstimate, ...] = ()
    woken: int = 0
    spare: int = 0
    """Interactive and mixed instances that would go, were another model of its priority to wait for GPUs."""
    gave_to: str = ""
    """The model of its priority for which it gives up what it can spare at this tick; "": none."""
    yields: bool = False
    """Whether another model takes GPUs from it, or waits for those that it gave: it gets none back then."""


def plan_model(model: ModelFleet, state: ModelState, settings: ChironSettings, now_s: float) -> Plan:
    """Assess a model and plan: roles change first, then instances are wished for, or some go."""
    supply = state.observe(model, now_s)
    interactive = assess_interactive(model, supply, state, settings, now_s)
    changes = _from_batch(model, supply, max(interactive.missing_now, interactive.missing), interactive)
    changed = len(changes)
    missing = max(0, interactive.missing - changed)
    batch = assess_batch(model, supply, state, settings, now_s)
    opened_for_batch = 0
    # All that is closed opens before an instance is started: a larger backlog would open more of it, and
    # might so come to ask for fewer.
    while batch.missing and (opened := _to_mixed(model, supply, batch)):
        changes += opened
        opened_for_batch += len(opened)
        batch = assess_batch(model, supply, state, settings, now_s)
    numbers = {**interactive.numbers, **batch.numbers}
    changes = [replace(change, numbers=numbers) for change in changes]
    reason = f"interactive: {interactive.reason}. batch: {batch.reason}"
    plan = Plan(model, supply, numbers, reason, changes, groups=batch.groups)
    if missing:
        weighed: tuple[Alternative, ...] = (role_change(changed, missing, _fixed(supply.batch)),)
        fewer = interactive.one_fewer
        plan.wishes.append(Wish(Role.MIXED, missing, interactive.deficit, interactive.reason, weighed, fewer))
    if batch.missing:
        closed = [i for i in supply.interactive if i.role is Role.INTERACTIVE]
        weighed = (open_to_batch(opened_for_batch, supply, _fixed(closed)), *batch.weighed)
        plan.wishes.append(Wish(Role.BATCH, batch.missing, batch.deficit, batch.reason, weighed))
    if changes or missing:
        state.last_added_s = now_s
    _bound(plan)
    if not plan.wishes:
        _remove(plan, state, settings, now_s, interactive)
        plan.spare = spare_instances(model, supply, state, interactive, settings, now_s)
    return plan


def _from_batch(model: ModelFleet, supply: Supply, count: int, need: InteractiveNeed) -> list[ChangeRole]:
    """Make batch instances mixed where interactive demand lacks capacity: it may preempt there at once."""
    open_to_change = [i for i in supply.batch if not i.role_fixed]
    chosen = drains_soonest(open_to_change, min(count, len(open_to_change)))
    if not chosen:
        return []
    other = next_candidate("make mixed", chosen, open_to_change)
    weighed = (start_instead(model, "a change of role gives its slots at once", 0.0), *other, *need.weighed)
    for instance in chosen:
        supply.make_mixed(instance)
    reason = f"interactive demand needs its slots: {need.reason}"
    return [ChangeRole(model.name, i.instance_id, Role.MIXED, reason, alternatives=weighed) for i in chosen]


def _to_mixed(model: ModelFleet, supply: Supply, need: BatchNeed) -> list[ChangeRole]:
    """Open interactive instances to batch work: their spare slots cost nothing."""
    closed = [i for i in supply.interactive if i.role is Role.INTERACTIVE and not i.role_fixed]
    chosen = drains_soonest(closed, need.missing)
    if not chosen:
        return []
    weighed = (start_instead(model, "its spare slots are there at once", 0.0), *need.weighed)
    for instance in chosen:
        supply.interactive.remove(instance)
        supply.interactive.append(replace(instance, role=Role.MIXED))
    reason = f"its spare slots can do batch work: {need.reason}"
    return [ChangeRole(model.name, i.instance_id, Role.MIXED, reason, alternatives=weighed) for i in chosen]


def _bound(plan: Plan) -> None:
    """Keep the wishes within the model's most instances, and wish for its fewest."""
    model, count = plan.model, plan.supply.count
    if model.max_instances:
        room = max(0, model.max_instances - count)
        for wish in plan.wishes:
            if wish.count > room:
                why = f"max_instances is {model.max_instances}, and {count} are there"
                plan.weighed.append(no_gpu(wish.count - room, wish.role, why))
                plan.reason += (
                    f". {wish.count - room} fewer than needed: max_instances is {model.max_instances}"
                )
                wish.left_out = wish.count - room
            wish.count = min(wish.count, room)
            room -= wish.count
        plan.wishes = [wish for wish in plan.wishes if wish.count]
    short = model.min_instances - count - sum(wish.count for wish in plan.wishes)
    if short > 0:
        reason = f"min_instances is {model.min_instances}"
        plan.wishes.append(Wish(Role.MIXED, short, short / model.min_instances, reason, for_minimum=True))


def _remove(
    plan: Plan, state: ModelState, settings: ChironSettings, now_s: float, need: InteractiveNeed
) -> None:
    """Choose who goes: batch instances when no batch request is left, the interactive surplus, the excess."""
    model, supply = plan.model, plan.supply
    may_go = supply.count - model.min_instances
    going: dict[str, tuple[str, tuple[Alternative, ...]]] = {}
    why, taper = "no batch request is left for it", Taper()
    if now_s - state.batch_seen_s >= settings.batch_idle_s:
        done = [*supply.batch, *supply.loading_batch]
    elif now_s - state.batch_waited_s >= settings.batch_idle_s:
        done = [i for i in supply.batch if not i.running_batch and not i.waiting_batch]
    else:
        taper = taper_batch(model, supply, state, settings)
        done, why = list(taper.chosen), "the others do what is left of the batch work in time"
    for instance in done[: max(0, may_go)]:
        made_mixed = Alternative("make it mixed", _not_for_the_least(model, supply.count - len(going) - 1))
        going[instance.instance_id] = why, (*taper.weighed, made_mixed)
    for instance in done[max(0, may_go) :]:
        if instance.role_fixed:
            continue
        reason = f"{why}; it stays for min_instances {model.min_instances}"
        plan.changes.append(ChangeRole(model.name, instance.instance_id, Role.MIXED, reason, plan.numbers))
    may_go -= len(going)
    # What interactive instances spare is needed for the deadlines where batch instances go.
    surplus = 0
    if not taper.chosen:
        surplus = not_spared_for_batch(model, supply, state, settings, now_s, need.surplus)
    if surplus < need.surplus:
        why = "batch requests that wait need what they spare"
        plan.weighed.append(Alternative(f"retire {need.surplus - surplus} more", why))
    chosen = drains_soonest(supply.interactive, max(0, min(surplus, may_go)))
    weighed = (*need.weighed, *next_candidate("retire", chosen, supply.interactive))
    for instance in chosen:
        going[instance.instance_id] = need.reason, weighed
    if chosen:
        state.sent_away([instance.instance_id for instance in chosen], now_s)
    if surplus > len(chosen):
        why = _not_for_the_least(model, supply.count - len(going))
        plan.weighed.append(Alternative(f"retire {surplus - len(chosen)} more", why))
    elif not (chosen or need.missing or need.missing_now):
        plan.weighed += need.weighed
    if model.max_instances and supply.count - len(going) > model.max_instances:
        left = [
            i
            for i in (*supply.batch, *supply.loading_batch, *supply.interactive, *supply.loading_interactive)
            if i.instance_id not in going
        ]
        for instance in drains_soonest(left, len(left) - model.max_instances):
            going[instance.instance_id] = f"max_instances is {model.max_instances}", ()
    plan.retire = [
        Retire(model.name, key, reason, plan.numbers, others, settings.hand_over)
        for key, (reason, others) in going.items()
    ]


def _fixed(instances: Sequence[FleetInstance]) -> int:
    return sum(instance.role_fixed for instance in instances)


def _not_for_the_least(model: ModelFleet, left: int) -> str:
    met = "is kept with" if left >= model.min_instances else "asks for more than"
    return f"min_instances {model.min_instances} {met} the {left} that stay"
