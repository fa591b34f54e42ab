"""The bounded queue of one model's waiting requests. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping

from chiron.policy.words import RequestClass
from services.router.backlog import Backlog
from services.router.lines import BatchLine, InteractiveLine, Line
from services.router.request import PendingRequest

_MORE_RESUMED = 16
"""How many times the limit may wait to go on from delivered tokens."""
STARVATION_S = 300.0

_Key = tuple[int, bool]
"""Priority, and whether the request begins; in the order in which they go."""


class QueueFullError(Exception):
    """The queue holds as many requests of a class as it may."""


class WaitingQueue:
    """Requests ordered by class (interactive first), priority (lower first), those that go on from delivered
    tokens before those that begin, and the discipline.

    The limit is each class's own, so that a pile of batch requests keeps no interactive one out. It is higher
    for those that go on from delivered tokens, as they were let in before; but anybody can say so.
    Every operation is O(log n), amortised; what is kept is a small multiple of the requests that wait.
    """

    def __init__(self, limit: int, discipline: str = "edf", starvation_s: float = STARVATION_S) -> None:
        """Empty.

        Args:
            limit: most requests of a class that wait.
            discipline: `fcfs`, `edf` or `mlfq`.
            starvation_s: an interactive request that has waited for so long, in seconds, goes before all of
                its priority that have not.
        """
        self._limit = limit
        self._discipline = discipline
        self._starvation_s = starvation_s
        self._live: dict[RequestClass, dict[PendingRequest, _Key]] = {kind: {} for kind in RequestClass}
        self._lines: dict[RequestClass, dict[_Key, Line]] = {kind: {} for kind in RequestClass}
        self._keys: dict[RequestClass, list[_Key]] = {kind: [] for kind in RequestClass}
        self.resumed: set[PendingRequest] = set()
        """Those that wait to go on from delivered tokens on certain weights."""
        self.going_on = 0
        """How many of them go on from delivered tokens."""
        self.backlog = Backlog()
        """The batch requests that wait, in groups."""

    def __len__(self) -> int:
        return sum(len(live) for live in self._live.values())

    def __contains__(self, request: PendingRequest) -> bool:
        return request in self._live[request.request_class]

    def count(self, kind: RequestClass) -> int:
        """Waiting requests of one class."""
        return len(self._live[kind])

    def full(self, request: PendingRequest) -> bool:
        """Whether a request that was not let in before finds no place."""
        if request.resumed_at is None:
            return len(self._live[request.request_class]) >= self._limit
        return self.going_on >= _MORE_RESUMED * self._limit

    def push(self, request: PendingRequest, *, readmit: bool = False) -> None:
        """Adds a request at its place.

        Args:
            request: not in the queue now.
            readmit: it was admitted before (a retry), so the limit does not apply.

        Raises:
            QueueFullError: the limit of its class is reached.
        """
        if not readmit and self.full(request):
            raise QueueFullError
        kind = request.request_class
        key = (request.priority, request.resumed_at is None)
        self._live[kind][request] = key
        line = self._lines[kind].get(key)
        if line is None:
            line = self._lines[kind][key] = self._line(kind)
            insort(self._keys[kind], key)
        line.add(request)
        self.going_on += request.resumed_at is not None
        if request.spec_version:
            self.resumed.add(request)
        if kind is RequestClass.BATCH:
            self.backlog.add(request)

    def peek(self, kind: RequestClass, now: float) -> PendingRequest | None:
        """The first request of a class; None when none waits. `now` is monotonic, in seconds."""
        keys = self._keys[kind]
        return self._lines[kind][keys[0]].peek(now) if keys else None

    def pop(self, kind: RequestClass, now: float = -math.inf) -> PendingRequest | None:
        """Takes out the first request of a class; without `now` nobody has waited for too long."""
        request = self.peek(kind, now)
        if request is not None:
            self.remove(request)
        return request

    def remove(self, request: PendingRequest) -> bool:
        """Takes out a request wherever it stands; False when it does not wait."""
        kind = request.request_class
        key = self._live[kind].pop(request, None)
        if key is None:
            return False
        line = self._lines[kind][key]
        line.remove(request)
        if not len(line):
            del self._lines[kind][key]
            del self._keys[kind][bisect_left(self._keys[kind], key)]
        self.going_on -= not key[1]
        self.resumed.discard(request)
        if kind is RequestClass.BATCH:
            self.backlog.remove(request)
        return True

    def in_order(self, kind: RequestClass, now: float) -> list[PendingRequest]:
        """The waiting requests of a class, the first to go at `now` in front. O(n log n)."""
        copies = {key: self._line(kind) for key in self._keys[kind]}
        for request, key in self._live[kind].items():
            copies[key].add(request)
        ordered = []
        for line in copies.values():
            while (head := line.peek(now)) is not None:
                line.remove(head)
                ordered.append(head)
        return ordered

    def ahead(self, request: PendingRequest) -> Mapping[RequestClass, int]:
        """Requests that go before one that would be added now, by class; O(priorities), as things stand."""
        kind = request.request_class
        own = (request.priority, request.resumed_at is None)
        lines = self._lines[kind]
        before = sum(len(line) for key, line in lines.items() if key < own)
        if own in lines:
            before += lines[own].ahead(request)
        if kind is RequestClass.INTERACTIVE:
            return {kind: before}
        return {RequestClass.INTERACTIVE: self.count(RequestClass.INTERACTIVE), kind: before}

    def clear(self) -> list[PendingRequest]:
        """Takes out everything, in order."""
        taken = []
        for kind in RequestClass:
            while (request := self.pop(kind)) is not None:
                taken.append(request)
        return taken

    def _line(self, kind: RequestClass) -> Line:
        if kind is RequestClass.BATCH:
            return BatchLine(self._discipline)
        return InteractiveLine(self._discipline, self._starvation_s)
