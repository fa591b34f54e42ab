"""Who may open a call at this router now: turns away, at little cost, those who abandon too much."""

from __future__ import annotations

import asyncio
import logging
import random

from chiron.auth.api_keys import id_of
from chiron.auth.credentials import CallContext, bearer
from chiron.rpc.errors import ChironError, Reason
from services.router.abandoned import Abandoned, Opener
from services.router.access import Access

log = logging.getLogger(__name__)
_SOON_S = 1.0
"""A call that its caller cancels within this time was opened for nothing."""
_HOLD_S, _MOST_HELD = 0.5, 1000
"""How long a refusal is held back, so that a client that asks again at once asks seldom; and how many are."""
_SILENCE_S = 10.0
"""Time between two warnings."""
_MESSAGE = (
    "this client opens requests and cancels them within a second, or leaves their tickets unused, at a rate "
    "that harms others; wait before opening more"
)


class Door:
    """Asked before a call's request is read; told of each call that came to nothing by its caller's doing."""

    def __init__(self, abandoned_per_s: float, access: Access) -> None:
        """Nobody has abandoned anything.

        Args:
            abandoned_per_s: most that all callers together may abandon, a second; 0: any number.
            access: tells tenants.
        """
        self._time = asyncio.get_running_loop().time
        self._abandoned = Abandoned(abandoned_per_s, self._time(), random.random)
        self._access = access
        self._warned_at = float("-inf")
        self._held = 0
        self.turned_away = 0
        """Calls since the start."""

    def opener(self, caller: CallContext) -> Opener:
        """Who opens a call. Nothing of it is proved."""
        peer, key = caller.peer(), bearer(caller.invocation_metadata())
        return Opener(self._access.claimed(caller) or _host(peer), f"{peer} {id_of(key)}" if key else peer)

    async def pause_s(self, caller: CallContext) -> float:
        """For how long a caller should stay away, in seconds; 0: its call may come in.

        One that is turned away is told so after a while only.
        """
        now = self._time()
        if not self._abandoned.too_much(now):
            return 0.0
        opener = self.opener(caller)
        pause_s = self._abandoned.pause_s(opener, now)
        if not pause_s:
            return 0.0
        self.turned_away += 1
        if now - self._warned_at > _SILENCE_S:
            self._warned_at = now
            log.warning(
                "turning away calls of %s, which abandons too much of what it opens (%d since the start)",
                opener.owner,
                self.turned_away,
            )
        if self._held < _MOST_HELD:
            self._held += 1
            try:
                await asyncio.sleep(_HOLD_S)
            finally:
                self._held -= 1
        return pause_s

    def cancelled(self, caller: CallContext, arrived: float) -> None:
        """A caller has cancelled its call before the end."""
        now = self._time()
        if now - arrived < _SOON_S:
            self._abandoned.count(self.opener(caller), now)

    def unused(self, opener: Opener) -> None:
        """A ticket was not used."""
        self._abandoned.count(opener, self._time())


def turned_away(pause_s: float) -> ChironError:
    """What one is told who should stay away for so many seconds."""
    return ChironError(Reason.TOO_MANY_ABANDONED, _MESSAGE, retry_after_s=pause_s)


def _host(peer: str) -> str:
    return peer.rpartition(":")[0] or peer
