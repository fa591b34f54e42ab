"""The global autoscaler `chiron-paper`: the rules as the paper states them (arXiv 2501.08090).

IBP counts instances that run any interactive request; BBP counts request groups whose estimated first token
is later than their deadline. The number of batch instances is found by adding one until BBP is 0, and all go
when no batch request is left. Reconstructed: Θ from the growth of demand, the batch rate of spare slots, and
what the paper leaves open about loading instances (they count as supply from the moment they are ready) and
about groups that no instance can save (they are to begin two load times from now). A group's first token is
taken for that of the last of its requests, for each has the deadline; were it that of the first, a group
would ask for nothing by its own size, and for less once it overtakes another. More batch requests and
earlier deadlines never ask for fewer instances. More interactive requests that wait may: Θ rises with them,
the number of instances that run any does not.
So reconstructed it has no cool-down and looks at one moment only: an instance that happens to run nothing
goes at once although the next arrivals need it, and so it starts and retires by turns under constant load,
within a load time, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment, Retire, Start
from chiron.policy.fleet.backpressure import (
    GroupWork,
    batch_backpressure,
    interactive_backpressure,
    missing_batch_instances,
)
from chiron.policy.fleet.batch import batch_supply
from chiron.policy.fleet.contention import FreeGpus
from chiron.policy.fleet.retire import drains_soonest
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.state import ModelState
from chiron.policy.fleet.supply import Supply
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.policy.words import RequestClass, Role


class ChironPaper:
    """See `GlobalAutoscaler`. GPUs go to models in the order of their priorities."""

    def __init__(self, settings: ChironSettings | None = None) -> None:
        self.settings = settings or ChironSettings()
        self._states: dict[str, ModelState] = {}

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """See `GlobalAutoscaler.decide`."""
        for removed in self._states.keys() - {model.name for model in snapshot.models}:
            del self._states[removed]
        free = FreeGpus(snapshot)
        starts: list[Action] = []
        retires: list[Action] = []
        assessments = []
        for model in sorted(snapshot.models, key=lambda model: model.priority):
            state = self._states.get(model.name)
            if state is None:
                state = self._states[model.name] = ModelState(self.settings, snapshot.now_s)
            supply = state.observe(model, snapshot.now_s)
            numbers, missing, surplus = self._interactive(model, supply, state)
            batch_missing = self._batch(model, supply, state, numbers)
            room = max(0, model.max_instances - supply.count) if model.max_instances else None
            reasons = []
            for role, count, reason in (
                (Role.MIXED, missing, "IBP is above Θ, or fewer than min_instances are there"),
                (Role.BATCH, batch_missing, "the fewest batch instances that bring BBP to 0"),
            ):
                wanted = count if room is None else min(count, room)
                granted = 0
                while granted < wanted and free.take(model.gpus_per_instance, model.gpu_type):
                    granted += 1
                room = None if room is None else room - granted
                if granted:
                    starts.append(Start(model.name, role, granted, reason, numbers))
                if count:
                    reasons.append(f"{reason}: {count} missing, {granted} started")
            if not missing and not batch_missing:
                gone = self._retire(model, supply, surplus, numbers)
                retires += gone
                reasons += [action.reason for action in gone[:1]]
            reason = "; ".join(reasons) or _standing(numbers)
            assessments.append(ModelAssessment(model.name, numbers, reason))
        return FleetDecision((*starts, *retires), tuple(assessments))

    def _interactive(
        self, model: ModelFleet, supply: Supply, state: ModelState
    ) -> tuple[dict[str, float], int, int]:
        settings = self.settings
        theta = state.history.theta(
            supply.demand,
            model.load_time_s,
            settings.theta_quantile,
            settings.default_theta,
            settings.min_theta,
        ).value
        busy = sum(
            instance.running_interactive > 0 or instance.waiting_interactive > 0
            for instance in supply.interactive
        )
        number = len(supply.interactive)
        ibp = interactive_backpressure(busy, number)
        if not number:
            ibp = interactive_backpressure(supply.demand, 0)
        wanted = math.ceil(max(busy, min(1, supply.demand)) / theta - 1e-9)
        numbers = {"ibp": ibp, "theta": theta, "busy": float(busy), "instances": float(number)}
        coming = number + len(supply.loading_interactive)
        short = model.min_instances - supply.count
        missing = max(wanted - coming if ibp > theta else 0, short)
        calm = ibp < theta * (1 - settings.hysteresis) and not supply.loading_interactive
        return numbers, max(0, missing), max(0, number - wanted) if calm else 0

    def _batch(self, model: ModelFleet, supply: Supply, state: ModelState, numbers: dict[str, float]) -> int:
        """Add one instance at a time until no group is late, in closed form.

        A group that is due before two load times have passed is to begin then: sooner, hardly any number of
        instances would do. One where batch requests wait and nothing serves them or will.
        """
        present = batch_supply(model, supply, state, self.settings)
        groups = []
        ahead = 0
        for group in model.backlog:
            ahead += group.requests
            before_last = {RequestClass.BATCH: ahead - 1}
            groups.append(GroupWork(group.deadline_in_s, state.waits.work(before_last)[2]))
        numbers["bbp"] = float(batch_backpressure(groups, present))
        if not model.backlog:
            return 0
        idle = not present.rate and not present.later
        each = state.curve.tokens_per_s(supply.batch_slots_each)
        missing = missing_batch_instances(groups, present, each, model.load_time_s) if each else 0.0
        return max(math.ceil(missing - 1e-9), int(idle))

    def _retire(
        self, model: ModelFleet, supply: Supply, surplus: int, numbers: Mapping[str, float]
    ) -> list[Retire]:
        may_go = max(0, supply.count - model.min_instances)
        gone: list[Retire] = []
        if not model.backlog and not supply.running_batch:
            gone = [
                Retire(model.name, instance.instance_id, "no batch request is left", numbers)
                for instance in (*supply.batch, *supply.loading_batch)[:may_go]
            ]
        idle = [
            instance
            for instance in supply.interactive
            if not instance.running_interactive and not instance.waiting_interactive
        ]
        idle = drains_soonest(idle, max(0, min(surplus, may_go - len(gone))))
        return [*gone, *(Retire(model.name, i.instance_id, "IBP is below Θ", numbers) for i in idle)]


def _standing(numbers: Mapping[str, float]) -> str:
    """Why nothing is added and nothing goes."""
    above = numbers["ibp"] > numbers["theta"]
    late = int(numbers["bbp"])
    interactive = "IBP is above Θ until what loads is ready" if above else "IBP is not above Θ"
    if not late:
        return f"{interactive}; BBP is 0"
    return f"{interactive}; BBP is {late}: no further instance is known to make a late group begin sooner"
