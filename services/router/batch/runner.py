"""Works on the durable queue: one session, whose claims run in this process as batch requests.

- The session is renewed at a third of its time to live. When it is lost, everything claimed under it is
  stopped and nothing of it put back: it may be with others.
- An item runs like a stream of a caller, so that interactive priority, credits, ejections and tickets hold
  for it.
- How far it has come is written down now and then, and when this router stops; whoever claims it next goes
  on.
- Items of a model that is not in the routing table wait until it is applied (again), or their batch ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from chiron.batch.contract import BatchQueue, BatchQueueError
from chiron.batch.records import BatchKey, ItemState, Outcome, Session
from chiron.internal.v1 import router_pb2
from services.router.batch.arrivals import Arrivals
from services.router.batch.backlog import QueueBacklog
from services.router.batch.claiming import Claiming
from services.router.batch.estimates import Estimates, Serving
from services.router.batch.following import Following
from services.router.batch.in_work import InWork
from services.router.batch.item import ItemRunner
from services.router.batch.recorder import Recorder
from services.router.batch.sessions import Sessions
from services.router.batch.settings import BatchSettings
from services.router.demand import Demand
from services.router.recording.book import Book

log = logging.getLogger(__name__)
_LEAST_STOP_S = 2.0
"""What a stop may take where no time to drain is configured: the store has to be told."""


class BatchRunner:
    """One router's part in the work on a queue. All methods belong to one event loop."""

    def __init__(
        self,
        settings: BatchSettings,
        queue: BatchQueue,
        owner: str,
        items: ItemRunner,
        demand: Demand,
        *,
        room: Callable[[str], int],
        serving: Callable[[str], Serving],
        weight: Callable[[str], float],
        tracing: bool = False,
    ) -> None:
        """Does nothing before `run`.

        Args:
            settings: of the batch queue.
            queue: open; it stays its opener's to close.
            owner: this router's id.
            items: runs them.
            demand: counts them.
            room: batch requests of a model that instances would take, less those that wait here.
            serving: what batch work of a model gets.
            weight: of a tenant, for fair shares.
            tracing: whether spans are exported.
        """
        self._arrivals = Arrivals(lambda model, items: demand.of(model).arrived.add_batch(items))
        self.book: Book | None = None
        """Records when batches came; None: nobody does."""
        self.backlog = QueueBacklog(settings, weight)
        """What waits."""
        self.estimates = Estimates(self.backlog, serving, weight)
        """When what waits will have ended."""
        self.work = InWork(
            settings, items, self.backlog, demand, on_made=self.estimates.made, tracing=tracing
        )
        """What runs."""
        self.sessions = Sessions(
            queue,
            self.backlog,
            owner,
            settings.session_ttl_s,
            on_session=lambda _: self._claiming.look(),
            on_lost=self._lost,
            busy=self._busy,
            give_back=self.work.give_back,
        )
        self._recorder = Recorder(
            queue,
            on_recorded=self._recorded,
            on_lost=self.sessions.lost,
            on_lease_lost=self.work.drop_lease,
            on_reached=lambda: self._claiming.look(),
        )
        self._claiming = Claiming(
            settings,
            queue,
            self.backlog,
            room=room,
            session=self._session,
            on_claimed=self.work.start,
            on_lost=self.sessions.lost,
            on_doubt=self.sessions.retire,
        )
        self.work.claiming, self.work.recorder = self._claiming, self._recorder
        self._following = Following(
            queue, self.backlog, running=self.work.batches, drop=self.work.drop_batch, on_read=self._on_read
        )

    def look(self, model: str) -> None:
        """An instance of the model may have room."""
        if model in self.backlog.orders:
            self._claiming.look(model)

    def accepted(self, batch: BatchKey) -> None:
        """A batch was sealed at this router: its items count as arrived here, and begin at once."""
        self._arrivals.accepted(batch)
        self._following.look()

    def state(self) -> router_pb2.RouterBatchQueue:
        """What waits, what runs here and under which session."""
        session = self.sessions.current
        return router_pb2.RouterBatchQueue(
            queued=sum(unit.queued for unit in self.backlog.units),
            running=len(self.work),
            session=0 if session is None else session.session_id,
            units=len(self.backlog.units),
            read_age_ms=self.backlog.age_ms,
        )

    async def run(self) -> None:
        """Works until cancelled; `stop` comes before that."""
        async with asyncio.TaskGroup() as group:
            for work in (
                self.sessions.run,
                self._recorder.run,
                self._claiming.run,
                self._following.run,
                self._following.sweep,
                self.work.keep_checkpoints,
                self.estimates.run,
            ):
                group.create_task(work(), name=f"batch {work.__qualname__}")

    async def stop(self, timeout_s: float) -> None:
        """Writes down how far each item has come, puts all of them back uncounted and ends the session.

        What the queue does not take within `timeout_s` seconds goes back when the session lapses.
        """
        self.sessions.stop()
        try:
            async with asyncio.timeout(max(timeout_s, _LEAST_STOP_S)):
                await self._claiming.stop()
                await self.work.stop()
                await self._recorder.flushed()
                await self.sessions.end()
        except TimeoutError:
            log.warning("the batch queue did not take everything back: its session lapses by itself")
        except BatchQueueError as error:
            log.warning("the batch queue's session lapses by itself: %s", error)

    def _lost(self, session: Session) -> None:
        """The queue does not know a session (any more): what it held may be with others."""
        self._recorder.lost(session)
        self.work.drop_session(session)

    def _session(self) -> Session | None:
        """The one to claim under; None: nothing new is wanted now."""
        return self.sessions.current if self._recorder.reached else None

    def _busy(self, session: Session) -> bool:
        return self.work.runs(session) or self._recorder.waits(session)

    def _recorded(self, outcome: Outcome, model: str, deadline: float) -> None:
        self.work.recorded(outcome, model, deadline)
        if outcome.state is ItemState.SUCCEEDED:
            self.estimates.learn(model, outcome.completion_tokens)

    def _on_read(self) -> None:
        self._arrivals.read(self.backlog.units)
        if self.book is not None:
            for unit in self.backlog.units:
                self.book.batch(unit.batch, self.backlog.monotonic(unit.sealed))
        self.estimates.read()
        self._claiming.forget_gone()
        self._claiming.look()
