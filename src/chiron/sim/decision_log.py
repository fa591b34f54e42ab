"""The decisions of a run with their reasons and numbers, as JSON Lines in their order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from chiron.policy.decisions import (
    Action,
    ChangeRole,
    FleetDecision,
    ModelAssessment,
    Retire,
    Sleep,
    Start,
    Wake,
)
from chiron.policy.words import Role

KIND = {Start: "start", Retire: "retire", ChangeRole: "change-role", Wake: "wake", Sleep: "sleep"}
"""What results and logs call an action."""


class Writer(Protocol):
    """Takes text: a file, or what stands before one."""

    def write(self, text: str, /) -> object:
        """Take this much more."""


class DecisionLog:
    """Writes a line for each model that a tick assessed and for each action that it asked for.

    All lines have `at_s` (simulated seconds), `model`, `kind`, `reason` and `numbers`, and `alternatives`
    where something else was weighed. `kind` is `assessment` or that of an action; an action has `instances`
    too, those that it was carried out on (none: it was void, or found no room), a start `role` and `asked`,
    how many it asked for.
    """

    def __init__(self, out: Writer) -> None:
        self._out = out

    def tick(self, at_s: float, decision: FleetDecision, done: Sequence[Sequence[str]]) -> None:
        """Write one tick. done: the instances of each action, in the order of the decision's."""
        for assessed in decision.assessments:
            self._write(at_s, "assessment", assessed)
        for action, instances in zip(decision.actions, done, strict=True):
            more = _particulars(action) | {"instances": list(instances)}
            self._write(at_s, KIND[type(action)], action, more)

    def _write(
        self, at_s: float, kind: str, told: Action | ModelAssessment, more: Mapping[str, Any] | None = None
    ) -> None:
        line = {"at_s": at_s, "model": told.model, "kind": kind, **(more or {}), "reason": told.reason}
        line["numbers"] = dict(told.numbers)
        if told.alternatives:
            line["alternatives"] = [
                {"action": one.action, "why_not": one.why_not, "numbers": dict(one.numbers)}
                for one in told.alternatives
            ]
        self._out.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")


def _particulars(action: Action) -> dict[str, Any]:
    if isinstance(action, Start):
        return {"role": _name(action.role), "asked": action.count}
    if isinstance(action, ChangeRole | Wake):
        return {"role": _name(action.role)}
    return {}


def _name(role: Role) -> str:
    return role.name.lower()
