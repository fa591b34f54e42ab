"""Why the autoscaler does nothing for now, and since when."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

_log = logging.getLogger(__name__)


class Trouble:
    """What went wrong at the last tick."""

    def __init__(self, wall: Callable[[], datetime]) -> None:
        """`wall`: an aware time."""
        self._wall = wall
        self._why = ""
        self.told = ""
        """For operators, with the time of day from which on it is so; empty: all is well."""

    def now(self, why: str) -> bool:
        """It is this now, empty: nothing; True when that is news."""
        if why == self._why:
            return False
        self._why = why
        self.told = f"since {self._wall():%H:%M:%S %Z} {why}" if why else ""
        if why:
            _log.warning("the autoscaler holds: %s", why)
        return True
