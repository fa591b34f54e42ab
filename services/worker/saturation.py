"""Whether all slots were taken throughout an interval. Pure."""

from __future__ import annotations

import math


class Saturation:
    """Follows the present from one change to the next."""

    def __init__(self) -> None:
        self._since = math.inf

    def note(self, saturated: bool, now: float) -> None:
        """From `now` (monotonic seconds) on, all slots are taken, or not."""
        if not saturated:
            self._since = math.inf
        elif self._since == math.inf:
            self._since = now

    def throughout(self, begin: float) -> bool:
        """True when it has been so since the instant `begin`."""
        return self._since <= begin
