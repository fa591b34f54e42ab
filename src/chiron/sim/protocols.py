"""The policies that a simulation is given, as it calls them."""

from __future__ import annotations

from typing import Protocol

from chiron.policy.decisions import FleetDecision, Limits
from chiron.policy.snapshots import FleetSnapshot, InstanceSample


class LocalAutoscaler(Protocol):
    """Sets one instance's limits; one object per instance."""

    def decide(self, sample: InstanceSample) -> Limits:
        """Return what the engine should run with from now on."""
        ...


class GlobalAutoscaler(Protocol):
    """Sets how many instances of which role run; one object per simulation."""

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """Return what should change now."""
        ...
