"""What lookaside requests hold of their tenants' quotas, until their worker reports their end. Pure.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from chiron.auth.quotas import Hold
from chiron.internal.v1 import worker_pb2


@dataclass(slots=True, eq=False)
class _HandedOut:
    hold: Hold
    instance_id: str
    request_id: str
    lapses: float
    started: bool = False


class LookasideHolds:
    """Holds of the requests that hold a ticket, or run by one."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, _HandedOut]] = {}
        """Instance id → request id → hold."""
        # All tickets live equally long, so that the oldest is the next to lapse.
        self._by_lapse: deque[_HandedOut] = deque()

    def hand_out(self, hold: Hold, instance_id: str, request_id: str, lapses: float) -> None:
        """A ticket has gone out; unless its worker counts the request by `lapses`, it never ran."""
        held = self._of.setdefault(instance_id, {})
        earlier = held.pop(request_id, None)
        if earlier is not None:
            earlier.hold.end()
        one = held[request_id] = _HandedOut(hold, instance_id, request_id, lapses)
        self._by_lapse.append(one)

    def heard(self, load: worker_pb2.WatchLoadResponse) -> None:
        """A worker told which requests began and ended."""
        held = self._of.get(load.instance_id)
        if not held:
            return
        for request_id in load.started_request_ids:
            if request_id in held:
                held[request_id].started = True
        for request_id in load.finished_request_ids:
            one = held.pop(request_id, None)
            if one is not None:
                one.hold.end()

    def lost(self, instance_id: str) -> None:
        """What the instance runs is no longer heard of."""
        for one in self._of.pop(instance_id, {}).values():
            one.hold.end()

    def expire(self, now: float) -> None:
        """Gives back what was held for tickets that nobody used in time."""
        queue = self._by_lapse
        while queue and queue[0].lapses <= now:
            one = queue.popleft()
            held = self._of.get(one.instance_id, {})
            if not one.started and held.get(one.request_id) is one:
                del held[one.request_id]
                one.hold.undo()
