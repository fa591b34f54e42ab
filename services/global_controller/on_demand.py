"""Autoscaled models whose requests wait in vain: nothing of them serves or comes, and none can start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chiron.policy.decisions import ModelAssessment
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.policy.words import Phase

_PATIENCE_S = 10.0
"""How long requests may wait so before they are told: what is wanted may become possible."""
_THERE = (Phase.LOADING, Phase.READY)


class VainWaits:
    """Follows the models from tick to tick. Times are the controller's monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._why: dict[str, str] = {}

    def look(
        self, seen: FleetSnapshot, model: str, found: ModelAssessment | None, void: Sequence[str]
    ) -> None:
        """A tick has been carried out.

        Args:
            seen: what it rested on.
            model: one of its models.
            found: what the policy has found of the model.
            void: why actions on the model were not carried out.
        """
        fleet = next(one for one in seen.models if one.name == model)
        if not _waits(fleet) or any(one.phase in _THERE for one in fleet.instances):
            self._since.pop(model, None)
            self._why.pop(model, None)
            return
        if _something_leaves(seen):
            # Its GPUs may be what is waited for.
            self._since.pop(model, None)
        self._since.setdefault(model, seen.now_s)
        weighed = [each.why_not for each in found.alternatives] if found is not None else []
        why = list(dict.fromkeys([*void, *weighed])) or ([found.reason] if found is not None else [])
        self._why[model] = "no instance can be started: " + "; ".join(why)

    def why(self, model: str, now: float) -> str:
        """Why waiting for an instance of the model is in vain; empty: one may come any moment."""
        since = self._since.get(model)
        return self._why[model] if since is not None and now - since >= _PATIENCE_S else ""

    def forget_others(self, names: Iterable[str]) -> None:
        """Keeps these models alone."""
        for gone in self._since.keys() - set(names):
            del self._since[gone], self._why[gone]


def _waits(fleet: ModelFleet) -> bool:
    return fleet.traffic.queued_interactive > 0 or any(group.requests for group in fleet.backlog)


def _something_leaves(seen: FleetSnapshot) -> bool:
    return any(one.phase is Phase.DRAINING for model in seen.models for one in model.instances)
