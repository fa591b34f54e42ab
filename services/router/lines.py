"""Lines of waiting requests of one class, one priority and one kind of beginning, by a discipline. Pure.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, cast

from chiron.policy.batch_queue import BatchQueue
from chiron.policy.disciplines import Waiting, load_discipline
from chiron.policy.groups import GroupedRequest
from chiron.policy.snapshots import NEVER_S
from chiron.policy.tenant_queue import TenantQueue
from services.router.request import PendingRequest


class Line(Protocol):
    """Who waits for the same; every operation is O(log n), amortised."""

    def __len__(self) -> int:
        """Requests that wait."""
        ...

    def add(self, request: PendingRequest) -> None:
        """Adds a request at its place; one that comes back has its old place."""
        ...

    def remove(self, request: PendingRequest) -> None:
        """Takes a request out that leaves, wherever it stands."""
        ...

    def take(self, request: PendingRequest) -> None:
        """Takes a request out that goes to an instance."""
        ...

    def peek(self, now: float) -> PendingRequest | None:
        """Who goes next."""
        ...

    def ahead(self, request: PendingRequest) -> int:
        """Requests that are taken to go before one that is added now; O(tenants), or O(groups) for batch."""
        ...

    def in_order(self, requests: Iterable[PendingRequest], now: float) -> list[PendingRequest]:
        """The requests, all of which wait here, whoever goes first in front. O(n log n)."""
        ...


Cost = Callable[[PendingRequest], float]
"""Tokens that a request is expected to cost, > 0."""
Weight = Callable[[str], float]
"""A tenant's share beside others, > 0."""


class InteractiveLine:
    """Tenants by their shares; of each tenant the discipline over TTFT deadlines."""

    def __init__(self, discipline: str, starvation_s: float, cost: Cost, weight: Weight) -> None:
        self._cost = cost
        self._order = TenantQueue(partial(load_discipline, discipline, starvation_s), weight)

    def __len__(self) -> int:
        return len(self._order)

    def add(self, request: PendingRequest) -> None:
        """See `Line.add`."""
        refund, request.charged = request.charged, 0.0
        self._order.push(_waiting(request), request.tenant, self._cost(request), refund)

    def remove(self, request: PendingRequest) -> None:
        """See `Line.remove`."""
        self._order.remove(request)

    def take(self, request: PendingRequest) -> None:
        """See `Line.take`."""
        request.charged = self._order.take(request)

    def peek(self, now: float) -> PendingRequest | None:
        """See `Line.peek`."""
        head = self._order.peek(now)
        return None if head is None else cast(PendingRequest, head.request_id)

    def ahead(self, request: PendingRequest) -> int:
        """See `Line.ahead`: of its own tenant all, for a newcomer's deadline is the last as a rule."""
        return self._order.ahead(request.tenant)

    def in_order(self, requests: Iterable[PendingRequest], now: float) -> list[PendingRequest]:
        """See `Line.in_order`."""
        order, found = self._order.emptied(), []
        for request in requests:
            order.push(_waiting(request), request.tenant, self._cost(request))
        while (head := order.peek(now)) is not None:
            order.take(head.request_id)
            found.append(cast(PendingRequest, head.request_id))
        return found


class BatchLine:
    """The discipline over request groups and their deadlines."""

    def __init__(self, discipline: str) -> None:
        self._discipline = discipline
        self._order = BatchQueue(discipline)

    def __len__(self) -> int:
        return len(self._order)

    def add(self, request: PendingRequest) -> None:
        """See `Line.add`."""
        grouped = GroupedRequest(
            request, _finite(request), request.arrived, request.prompt_tokens, request.sequence
        )
        self._order.add(grouped, request.attained_tokens)

    def remove(self, request: PendingRequest) -> None:
        """See `Line.remove`."""
        self._order.remove(request)

    def take(self, request: PendingRequest) -> None:
        """See `Line.take`."""
        self._order.remove(request)

    def peek(self, now: float) -> PendingRequest | None:
        """See `Line.peek`."""
        return cast(PendingRequest | None, self._order.peek(now))

    def ahead(self, request: PendingRequest) -> int:
        """See `Line.ahead`."""
        return self._order.ahead(_finite(request))

    def in_order(self, requests: Iterable[PendingRequest], now: float) -> list[PendingRequest]:
        """See `Line.in_order`."""
        line, found = BatchLine(self._discipline), []
        for request in requests:
            line.add(request)
        while (head := line.peek(now)) is not None:
            line.take(head)
            found.append(head)
        return found


def _waiting(request: PendingRequest) -> Waiting:
    return Waiting(request, request.arrived, request.due, request.attained_tokens, request.sequence)


def _finite(request: PendingRequest) -> float:
    return min(request.due, NEVER_S)
