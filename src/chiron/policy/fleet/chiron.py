"""The global autoscaler `chiron`: slots against Θ, finish times against deadlines, GPUs to the most urgent.

After arXiv 2501.08090, the global autoscaler; what differs is said where it is decided (`interactive`,
`batch`, `contention`, `room`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment, Start, Wake
from chiron.policy.fleet.contention import FreeGpus, GpuRequest, grant
from chiron.policy.fleet.given import Given
from chiron.policy.fleet.plan import Plan, Wish, plan_model
from chiron.policy.fleet.room import Room
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.sleeping import Sleepers
from chiron.policy.fleet.state import ModelState
from chiron.policy.fleet.weighed import no_gpu, start_instead, wake
from chiron.policy.snapshots import FleetSnapshot


class Chiron:
    """See `GlobalAutoscaler`. Remembers, per model, demand, lengths, throughput and when it last acted."""

    def __init__(self, settings: ChironSettings | None = None) -> None:
        self.settings = settings or ChironSettings()
        self._states: dict[str, ModelState] = {}
        self._sleepers = Sleepers()
        self._given = Given()

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
        self._given.keep(plans, snapshot.now_s)
        wakes, starts = _share_out(plans, FreeGpus(snapshot))
        self._given.note(plans, snapshot.now_s)
        leave = self._sleepers.settle(plans, snapshot.now_s)
        going = {(action.model, action.instance_id) for action in leave}
        changes: list[Action] = [
            action
            for plan in plans
            for action in plan.changes
            if (action.model, action.instance_id) not in going
        ]
        assessments = tuple(
            ModelAssessment(plan.model.name, plan.numbers, plan.reason, tuple(plan.weighed), plan.groups)
            for plan in plans
        )
        return FleetDecision((*changes, *wakes, *starts, *leave), assessments)


def _share_out(plans: Sequence[Plan], free: FreeGpus) -> tuple[list[Action], list[Action]]:
    """Wake what can be woken, start the rest on free GPUs, and take GPUs from less urgent models.

    One priority after the other: a less urgent model gets no GPU that a more urgent one starts on, none where
    room is made for it, and none at all at the tick at which it has to give some up.
    """
    wakes: list[Action] = []
    starts: list[Action] = []
    wished: list[tuple[Plan, Wish]] = sorted(
        ((plan, wish) for plan in plans for wish in plan.wishes),
        key=lambda pair: (pair[0].model.priority, -pair[1].deficit / pair[0].model.gpus_per_instance),
    )
    least_urgent = max((plan.model.priority for plan in plans), default=0)
    room: Room | None = None
    for priority, level in groupby(wished, key=lambda pair: pair[0].model.priority):
        equals = list(level)
        takers = [(plan, wish) for plan, wish in equals if not plan.yields]
        for plan, wish in takers:
            wakes += _wake(plan, wish, free)
        requests = [GpuRequest(plan.model, wish.role, wish.count, wish.deficit) for plan, wish in takers]
        for (plan, wish), granted in zip(takers, grant(requests, free), strict=True):
            if granted:
                weighed = (wake(plan.supply, plan.woken), *wish.others(wish.count - granted))
                if granted < wish.count:
                    why = free.why_none(plan.model.gpus_per_instance, "more")
                    weighed += (no_gpu(wish.count - granted, wish.role, why),)
                starts.append(Start(plan.model.name, wish.role, granted, wish.reason, plan.numbers, weighed))
            wish.count -= granted
        waiting = [(plan, wish) for plan, wish in equals if wish.count]
        for plan, wish in waiting:
            why = free.why_none(plan.model.gpus_per_instance, "them")
            plan.weighed.append(no_gpu(wish.count, wish.role, why))
            plan.reason += f". {wish.count} {wish.role.name.lower()} wait for GPUs: {why}"
            if wish.for_minimum:
                plan.reason += f", and {wish.reason}"
        if waiting and (priority < least_urgent or any(plan.spare for plan in plans)):
            room = room or Room(plans, free, priority)
            for plan, wish in waiting:
                room.make(plan.model, wish.count)
            room.close()
    return wakes, starts


def _wake(plan: Plan, wish: Wish, free: FreeGpus) -> list[Wake]:
    """Wake what sleeps and can have its GPUs back."""
    wakes = []
    took_s = plan.model.wake_time_s
    weighed = (
        start_instead(plan.model, f"what sleeps serves in about {took_s:.0f} s", took_s),
        *wish.others(),
    )
    for instance in [each for each in plan.supply.sleeping if each.can_wake]:
        if not wish.count or not free.wake(instance, plan.model.gpus_per_instance):
            continue
        wish.count -= 1
        plan.supply.sleeping.remove(instance)
        plan.woken += 1
        wakes.append(
            Wake(plan.model.name, instance.instance_id, wish.role, wish.reason, plan.numbers, weighed)
        )
    return wakes
