"""The shell around the core: carries out its instructions, keeps its timer, lets requests wait."""

from __future__ import annotations

import asyncio
import functools
import math
import random
from collections.abc import Callable, Collection, Sequence

from chiron.auth.keys import KeyRing
from chiron.internal.v1 import control_pb2, router_pb2, worker_pb2
from chiron.policy.dispatch import load_dispatcher
from chiron.rpc.errors import ChironError, Reason
from services.router.access import Access
from services.router.calls import Calls
from services.router.config import RouterConfig
from services.router.core import CoreSettings, RouterCore
from services.router.demand import Demand
from services.router.door import Door
from services.router.outcomes import Blame
from services.router.recording.book import Book
from services.router.request import (
    Abandon,
    CloseWatch,
    Ended,
    Instruction,
    OpenWatch,
    PendingRequest,
    Place,
    Placement,
    Refuse,
    Unused,
)
from services.router.reservations import Reservation
from services.router.telling import Tell, Telling
from services.router.tickets import Tickets
from services.router.worker_load import WorkerLink

_Outcome = Placement | ChironError


class Placer:
    """Finds an instance for each request. All methods belong to one event loop."""

    def __init__(self, config: RouterConfig, abandon: Callable[[str, bool], None]) -> None:
        """A placer without a table.

        Args:
            config: of the router.
            abandon: tries elsewhere what an instance has been sent and has not begun to answer; where true,
                also what it has begun.
        """
        self._config = config
        self._abandon = abandon
        self._loop = asyncio.get_running_loop()
        self.access = Access(
            required=config.auth.require,
            ticket_ttl_s=config.ticket_ttl_s,
            certificates=config.tls.mutual,
        )
        self._core = RouterCore(
            CoreSettings(
                queue_limit=config.queue_limit,
                worker_queue=config.worker_queue,
                retry_pause_s=config.retry_pause_s,
                ticket_ttl_s=config.ticket_ttl_s,
                ejection=config.ejection,
                discipline=config.discipline,
                starvation_s=config.starvation_s,
                prefixes=config.prefix_index if config.prefix_affinity else 0,
                tell_models=not config.auth.require,
            ),
            load_dispatcher(config.dispatcher),
            random.Random(),
            self.access.weight,
        )
        self.refuse_if_late = config.refuse_if_late
        """Of requests that neither say nor have it from their model."""
        self.prefix_affinity = config.prefix_affinity
        """Whether prompts' beginnings count: nobody need name them otherwise."""
        self.demand = Demand(self._loop.time())
        self.tickets = Tickets(config.ticket_ttl_s)
        self.door = Door(config.abandoned_per_s, self.access)
        self._links: dict[str, WorkerLink] = {}
        self._waiters: dict[PendingRequest, asyncio.Future[_Outcome]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.has_table = asyncio.Event()
        """Set once there is a table."""
        self.on_table: Callable[[], None] = lambda: None
        """Called after each change of the table or of the ticket keys."""
        self.on_load: Callable[[str], None] = lambda _: None
        """Called with the model after each load report of an instance."""
        self.on_report: Callable[[control_pb2.RouterReport], None] = lambda _: None
        """Called with each report before it is sent."""
        self.book: Book | None = None
        """Records requests; None: nobody does."""
        if config.recording.path is not None:
            self.book = Book(config.recording, config.identity, lambda: self._core.table.models.values())
        self.calls = Calls()
        """Models for which requests wait in vain until an instance starts: to be told at once."""
        self._telling = Telling()
        self._known_at: float | None = self._loop.time()
        self._from_file = False

    # Requests.

    async def place(
        self,
        request: PendingRequest,
        remaining_s: float | None,
        tell: Tell | None = None,
        tell_after_s: float = 0.0,
    ) -> Placement:
        """Reserves a slot, waiting for one if need be.

        Args:
            request: new, or one that an instance has refused.
            remaining_s: time until the deadline of the caller's call, in seconds; None: it has none.
            tell: is told what the request waits for: at once when it must wait, when that changes and each
                second; None: nobody asks.
            tell_after_s: a shorter wait is not told.

        Raises:
            ChironError: refused, or nothing came free in time.
            Exception: whatever `tell` raises.
        """
        answer: Place | Refuse | None = None
        others: list[Instruction] = []
        for instruction in self._core.submit(request, self._loop.time()):
            if isinstance(instruction, Place | Refuse) and instruction.request is request:
                answer = instruction
            else:
                others.append(instruction)
        self._perform(others)
        if isinstance(answer, Place):
            return answer.placement
        if answer is not None:
            raise answer.error
        return await self._wait(request, remaining_s, tell, tell_after_s)

    async def _wait(
        self, request: PendingRequest, remaining_s: float | None, tell: Tell | None, tell_after_s: float
    ) -> Placement:
        waiter: asyncio.Future[_Outcome] = self._loop.create_future()
        self._waiters[request] = waiter
        if self._core.unserved(request.model):
            self.calls.call(request.model)
        now = self._loop.time()
        since = request.arrived if request.resumed_at is None else request.resumed_at
        limit_s = math.inf if request.handed_back else self._config.max_queue_s - (now - since)
        own_s = math.inf if remaining_s is None else remaining_s
        if request.deadline is not None and request.resumed_at is None and not request.patient:
            own_s = min(own_s, request.deadline - now)
        try:
            async with asyncio.timeout(min(own_s, limit_s)):
                if tell is not None:
                    progress = functools.partial(self._core.progress, request)
                    await self._telling.until(waiter, progress, tell, tell_after_s)
                outcome = await waiter
        except TimeoutError:
            self._give_up(request, waiter)
            if own_s < limit_s:
                raise ChironError(
                    Reason.DEADLINE_EXCEEDED, f"no slot of {request.model!r} came free before the deadline"
                ) from None
            raise self._core.overdue(request, self._config.max_queue_s) from None
        except BaseException:
            self._give_up(request, waiter)
            if request.late(self._loop.time()):
                self.demand.tally(request.model, request.request_class).left_late()
            raise
        if isinstance(outcome, ChironError):
            raise outcome
        return outcome

    def _give_up(self, request: PendingRequest, waiter: asyncio.Future[_Outcome]) -> None:
        self._waiters.pop(request, None)
        self._core.cancel(request)
        if waiter.done() and not waiter.cancelled():
            # Placed in the very moment in which it left.
            outcome = waiter.result()
            if isinstance(outcome, Placement):
                self.release(outcome.reservation)

    def release(self, reservation: Reservation) -> None:
        """Gives a reserved slot back unless the worker counts it already; the request has ended."""
        self._perform(self._core.release(reservation, self._loop.time()))

    def failed(self, request: PendingRequest, placement: Placement, blame: Blame) -> None:
        """An instance refused or failed a request: keeps this one, and others if need be, from it."""
        self._perform(self._core.failed(request, placement, blame, self._loop.time()))

    def answered(self, placement: Placement) -> None:
        """An instance has begun to answer a request."""
        self._perform(self._core.answered(placement, self._loop.time()))

    def has_ticket(self, request_id: str) -> bool:
        """Whether the request holds a ticket that nobody has used yet."""
        return self._core.has_ticket(request_id)

    def link(self, placement: Placement) -> WorkerLink | None:
        """The connection to a placement's instance; None: it has just gone."""
        return self._links.get(placement.instance_id)

    def refuse_waiting(self, error: ChironError) -> None:
        """Ends every wait with an error."""
        for request, waiter in list(self._waiters.items()):
            self._core.cancel(request)
            if not waiter.done():
                waiter.set_result(error)
        self._waiters.clear()

    # The table.

    @property
    def epoch(self) -> int:
        """Epoch of the table; 0: none."""
        return self._core.table.epoch

    def model(self, name: str) -> control_pb2.RoutedModel | None:
        """A model of the table."""
        return self._core.table.models.get(name)

    def models(self) -> Collection[control_pb2.RoutedModel]:
        """All models of the table."""
        return self._core.table.models.values()

    def snapshot(self, table: control_pb2.RoutingTable) -> None:
        """Takes a table from the controller. Raises StaleTermError."""
        self._perform(self._core.snapshot(table, self._loop.time()))
        self.access.take_table(table)
        self._known_at, self._from_file = None, False
        self.has_table.set()
        self._changed()

    def delta(self, delta: control_pb2.RoutingDelta) -> None:
        """Takes changes from the controller. Raises EpochGapError."""
        self._perform(self._core.delta(delta, self._loop.time()))
        self.access.take_delta(delta)
        self._changed()

    def _changed(self) -> None:
        self._telling.changed()
        self.on_table()

    def restore(self, stored: router_pb2.StoredRoutingTable, age_s: float) -> None:
        """Takes the table and the keys that were kept on disk `age_s` seconds ago. Raises KeyRingError."""
        if stored.HasField("keys"):
            self.tickets.set_keys(KeyRing.from_message(stored.keys))
        now = self._loop.time()
        self._perform(self._core.snapshot(stored.table, now))
        self.access.take_table(stored.table, kept=True)
        self._known_at, self._from_file = now - age_s, True
        self.has_table.set()

    def controller_lost(self) -> None:
        """From now on the table may be out of date."""
        if self._known_at is None:
            self._known_at = self._loop.time()

    def stored(self) -> router_pb2.StoredRoutingTable:
        """What is to be kept on disk."""
        ring, table = self.tickets.ring, self._core.table.message()
        self.access.add_to(table)
        return router_pb2.StoredRoutingTable(
            table=table, keys=ring.to_message() if ring is not None else None
        )

    def table_state(self) -> router_pb2.RouterTableState:
        """The table in figures, and how old it is."""
        table = self._core.table
        age_s = 0.0 if self._known_at is None else self._loop.time() - self._known_at
        return router_pb2.RouterTableState(
            epoch=table.epoch,
            term=table.term,
            models=len(table.models),
            instances=len(table.instances),
            age_ms=1e3 * age_s,
            from_file=self._from_file,
            file=str(self._config.table_file or ""),
        )

    def counts(self) -> router_pb2.RouterCounts:
        """How much it holds, without what the proxy holds."""
        counts = self._core.counts()
        counts.watches = len(self._links)
        counts.untold_models = len(self.demand)
        if self.book is not None:
            counts.recorded, counts.not_recorded = self.book.written, self.book.left_out
        return counts

    def instances(self) -> list[router_pb2.RouterInstance]:
        """The instances as this router sees them."""
        return self._core.seen(self._loop.time())

    def queues(self) -> list[router_pb2.RouterQueue]:
        """What waits, and how long."""
        return self._core.waits(self._loop.time())

    def prefixes(self) -> list[router_pb2.RouterPrefixes]:
        """What it believes to be cached, by model."""
        return self._core.prefixes()

    def room(self, model: str) -> int:
        """Batch requests of the model that instances would take from this router now, beyond those that
        wait."""
        return self._core.room(model, self._loop.time())

    def batch_load(self, model: str) -> tuple[int, int, float]:
        """Instances that take batch requests of a model, those that run there, their output tokens per
        second."""
        return self._core.batch_load(model)

    def report(self, sequence: int) -> control_pb2.RouterReport:
        """What to tell the controller; starts a new interval."""
        now = self._loop.time()
        report = self.demand.report(sequence, self._core.queues(), now)
        self.calls.reported()
        report.ejected.extend(self._core.ejected(now))
        report.near_limits.extend(self.access.near_limits())
        self.on_report(report)
        return report

    def call(self) -> control_pb2.RouterCall:
        """What to tell the controller between two reports."""
        return self.calls.take(self._core.queues())

    async def close(self) -> None:
        """Ends the timer, the subscriptions and the connections."""
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(link.close() for link in self._links.values()))

    # Instructions.

    def _on_load(self, instance_id: str, watch: int, load: worker_pb2.WatchLoadResponse) -> None:
        now = self._loop.time()
        self.tickets.heard(load, now)
        self.access.holds.heard(load, now)
        if self.book is not None and load.ended_requests:
            self.book.ended(load.ended_requests)
        self._perform(self._core.load(instance_id, watch, load, now))
        if (model := self._core.model_of(instance_id)) is not None:
            self.on_load(model)

    def _on_lost(self, instance_id: str, watch: int) -> None:
        now = self._loop.time()
        self.access.holds.lost(instance_id, now)
        self._perform(self._core.watch_lost(instance_id, watch, now))

    def _perform(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case OpenWatch():
                    self._links[instruction.instance_id] = WorkerLink(
                        instruction,
                        self._config.identity,
                        self._on_load,
                        self._on_lost,
                        tell_ended=self.book is not None,
                        prefixes=self.prefix_affinity,
                    )
                case CloseWatch():
                    self._links.pop(instruction.instance_id).retire()
                    self.tickets.forget(instruction.instance_id)
                    self.access.holds.lost(instruction.instance_id, self._loop.time())
                case Abandon():
                    self._abandon(instruction.instance_id, instruction.begun)
                case Unused():
                    self.door.unused(instruction.opener)
                case Ended():
                    self.demand.tally(instruction.model, instruction.request_class).finished()
                case Place():
                    self._answer(instruction.request, instruction.placement)
                case _:
                    self._answer(instruction.request, instruction.error)
        # Any event can promise a slot or start a pause, and so bring the next tick forward.
        self._keep_time()

    def _answer(self, request: PendingRequest, outcome: _Outcome) -> None:
        waiter = self._waiters.pop(request, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(outcome)
        elif isinstance(outcome, Placement):
            self.release(outcome.reservation)

    def _keep_time(self) -> None:
        """Sees to it that the core's next tick comes; an early timer just looks again."""
        due = self._core.next_tick
        if due is None:
            return
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._core.tick(self._loop.time()))
