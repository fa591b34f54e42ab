"""The bounded queue of one model's waiting requests. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping

from chiron.policy.words import RequestClass
from services.router.backlog import Backlog
from services.router.lines import BatchLine, Cost, InteractiveLine, Line, Weight
from services.router.request import PendingRequest

_MORE_RESUMED = 16
"""How many times the limit may wait to go on from delivered tokens."""
STARVATION_S = 300.0

_Key = tuple[int, bool]
"""Priority, and whether the request begins; in the order in which they go."""


class QueueFullError(Exception):
    """The queue holds as many requests of a class as it may."""


class _Held:
    """How many requests of each tenant wait; every operation is O(1)."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight
        self._counts: dict[str, int] = {}
        self._weights: dict[str, float] = {}
        """Of those that wait, as they were when they began to."""
        self._all = 0.0

    def count(self, tenant: str) -> int:
        return self._counts.get(tenant, 0)

    def share(self, tenant: str) -> float:
        """What the tenant weighs among those that wait and itself."""
        if tenant in self._weights:
            return min(1.0, self._weights[tenant] / self._all)
        own = self._weight(tenant)
        return own / (self._all + own)

    def add(self, tenant: str) -> None:
        if tenant not in self._counts:
            self._weights[tenant] = self._weight(tenant)
            self._all += self._weights[tenant]
        self._counts[tenant] = self.count(tenant) + 1

    def remove(self, tenant: str) -> None:
        self._counts[tenant] -= 1
        if not self._counts[tenant]:
            del self._counts[tenant]
            self._all -= self._weights.pop(tenant)
            if not self._counts:
                self._all = 0.0


class WaitingQueue:
    """Requests ordered by class (interactive first), priority (lower first), those that go on from delivered
    tokens before those that begin, the shares of tenants (interactive ones alone), and the discipline.

    The limit is each class's own, so that a pile of batch requests keeps no interactive one out. It is higher
    for those that go on from delivered tokens, as they were let in before; but anybody can say so. One
    tenant's pile keeps no other one out either: at the limit whoever has less than its share of it in the
    queue is let in, so that k tenants hold at most 1 + 1/2 + … + 1/k times the limit, of equal weights.
    Every operation is O(log n), amortised; what is kept is a small multiple of the requests that wait.
    """

    def __init__(
        self,
        limit: int,
        discipline: str = "edf",
        starvation_s: float = STARVATION_S,
        cost: Cost = lambda _: 1.0,
        weight: Weight = lambda _: 1.0,
    ) -> None:
        """Empty.

        Args:
            limit: most requests of a class that wait.
            discipline: `fcfs`, `edf` or `mlfq`.
            starvation_s: an interactive request that has waited for so long, in seconds, goes before all of
                its tenant and priority that have not.
            cost: what an interactive request takes of its tenant's share.
            weight: the tenants' shares.
        """
        self._limit = limit
        self._discipline = discipline
        self._starvation_s = starvation_s
        self._cost = cost
        self._weight = weight
        self._held: dict[RequestClass, _Held] = {kind: _Held(weight) for kind in RequestClass}
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
        if request.resumed_at is not None:
            return self.going_on >= _MORE_RESUMED * self._limit
        kind = request.request_class
        if len(self._live[kind]) < self._limit:
            return False
        held = self._held[kind]
        return held.count(request.tenant) >= held.share(request.tenant) * self._limit

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
        self._held[kind].add(request.tenant)
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
            self.take(request)
        return request

    def take(self, request: PendingRequest) -> None:
        """Takes out a request that waits and goes to an instance."""
        self._lines[request.request_class][self._live[request.request_class][request]].take(request)
        self._left(request)

    def remove(self, request: PendingRequest) -> bool:
        """Takes out a request that leaves, wherever it stands; False when it does not wait."""
        key = self._live[request.request_class].get(request)
        if key is None:
            return False
        self._lines[request.request_class][key].remove(request)
        self._left(request)
        return True

    def _left(self, request: PendingRequest) -> None:
        kind = request.request_class
        key = self._live[kind].pop(request)
        self._held[kind].remove(request.tenant)
        if not len(self._lines[kind][key]):
            del self._lines[kind][key]
            del self._keys[kind][bisect_left(self._keys[kind], key)]
        self.going_on -= not key[1]
        self.resumed.discard(request)
        if kind is RequestClass.BATCH:
            self.backlog.remove(request)

    def in_order(self, kind: RequestClass, now: float) -> list[PendingRequest]:
        """The waiting requests of a class, the first to go at `now` in front. O(n log n)."""
        standing: dict[_Key, list[PendingRequest]] = {key: [] for key in self._keys[kind]}
        for request, key in self._live[kind].items():
            standing[key].append(request)
        lines = self._lines[kind]
        return [one for key, requests in standing.items() for one in lines[key].in_order(requests, now)]

    def ahead(self, request: PendingRequest) -> Mapping[RequestClass, int]:
        """Requests that go before one that would be added now, by class, as things stand; O(priorities +
        tenants)."""
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
        return InteractiveLine(self._discipline, self._starvation_s, self._cost, self._weight)
