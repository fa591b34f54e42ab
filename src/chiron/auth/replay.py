"""Which tickets were used already. Pure."""

from __future__ import annotations

import heapq

_MOST_REMEMBERED = 100_000
"""At 5,000 requests a second and 2 s to first use a worker remembers a tenth of it."""


class ReplayMemoryFullError(Exception):
    """No room to remember another ticket: taking it could mean to take it twice."""


class UsedTickets:
    """Remembers each used ticket until it would have expired anyhow; bounded."""

    def __init__(self, most: int = _MOST_REMEMBERED) -> None:
        self._most = most
        self._used: set[bytes] = set()
        self._by_expiry: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._used)

    def use(self, mac: bytes, expires_at: float, now: float) -> bool:
        """Marks a ticket as used; False when it was before. Raises ReplayMemoryFullError.

        Args:
            mac: what makes the ticket unlike any other.
            expires_at: when it expires; on the same clock as `now`, and not before it.
            now: the present.
        """
        while self._by_expiry and self._by_expiry[0][0] < now:
            self._used.discard(heapq.heappop(self._by_expiry)[1])
        if mac in self._used:
            return False
        if len(self._used) >= self._most:
            raise ReplayMemoryFullError
        self._used.add(mac)
        heapq.heappush(self._by_expiry, (expires_at, mac))
        return True
