"""A global autoscaler that brings each model to what a test wants of it."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from chiron.policy.decisions import Action, ChangeRole, FleetDecision, ModelAssessment, Retire, Start
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.policy.words import Phase, Role

NAME = "tests.support.target_autoscaler:Target"


class Target:
    """Roles change first, then instances start or retire; within the model's minimum and maximum."""

    wanted: ClassVar[dict[str, dict[Role, int]]] = {}
    """Model → instances by role; a model that is not in it stays as it is."""
    snapshots: ClassVar[list[FleetSnapshot]] = []
    """What it was asked about."""
    mistake: ClassVar[str] = ""
    """What it raises; empty: it decides."""

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        Target.snapshots.append(snapshot)
        if Target.mistake:
            raise RuntimeError(Target.mistake)
        actions = [action for model in snapshot.models for action in self._actions(model)]
        numbers = {"ibp": 0.5, "bbp": 0.0, "theta": 0.8}
        found = [ModelAssessment(model.name, numbers, "the test wants it") for model in snapshot.models]
        return FleetDecision(tuple(actions), tuple(found))

    def _actions(self, model: ModelFleet) -> list[Action]:
        there = [one for one in model.instances if one.phase in (Phase.LOADING, Phase.READY)]
        if model.name not in Target.wanted:
            return []
        missing = Counter(Target.wanted[model.name])
        missing.subtract(one.role for one in there)
        surplus = []
        for one in there:
            if missing[one.role] < 0:
                missing[one.role] += 1
                surplus.append(one)
        actions: list[Action] = []
        for role in [role for role, count in missing.items() for _ in range(max(0, count))]:
            if surplus:
                changed = surplus.pop(0)
                actions.append(ChangeRole(model.name, changed.instance_id, role, "another role is wanted"))
                missing[role] -= 1
        room = (model.max_instances or 1000) - len(there)
        for role, count in missing.items():
            if (count := min(count, room)) > 0:
                actions.append(Start(model.name, role, count, "more are wanted", {"ibp": 0.5}))
                room -= count
        spare = len(there) - model.min_instances
        actions += [
            Retire(model.name, one.instance_id, "fewer are wanted") for one in surplus[: max(0, spare)]
        ]
        return actions
