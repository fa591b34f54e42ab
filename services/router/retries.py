"""Whether a proxied request is tried once more."""

from __future__ import annotations

import asyncio

from chiron.client.budget import WINDOW_S, RetryBudget
from services.router.outcomes import Blame


class Retries:
    """The retries of all proxied requests of a router, held to a budget."""

    def __init__(self, max_attempts: int, share: float, floor_per_s: float) -> None:
        """A full budget.

        Args:
            max_attempts: most failures and refusals of one request, the last one included.
            share: most retries after failures, as a share of the requests.
            floor_per_s: retries a second that are allowed however few the requests.
        """
        self.max_attempts = max_attempts
        self._time = asyncio.get_running_loop().time
        self.budget = RetryBudget(self._time(), share=share, floor_per_s=floor_per_s, window_s=WINDOW_S)

    def begin(self, *, first: bool) -> Attempts:
        """A request comes in; `first` says whether it is not its caller's own retry."""
        if first:
            self.budget.request(self._time())
        return Attempts(self)

    def pay(self) -> bool:
        """Pays for one retry; False when the budget is spent."""
        return self.budget.spend(self._time())


class Attempts:
    """Those of one request."""

    __slots__ = ("_retries", "broke", "failed", "faults", "made")

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self.made = 0
        """Calls to instances that have ended without an answer."""
        self.failed = 0
        """Those of them that count towards the most attempts."""
        self.faults = 0
        """Instances that were lost or failed while they had the request."""
        self.broke = False
        """Whether the budget stopped it."""

    def another(self, blame: Blame, *, progressed: bool = False) -> bool:
        """Whether to try again after an instance has refused or failed the request.

        A full instance costs nothing: it has done no work, and the request waits until one says that it has
        room. Neither does one that handed the request back. Other refusals count as
        attempts, but were no failures; failures are paid for. One that came after a new token (`progressed`)
        is the first of its own: what goes on from there repeats no work.
        """
        self.made += 1
        self.faults += blame in (Blame.FAULT, Blame.UNREACHABLE)
        if blame is Blame.YIELDED:
            return True
        if progressed:
            self.failed = 1
            return self.failed < self._retries.max_attempts
        if blame is Blame.FULL:
            return True
        self.failed += 1
        if self.failed >= self._retries.max_attempts:
            return False
        if blame is not Blame.NONE and not self._retries.pay():
            self.broke = True
            return False
        return True
