"""What lookaside requests hold of their tenants' quotas, until their worker reports their end. Pure.

A request counts once, however many tickets it needs: whoever comes again because its worker refused it, or
was lost, goes on with what it held. Times are monotonic seconds.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from chiron.auth.quotas import Account, Hold
from chiron.internal.v1 import worker_pb2

_LATE_S = 5.0
"""For how long after its time a worker may still report that a ticket was used in time."""
_MOST_UNUSED = 4
"""Tickets in a row for one hold: each of them could be used, at as many workers."""
_LOST_S = 60.0
"""For how long a request that was lost may come again and go on with what it held."""


@dataclass(slots=True, eq=False)
class _HandedOut:
    hold: Hold
    instance_id: str
    request_id: str
    lapses: float
    started: bool = False
    lost: bool = False
    """Its worker has gone, or has given it up."""

    @property
    def free(self) -> bool:
        """Whether its request, should it come again, may go on with the hold."""
        return self.lost or (self.hold.open and not self.started and self.hold.unused < _MOST_UNUSED)


class LookasideHolds:
    """Holds of the requests that hold a ticket, or run by one."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, _HandedOut]] = {}
        """Instance id → request id → hold."""
        self._newest: dict[tuple[Account, str], _HandedOut] = {}
        """Account and request id → where it was handed out last."""
        # All tickets live equally long, so that the oldest is the next to lapse.
        self._by_lapse: deque[_HandedOut] = deque()
        self._to_forget: list[tuple[float, int, _HandedOut]] = []
        self._turn = count()

    def hand_out(self, hold: Hold, instance_id: str, request_id: str, lapses: float) -> None:
        """A ticket has gone out; unless its worker counts the request by `lapses`, it never ran."""
        held = self._of.setdefault(instance_id, {})
        earlier = held.pop(request_id, None)
        if earlier is not None and earlier.hold is not hold:
            earlier.hold.end()
        one = held[request_id] = _HandedOut(hold, instance_id, request_id, lapses)
        self._newest[hold.account, request_id] = one
        self._by_lapse.append(one)

    def reclaim(
        self, account: Account, request_id: str, tokens: int, key: Account | None = None
    ) -> Hold | None:
        """What a request that comes again held, in force again; None: it must take what it needs.

        Under another key, or another key's limits, it is another request.

        Its earlier ticket may be used yet: should its worker report that, it counts for itself.
        """
        one = self._newest.get((account, request_id))
        if one is None or not one.free or tokens > one.hold.tokens or one.hold.key is not key:
            return None
        del self._newest[account, request_id]
        hold = one.hold
        hold.unused = 0 if one.lost else hold.unused + 1
        one.hold, one.lost = Hold(account, hold.tokens, key, open=False), False
        hold.redo()
        return hold

    def heard(self, load: worker_pb2.WatchLoadResponse, now: float) -> None:
        """A worker told which requests began and ended."""
        held = self._of.get(load.instance_id)
        if not held:
            return
        for request_id in load.started_request_ids:
            if (one := held.get(request_id)) is not None:
                one.started, one.lost = True, False
                one.hold.redo()
        self._lose((held[key] for key in load.interrupted_request_ids if key in held), now)
        for request_id in load.finished_request_ids:
            if (one := held.get(request_id)) is not None and not one.lost:
                self._remove(one)
                one.hold.end()

    def lost(self, instance_id: str, now: float) -> None:
        """What the instance runs is no longer heard of."""
        self._lose(self._of.get(instance_id, {}).values(), now)

    def expire(self, now: float) -> None:
        """Gives back what was held for tickets that nobody used in time."""
        queue = self._by_lapse
        while queue and queue[0].lapses <= now:
            one = queue.popleft()
            if not (one.started or one.lost):
                one.hold.undo()
                self._forget_at(one.lapses + _LATE_S, one)
        while self._to_forget and self._to_forget[0][0] <= now:
            one = heapq.heappop(self._to_forget)[2]
            if not one.hold.open:
                self._remove(one)

    def __len__(self) -> int:
        """How many are kept."""
        return sum(map(len, self._of.values()))

    def _lose(self, lost: Iterable[_HandedOut], now: float) -> None:
        for one in lost:
            if one.hold.open:
                one.lost = True
                one.hold.undo()
                self._forget_at(now + _LOST_S, one)

    def _forget_at(self, at: float, one: _HandedOut) -> None:
        heapq.heappush(self._to_forget, (at, next(self._turn), one))

    def _remove(self, one: _HandedOut) -> None:
        held = self._of.get(one.instance_id, {})
        if held.get(one.request_id) is one:
            del held[one.request_id]
            if not held:
                del self._of[one.instance_id]
        key = one.hold.account, one.request_id
        if self._newest.get(key) is one:
            del self._newest[key]
