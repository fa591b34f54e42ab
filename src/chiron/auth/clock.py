"""Another process's monotonic clock, as far as its messages tell. Pure; times are in seconds."""

from __future__ import annotations

_WINDOW_S = 60.0
"""Older readings (one to two of these) do not count, so that a clock that stood still is believed again."""


class PeerClock:
    """Estimates what a peer's clock shows now. The estimate is never ahead, by drift aside.

    A reading is late by the time that its message took. The least late one of the last minutes gives the
    offset: a message that a busy process took up late moves nothing.
    """

    def __init__(self) -> None:
        self._offset: float | None = None
        self._earlier: float | None = None
        self._since = 0.0

    def heard(self, reading: float, now: float) -> None:
        """A message that the peer wrote when its clock showed `reading` has been taken up at `now` here."""
        offset = reading - now
        if self._offset is None or now - self._since > _WINDOW_S:
            self._earlier, self._offset, self._since = self._offset, offset, now
        else:
            self._offset = max(self._offset, offset)

    def at(self, now: float) -> float | None:
        """What the peer's clock shows at `now` here, or a little less; None: nothing was heard."""
        if self._offset is None:
            return None
        return now + (self._offset if self._earlier is None else max(self._offset, self._earlier))
