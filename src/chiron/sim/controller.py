"""The simulated controller: snapshots from what has arrived, decisions carried out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from chiron.policy.checked import CheckedAutoscaler
from chiron.policy.decisions import Action, ChangeRole, FleetDecision, Retire, Sleep, Start, Wake
from chiron.policy.fleet import GlobalAutoscaler
from chiron.policy.hand_over import grants
from chiron.policy.snapshots import BatchBacklog, FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role
from chiron.sim.cluster import Cluster
from chiron.sim.decision_log import KIND, DecisionLog
from chiron.sim.gpus import Gpus
from chiron.sim.hand_over import HandOvers
from chiron.sim.instance import SimInstance
from chiron.sim.results import ActionRecord
from chiron.sim.settings import SimModel, SimSettings
from chiron.sim.telemetry import InstanceReport, Mail, RouterReport, difference

_UP, _DOWN = ("start", "wake"), ("retire", "sleep")


class Controller:
    """Runs the global autoscaler on what reports have told."""

    def __init__(
        self,
        settings: SimSettings,
        autoscaler: GlobalAutoscaler,
        cluster: Cluster,
        gpus: Gpus,
        hand_overs: HandOvers,
        log: DecisionLog | None = None,
    ) -> None:
        self._settings = settings
        self._autoscaler = CheckedAutoscaler(autoscaler)
        self._cluster = cluster
        self._gpus = gpus
        self._hand_overs = hand_overs
        self._log = log
        self._by_name = {model.name: index for index, model in enumerate(settings.models)}
        delay_s = settings.telemetry.delay_s
        self.instance_mail: Mail[InstanceReport] = Mail(delay_s)
        self.router_mail: list[Mail[RouterReport]] = [Mail(delay_s) for _ in settings.models]
        self._known: dict[str, InstanceReport] = {}
        self._commanded: dict[str, Phase] = {}
        # Those that were told to go and to hand over.
        self._handing: set[str] = set()
        empty = RouterReport(0.0, Traffic(interval_s=0.0), ())
        self._router_now = [empty] * len(settings.models)
        self._router_before = [empty] * len(settings.models)
        self.actions: list[ActionRecord] = []
        self.reversals = 0
        self._last: dict[tuple[str, str], float] = {}

    def tick(self, now: float) -> None:
        """Take a snapshot, ask the autoscaler and carry out what it decides. Raises PolicyError."""
        self._receive(now)
        snapshot = self.snapshot(now)
        decision: FleetDecision = self._autoscaler.decide(snapshot)
        done = [self._carry_out(action, now) for action in decision.actions]
        self._grant(snapshot, now)
        if self._log is not None:
            self._log.tick(now, decision, done)

    def _grant(self, snapshot: FleetSnapshot, now: float) -> None:
        """Say how fast those that go may hand over; nobody else may."""
        granted = {}
        if self._handing:
            instances = self._cluster.instances
            for model in snapshot.models:
                for key, grant in grants(model, self._handing).items():
                    if key in instances:
                        granted[instances[key]] = grant
        self._hand_overs.grant(granted, now)

    def note(self, report: InstanceReport) -> None:
        """Know of an instance without waiting for its report: the controller itself has placed it."""
        self._known[report.instance.instance_id] = report

    def _receive(self, now: float) -> None:
        for report in self.instance_mail.receive(now):
            key = report.instance.instance_id
            if report.gone:
                self._known.pop(key, None)
                self._commanded.pop(key, None)
                self._handing.discard(key)
                continue
            known = self._known.get(key)
            if known is not None and known.made_s > report.made_s:
                continue
            self._known[key] = report
            if report.instance.phase is self._commanded.get(key):
                del self._commanded[key]
        for index, mail in enumerate(self.router_mail):
            for router_report in mail.receive(now):
                self._router_now[index] = router_report

    def snapshot(self, now: float) -> FleetSnapshot:
        """What the controller knows now."""
        instances: list[list[FleetInstance]] = [[] for _ in self._settings.models]
        for report in self._known.values():
            name = report.instance.instance_id.rpartition("-")[0]
            instances[self._by_name[name]].append(self._instance(report, now))
        models = tuple(
            self._fleet(index, model, tuple(instances[index]), now)
            for index, model in enumerate(self._settings.models)
        )
        self._router_before = list(self._router_now)
        return FleetSnapshot(
            now_s=now,
            models=models,
            free_gpus=self._gpus.free(),
            gpu_types={node: kind.name for node, kind in self._gpus.nodes.items()},
            gpu_budget=self._settings.gpu_budget,
        )

    def _instance(self, report: InstanceReport, now: float) -> FleetInstance:
        known = report.instance
        there = self._cluster.instances.get(known.instance_id)
        phase = self._commanded.get(known.instance_id, known.phase)
        age_s = now - report.phase_since_s
        ready_in_s = 0.0
        if phase is Phase.LOADING:
            index = self._by_name[known.instance_id.rpartition("-")[0]]
            expected_s = self._wake_time_s(index) if report.waking else self._load_time_s(index)
            ready_in_s = max(0.0, expected_s - age_s)
        return replace(
            known,
            phase=phase,
            ready_in_s=ready_in_s,
            phase_age_s=age_s,
            can_wake=phase is Phase.SLEEPING and there is not None and self._cluster.may_wake(there),
            can_sleep=phase is Phase.READY and there is not None and self._cluster.may_sleep(there),
            report_age_s=now - (report.made_s if report.counted_s is None else report.counted_s),
        )

    def _fleet(
        self, index: int, model: SimModel, instances: tuple[FleetInstance, ...], now: float
    ) -> ModelFleet:
        latest, before = self._router_now[index], self._router_before[index]
        traffic = difference(latest.totals, before.totals, latest.made_s - before.made_s)
        backlog = tuple(BatchBacklog(deadline_s - now, *rest) for deadline_s, *rest in latest.backlog)
        return ModelFleet(
            name=model.name,
            gpus_per_instance=model.profile.gpus,
            min_instances=model.min_instances,
            max_instances=model.max_instances,
            ttft_slo_s=model.ttft_slo_s,
            itl_slo_s=model.itl_slo_s,
            batch_itl_slo_s=model.batch_itl_slo_s,
            instances=instances,
            traffic=traffic,
            backlog=backlog,
            load_time_s=self._load_time_s(index),
            wake_time_s=self._wake_time_s(index),
            initial_batch_size=model.initial_batch_size,
            max_context_tokens=model.profile.max_context_tokens,
            gpu_type=self._gpus.kind_of(model).name,
            priority=model.priority,
        )

    def _load_time_s(self, index: int) -> float:
        measured = self._cluster.load_times_s[index]
        if measured:
            return float(np.percentile(measured[-200:], 95))
        presumed_s = self._settings.live.presumed_load_s
        return self._settings.models[index].presumed_load_s if presumed_s is None else presumed_s

    def _wake_time_s(self, index: int) -> float:
        return self._settings.models[index].wake_s

    def _carry_out(self, action: Action, now: float) -> list[str]:
        """Returns the instances that it was carried out on."""
        index = self._by_name[action.model]
        if isinstance(action, Start):
            placed: list[str] = []
            for _ in range(action.count):
                started = self._start(index, action.role, now)
                if started is None:
                    break
                self._record(action, started.instance_id, now)
                placed.append(started.instance_id)
            return placed
        instance = self._cluster.instances.get(action.instance_id)
        # A command that crosses a change of phase on its way is void; so is one to an instance that is gone.
        if instance is None or instance.dead or not self._command(action, index, instance, now):
            return []
        self._record(action, action.instance_id, now)
        return [action.instance_id]

    def _start(self, index: int, role: Role, now: float) -> SimInstance | None:
        return None if self._at_most(index) else self._cluster.start(index, role, now)

    def _at_most(self, index: int) -> bool:
        """Whether a model has its most instances; sleeping ones do not count."""
        most = self._settings.models[index].max_instances
        serving = (Phase.LOADING, Phase.READY)
        instances = self._cluster.instances.values()
        return (
            0
            < most
            <= sum(each.identity.model_index == index and each.phase in serving for each in instances)
        )

    def _command(self, action: Action, index: int, instance: SimInstance, now: float) -> bool:
        phase = instance.phase
        if isinstance(action, Retire) and phase is not Phase.DRAINING:
            self._commanded[action.instance_id] = Phase.DRAINING
            self._cluster.retire(instance, now)
            if action.hand_over:
                self._handing.add(action.instance_id)
        elif isinstance(action, Sleep) and self._cluster.may_sleep(instance):
            self._commanded[action.instance_id] = Phase.DRAINING
            self._cluster.sleep(instance, now)
            if action.hand_over:
                self._handing.add(action.instance_id)
        elif isinstance(action, Wake) and self._cluster.may_wake(instance) and not self._at_most(index):
            self._commanded[action.instance_id] = Phase.LOADING
            self._handing.discard(action.instance_id)
            self._cluster.wake(instance, action.role, now)
        elif isinstance(action, ChangeRole) and phase in (Phase.READY, Phase.LOADING):
            if instance.role is action.role:
                return False
            self._cluster.change_role(instance, action.role, now)
        else:
            return False
        return True

    def _record(self, action: Action, instance_id: str, now: float) -> None:
        kind = KIND[type(action)]
        window_s = self._load_time_s(self._by_name[action.model])
        if kind == "change-role":
            against: tuple[tuple[str, str], ...] = ((instance_id, kind),)
            mine = (instance_id, kind)
        else:
            against = tuple((action.model, other) for other in (_DOWN if kind in _UP else _UP))
            mine = (action.model, kind)
        if any(now - self._last.get(key, -np.inf) <= window_s for key in against):
            self.reversals += 1
        self._last[mine] = now
        self.actions.append(
            ActionRecord(now, kind, action.model, instance_id, action.reason, dict(action.numbers))
        )
