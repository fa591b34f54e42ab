"""Lines of waiting requests of one class, one priority and one kind of beginning, by a discipline. Pure.

Times are monotonic seconds.
"""

from __future__ import annotations

from typing import Protocol, cast

from chiron.policy.batch_queue import BatchQueue
from chiron.policy.disciplines import Waiting, load_discipline
from chiron.policy.groups import GroupedRequest
from chiron.policy.snapshots import NEVER_S
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
        """Takes a request out, wherever it stands."""
        ...

    def peek(self, now: float) -> PendingRequest | None:
        """Who goes next."""
        ...

    def ahead(self, request: PendingRequest) -> int:
        """Requests that are taken to go before one that is added now; O(1), or O(groups) for batch."""
        ...


class InteractiveLine:
    """The discipline over TTFT deadlines."""

    def __init__(self, discipline: str, starvation_s: float) -> None:
        self._order = load_discipline(discipline, starvation_s)

    def __len__(self) -> int:
        return len(self._order)

    def add(self, request: PendingRequest) -> None:
        """See `Line.add`."""
        waiting = Waiting(request, request.arrived, request.due, request.attained_tokens, request.sequence)
        self._order.push(waiting)

    def remove(self, request: PendingRequest) -> None:
        """See `Line.remove`."""
        self._order.remove(request)

    def peek(self, now: float) -> PendingRequest | None:
        """See `Line.peek`."""
        head = self._order.peek(now)
        return None if head is None else cast(PendingRequest, head.request_id)

    def ahead(self, request: PendingRequest) -> int:
        """See `Line.ahead`: all, for a newcomer's deadline is the last as a rule."""
        return len(self._order)


class BatchLine:
    """The discipline over request groups and their deadlines."""

    def __init__(self, discipline: str) -> None:
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

    def peek(self, now: float) -> PendingRequest | None:
        """See `Line.peek`."""
        return cast(PendingRequest | None, self._order.peek(now))

    def ahead(self, request: PendingRequest) -> int:
        """See `Line.ahead`."""
        return self._order.ahead(_finite(request))


def _finite(request: PendingRequest) -> float:
    return min(request.due, NEVER_S)
