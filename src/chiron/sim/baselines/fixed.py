"""`fixed`: keeps the number of instances that it found, and replaces those that fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from chiron.policy.decisions import FleetDecision, ModelAssessment, Start
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.policy.words import Phase, Role

_ALIVE = (Phase.LOADING, Phase.READY)


class FixedFleet:
    """Holds the fleet of the first snapshot: as many instances of each model in each role."""

    def __init__(self) -> None:
        self._wanted: dict[str, Mapping[Role, int]] = {}

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """Starts what is missing; never retires anything."""
        actions: list[Start] = []
        assessments: list[ModelAssessment] = []
        for model in snapshot.models:
            have = _count(model)
            wanted = self._wanted.setdefault(model.name, have)
            missing = {role: count - have[role] for role, count in wanted.items() if count > have[role]}
            numbers = {"instances": sum(have.values()), "wanted": sum(wanted.values())}
            for role, count in sorted(missing.items()):
                actions.append(
                    Start(model.name, role, count, "instances of the fixed fleet are gone", numbers)
                )
            reason = "the fleet is fixed" if not missing else "instances of the fixed fleet are gone"
            assessments.append(ModelAssessment(model.name, numbers, reason))
        return FleetDecision(tuple(actions), tuple(assessments))


def _count(model: ModelFleet) -> Counter[Role]:
    return Counter(instance.role for instance in model.instances if instance.phase in _ALIVE)
