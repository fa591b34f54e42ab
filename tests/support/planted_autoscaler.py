"""An autoscaler whose best setting is known: it holds the instances that it is set to."""

from __future__ import annotations

from dataclasses import dataclass

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment, Retire, Start
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.policy.words import Phase, Role


@dataclass(frozen=True, slots=True)
class PlantedSettings:
    """One number that matters, and one that does not."""

    instances: int = 8
    decoy: float = 1.0

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise ValueError(f"instances: must be at least 1, got {self.instances}")
        if not self.decoy > 0:
            raise ValueError(f"decoy: must be positive, got {self.decoy}")


class Planted:
    """Starts what is missing and retires what is too much."""

    def __init__(self, settings: PlantedSettings) -> None:
        self._settings = settings

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        actions = [action for model in snapshot.models for action in self._actions(model)]
        found = [ModelAssessment(model.name, {}, "as it is set") for model in snapshot.models]
        return FleetDecision(tuple(actions), tuple(found))

    def _actions(self, model: ModelFleet) -> list[Action]:
        there = [one for one in model.instances if one.phase in (Phase.LOADING, Phase.READY)]
        missing = self._settings.instances - len(there)
        if missing > 0:
            return [Start(model.name, Role.MIXED, missing, "fewer than it is set to", {})]
        return (
            [Retire(model.name, one.instance_id, "more than it is set to") for one in there[missing:]]
            if missing
            else []
        )
