"""How long a request waits before one more attempt. Pure, but for the dice."""

from __future__ import annotations

import random
from collections.abc import Iterable

_FIRST_S, _LONGEST_S = 0.1, 2.0
"""Bounds of the time to wait, where no router says how long, once every router has turned a request away."""
_QUOTA_S = 0.5
"""Least time to wait when an attempt that failed seems to count towards the tenant's quota still."""


class Pauses:
    """Those of one request."""

    def __init__(self, routers: Iterable[str]) -> None:
        self._routers = frozenset(routers)
        self._turned_away: set[str] = set()
        """Routers that have failed or refused this request since its last pause."""
        self._next_s = _FIRST_S

    def turned_away(self, address: str) -> None:
        """A router has failed or refused the request."""
        self._turned_away.add(address)

    def take_s(self, retry_after_s: float | None, *, elsewhere: bool, own_quota: bool) -> float:
        """Seconds to wait now; 0 while there is another router to try.

        Args:
            retry_after_s: what the router has said, if anything.
            elsewhere: another router may be asked at once.
            own_quota: it refused for a quota of which this request itself holds a part.
        """
        if own_quota:
            # What the router says counts on what this request holds itself, which it gives up soon.
            pause_s = max(self._next_s, _QUOTA_S)
        elif not elsewhere or self._turned_away >= self._routers:
            pause_s = retry_after_s or self._next_s
        else:
            return 0.0
        self._turned_away.clear()
        self._next_s = min(2 * self._next_s, _LONGEST_S)
        # Many clients are turned away at once: they must not all come back at once.
        return pause_s * random.uniform(1.0, 1.5)
