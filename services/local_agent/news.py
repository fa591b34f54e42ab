"""What of an instance's status is worth a report at once. Pure."""

from __future__ import annotations

from chiron.v1 import cluster_pb2


class News:
    """Compares each status with the one before; figures that change every second do not count."""

    def __init__(self) -> None:
        self._before = b""

    def is_news(self, status: cluster_pb2.InstanceStatus) -> bool:
        """Whether a report of this status must not wait for its interval. Drops its figures."""
        status.ClearField("load")
        serialized = status.SerializeToString(deterministic=True)
        before, self._before = self._before, serialized
        return serialized != before
