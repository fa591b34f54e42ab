"""Keeps what the fleet's snapshots are made from, and what SLOs and GPU time add up to, as reports come."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chiron.internal.v1 import control_pb2
from chiron.policy.snapshots import FleetSnapshot, Traffic
from chiron.policy.words import Phase
from chiron.store import ModelRecord, Snapshot
from chiron.v1 import cluster_pb2
from services.global_controller.attainment import Attainments
from services.global_controller.config import ControllerConfig
from services.global_controller.demand import Demand
from services.global_controller.fleet_instances import Expected
from services.global_controller.fleet_snapshot import Known, Told, fleet_snapshot, queued_interactive
from services.global_controller.gpu_time import GpuTime
from services.global_controller.phases import OnItsWay, Phases
from services.global_controller.registry import Registry


class FleetFeed:
    """From the wire to FleetSnapshot."""

    def __init__(self, config: ControllerConfig, registry: Registry, clock: Callable[[], float]) -> None:
        self._presumed = Expected(config.presumed_load_time_s, config.presumed_wake_time_s)
        self._gpu_budget = config.autoscaler.gpu_budget
        self._registry = registry
        self._clock = clock
        self._phases = Phases()
        self._demand = Demand(clock())
        self._attainments = Attainments(clock())
        self._gpu_time = GpuTime(clock())

    def hear_agent(self, report: control_pb2.AgentReport) -> None:
        """An agent has reported."""
        statuses = [one.status for one in report.instances]
        self._demand.hear_agent(statuses)
        self._attainments.hear_agent(statuses, self._clock())

    def hear_router(self, report: control_pb2.RouterReport) -> bool:
        """A router has reported; True when it has counted SLOs that were met or missed."""
        now = self._clock()
        self._demand.hear_router(report, now)
        return self._attainments.hear_router(report, now)

    def add_counts(self, shown: cluster_pb2.ClusterSnapshot) -> None:
        """Writes how many requests kept their SLO, and the GPU time, into what is shown of the cluster."""
        now = self._clock()
        for model in shown.models:
            model.attainment.CopyFrom(self._attainments.of(model.spec.name, now))
            model.gpu_seconds.CopyFrom(self._gpu_time.of(model.spec.name, now))
        shown.gpu_seconds.CopyFrom(self._gpu_time.all(now))

    def update(self, snapshot: Snapshot) -> None:
        """The state has changed."""
        self._phases.update(
            snapshot.models.values(), snapshot.instances.values(), self._registry.statuses(), self._clock()
        )
        unknown = {record.instance_id: record for record in self._registry.unknown()}
        dead = self._registry.dead(snapshot.nodes.values())
        self._gpu_time.update({**unknown, **snapshot.instances}.values(), dead, self._clock())
        instances = snapshot.instances.keys() | unknown.keys()
        self._demand.forget_others(instances)
        models = {name for name, model in snapshot.models.items() if not model.deleted}
        self._attainments.forget_others(instances, models)

    def expected(self, model: ModelRecord) -> Expected:
        """How long the model's instances take to load and to wake: as measured, else as presumed."""
        load_time_s, wake_time_s = self._phases.load_time_s(model), self._phases.wake_time_s(model)
        return Expected(
            self._presumed.load_time_s if load_time_s is None else load_time_s,
            self._presumed.wake_time_s if wake_time_s is None else wake_time_s,
        )

    def on_its_way(self, snapshot: Snapshot, instance_id: str) -> OnItsWay | None:
        """Where an instance stands that does not serve yet; None: it does, or is not on record."""
        standing, record = self._phases.of(instance_id), snapshot.instances.get(instance_id)
        model = snapshot.models.get(record.model) if record is not None else None
        if standing is None or model is None or standing.phase is not Phase.LOADING:
            return None
        expected = self.expected(model)
        since_s = self._clock() - standing.since_s
        takes_s = expected.wake_time_s if standing.waking else expected.load_time_s
        return OnItsWay(since_s, max(0.0, takes_s - since_s))

    def take(self, snapshot: Snapshot) -> FleetSnapshot:
        """The cluster now. A new interval of traffic begins, so that one caller alone may take snapshots."""
        self.update(snapshot)
        return self._made(snapshot, self._demand.take(self._queued(snapshot)))

    def look(self, snapshot: Snapshot) -> FleetSnapshot:
        """The cluster now, for who asks for no traffic but what waits in the routers."""
        queued = self._queued(snapshot)
        return self._made(
            snapshot, {name: Traffic(0.0, queued_interactive=count) for name, count in queued.items()}
        )

    def _queued(self, snapshot: Snapshot) -> dict[str, int]:
        return queued_interactive(snapshot.models.values(), self._told())

    def _told(self) -> tuple[Told, ...]:
        registry = self._registry
        return tuple(Told(link.report, registry.age_s(link)) for link in registry.routers.values())

    def _made(self, snapshot: Snapshot, traffic: Mapping[str, Traffic]) -> FleetSnapshot:
        registry = self._registry
        known = Known(
            models=tuple(snapshot.models.values()),
            instances=tuple(snapshot.instances.values()),
            unknown=tuple(one for one in registry.unknown() if one.instance_id not in snapshot.instances),
            nodes={node.node_id: registry.view(node) for node in snapshot.nodes.values()},
            statuses=registry.statuses(),
            routers=self._told(),
            phases=self._phases,
            traffic=traffic,
            presumed=self._presumed,
            gpu_budget=self._gpu_budget,
            sleep_host_bytes=registry.sleep_host_bytes(),
            kept_host_bytes=registry.kept_host_bytes(),
        )
        return fleet_snapshot(known, self._clock())
