"""Whether an instance is to be trusted with requests, on this router's own evidence. Pure.

Closed: it is trusted. Ejected: it gets nothing for a while that grows each time. Then it is on trial: one
request at a time; an answer closes the matter, a failure ejects it again. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_MOST_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class EjectionSettings:
    """Figures of RouterConfig for the ejection of instances."""

    failures: int = 3
    """Failures in a row that eject."""
    first_s: float = 1.0
    """Length of the first ejection for failures, in seconds; each further one is twice as long."""
    longest_s: float = 30.0
    """Longest ejection, in seconds; an instance trusted for as long has its earlier ones forgotten."""
    silence_s: float = 2.0
    """Time without a load message, over what the worker has promised, after which it counts as frozen."""
    full_pause_s: float = 1.0
    """Time after which an instance that was full is tried again although it has not reported, in seconds."""
    panic_share: float = 0.5
    """Where more than this share of the instances that a request could go to is ejected, none is."""


class Health:
    """The standing of one incarnation of an instance."""

    def __init__(self, settings: EjectionSettings, jitter: Callable[[], float]) -> None:
        """A trusted instance.

        Args:
            settings: shared by all.
            jitter: factor of an ejection's length, so that routers do not come back in step.
        """
        self._settings = settings
        self._jitter = jitter
        self.failures = 0
        """In a row, since the last answer."""
        self.reason = ""
        """Why it is not trusted; empty: it is."""
        self.until = 0.0
        """End of the ejection."""
        self._ejections = 0
        self._trusted_since = float("-inf")

    @property
    def trusted(self) -> bool:
        """Whether it gets requests like any other."""
        return not self.reason

    def open_for_trial(self, now: float) -> bool:
        """Whether its ejection is over, so that one request may go there to find out."""
        return now >= self.until

    def failed(self, now: float, *, trial: bool) -> bool:
        """A request failed there in a way that speaks against the instance; True when that ejects it.

        Args:
            now: the time.
            trial: whether it was the request on trial. From others that were sent before an ejection nothing
                more is learnt.
        """
        self.failures += 1
        if not trial and (not self.trusted or self.failures < self._settings.failures):
            return False
        self._eject(now, f"{self.failures} failures in a row", pause=True)
        return True

    def lost(self, now: float, reason: str) -> None:
        """Its load is no longer heard.

        When it is heard again, that is a sign of life, so that the first time it is tried at once.
        """
        self.failures += 1
        self._eject(now, reason, pause=self._recent(now) > 0)

    def answered(self, now: float) -> bool:
        """A request was answered there; True when that makes it trusted again."""
        self.failures = 0
        if self.trusted:
            return False
        self.reason, self.until, self._trusted_since = "", 0.0, now
        return True

    def _recent(self, now: float) -> int:
        if self.trusted and now - self._trusted_since > self._settings.longest_s:
            self._ejections = 0
        return self._ejections

    def _eject(self, now: float, reason: str, *, pause: bool) -> None:
        doublings = min(self._recent(now), _MOST_DOUBLINGS)
        self._ejections += 1
        self.reason = reason
        length_s = min(self._settings.first_s * 2**doublings, self._settings.longest_s) * self._jitter()
        self.until = now + (length_s if pause else 0.0)
