"""What a global autoscaler is."""

from __future__ import annotations

from typing import Protocol

from chiron.policy.decisions import FleetDecision
from chiron.policy.snapshots import FleetSnapshot


class GlobalAutoscaler(Protocol):
    """Sets how many instances of which role run. One object per cluster; it may learn from snapshots."""

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """Return what should change now. Snapshots come in the order of their times."""
        ...
