"""Slots that this router has promised and the worker has not counted yet. Pure.

Times are monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from chiron.policy.words import RequestClass
from services.router.abandoned import Opener


@dataclass(slots=True, eq=False)
class Reservation:
    """One promised slot; it ends when the worker names the request, when released, or at its expiry."""

    instance_id: str
    request_id: str
    expires: float
    sequence: int
    """The request's place in the order of arrival."""
    lookaside: RequestClass | None = None
    """Class of a request whose end only the worker's reports will tell; None: its end is seen here."""
    batch: bool = False
    """Whether it rests on a batch credit."""
    opener: Opener | None = None
    """Who holds the ticket, where there is one."""
    live: bool = True


class Reservations:
    """The live reservations of all instances. Every call is O(1) amortised per id."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._of: dict[str, dict[str, Reservation]] = {}
        self._batch: dict[str, int] = {}
        self._tickets: dict[str, Reservation] = {}
        # All reservations live equally long, so that the oldest is the next to expire.
        self._by_expiry: deque[Reservation] = deque()

    def reserve(
        self,
        instance_id: str,
        request_id: str,
        now: float,
        *,
        sequence: int = 0,
        lookaside: RequestClass | None = None,
        batch: bool = False,
        opener: Opener | None = None,
    ) -> Reservation:
        """Promises a slot. A second promise for the same request there takes the first one's place."""
        held = self._of.setdefault(instance_id, {})
        earlier = held.get(request_id)
        if earlier is not None:
            self._end(earlier)
        expires = now + self._ttl_s
        reservation = Reservation(instance_id, request_id, expires, sequence, lookaside, batch, opener)
        held[request_id] = reservation
        if batch:
            self._batch[instance_id] = self._batch.get(instance_id, 0) + 1
        if lookaside is not None:
            self._tickets[request_id] = reservation
        self._by_expiry.append(reservation)
        return reservation

    def ticket(self, request_id: str) -> Reservation | None:
        """The live reservation behind a ticket that nobody has used yet."""
        return self._tickets.get(request_id)

    def release(self, reservation: Reservation) -> bool:
        """Ends a reservation; False when it had ended already."""
        if not reservation.live:
            return False
        self._end(reservation)
        held = self._of[reservation.instance_id]
        del held[reservation.request_id]
        if not held:
            del self._of[reservation.instance_id]
        return True

    def confirm(self, instance_id: str, request_ids: Iterable[str]) -> list[Reservation]:
        """Ends, and returns, the reservations of requests that the worker counts itself from now on."""
        held = self._of.get(instance_id)
        if not held:
            return []
        ended = [held.pop(request_id) for request_id in request_ids if request_id in held]
        if not held:
            del self._of[instance_id]
        for reservation in ended:
            self._end(reservation)
        return ended

    def expire(self, now: float) -> list[Reservation]:
        """Ends, and returns, what nobody used in time."""
        ended: list[Reservation] = []
        queue = self._by_expiry
        while queue and (not queue[0].live or queue[0].expires <= now):
            reservation = queue.popleft()
            if self.release(reservation):
                ended.append(reservation)
        return ended

    def forget(self, instance_id: str) -> None:
        """Ends all of an instance's reservations."""
        for reservation in self._of.pop(instance_id, {}).values():
            self._end(reservation)

    def count(self, instance_id: str) -> int:
        """Live reservations of an instance."""
        return len(self._of.get(instance_id, ()))

    def batch_count(self, instance_id: str) -> int:
        """Those of them that rest on a batch credit."""
        return self._batch.get(instance_id, 0)

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    @property
    def next_expiry(self) -> float | None:
        """When `expire` has something to do next at the latest; None: nothing is reserved."""
        queue = self._by_expiry
        while queue and not queue[0].live:
            queue.popleft()
        return queue[0].expires if queue else None

    def _end(self, reservation: Reservation) -> None:
        reservation.live = False
        if reservation.batch:
            left = self._batch.pop(reservation.instance_id) - 1
            if left:
                self._batch[reservation.instance_id] = left
        if self._tickets.get(reservation.request_id) is reservation:
            del self._tickets[reservation.request_id]
