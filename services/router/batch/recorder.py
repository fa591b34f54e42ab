"""Writes to the queue what becomes of claimed items: in groups, in order, and again until the queue has taken
it.

A transaction takes what is there when the one before has ended, so that one item waits for none and many
share a commit. While the queue cannot be reached everything is kept here; it is bounded by what has been
claimed, because nothing new is claimed then.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from chiron.batch.contract import BatchQueue, RefusedError, SessionLostError, UnavailableError
from chiron.batch.records import Lease, Outcome, Return, Session

log = logging.getLogger(__name__)
_MOST, _MOST_BYTES = 256, 4 << 20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _REFUSED_PAUSE_S = 0.05, 5.0, 30.0

OnRecorded = Callable[[Outcome, str, float], None]
_Result = tuple[Outcome, str, float]
"""Of an item of this model, due at this instant of the queue's clock."""


@dataclass(slots=True)
class _Written:
    session: Session
    outcomes: deque[_Result] = field(default_factory=deque)
    returns: deque[Return] = field(default_factory=deque)
    checkpoints: dict[Lease, bytes] = field(default_factory=dict)
    """The newest of each."""
    void: bool = False
    """The session is lost: outcomes alone may still count."""

    def __len__(self) -> int:
        return len(self.outcomes) + len(self.returns) + len(self.checkpoints)


class Recorder:
    """One writer for all items of a router."""

    def __init__(
        self,
        queue: BatchQueue,
        *,
        on_recorded: OnRecorded,
        on_lost: Callable[[Session], None],
        on_lease_lost: Callable[[Lease], None],
        on_reached: Callable[[], None],
    ) -> None:
        """Has nothing to write yet.

        Args:
            queue: takes it.
            on_recorded: told of each outcome that counts, with its model and its deadline.
            on_lost: told of a session that the queue does not know (any more).
            on_lease_lost: told of each lease that counts no more.
            on_reached: told when the queue takes writes again.
        """
        self._queue = queue
        self._on_recorded = on_recorded
        self._on_lost = on_lost
        self._on_lease_lost = on_lease_lost
        self._on_reached = on_reached
        self._sessions: dict[int, _Written] = {}
        self._something = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.reached = True
        """False while the queue does not take writes."""

    def __len__(self) -> int:
        """Writes that wait."""
        return sum(map(len, self._sessions.values()))

    def finish(self, session: Session, outcome: Outcome, model: str, deadline: float) -> None:
        """An item has its result; `deadline` is its batch's, by the queue's clock."""
        written = self._of(session)
        written.checkpoints.pop(outcome.lease, None)
        written.outcomes.append((outcome, model, deadline))

    def put_back(self, session: Session, back: Return) -> None:
        """An item goes back to the queue."""
        written = self._of(session)
        written.checkpoints.pop(back.lease, None)
        if not written.void:
            written.returns.append(back)

    def checkpoint(self, session: Session, lease: Lease, state: bytes) -> None:
        """An item has come so far."""
        written = self._of(session)
        if not written.void:
            written.checkpoints[lease] = state

    def lost(self, session: Session) -> None:
        """The session counts no more: what its items had left to do is others' business."""
        written = self._of(session)
        written.void = True
        written.returns.clear()
        written.checkpoints.clear()

    def waits(self, session: Session) -> bool:
        """Whether anything of a session waits to be written."""
        written = self._sessions.get(session.session_id)
        return written is not None and len(written) > 0

    async def flushed(self) -> None:
        """Returns when nothing waits to be written."""
        await self._idle.wait()

    async def run(self) -> None:
        """Writes until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            await self._something.wait()
            self._something.clear()
            while (written := next(iter(self._sessions.values()), None)) is not None:
                if not len(written):
                    del self._sessions[written.session.session_id]
                    continue
                try:
                    await self._write(written)
                except (UnavailableError, RefusedError) as error:
                    self._unreached(error)
                    if isinstance(error, RefusedError):
                        pause_s = _REFUSED_PAUSE_S
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                except SessionLostError:
                    self.lost(written.session)
                    self._on_lost(written.session)
                else:
                    pause_s = _FIRST_PAUSE_S
                    self._reached()
            self._idle.set()

    async def _write(self, written: _Written) -> None:
        """One transaction; nothing of it leaves before it is there."""
        session = written.session
        if written.outcomes:
            outcomes = _some(written.outcomes)
            lost = set(await self._queue.finish(session, outcomes))
            for _ in outcomes:
                outcome, model, deadline = written.outcomes.popleft()
                if outcome.lease not in lost:
                    self._on_recorded(outcome, model, deadline)
        elif written.returns:
            returns = list(written.returns)[:_MOST]
            lost = set(await self._queue.put_back(session, returns))
            # A session that was lost meanwhile has emptied it.
            for back in returns:
                if written.returns and written.returns[0] is back:
                    written.returns.popleft()
        else:
            states = list(written.checkpoints.items())[:_MOST]
            lost = set(await self._queue.checkpoint(session, states))
            for lease, state in states:
                if written.checkpoints.get(lease) is state:
                    del written.checkpoints[lease]
        for lease in lost:
            self._on_lease_lost(lease)

    def _of(self, session: Session) -> _Written:
        written = self._sessions.get(session.session_id)
        if written is None:
            written = self._sessions[session.session_id] = _Written(session)
        self._idle.clear()
        self._something.set()
        return written

    def _unreached(self, error: Exception) -> None:
        if self.reached:
            self.reached = False
            log.warning("the batch queue takes no writes: %s; %d wait here", error, len(self))

    def _reached(self) -> None:
        if not self.reached:
            self.reached = True
            log.warning("the batch queue takes writes again")
            self._on_reached()


def _some(outcomes: deque[_Result]) -> list[Outcome]:
    """The first ones, as many as one transaction should hold."""
    chosen: list[Outcome] = []
    size = 0
    for outcome, *_ in outcomes:
        if chosen and (len(chosen) == _MOST or size + len(outcome.result) > _MOST_BYTES):
            break
        chosen.append(outcome)
        size += len(outcome.result)
    return chosen
