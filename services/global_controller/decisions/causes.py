"""Which decision another one follows from, by what both are about. Pure."""

from __future__ import annotations

from chiron.store import DecisionRecord
from services.global_controller.view import Act

NOTHING = "nothing"
"""As Act.follows: it follows from no decision, but from what happened."""
_ROLL = "roll"
_CHANGES_NOTHING = ("advised", "pause", "resume")
"""Decisions about a model from which nothing about its instances follows."""


def of_node(node_id: str) -> str:
    """As Act.follows: what was last decided about a node as a whole."""
    return f"node:{node_id}"


def of_roll(model: str) -> str:
    """As Act.follows: what was last decided about a model's roll."""
    return f"roll:{model}"


def _of_model(model: str) -> str:
    return f"model:{model}"


class Causes:
    """Remembers the last decision about each model, roll and node as a whole."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def note(self, decision: DecisionRecord) -> None:
        """A decision is on record; those of the log are noted in their order."""
        if decision.instance_id or decision.action in _CHANGES_NOTHING:
            return
        if decision.model:
            self._last[_of_model(decision.model)] = decision.decision_id
            if decision.action == _ROLL:
                self._last[of_roll(decision.model)] = decision.decision_id
        elif decision.node_id:
            self._last[of_node(decision.node_id)] = decision.decision_id

    def of(self, act: Act) -> str:
        """Id of the decision that an act follows from; empty: none that is known.

        Acts about an instance follow from the last decision about its model, where they do not say otherwise.
        """
        if act.cause or act.follows == NOTHING:
            return act.cause
        if act.follows:
            return self._last.get(act.follows, "")
        return self._last.get(_of_model(act.model), "") if act.instance_id and act.model else ""
