"""How old what the agent reports of an instance is. Pure; times are monotonic, in seconds.

Ages travel rather than moments, so that no two hosts' clocks have to agree.
"""

from __future__ import annotations

from chiron.v1 import cluster_pb2, types_pb2
from services.local_agent.condition import Heard


class Ages:
    """Follows one instance's reported state from one change to the next."""

    def __init__(self) -> None:
        self._state: types_pb2.InstanceState.ValueType | None = None
        self._since = 0.0

    def note(self, state: types_pb2.InstanceState.ValueType, now: float) -> None:
        """The instance is in this state."""
        if state != self._state:
            self._state, self._since = state, now

    def fill(self, status: cluster_pb2.InstanceStatus, heard: Heard, now: float) -> None:
        """Writes the ages into a status that is reported now."""
        self.note(status.state, now)
        status.state_age_ms = 1e3 * (now - self._since)
        if status.HasField("load"):
            status.load_age_ms = 1e3 * (now - heard.load_at)
