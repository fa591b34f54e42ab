"""What is recorded as advised where decisions are not carried out: once for each change of it. Pure.

Advice that ceases and comes back is the same advice: it is told again only after a long while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from chiron.policy.decisions import ChangeRole, FleetDecision
from services.global_controller.asked import signature
from services.global_controller.restraint import Restraint
from services.global_controller.view import Act

BETWEEN_ADVICE_S = 10.0
"""Between two records of what is advised for a model, at least."""
SAME_AGAIN_S = 600.0
"""Before advice that had ceased and came back as it was is recorded again, in seconds since its record."""


@dataclass(frozen=True, slots=True)
class _Told:
    """The last advice on record of a model."""

    what: Counter[str]
    at_s: float
    ceased: bool = False
    """Whether nothing was advised in between."""


class Advices:
    """Follows what is advised, model by model. Times are the controller's monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}

    def keep_only(self, names: Collection[str]) -> None:
        """Forgets every other model."""
        self._told = {name: one for name, one in self._told.items() if name in names}

    def acts(self, advice: FleetDecision, restraints: Mapping[str, Restraint], now: float) -> list[Act]:
        """What is to be recorded as advised at this tick."""
        found = {one.model: one for one in advice.assessments}
        acts = []
        for name, restraint in restraints.items():
            if not self._is_new(name, what := _what(name, advice, restraint), restraint, now):
                continue
            said = ", ".join(f"{kind} {count}" for kind, count in sorted(what.items()))
            assessment = found.get(name)
            why = assessment.reason if assessment else "no assessment"
            others = tuple(
                other for action in advice.actions if action.model == name for other in action.alternatives
            )
            numbers = assessment.numbers if assessment else {}
            reason = f"{said} ({restraint.reasons[0]}): {why}"
            acts.append(Act("advised", reason, name, numbers=numbers, alternatives=others))
        return acts

    def note(self, advice: FleetDecision, restraints: Mapping[str, Restraint], now: float) -> None:
        """The acts of this tick are on record."""
        for name, restraint in restraints.items():
            what, told = _what(name, advice, restraint), self._told.get(name)
            if restraint.own_count:
                self._told.pop(name, None)
            elif self._is_new(name, what, restraint, now):
                self._told[name] = _Told(what, now)
            elif told is not None and not told.ceased and not what:
                self._told[name] = _Told(told.what, told.at_s, ceased=True)

    def _is_new(self, name: str, what: Counter[str], restraint: Restraint, now: float) -> bool:
        if restraint.own_count or not what:
            return False
        told = self._told.get(name)
        if told is None:
            return True
        if what == told.what:
            return told.ceased and now - told.at_s >= SAME_AGAIN_S
        return now - told.at_s >= BETWEEN_ADVICE_S


def _what(name: str, advice: FleetDecision, restraint: Restraint) -> Counter[str]:
    """What would be done to the model if it were not in advisory mode: its pinned number would stay."""
    if restraint.nothing and restraint.count:
        changes = tuple(action for action in advice.actions if isinstance(action, ChangeRole))
        return signature(name, FleetDecision(changes, ()))
    return signature(name, advice)
