"""Slots of instances as believed: a few reports of fewer are no reason to start any (reconstructed).

A local autoscaler that begins to learn anew may for a moment tell a safe batch size of a few requests on an
engine that runs hundreds. What it still tells after `REPORTS` ticks is believed; more slots are at once.
"""

from __future__ import annotations

from collections import deque

from chiron.policy.snapshots import FleetInstance, ModelFleet

REPORTS = 3
"""Ticks of which the most counts."""


class SteadySlots:
    """One model's instances; forgets those that are gone."""

    def __init__(self) -> None:
        self._told: dict[str, deque[int]] = {}

    def see(self, model: ModelFleet) -> None:
        """Take a tick's snapshot in. O(instances)."""
        before, self._told = self._told, {}
        for instance in model.instances:
            told = before.get(instance.instance_id) or deque(maxlen=REPORTS)
            # What its local autoscaler has not opened yet takes nobody in before a queue builds up.
            told.append(min(instance.safe_batch_size, instance.batch_size))
            self._told[instance.instance_id] = told

    def usable(self, instance: FleetInstance) -> int:
        """Requests that it may run at once, in requests. Raises KeyError for one that was not seen."""
        return max(self._told[instance.instance_id])
