"""One model's batch queue: its request groups, and the order in which its requests go.

With `edf` they go group by group in the order of deadlines, first come first served within a group (arXiv
2501.08090); with `fcfs` and `mlfq` groups only tell how much is due when. Whatever the discipline, whoever
has waited `starvation_s` goes before everybody who has not, oldest first (reconstructed).
"""

from __future__ import annotations

from collections.abc import Hashable
from math import inf

from chiron.policy.disciplines import Waiting, load_discipline
from chiron.policy.groups import GroupedRequest, RequestGroup, RequestGroups

STARVATION_S = 86_400.0
"""A day: the usual completion window of batch work."""


class BatchQueue:
    """Batch requests that wait. Times never go back; costs are those of `RequestGroups` and discipline."""

    def __init__(self, discipline: str = "edf", starvation_s: float = STARVATION_S) -> None:
        """Raises UnknownDisciplineError, or ValueError for a bound that is not positive."""
        order = load_discipline(discipline, starvation_s)
        self._order = None if discipline == "edf" else order
        self._groups = RequestGroups()
        self._starvation_s = starvation_s
        # With `edf`: nobody starves before then.
        self._starves_s = inf

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._groups)

    def __contains__(self, request_id: Hashable) -> bool:
        """Tell whether a request waits here."""
        return request_id in self._groups

    def add(self, request: GroupedRequest, attained_tokens: int = 0) -> None:
        """Enqueue. attained_tokens: output tokens that it has been given so far.

        Raises ValueError for an id that waits already or a deadline that is not finite.
        """
        self._groups.add(request)
        if self._order is None:
            self._starves_s = min(self._starves_s, request.arrived_s + self._starvation_s)
        else:
            self._order.push(
                Waiting(
                    request.request_id, request.arrived_s, request.deadline_s, attained_tokens, request.place
                )
            )

    def peek(self, now_s: float) -> Hashable | None:
        """Who goes next at `now_s`; None: nobody waits."""
        if self._order is not None:
            next_up = self._order.peek(now_s)
            return None if next_up is None else next_up.request_id
        if now_s >= self._starves_s:
            oldest = self._groups.oldest()
            self._starves_s = inf if oldest is None else oldest.arrived_s + self._starvation_s
            if oldest is not None and now_s >= self._starves_s:
                return oldest.request_id
        first = self._groups.peek()
        return None if first is None else first.request_id

    def remove(self, request_id: Hashable) -> None:
        """Take a request out, whatever its place. Raises KeyError if it does not wait."""
        self._groups.remove(request_id)
        if self._order is not None:
            self._order.remove(request_id)

    def pop(self, now_s: float) -> Hashable | None:
        """Take out who goes next."""
        request_id = self.peek(now_s)
        if request_id is not None:
            self.remove(request_id)
        return request_id

    def ahead(self, deadline_s: float) -> int:
        """Requests that go before a new one with this deadline, as things stand; O(cells)."""
        return self._groups.ahead(deadline_s) if self._order is None else len(self._groups)

    def groups(self) -> tuple[RequestGroup, ...]:
        """The groups in the order of their deadlines."""
        return self._groups.groups()
