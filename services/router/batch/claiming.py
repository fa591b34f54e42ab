"""Claims items as instances give credits for them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from chiron.batch.contract import BatchQueue, RefusedError, SessionLostError, UnavailableError
from chiron.batch.records import Claim, Session
from chiron.policy.unit_order import UnitOrder
from chiron.policy.work_units import Taken
from services.router.batch.backlog import QueueBacklog, UnitKey
from services.router.batch.settings import BatchSettings
from services.router.batch.window import ClaimWindow

log = logging.getLogger(__name__)
_ROUND_S = 0.005
"""Shortest time between two rounds: load reports come more often."""
_MOST_AT_ONCE = 512
"""Most items of one round of claims."""
_FIRST_MISS_S, _LONGEST_MISS_S = 0.25, 10.0
_UNREACHED_S = 1.0

OnClaimed = Callable[[Session, Claim, Taken], None]


class Claiming:
    """Asks for work whenever there is room for it, for one model once at a time."""

    def __init__(
        self,
        settings: BatchSettings,
        queue: BatchQueue,
        backlog: QueueBacklog,
        *,
        room: Callable[[str], int],
        session: Callable[[], Session | None],
        on_claimed: OnClaimed,
        on_lost: Callable[[Session], None],
        on_doubt: Callable[[Session], None],
    ) -> None:
        """Has claimed nothing yet.

        Args:
            settings: of the batch queue.
            queue: hands out the items.
            backlog: says which are next.
            room: batch requests of a model that instances would take, less those that wait here.
            session: the one to claim under; None: nothing new is wanted now.
            on_claimed: told of each item.
            on_lost: told of a session that the queue does not know (any more).
            on_doubt: told of a session with a claim of which nobody knows what it has brought.
        """
        self._settings = settings
        self._queue = queue
        self._backlog = backlog
        self._room = room
        self._session = session
        self._on_claimed = on_claimed
        self._on_lost = on_lost
        self._on_doubt = on_doubt
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()
        self._models: set[str] | None = set()
        """Those to be looked at; None: all."""
        self._windows: dict[str, ClaimWindow] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._misses: Counter[UnitKey] = Counter()
        self._largest: dict[UnitKey, int] = {}
        self.held_bytes = 0
        """Bodies of the items in work."""

    def look(self, model: str | None = None) -> None:
        """There may be room, or work, for one model or for any."""
        if model is None:
            self._models = None
        elif self._models is not None:
            self._models.add(model)
        self._wanted.set()

    def window(self, model: str) -> ClaimWindow:
        """A model's."""
        window = self._windows.get(model)
        if window is None:
            window = self._windows[model] = ClaimWindow(self._settings.ahead)
        return window

    async def run(self) -> None:
        """Claims until cancelled."""
        while True:
            pause_s = self._backlog.next_ready_s()
            try:
                async with asyncio.timeout(pause_s):
                    await self._wanted.wait()
            except TimeoutError:
                self._models = None
            self._wanted.clear()
            models, self._models = self._models, set()
            session = self._session()
            if session is not None:
                for model, order in self._backlog.ready(models):
                    if model not in self._under_way:
                        self._ask(session, model, order)
            await asyncio.sleep(_ROUND_S)

    async def stop(self) -> None:
        """Gives up what is under way; what it has brought goes back with the session."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget_gone(self) -> None:
        """Drops what is known of units and models that wait no more."""
        orders = self._backlog.by_model()
        for key in [
            key for key in self._largest if (order := orders.get(key[1])) is None or key not in order
        ]:
            del self._largest[key]
            del self._misses[key]
        for model in [model for model in self._windows if model not in orders]:
            window = self._windows[model]
            if not (window.running or window.asked or window.unplaced):
                del self._windows[model]

    def _ask(self, session: Session, model: str, order: UnitOrder) -> None:
        window = self.window(model)
        room = min(window.room(self._room(model), self._loop.time()), _MOST_AT_ONCE)
        chosen: dict[UnitKey, list[Taken]] = {}
        expected = self.held_bytes
        now = self._backlog.now()
        while room > 0 and (taken := order.take(now)) is not None:
            key: UnitKey = taken.key  # type: ignore[assignment]
            expected += self._largest.get(key, self._settings.body_bytes)
            if expected > self._settings.memory_bytes and (chosen or self.held_bytes):
                # It is next all the same, once something has ended.
                order.put_back(taken, now)
                break
            chosen.setdefault(key, []).append(taken)
            room -= 1
        if chosen:
            window.asked += sum(map(len, chosen.values()))
            task = asyncio.create_task(self._claim_all(session, model, order, chosen), name=f"claims {model}")
            self._under_way[model] = task

    async def _claim_all(
        self, session: Session, model: str, order: UnitOrder, chosen: dict[UnitKey, list[Taken]]
    ) -> None:
        try:
            await asyncio.gather(*(self._claim(session, order, key, taken) for key, taken in chosen.items()))
        finally:
            del self._under_way[model]
            self.look(model)

    async def _claim(self, session: Session, order: UnitOrder, key: UnitKey, taken: Sequence[Taken]) -> None:
        window = self.window(key[1])
        began = self._loop.time()
        try:
            claims = await self._queue.claim(session, key[0], key[1], len(taken))
            window.claimed(self._loop.time() - began)
        except (SessionLostError, UnavailableError, RefusedError) as error:
            now = self._backlog.now()
            for one in taken:
                order.put_back(one, now)
            if isinstance(error, SessionLostError):
                self._on_lost(session)
                return
            log.info("claims fail: %s", error)
            if isinstance(error, UnavailableError) and error.uncertain:
                self._on_doubt(session)
            order.withhold(key, now + _UNREACHED_S)
            return
        finally:
            window.asked -= len(taken)
        for one in taken[len(claims) :]:
            order.shares.give_back(one.tenant, one.charged)
        if not claims:
            self._misses[key] += 1
            pause_s = min(_FIRST_MISS_S * 2 ** min(self._misses[key] - 1, 16), _LONGEST_MISS_S)
            order.withhold(key, self._backlog.now() + pause_s)
            return
        self._misses.pop(key, None)
        for claim, one in zip(claims, taken, strict=False):
            size = len(claim.body) + len(claim.checkpoint)
            self._largest[key] = max(size, self._largest.get(key, 0))
            self._on_claimed(session, claim, one)
