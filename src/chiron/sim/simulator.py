"""One simulation from its first arrival to its last: the event loop, and what ties the parts together."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop
from math import inf, isfinite
from time import perf_counter
from typing import Any

from chiron.policy.checked import CheckedLocal
from chiron.policy.dispatch import Dispatcher
from chiron.policy.fleet import GlobalAutoscaler
from chiron.policy.local import LocalAutoscaler
from chiron.policy.words import Phase
from chiron.sim.agenda import Agenda
from chiron.sim.baselines.migration import MigrationPlanner
from chiron.sim.cluster import Cluster, Observers
from chiron.sim.controller import Controller
from chiron.sim.decision_log import DecisionLog
from chiron.sim.faults import Faults
from chiron.sim.figures import conclude
from chiron.sim.finished import Finished
from chiron.sim.gpus import Gpus
from chiron.sim.hand_over import HandOvers
from chiron.sim.instance import SimInstance
from chiron.sim.ledger import Ledger
from chiron.sim.live_times import next_time
from chiron.sim.migration import Migrations
from chiron.sim.results import SimResult, TimelinePoint
from chiron.sim.router import ModelRouter
from chiron.sim.settings import SimSettings
from chiron.sim.telemetry import Noise, RouterReport, Sampler, report_of
from chiron.sim.workload import Workload

Progress = Callable[[float, int, int], None]
"""Called now and then with the simulated time, the requests that have ended, and all requests."""
_GRACE_S = 3600.0


def simulate(
    settings: SimSettings,
    workload: Workload,
    *,
    autoscaler: GlobalAutoscaler,
    dispatcher: Dispatcher,
    local: Callable[[], LocalAutoscaler] | None = None,
    progress: Progress | None = None,
    policy: str | None = None,
    log: DecisionLog | None = None,
    migration: MigrationPlanner | None = None,
) -> SimResult:
    """Run the workload and return what came of it.

    local: makes one local autoscaler per instance; None: batch size and step-token budget stay as set.
    policy: what the result calls the autoscaler; None: the name of its class. log: takes down what the global
    autoscaler decides. migration: moves running requests between instances; None: they stay. Raises
    InvalidWorkloadError and InvalidSettingError naming what does not fit, PolicyError when a policy fails or
    its answer cannot be carried out, AssertionError if an invariant is broken.
    """
    began_s = perf_counter()
    # Nothing here forms cycles while it runs, and scanning millions of live objects for them takes time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        simulation = Simulation(settings, workload, autoscaler, dispatcher, local, progress, log, migration)
        end_s = simulation.run()
        return conclude(settings, workload, simulation, policy or type(autoscaler).__name__, end_s, began_s)
    finally:
        if collecting:
            gc.enable()


class Simulation:
    """The state of one run."""

    def __init__(
        self,
        settings: SimSettings,
        workload: Workload,
        autoscaler: GlobalAutoscaler,
        dispatcher: Dispatcher,
        local: Callable[[], LocalAutoscaler] | None,
        progress: Progress | None,
        log: DecisionLog | None = None,
        migration: MigrationPlanner | None = None,
    ) -> None:
        self._settings = settings
        self._local = local
        self._progress = progress
        self.ledger = Ledger(settings, workload)
        self.agenda = Agenda()
        self.gpus = Gpus(settings)
        observers = Observers(self._load_changed, self._phase_changed, self._given_back)
        self.cluster = Cluster(settings, self.agenda, self.ledger, self.gpus, observers)
        self.hand_overs = HandOvers(settings, self.agenda, self.ledger, self._given_back)
        self.controller = Controller(settings, autoscaler, self.cluster, self.gpus, self.hand_overs, log)
        self.routers = [
            ModelRouter(settings, index, dispatcher, self.ledger, self.agenda)
            for index in range(len(settings.models))
        ]
        self._faults = Faults(settings, self.agenda, self.cluster, self.gpus)
        self.migrations: Migrations | None = None
        """None: nothing moves."""
        if migration is not None:
            self.migrations = Migrations(settings, migration, self.agenda, self.cluster, self.ledger)
        self.timeline: list[TimelinePoint] = []
        self.loop_events = 0
        self._noise = Noise(settings)
        self._samplers: dict[str, Sampler] = {}
        self._locals: dict[str, LocalAutoscaler] = {}
        self._totals = [Finished() for _ in settings.models]
        self._view_delay_s = settings.telemetry.view_delay_s
        # Load messages under way, in the order in which they arrive: the delay is the same for all.
        self._messages: deque[tuple[float, SimInstance]] = deque()
        deadlines = workload.deadline_s[[isfinite(deadline) for deadline in self.ledger.deadline_s]]
        last_arrival_s = self.ledger.arrival_s[-1] if len(workload) else 0.0
        self._last_deadline_s = float(deadlines.max()) if len(deadlines) else 0.0
        if len(deadlines) < self.ledger.open_batch:
            self._last_deadline_s = inf
        latest_s = max(last_arrival_s, float(deadlines.max()) if len(deadlines) else 0.0)
        self._horizon_s = latest_s + _GRACE_S if settings.horizon_s is None else settings.horizon_s

    def run(self) -> float:
        """Run to the end and return its time."""
        self.cluster.start_initial()
        self._messages.clear()
        for instance in self.cluster.instances.values():
            instance.message_due = False
            self.routers[instance.identity.model_index].told(instance, 0.0)
            self.controller.note(report_of(instance, self._samplers[instance.instance_id], 0.0))
        settings = self._settings
        at = self.agenda.at
        at(settings.warmup_s, self._warm, None)
        self._faults.begin()
        if self.migrations is not None:
            self.migrations.begin()
        at(next_time(settings.live.samples_s, 0.0, settings.local_interval_s), self._sample, None)
        self._begin_reports()
        at(next_time(settings.live.ticks_s, 0.0, settings.tick_s), self._tick, None)
        if self._last_deadline_s < inf:
            at(self._last_deadline_s, self._nothing, None)
        end_s = self._loop()
        self.gpus.settle(end_s)
        return end_s

    def _loop(self) -> float:
        """Take arrivals, load messages and events in the order of their times."""
        ledger, routers = self.ledger, self.routers
        heap, messages = self.agenda.heap, self._messages
        arrivals, models = ledger.arrival_s, ledger.model
        count = len(ledger)
        arrived = told = 0
        next_arrival = arrivals[0] if count else inf
        horizon_s, last_deadline_s = self._horizon_s, self._last_deadline_s
        now = 0.0
        while ledger.open_interactive or (ledger.open_batch and now < last_deadline_s):
            # The agenda is never empty: there is always a next tick.
            event = heap[0]
            time_s = event[0]
            if messages and messages[0][0] <= time_s and messages[0][0] <= next_arrival:
                now, instance = messages.popleft()
                if now > horizon_s:
                    now = horizon_s
                    break
                told += 1
                instance.message_due = False
                routers[instance.identity.model_index].told(instance, now)
            elif next_arrival <= time_s:
                now = next_arrival
                if now > horizon_s:
                    now = horizon_s
                    break
                routers[models[arrived]].arrive(arrived, now)
                arrived += 1
                next_arrival = arrivals[arrived] if arrived < count else inf
            else:
                if time_s > horizon_s:
                    now = horizon_s
                    break
                now = time_s
                heappop(heap)
                event[2](now, event[3])
        self.loop_events = arrived + told + self.agenda.count - len(heap)
        return now

    def _nothing(self, now: float, _: object) -> None:
        """Give the loop occasion to see that the last deadline has passed."""

    def _warm(self, now: float, _: object) -> None:
        self.gpus.reset(now)

    def _load_changed(self, instance: SimInstance, now: float) -> None:
        if not instance.message_due:
            instance.message_due = True
            self._messages.append((now + self._view_delay_s, instance))
        if instance.phase is Phase.DRAINING:
            self.cluster.drained(instance, now)

    def _phase_changed(self, instance: SimInstance, now: float) -> None:
        key = instance.instance_id
        sampler = self._samplers.get(key)
        if sampler is None:
            sampler = self._samplers[key] = Sampler(instance, self._noise)
            if self._local is not None:
                self._locals[key] = CheckedLocal(self._local(), key)
        report = report_of(instance, sampler, now)
        if instance.phase is Phase.LOADING and not instance.dead:
            # Placed or woken by the controller, which need not be told.
            self.controller.note(report)
        self.controller.instance_mail.send(report, now)
        if instance.phase is Phase.READY and instance.phase_since_s == now:
            # It has become ready; a change of its role goes on with the interval.
            sampler.begin(now)
        if instance.dead:
            self._collect(instance)
            del self._samplers[key]
            self._locals.pop(key, None)
        waits = self.routers[instance.identity.model_index].waits
        if waits is not None:
            waits.instance_changed(instance, now)
        if instance.phase is not Phase.READY or instance.seen.accepts:
            # A worker that drains, has another role or is gone turns the next request away at once.
            self.routers[instance.identity.model_index].told(instance, now)

    def _given_back(self, instance: SimInstance, requests: list[int], now: float) -> None:
        router = self.routers[instance.identity.model_index]
        for request_id in requests:
            router.take_back(request_id, now)
        router.serve(now)

    def _collect(self, instance: SimInstance) -> None:
        """Count what an instance has finished since the last time."""
        finished, instance.finished_since = instance.finished_since, []
        if finished:
            index = instance.identity.model_index
            self._totals[index].add(finished, self.ledger)
            waits = self.routers[index].waits
            if waits is not None:
                waits.finished(finished)

    def _sample(self, now: float, _: object) -> None:
        for instance in list(self.cluster.instances.values()):
            if instance.dead or instance.phase not in (Phase.READY, Phase.DRAINING):
                continue
            local = self._locals.get(instance.instance_id)
            sample = self._samplers[instance.instance_id].sample(now, local is not None)
            if sample is not None and local is not None:
                limits = local.decide(sample)
                instance.safe_batch_size = limits.safe_batch_size
                instance.set_limits(limits.batch_size, limits.step_token_budget, now)
            self.cluster.hand_back(instance, now)
        settings = self._settings
        self.agenda.at(next_time(settings.live.samples_s, now, settings.local_interval_s), self._sample)

    def _begin_reports(self) -> None:
        """The router reports, and the nodes with it, or each at times of its own."""
        live = self._settings.live
        self._report_again(live.router_reports_s, 0.0, self._report, None)
        for node, times in zip(self.gpus.nodes, live.node_reports_s, strict=False):
            self._report_again(times, 0.0, self._report_of_node, (node, times))

    def _report_again(
        self, times: Sequence[float], now: float, report: Callable[[float, Any], None], what: Any
    ) -> None:
        telemetry = self._settings.telemetry
        self.agenda.at(next_time(times, now, telemetry.interval_s), report, what)

    def _report_of_node(self, now: float, which: tuple[str, tuple[float, ...]]) -> None:
        node, times = which
        self._report_instances(now, node)
        self._report_again(times, now, self._report_of_node, which)

    def _report_instances(self, now: float, node: str | None) -> None:
        """Those of one node, or of all."""
        for instance in self.cluster.instances.values():
            if node is not None and instance.identity.node_id != node:
                continue
            self._collect(instance)
            if not instance.dead and not self._noise.lost():
                sampler = self._samplers[instance.instance_id]
                report = report_of(instance, sampler, now)
                self.controller.instance_mail.send(
                    report if node is None else sampler.as_counted(report), now
                )

    def _report(self, now: float, _: object) -> None:
        if not self._settings.live.node_reports_s:
            self._report_instances(now, None)
        for index, router in enumerate(self.routers):
            router.sample(now)
            if not self._noise.lost():
                totals = self._totals[index].traffic(router, now)
                groups = tuple(
                    (group.earliest_deadline_s, group.requests, group.prompt_tokens)
                    for group in router.batch.groups()
                )
                self.controller.router_mail[index].send(RouterReport(now, totals, groups), now)
        if self._progress is not None:
            ledger = self.ledger
            ended = len(ledger) - ledger.open_interactive - ledger.open_batch
            self._progress(now, ended, len(ledger))
        self._report_again(self._settings.live.router_reports_s, now, self._report, None)

    def _tick(self, now: float, _: object) -> None:
        self.controller.tick(now)
        phases = [instance.phase for instance in self.cluster.instances.values() if not instance.dead]
        self.timeline.append(
            TimelinePoint(
                at_s=now,
                gpus=self.gpus.held,
                ready=phases.count(Phase.READY),
                loading=phases.count(Phase.LOADING),
                running=sum(instance.engine.running for instance in self.cluster.instances.values()),
                queued_interactive=sum(len(router.interactive) for router in self.routers),
                queued_batch=sum(len(router.batch) for router in self.routers),
                held=self.gpus.held_by(self.cluster.instances),
            )
        )
        settings = self._settings
        self.agenda.at(next_time(settings.live.ticks_s, now, settings.tick_s), self._tick)
