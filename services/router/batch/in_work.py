"""The items that this router works on: started, written down now and then, stopped when nobody wants them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from chiron.batch.records import BatchKey, Claim, ItemState, Lease, Outcome, Session
from chiron.policy.words import RequestClass
from chiron.policy.work_units import Taken
from services.router.batch.backlog import QueueBacklog
from services.router.batch.claiming import Claiming
from services.router.batch.item import Ended, ItemRunner, RunningItem, broken, expired, let_go
from services.router.batch.recorder import Recorder
from services.router.batch.settings import BatchSettings
from services.router.demand import Demand

log = logging.getLogger(__name__)
_ROUND_S = 1.0
"""How often the items in work are looked at; finer, where checkpoints are more frequent."""


OnMade = Callable[[str, int, int], None]


@dataclass(slots=True)
class WorkCounts:
    """What has become of claims since the start."""

    succeeded: int = 0
    failed: int = 0
    put_back: int = 0
    lost: int = 0
    """Leases that counted no more when something of their item was to be written."""
    resumed: int = 0
    """Items that went on from a checkpoint."""


class InWork:
    """Claims on their way, each in a task of its own."""

    def __init__(
        self,
        settings: BatchSettings,
        items: ItemRunner,
        backlog: QueueBacklog,
        demand: Demand,
        *,
        on_made: OnMade,
        tracing: bool,
    ) -> None:
        """Has none yet; `claiming` and `recorder` must be set before the first comes.

        Args:
            settings: of the batch queue.
            items: runs them.
            backlog: what waits.
            demand: counts them.
            on_made: told now and then of a model, the output tokens that its items have made here since the
            last
                time, and how many run.
            tracing: whether spans are exported.
        """
        self._settings = settings
        self._items = items
        self._backlog = backlog
        self._demand = demand
        self._on_made = on_made
        self._tracing = tracing
        self._made: Counter[str] = Counter()
        """Model → output tokens that have not been told."""
        self._loop = asyncio.get_running_loop()
        self._running: dict[Lease, RunningItem] = {}
        self.claiming: Claiming
        self.recorder: Recorder
        self.counts = WorkCounts()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[RunningItem]:
        return iter(list(self._running.values()))

    def batches(self) -> Collection[BatchKey]:
        """Batches with items in work."""
        return {lease.batch for lease in self._running}

    def start(self, session: Session, claim: Claim, taken: Taken) -> None:
        """Begins to work on a claim."""
        item = RunningItem(claim, taken, session)
        self._running[claim.lease] = item
        self.counts.resumed += bool(claim.checkpoint)
        window = self.claiming.window(claim.model)
        window.running += 1
        window.unplaced += 1
        self.claiming.held_bytes += item.size
        item.task = asyncio.create_task(self._work(item), name=f"item {claim.lease.index}")

    def drop_batch(self, batch: BatchKey) -> None:
        """Stops the items of a batch: nobody wants their results."""
        for item in list(self._running.values()):
            if item.claim.lease.batch == batch:
                self._drop(item)

    def drop_session(self, session: Session) -> None:
        """Stops everything claimed under a session that is lost: it may be with others."""
        for item in list(self._running.values()):
            if item.session is session:
                self.counts.lost += 1
                self._drop(item)

    def runs(self, session: Session) -> bool:
        """Whether anything claimed under a session is in work."""
        return any(item.session is session for item in self._running.values())

    def give_back(self, session: Session) -> None:
        """Stops everything claimed under a session, and puts it back with how far it has come."""
        for item in list(self._running.values()):
            if item.session is session and item.task is not None:
                item.task.cancel()

    def drop_lease(self, lease: Lease) -> None:
        """A lease counts no more."""
        self.counts.lost += 1
        item = self._running.get(lease)
        if item is not None:
            self._drop(item)

    async def stop(self) -> None:
        """Stops all and gives them back, with how far they have come."""
        items = list(self._running.values())
        for item in items:
            if item.task is not None:
                item.task.cancel()
        await asyncio.gather(*(item.task for item in items if item.task is not None), return_exceptions=True)

    async def keep_checkpoints(self) -> None:
        """Writes down how far the items have come, until cancelled."""
        while True:
            await asyncio.sleep(min(_ROUND_S, self._settings.checkpoint_s / 4))
            now = self._loop.time()
            running: Counter[str] = Counter()
            for item in self._running.values():
                running[item.claim.model] += 1
                # What cannot be read ends in its own task.
                with contextlib.suppress(DecodeError):
                    self._look_at(item, now)
            made, self._made = self._made, Counter()
            for model in made.keys() | running.keys():
                self._on_made(model, made[model], running[model])

    def _look_at(self, item: RunningItem, now: float) -> None:
        tokens = item.answer.tokens
        self._made[item.claim.model] += max(0, tokens - item.seen_tokens)
        item.seen_tokens = tokens
        gained = tokens - item.kept_tokens
        if gained <= 0:
            return
        if gained < self._settings.checkpoint_tokens and now - item.kept_at < self._settings.checkpoint_s:
            return
        item.kept_tokens, item.kept_at = tokens, now
        if state := item.answer.checkpoint():
            self.recorder.checkpoint(item.session, item.claim.lease, state)

    def recorded(self, outcome: Outcome, model: str, deadline: float) -> None:
        """The queue has taken a result, due at an instant of its clock."""
        counts = self._demand.of(model)
        if outcome.state is ItemState.SUCCEEDED and self._backlog.now() <= deadline:
            counts.deadlines_met += 1
        else:
            counts.deadlines_missed += 1
        tally = self._demand.tally(model, RequestClass.BATCH)
        if outcome.state is ItemState.SUCCEEDED:
            self.counts.succeeded += 1
            tally.finished()
        else:
            self.counts.failed += 1
            tally.failed()

    # One item.

    async def _work(self, item: RunningItem) -> None:
        claim, window = item.claim, self.claiming.window(item.claim.model)
        window.unplaced -= 1
        used: Outcome | None = None
        try:
            deadline = self._backlog.monotonic(claim.deadline)
            async with asyncio.timeout_at(deadline if claim.expire_late else None):
                ended = await self._items.run(item, deadline, tracing=self._tracing)
            used = self._write(item, ended)
        except TimeoutError:
            used = self._write(item, expired(item))
        except asyncio.CancelledError:
            if not item.dropped:
                used = self._write(item, let_go(item))
        except Exception:
            log.exception("item %d of batch %s failed here", claim.lease.index, claim.lease.batch[1])
            self._write(item, Ended(broken(claim, self._settings.retry_first_s)))
        finally:
            del self._running[claim.lease]
            window.running -= 1
            window.ended(self._loop.time())
            self.claiming.held_bytes -= item.size
            self._settle(item, used)
            if used is not None:
                self._made[claim.model] += max(0, used.completion_tokens - item.seen_tokens)
            self.claiming.look(claim.model)

    def _write(self, item: RunningItem, ended: Ended) -> Outcome | None:
        """Has an item's end written; returns its result if it has one."""
        if item.dropped:
            return None
        if isinstance(ended.end, Outcome):
            self.recorder.finish(item.session, ended.end, item.claim.model, item.claim.deadline)
            return ended.end
        self.counts.put_back += 1
        self.recorder.put_back(item.session, ended.end)
        order = self._backlog.orders.get(item.claim.model)
        if order is not None and ended.whole_unit_s > 0:
            until = self._backlog.now() + ended.whole_unit_s
            order.withhold((item.claim.lease.batch, item.claim.model), until)
        return None

    def _settle(self, item: RunningItem, used: Outcome | None) -> None:
        order, taken = self._backlog.orders.get(item.claim.model), item.taken
        if order is None:
            return
        if used is not None and used.state is ItemState.SUCCEEDED:
            order.shares.settle(taken.tenant, taken.charged, used.prompt_tokens, used.completion_tokens)
        else:
            order.shares.give_back(taken.tenant, taken.charged)

    def _drop(self, item: RunningItem) -> None:
        item.dropped = True
        if item.task is not None:
            item.task.cancel()
