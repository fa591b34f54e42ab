"""How long each instance has been ready, and how its requests have ended.

Times are the controller's monotonic clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.view import Health


@dataclass(frozen=True, slots=True)
class _Since:
    """A worker that is ready."""

    incarnation: int
    ready_at: float


class HealthBook:
    """Follows all instances. A worker that starts again begins anew, also between two reports."""

    def __init__(self) -> None:
        self._since: dict[str, _Since] = {}

    def take(self, statuses: Mapping[str, cluster_pb2.InstanceStatus], now: float) -> Mapping[str, Health]:
        """The health of every instance that is ready.

        Args:
            statuses: what was last reported of each; those of agents that have gone stay until they return.
            now: monotonic time, in seconds.
        """
        before, self._since = self._since, {}
        health = {}
        for key, status in statuses.items():
            if status.state != types_pb2.INSTANCE_STATE_READY:
                continue
            since = before.get(key)
            if since is None or since.incarnation != status.incarnation:
                # The agent knows how long it has been so: it may have been ready under another controller.
                since = _Since(status.incarnation, now - status.state_age_ms / 1e3)
            self._since[key] = since
            load = status.load
            health[key] = Health(
                ready_s=now - since.ready_at,
                served=load.finished_interactive.requests + load.finished_batch.requests,
                failed=load.failed_requests,
            )
        return health
