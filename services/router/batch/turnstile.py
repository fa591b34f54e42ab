"""Lets the items of a claim begin one after the other, and whatever else the router does run between them."""

from __future__ import annotations

import asyncio
from collections import deque

AT_ONCE = 1 << 20
"""Bytes of work in a row: what a megabyte of bodies costs is a millisecond, or less."""
EACH = AT_ONCE // 8
"""What an item costs beside its body, in bytes of the same work."""


class Turnstile:
    """Lets pass in the order of arrival, so much at once in each round of the event loop."""

    def __init__(self) -> None:
        self._left = AT_ONCE
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._scheduled = False
        self._loop = asyncio.get_running_loop()

    async def enter(self, size: int) -> None:
        """Returns when there is a turn for work on so many bytes; more than fit are one turn's work alone."""
        cost = size + EACH
        if self._left > 0 and not self._waiting:
            self._pass(cost)
            return
        turn = self._loop.create_future()
        self._waiting.append((turn, cost))
        await turn

    def _pass(self, cost: int) -> None:
        self._left -= cost
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """The next round: those go on who wait, as far as they fit."""
        self._scheduled = False
        self._left = AT_ONCE
        while self._waiting and self._left > 0:
            turn, cost = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._pass(cost)
