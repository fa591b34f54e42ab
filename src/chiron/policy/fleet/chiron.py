"""The global autoscaler `chiron`: slots against Θ, finish times against deadlines, GPUs to the most urgent.

After arXiv 2501.08090, the global autoscaler; what differs is said where it is decided (`interactive`,
`batch`, `contention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment, Retire, Start, Wake
from chiron.policy.fleet.contention import FreeGpus, GpuRequest, grant
from chiron.policy.fleet.plan import Plan, Wish, plan_model
from chiron.policy.fleet.retire import drains_soonest
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.sleeping import Sleepers
from chiron.policy.fleet.state import ModelState
from chiron.policy.snapshots import FleetSnapshot


class Chiron:
    """See `GlobalAutoscaler`. Remembers, per model, demand, lengths, throughput and when it last acted."""

    def __init__(self, settings: ChironSettings | None = None) -> None:
        self.settings = settings or ChironSettings()
        self._states: dict[str, ModelState] = {}
        self._sleepers = Sleepers()

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """See `GlobalAutoscaler.decide`. O(instances + request groups) for calm models."""
        names = {model.name for model in snapshot.models}
        for gone in self._states.keys() - names:
            del self._states[gone]
        plans = []
        for model in snapshot.models:
            state = self._states.get(model.name)
            if state is None:
                state = self._states[model.name] = ModelState(self.settings, snapshot.now_s)
            plans.append(plan_model(model, state, self.settings, snapshot.now_s))
        changes: list[Action] = [action for plan in plans for action in plan.changes]
        wakes, starts = self._share_out(plans, FreeGpus(snapshot))
        leave = self._sleepers.settle(plans, snapshot.now_s)
        assessments = tuple(ModelAssessment(plan.model.name, plan.numbers, plan.reason) for plan in plans)
        return FleetDecision((*changes, *wakes, *starts, *leave), assessments)

    def _share_out(self, plans: Sequence[Plan], free: FreeGpus) -> tuple[list[Action], list[Action]]:
        """Wake what can be woken, start the rest on free GPUs, and take GPUs from less urgent models.

        One priority after the other: a wake never takes a GPU that a more urgent model starts on.
        """
        wakes: list[Action] = []
        starts: list[Action] = []
        wished: list[tuple[Plan, Wish]] = sorted(
            ((plan, wish) for plan in plans for wish in plan.wishes),
            key=lambda pair: (pair[0].model.priority, -pair[1].deficit / pair[0].model.gpus_per_instance),
        )
        for _, level in groupby(wished, key=lambda pair: pair[0].model.priority):
            equals = list(level)
            for plan, wish in equals:
                wakes += _wake(plan, wish, free)
            requests = [GpuRequest(plan.model, wish.role, wish.count, wish.deficit) for plan, wish in equals]
            for (plan, wish), granted in zip(equals, grant(requests, free), strict=True):
                if granted:
                    starts.append(Start(plan.model.name, wish.role, granted, wish.reason, plan.numbers))
                wish.count -= granted
                if wish.count:
                    plan.reason += (
                        f". {wish.count} {wish.role.name.lower()} wait for GPUs: none is left for them"
                    )
                    _make_room(plan, wish.count, plans)
        return wakes, starts


def _wake(plan: Plan, wish: Wish, free: FreeGpus) -> list[Wake]:
    """Wake what sleeps and can have its GPUs back."""
    wakes = []
    for instance in [each for each in plan.supply.sleeping if each.can_wake]:
        if not wish.count or not free.wake(instance, plan.model.gpus_per_instance):
            continue
        wish.count -= 1
        plan.supply.sleeping.remove(instance)
        wakes.append(Wake(plan.model.name, instance.instance_id, wish.role, wish.reason, plan.numbers))
    return wakes


def _make_room(urgent: Plan, count: int, plans: Sequence[Plan]) -> None:
    """Retire instances of strictly less urgent models, batch ones first, for those that found no GPU.

    What drains already counts as room on its way; each model keeps its fewest instances.
    """
    others = [plan for plan in plans if plan.model.priority > urgent.model.priority]
    others.sort(key=lambda plan: -plan.model.priority)
    needed = count * urgent.model.gpus_per_instance - sum(
        plan.model.gpus_per_instance * (plan.supply.draining + len(plan.retire)) for plan in plans
    )
    for plan in others:
        model, supply = plan.model, plan.supply
        if urgent.model.gpu_type and model.gpu_type and model.gpu_type != urgent.model.gpu_type:
            continue
        going = {action.instance_id for action in plan.retire}
        may_go = supply.count - len(going) - model.min_instances
        for pool in (supply.batch, supply.interactive):
            left = [instance for instance in pool if instance.instance_id not in going]
            for instance in drains_soonest(left, len(left)):
                if needed <= 0 or may_go <= 0:
                    break
                reason = (
                    f"contention: {urgent.model.name} (priority {urgent.model.priority}) is more urgent than "
                    f"{model.name} (priority {model.priority})"
                )
                plan.retire.append(Retire(model.name, instance.instance_id, reason, plan.numbers))
                going.add(instance.instance_id)
                needed -= model.gpus_per_instance
                may_go -= 1
