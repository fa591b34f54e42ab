"""Holds retries to a share of the requests, so that a failing service is not buried under them. Pure."""

from __future__ import annotations

SHARE = 0.1
"""Retries that one request pays for."""
FLOOR_PER_S = 10.0
"""Retries a second that are paid for whatever the number of requests, so that who asks rarely may retry."""
WINDOW_S = 10.0
"""For how long what was not spent is kept, in seconds."""


class RetryBudget:
    """A bucket that each request and each second fill a little, and each retry empties by one.

    It holds what `WINDOW_S` seconds fill into it: the floor's part is there from the start, and the requests'
    part can be as large as what the requests of the last window have paid in.
    """

    def __init__(
        self,
        now: float,
        *,
        share: float = SHARE,
        floor_per_s: float = FLOOR_PER_S,
        window_s: float = WINDOW_S,
    ) -> None:
        """A full bucket.

        Args:
            now: monotonic seconds, as for every call.
            share: retries that one request pays for.
            floor_per_s: retries that one second pays for.
            window_s: for how long what was not spent is kept, in seconds.
        """
        self._share = share
        self._floor_per_s = floor_per_s
        self._window_s = window_s
        self._floor = floor_per_s * window_s
        self._paid = 0.0
        self._at = now
        self.spent = 0
        """Retries so far."""
        self.refused = 0
        """Retries that could not be paid for."""

    def request(self, now: float) -> None:
        """A request comes in; its retries do not count as further ones."""
        self._pass_time(now)
        self._paid += self._share

    def spend(self, now: float) -> bool:
        """Pays for one retry; False when there is nothing left to pay with."""
        self._pass_time(now)
        if self._paid >= 1:
            self._paid -= 1
        elif self._floor + self._paid >= 1:
            self._floor -= 1 - self._paid
            self._paid = 0.0
        else:
            self.refused += 1
            return False
        self.spent += 1
        return True

    def _pass_time(self, now: float) -> None:
        passed_s, self._at = max(0.0, now - self._at), max(now, self._at)
        self._floor = min(self._floor + passed_s * self._floor_per_s, self._floor_per_s * self._window_s)
        # What requests paid in fades, so that a quiet hour cannot save up for a storm.
        self._paid *= max(0.0, 1.0 - passed_s / self._window_s)
