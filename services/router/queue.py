"""The bounded queue of one model's waiting requests. Pure."""

from __future__ import annotations

import heapq

from chiron.policy.words import RequestClass
from services.router.backlog import Backlog
from services.router.request import PendingRequest

_MORE_RESUMED = 16
"""How many times the limit may wait to go on from delivered tokens."""
_STALE = 16
"""Entries of requests that have left which a heap may hold in any case."""


class QueueFullError(Exception):
    """The queue holds as many requests of a class as it may."""


class WaitingQueue:
    """Requests ordered by class (interactive first), priority (lower first) and arrival.

    The limit is each class's own, so that a pile of batch requests keeps no interactive one out. It is higher
    for those that go on from delivered tokens, as they were let in before; but anybody can say so.
    push and pop are O(log n), amortised; so is remove of a batch request, one of an interactive one is O(1)
    amortised. The heaps hold at most twice as many entries as requests wait, and a few.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pushes = 0
        self._heaps: dict[RequestClass, list[tuple[int, int, int, PendingRequest]]] = {
            kind: [] for kind in RequestClass
        }
        self.resumed: set[PendingRequest] = set()
        """Those that wait to go on from delivered tokens on certain weights."""
        self.ahead = 0
        """How many of them go on from delivered tokens."""
        self._live: dict[RequestClass, set[PendingRequest]] = {kind: set() for kind in RequestClass}
        self.backlog = Backlog()
        """The batch requests that wait, in groups."""

    def __len__(self) -> int:
        return sum(len(live) for live in self._live.values())

    def __contains__(self, request: PendingRequest) -> bool:
        return request in self._live[request.request_class]

    def count(self, kind: RequestClass) -> int:
        """Waiting requests of one class."""
        return len(self._live[kind])

    def push(self, request: PendingRequest, *, readmit: bool = False) -> None:
        """Adds a request at its place.

        Args:
            request: not in the queue now.
            readmit: it was admitted before (a retry), so the limit does not apply.

        Raises:
            QueueFullError: the limit of its class is reached.
        """
        heap, live = self._heaps[request.request_class], self._live[request.request_class]
        if request.resumed_at is None:
            full = len(live) >= self._limit
        else:
            full = self.ahead >= _MORE_RESUMED * self._limit
        if full and not readmit:
            raise QueueFullError
        live.add(request)
        self.ahead += request.resumed_at is not None
        if request.spec_version:
            self.resumed.add(request)
        if request.request_class is RequestClass.BATCH:
            self.backlog.add(request)
        # A request that left and came back has a stale entry too; the number keeps the two comparable.
        self._pushes += 1
        heapq.heappush(heap, (request.priority, request.sequence, self._pushes, request))

    def pop(self, kind: RequestClass) -> PendingRequest | None:
        """Takes out the first request of a class; None when none waits."""
        heap = self._heaps[kind]
        while heap:
            request = heapq.heappop(heap)[3]
            if self.remove(request):
                return request
        return None

    def remove(self, request: PendingRequest) -> bool:
        """Takes out a request wherever it stands; False when it does not wait."""
        live = self._live[request.request_class]
        if request not in live:
            return False
        live.remove(request)
        self.ahead -= request.resumed_at is not None
        heap = self._heaps[request.request_class]
        if len(heap) > 2 * len(live) + _STALE:
            heap[:] = [entry for entry in heap if entry[3] in live]
            heapq.heapify(heap)
        self.resumed.discard(request)
        if request.request_class is RequestClass.BATCH:
            self.backlog.remove(request)
        return True

    def in_order(self, kind: RequestClass) -> list[PendingRequest]:
        """The waiting requests of a class, the first to go in front. O(n log n)."""
        return sorted(self._live[kind], key=lambda request: (request.priority, request.sequence))

    def clear(self) -> list[PendingRequest]:
        """Takes out everything, in order."""
        taken = []
        for kind in RequestClass:
            while (request := self.pop(kind)) is not None:
                taken.append(request)
        return taken
