"""This router's sessions with the queue: the one that it claims under, and those whose items still run.

A claim whose answer was lost may have brought items that nobody knows of. Its session is retired then:
nothing more is claimed under it, what it runs may end, and with the session whatever else it holds goes back.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from chiron.batch.contract import BatchQueue, RefusedError, SessionLostError, UnavailableError
from chiron.batch.records import Session
from services.router.batch.backlog import QueueBacklog

log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
RETIRE_S = 60.0
"""How long what runs under a retired session may go on; then it is put back, with how far it has come."""
_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class _Held:
    session: Session
    task: asyncio.Task[None] | None = None
    retired_until: float = math.inf
    """Monotonic time by which it is to end, in seconds; inf: it is not retired."""


class Sessions:
    """Renews them at a third of their time to live."""

    def __init__(
        self,
        queue: BatchQueue,
        backlog: QueueBacklog,
        owner: str,
        ttl_s: float,
        *,
        on_session: Callable[[Session], None],
        on_lost: Callable[[Session], None],
        busy: Callable[[Session], bool],
        give_back: Callable[[Session], None],
    ) -> None:
        """Has none yet.

        Args:
            queue: that they are with.
            backlog: learns the queue's clock.
            owner: this router's id.
            ttl_s: time to live, in seconds.
            on_session: told of each that may be claimed under.
            on_lost: told of each that counts no more.
            busy: whether anything is run or to be written under one.
            give_back: stops what is run under one, and has it put back.
        """
        self._queue = queue
        self._backlog = backlog
        self._owner = owner
        self._ttl_s = ttl_s
        self._on_session = on_session
        self._on_lost = on_lost
        self._busy = busy
        self._give_back = give_back
        self._loop = asyncio.get_running_loop()
        self._held: dict[int, _Held] = {}
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._stopping = False
        self.current: Session | None = None
        """Claims are made under it."""
        self.begun = 0
        """Sessions since the start."""

    async def run(self) -> None:
        """Sees to it that there is one, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                if self._stopping:
                    continue
                session = await self._insist(lambda: self._queue.begin_session(self._owner, self._ttl_s))
                self.begun += 1
                self._backlog.take_clock(await self._insist(self._queue.now))
                log.info("works on the batch queue in session %d", session.session_id)
                name = f"batch session {session.session_id}"
                held = self._held[session.session_id] = _Held(session)
                held.task = group.create_task(self._hold(held), name=name)
                if not self._stopping:
                    self.current = session
                    self._on_session(session)

    def lost(self, session: Session) -> None:
        """The queue does not know a session (any more). May be told twice."""
        held = None if self._stopping else self._held.pop(session.session_id, None)
        if held is None:
            return
        log.warning("the batch queue has given up session %d: its items stop here", session.session_id)
        if held.task is not None:
            held.task.cancel()
        self._leave(session)
        self._on_lost(session)

    def retire(self, session: Session) -> None:
        """A claim under it was made, and nobody knows what it brought."""
        held = self._held.get(session.session_id)
        if held is not None and held.retired_until == math.inf:
            log.warning("a claim was lost on its way: no more are made in session %d", session.session_id)
            held.retired_until = self._loop.time() + RETIRE_S
            self._leave(session)

    async def end(self) -> None:
        """Ends all of them; what they hold goes back. Raises BatchQueueError."""
        for held in list(self._held.values()):
            await self._queue.end_session(held.session)

    def stop(self) -> None:
        """Nothing more is claimed."""
        self._stopping = True
        self.current = None

    def _leave(self, session: Session) -> None:
        if self.current is session:
            self.current = None
            self._wanted.set()

    async def _hold(self, held: _Held) -> None:
        session = held.session
        try:
            while True:
                await asyncio.sleep(self._ttl_s / 3)
                await self._insist(lambda: self._queue.renew(session))
                self._backlog.take_clock(await self._insist(self._queue.now))
                if held.retired_until < math.inf and not self._busy(session):
                    await self._insist(lambda: self._queue.end_session(session))
                    del self._held[session.session_id]
                    return
                if self._loop.time() > held.retired_until:
                    self._give_back(session)
        except SessionLostError:
            # Cancelling this very task, on its last line, does no harm.
            self.lost(session)

    async def _insist(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Makes a call until the queue answers it."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await call()
            except (UnavailableError, RefusedError) as error:
                log.info("the batch queue cannot be reached: %s", error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S, self._ttl_s / 6)
