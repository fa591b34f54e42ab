"""Gives routers notice of an instance that is to stop, or to sleep, before its node is told.

The routing table calls it DRAINING as soon as it is wanted no more; its worker refuses requests only once its
agent knows. In between, whatever routers have sent there already still finds it open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from chiron.internal.v1 import control_pb2
from chiron.store import InstanceRecord
from services.global_controller.fleet import is_ready, is_stopping, is_to_sleep


class Notice:
    """Which stops are not to be told yet. Times are monotonic, in seconds."""

    def __init__(self, notice_s: float) -> None:
        self._notice_s = notice_s
        self._since: dict[str, float] = {}
        self.held: frozenset[str] = frozenset()
        """Ids of the instances whose nodes are told as if they were still wanted."""
        self.due: float | None = None
        """When the next of them is to be told; None: there is none."""

    def begin(self, instances: Iterable[InstanceRecord], now: float) -> None:
        """Takes every stop that is on record already for told: by an earlier leader, whose nodes must not be
        told again to run what they are draining.

        Args:
            instances: all on record.
            now: the present time.
        """
        self._since = {one.instance_id: now - self._notice_s for one in instances if _is_leaving(one)}

    def update(self, instances: Iterable[InstanceRecord], now: float, *, routers: bool) -> None:
        """Looks at the state anew.

        Args:
            instances: all on record.
            now: the present time.
            routers: whether there are any; otherwise nobody needs notice.
        """
        before, self._since = self._since, {}
        for record in instances:
            if _is_leaving(record):
                # One that nobody sends to is told at once, and what was told is not taken back: its node may
                # report it as ready afterwards.
                waits = routers and is_ready(record)
                began = before.get(record.instance_id, now)
                self._since[record.instance_id] = began if waits else now - self._notice_s
        ends = {key: since + self._notice_s for key, since in self._since.items()}
        self.held = frozenset(key for key, end in ends.items() if end > now)
        self.due = min((ends[key] for key in self.held), default=None)

    def as_told(self, record: InstanceRecord) -> InstanceRecord:
        """The record as its node is told of it now: leaving is the last change of what is wanted."""
        if record.instance_id not in self.held:
            return record
        return dataclasses.replace(
            record, desired=control_pb2.DESIRED_STATE_RUNNING, generation=record.generation - 1
        )


def _is_leaving(record: InstanceRecord) -> bool:
    return is_stopping(record) or is_to_sleep(record)
