"""The controller's loop: every event leads to one reconciling pass, and what it writes goes out as levels."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence

from chiron.internal.v1 import control_pb2
from chiron.store import (
    FencedError,
    InstanceRecord,
    Record,
    RefusedError,
    Snapshot,
    Store,
    TooLargeError,
    UnavailableError,
)
from chiron.v1 import cluster_pb2
from services.global_controller import routing, standing, views
from services.global_controller.autoscaling import Autoscaling
from services.global_controller.config import ControllerConfig
from services.global_controller.cordons import GpuOrders
from services.global_controller.decisions.book import DecisionBook
from services.global_controller.farewell import farewell
from services.global_controller.fleet_feed import FleetFeed
from services.global_controller.hand_over import HandOverOrders
from services.global_controller.levels import NodeIndex, desired_instances, level_of, told
from services.global_controller.mirror import Mirror
from services.global_controller.notice import Notice
from services.global_controller.observe import has_left, observe_hello, observe_report
from services.global_controller.pulse import Pulse
from services.global_controller.reconcile import reconcile
from services.global_controller.registry import AgentLink, Registry, RouterLink
from services.global_controller.routed_access import RoutedAccess
from services.global_controller.seat import Seat
from services.global_controller.store_health import StoreHealth
from services.global_controller.ticket_keys import TicketKeyKeeper
from services.global_controller.view import ClusterView
from services.global_controller.viewer import Viewer
from services.global_controller.writer import Draft as Draft
from services.global_controller.writer import Writer

_log = logging.getLogger(__name__)
_RETRY_S = 1.0
"""Time after which a pass that the store did not take is tried again, in seconds."""
_REST, _LONGEST_REST_S = 3.0, 0.5
"""After a pass the controller rests for so many times as long as it took, within so many seconds."""
WATCH_INTERVAL_S = 0.1
"""Shortest time between two snapshots of a WatchCluster stream."""


class Controller:
    """Owns the state while its term lasts. All its methods belong to one event loop."""

    def __init__(
        self,
        config: ControllerConfig,
        store: Store,
        *,
        seat: Seat | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes a controller; `start` and `run` make it work.

        Args:
            config: its configuration.
            store: the cluster's state.
            seat: what is known about the other controllers and the store; None: that it is alone.
            clock: monotonic time in seconds.
        """
        self.config = config
        self.store = store
        self.term = 0
        self._clock = clock
        self._seat = seat or Seat(config.listen, StoreHealth("memory", clock))
        self._elected = clock()
        self.registry = Registry(config.liveness_timeout_s, clock)
        self.reasons: dict[str, str] = {}
        """For each model that has not what it should have: what stands in the way."""
        self.gpu_orders = GpuOrders(self.registry)
        self.fleet = FleetFeed(config, self.registry, clock)
        self.settled = asyncio.Event()
        """Set once nodes have had the time to join."""
        self.closing = False
        self._stirred = Pulse()
        self._shown = Pulse()
        self.mirror = Mirror(store, self._stirred, self._shown)
        self.tables = routing.RoutingTables(0)
        self._nodes = NodeIndex()
        self.ticket_keys = TicketKeyKeeper(self, config.ticket_key_period_s)
        self._routed_access = RoutedAccess()
        self._fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.decisions = DecisionBook(self, clock)
        self._writer = Writer(
            store,
            self.mirror,
            self._seat.health,
            explain=self.decisions.recorder.explain,
            on_fenced=self._give_up,
            on_decided=self.decisions.decided,
        )
        self._viewer = Viewer(self.registry, clock, gpu_budget=config.autoscaler.gpu_budget)
        self.autoscaling = Autoscaling(self)
        self._notice = Notice(config.drain_notice_s)
        self._due: float | None = None
        """When the last pass would decide otherwise though nothing else changes; monotonic, in seconds."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest durable state."""
        return self.mirror.snapshot

    async def start(self) -> None:
        """Acquires a term and reads the state. Raises what the store raises."""
        self.term = self._writer.term = await self.store.acquire_term()
        self.tables = routing.RoutingTables(
            self.term, lambda instance_id: self.fleet.on_its_way(self.snapshot, instance_id)
        )
        await self.mirror.load()
        await self.decisions.load(self.term)
        self.registry.settle(self.snapshot.nodes)
        self._notice.begin(self.snapshot.instances.values(), self._clock())
        _log.info("term %d, revision %d", self.term, self.snapshot.revision)

    async def run(self) -> None:
        """Works until cancelled. Raises FencedError when another controller has taken over."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.mirror.follow())
            tasks.create_task(self._show_health())
            tasks.create_task(self._loop())
            tasks.create_task(self.autoscaling.run())
            if self.config.autoscaler.chiron.hand_over:
                tasks.create_task(HandOverOrders(self).run())
            tasks.create_task(self.ticket_keys.run())
            tasks.create_task(self.decisions.run())
            tasks.create_task(self._watch_fatal())

    def close(self) -> None:
        """Ends every stream, so that the server can stop."""
        self.closing = True
        self.decisions.close()
        self.registry.close_all()
        self._shown.beat()

    async def write(self, build: Callable[[Snapshot], Draft | None]) -> None:
        """See Writer.write."""
        await self._writer.write(build)

    async def put(self, build: Callable[[Snapshot], Record | None]) -> None:
        """As `write`, for one record and without an act to explain."""

        def draft(snapshot: Snapshot) -> Draft | None:
            record = build(snapshot)
            return Draft(puts=[record]) if record is not None else None

        await self.write(draft)

    def now(self) -> float:
        """Monotonic time, in seconds."""
        return self._clock()

    def view(self, snapshot: Snapshot) -> ClusterView:
        """The cluster as the reconciler sees it now."""
        return self._viewer.view(snapshot, hold_s=self.config.roll_hold_s)

    def assessed(self) -> None:
        """The autoscaler has looked at the cluster."""
        self._shown.beat()

    async def reconcile(self) -> None:
        """One pass: decides and writes."""
        reasons: dict[str, str] = {}
        self._due = None

        def build(snapshot: Snapshot) -> Draft:
            nonlocal reasons
            plan = reconcile(
                self.view(snapshot),
                lambda model: f"{model}-{secrets.token_hex(3)}",
            )
            reasons = dict(plan.reasons)
            self._due = None if plan.due_s is None else self._clock() + plan.due_s
            return Draft(puts=(*plan.models, *plan.puts), acts=plan.acts)

        await self.write(build)
        if reasons != self.reasons:
            for model, reason in reasons.items():
                if self.reasons.get(model) != reason:
                    _log.warning("%s: %s", model, reason)
            self.reasons = reasons
            self._stirred.beat()
            self._shown.beat()

    async def join(self, hello: control_pb2.AgentHello) -> AgentLink:
        """A node's agent has connected."""

        def build(snapshot: Snapshot) -> Draft | None:
            record = observe_hello(snapshot, hello)
            return Draft(puts=[record]) if record else None

        link = self.registry.join(hello.node_id, hello.state_id, hello.run_id)
        await self.write(build)
        self._set_level(link, self._told(self.snapshot, hello.node_id))
        self._stirred.beat()
        self._shown.beat()
        return link

    def leave(self, link: AgentLink) -> None:
        """An agent's stream has ended."""
        self.registry.leave(link)
        self._stirred.beat()
        self._shown.beat()

    async def report(self, link: AgentLink, report: control_pb2.AgentReport) -> None:
        """An agent has reported."""
        unknown: tuple[InstanceRecord, ...] = ()

        def build(snapshot: Snapshot) -> Draft:
            nonlocal unknown
            there = self._nodes.of(snapshot).get(link.node_id, ())
            seen = observe_report(snapshot, link.node_id, report, link.sent, there)
            unknown = seen.unknown
            acts = farewell(snapshot, link.node_id, report, starts=starts_leaving)
            return Draft(puts=seen.puts, deletes=seen.deletes, acts=acts)

        if not self.registry.is_current(link):
            return
        starts_leaving = report.leaving and not link.leaving
        link.leaving, link.left = report.leaving, has_left(report)
        try:
            await self.write(build)
        except (UnavailableError, RefusedError):
            # It comes again every second, and is written when the store takes it. What serves is known all
            # the same; what has left in good order counts as silent until it is on record.
            link.left = False
        if not self.registry.is_current(link):
            # Another stream of the node has joined meanwhile: what it tells is newer.
            return
        heard = self.registry.hear(link, report)
        if heard.standing or starts_leaving or unknown != link.unknown:
            self._stirred.beat()
        link.unknown = unknown
        self.decisions.look(link)
        self.gpu_orders.reported()
        self.fleet.hear_agent(report)
        if heard.standing or starts_leaving or heard.figures:
            self._shown.beat()

    def desired(self, link: AgentLink) -> control_pb2.DesiredNode:
        """What the node's agent is to be told now; remembered as sent."""
        snapshot = self.snapshot
        records = self._told(snapshot, link.node_id)
        follower = self.decisions.follower
        follower.sent(records)
        link.sent = {
            record.instance_id: (
                record.generation,
                earlier[1]
                if (earlier := link.sent.get(record.instance_id, (0, 0)))[0] == record.generation
                else snapshot.revision,
            )
            for record in records
        }
        return control_pb2.DesiredNode(
            term=self.term,
            revision=snapshot.revision,
            instances=desired_instances(snapshot, records, follower.trace_parent),
            gpu_orders=self.gpu_orders.of(link.node_id),
        )

    async def watch(self) -> AsyncIterator[cluster_pb2.ClusterSnapshot]:
        """A snapshot, then a new one after each change, at most one each WATCH_INTERVAL_S."""
        while not self.closing:
            seen = self._shown.count
            yield self.show()
            await asyncio.sleep(WATCH_INTERVAL_S)
            await self._shown.after(seen)

    def show(self) -> cluster_pb2.ClusterSnapshot:
        """The cluster as operators see it."""
        shown = views.cluster_snapshot(
            self.snapshot, self.registry, self.term, self.reasons, self.autoscaling.status
        )
        self.fleet.add_counts(shown)
        shown.time.GetCurrentTime()
        awaited = self.registry.awaited() if self.registry.settling() else ()
        reign = standing.Reign(self.term, self._clock() - self._elected, self.registry.settling(), awaited)
        shown.controllers.extend(standing.controllers(self._seat, reign))
        shown.store.CopyFrom(standing.store_status(self._seat.health))
        return shown

    def router_reported(self, link: RouterLink, report: control_pb2.RouterReport) -> None:
        """A router has reported."""
        counted = self.fleet.hear_router(report)
        self.autoscaling.router_reported(report)
        if self.registry.hear_router(link, report) or counted:
            self._shown.beat()

    def router_called(self, link: RouterLink, call: control_pb2.RouterCall) -> None:
        """A router tells at once that requests wait where nothing serves."""
        self.registry.hear_call(link, call)
        self.autoscaling.router_reported(link.report)
        self._shown.beat()

    def look_again(self) -> None:
        """Something has changed that is in no record."""
        self._stirred.beat()

    def routers_changed(self) -> None:
        """A router has come or gone."""
        self._shown.beat()

    async def _loop(self) -> None:
        seen, retry_at = -1, math.inf
        while True:
            due = _earliest(self.registry.next_deadline(), self._due, self._notice.due)
            until = min(math.inf if due is None else due, retry_at)
            try:
                async with asyncio.timeout(None if until == math.inf else max(0.0, until - self._clock())):
                    seen = await self._stirred.after(seen)
            except TimeoutError:
                self._shown.beat()
            if self.registry.notice_stall(due):
                _log.warning("the controller stood still for a while; it waits for reports before it acts")
            if self.registry.settle_early():
                self._shown.beat()
            settled = not self.registry.settling()
            began = time.perf_counter()
            try:
                await self.reconcile()
                retry_at = math.inf
            except (UnavailableError, RefusedError, TooLargeError) as error:
                if retry_at == math.inf:
                    _log.warning("nothing can be changed now, what runs goes on: %s", error)
                retry_at = self._clock() + _RETRY_S
            self.fleet.update(self.snapshot)
            self._publish()
            self.decisions.look(published=True)
            if settled and not self.settled.is_set():
                self.settled.set()
                for router in self.registry.routers.values():
                    router.wake.beat()
            # What happens meanwhile is one pass: nodes that join by the hundred must not cause as many, nor
            # keep the loop from hearing the others.
            await asyncio.sleep(min(_LONGEST_REST_S, _REST * (time.perf_counter() - began)))

    async def _show_health(self) -> None:
        seen = self._seat.health.changed.count
        while True:
            seen = await self._seat.health.changed.after(seen)
            self._shown.beat()

    def _give_up(self, error: FencedError) -> None:
        # At once, not when `run` has ended: what this controller shows from here on is another one's past.
        if self._seat.controller is self:
            self._seat.leave()
        if not self._fatal.done():
            self._fatal.set_exception(error)

    def _publish(self) -> None:
        self._notice.update(
            self.snapshot.instances.values(), self._clock(), routers=bool(self.registry.routers)
        )
        for link in self.registry.agents.values():
            self._set_level(link, self._told(self.snapshot, link.node_id))
        on_demand = self.autoscaling.on_demand()
        # The autoscaler says when waiting is in vain; without one nobody would.
        entries = routing.entries(self.snapshot, self.registry, self.reasons, on_demand, patient=on_demand)
        if self.tables.update(entries, self._routed_access.of(self.snapshot)):
            for router in self.registry.routers.values():
                router.wake.beat()

    def _told(self, snapshot: Snapshot, node_id: str) -> Sequence[InstanceRecord]:
        return told(self._nodes.of(snapshot).get(node_id, ()), self._notice)

    def _set_level(self, link: AgentLink, records: Sequence[InstanceRecord]) -> None:
        level = level_of(self.snapshot, records)
        if level != link.level:
            link.level = level
            link.wake.beat()

    async def _watch_fatal(self) -> None:
        await self._fatal


def _earliest(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)
