"""The cluster as the global autoscaler sees it, from what the controller has recorded and heard. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chiron.internal.v1 import control_pb2
from chiron.policy.snapshots import (
    NEVER_S,
    BatchBacklog,
    FleetInstance,
    FleetSnapshot,
    ModelFleet,
    Traffic,
)
from chiron.policy.sources import no_live_source
from chiron.policy.words import Phase
from chiron.store import InstanceRecord, ModelRecord, NodeRecord
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.fleet import costs_by_model
from services.global_controller.fleet_instances import Expected, fleet_instance
from services.global_controller.phases import Phases
from services.global_controller.sleepers import Sleepers
from services.global_controller.specs import initial_batch_size
from services.global_controller.view import ClusterView, Liveness, NodeView

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Told:
    """What a router has told, and how long ago, in seconds."""

    report: control_pb2.RouterReport
    age_s: float


_Queue = tuple[Mapping[str, Iterable[control_pb2.RequestGroup]], float]
"""What waits in one durable queue, by model, and how long ago that was told, in seconds."""


@dataclass(frozen=True, slots=True)
class Known:
    """Everything that a snapshot is made from."""

    models: Sequence[ModelRecord]
    """Tombstones included."""
    instances: Sequence[InstanceRecord]
    unknown: Sequence[InstanceRecord]
    """Workers that no record lists; they hold GPUs and are no supply."""
    nodes: Mapping[str, NodeView]
    statuses: Mapping[str, cluster_pb2.InstanceStatus]
    """The last report of each instance."""
    routers: Sequence[Told]
    phases: Phases
    traffic: Mapping[str, Traffic]
    """By model."""
    presumed: Expected
    """Of a model of which nothing has been measured."""
    gpu_budget: int = 0
    """Most GPUs that may be held; 0: no limit."""
    sleep_host_bytes: Mapping[str, int] = field(default_factory=dict)
    """See ClusterView, as the next one."""
    kept_host_bytes: Mapping[str, int] = field(default_factory=dict)


def fleet_snapshot(known: Known, now: float) -> FleetSnapshot:
    """The cluster at `now`, the controller's monotonic time in seconds."""
    models = sorted((model for model in known.models if not model.deleted), key=lambda model: model.name)
    sleepers = Sleepers(
        ClusterView(
            models=tuple(known.models),
            instances=tuple(known.instances),
            unknown=tuple(known.unknown),
            nodes=tuple(known.nodes.values()),
            sleep_host_bytes=known.sleep_host_bytes,
            kept_host_bytes=known.kept_host_bytes,
        )
    )
    costs = costs_by_model(models)
    widest = max((one.memory_share for one in costs.values()), default=1.0)
    queues = _queues(known.routers)
    records: dict[str, list[InstanceRecord]] = defaultdict(list)
    for record in known.instances:
        records[record.model].append(record)
    return FleetSnapshot(
        now_s=now,
        models=tuple(_model(known, model, records[model.name], queues, sleepers, now) for model in models),
        free_gpus={
            node.node_id: sum(
                node.residues.get(index, 0.0) + widest <= 1 + _ROUNDING for index in node.healthy - node.used
            )
            for node in sleepers.nodes.values()
            if node.live and not node.draining
        },
        gpu_types={name: kind for name, node in known.nodes.items() if (kind := gpu_type(node.record))},
        gpu_budget=known.gpu_budget,
    )


def queued_interactive(models: Iterable[ModelRecord], routers: Iterable[Told]) -> dict[str, int]:
    """Model → interactive requests that wait in the routers, by their last reports."""
    queued = {model.name: 0 for model in models if not model.deleted}
    for router in routers:
        for demand in router.report.demand:
            if demand.model in queued:
                queued[demand.model] += demand.queued.interactive
    return queued


def gpu_type(node: NodeRecord) -> str:
    """The name that all of a node's GPUs bear; empty: they differ, or nobody knows it."""
    names = {gpu.name for gpu in node.gpus}
    return names.pop() if len(names) == 1 else ""


def _model(
    known: Known,
    model: ModelRecord,
    records: Sequence[InstanceRecord],
    queues: Sequence[_Queue],
    sleepers: Sleepers,
    now: float,
) -> ModelFleet:
    spec = model.parsed_spec()
    interactive, batch = spec.slo_defaults.interactive, spec.slo_defaults.batch
    load_time_s, wake_time_s = known.phases.load_time_s(model), known.phases.wake_time_s(model)
    expected = Expected(
        known.presumed.load_time_s if load_time_s is None else load_time_s,
        known.presumed.wake_time_s if wake_time_s is None else wake_time_s,
    )
    reported = [known.statuses.get(record.instance_id) for record in records]
    return ModelFleet(
        name=model.name,
        gpus_per_instance=spec.gpus_per_instance,
        min_instances=spec.min_instances,
        max_instances=spec.max_instances,
        ttft_slo_s=interactive.ttft_ms / 1e3 if interactive.HasField("ttft_ms") else NEVER_S,
        itl_slo_s=_itl_slo_s(interactive),
        batch_itl_slo_s=_itl_slo_s(batch),
        instances=tuple(_instances(known, records, expected, sleepers, now)),
        traffic=known.traffic[model.name],
        backlog=_backlog(known.routers, queues, model.name),
        load_time_s=expected.load_time_s,
        wake_time_s=expected.wake_time_s,
        initial_batch_size=initial_batch_size(spec),
        max_context_tokens=max(
            (one.load.max_context_tokens for one in reported if one is not None), default=0
        ),
        gpu_type=no_live_source(ModelFleet, "gpu_type", str),
        priority=spec.priority,
    )


def _instances(
    known: Known,
    records: Iterable[InstanceRecord],
    expected: Expected,
    sleepers: Sleepers,
    now: float,
) -> Iterable[FleetInstance]:
    for record in sorted(records, key=lambda record: record.instance_id):
        node, standing = known.nodes.get(record.node_id), known.phases.of(record.instance_id)
        if node is None or node.liveness is Liveness.DEAD or standing is None:
            continue
        yield fleet_instance(
            record,
            standing,
            known.statuses.get(record.instance_id),
            report_age_s=node.silent_s,
            expected=expected,
            can_wake=standing.phase is Phase.SLEEPING and not sleepers.why_not_wake(record),
            can_sleep=standing.phase is Phase.READY and not sleepers.why_not_sleep(record),
            now=now,
        )


def _queues(routers: Iterable[Told]) -> list[_Queue]:
    """Each durable queue once, as the router that has read it last tells it."""
    newest: dict[str, tuple[float, Told]] = {}
    for router in routers:
        queue = router.report.batch_queue
        read_s = router.age_s + queue.age_ms / 1e3
        if queue.queue_id and (queue.queue_id not in newest or read_s < newest[queue.queue_id][0]):
            newest[queue.queue_id] = (read_s, router)
    return [
        ({each.model: each.groups for each in router.report.batch_queue.models}, router.age_s)
        for _, router in newest.values()
    ]


def _backlog(routers: Iterable[Told], queues: Iterable[_Queue], model: str) -> tuple[BatchBacklog, ...]:
    groups = [
        _group(group, router.age_s)
        for router in routers
        for demand in router.report.demand
        if demand.model == model
        for group in demand.batch_groups
    ]
    groups += [_group(group, age_s) for models, age_s in queues for group in models.get(model, ())]
    return tuple(sorted(groups, key=lambda group: group.deadline_in_s))


def _group(group: control_pb2.RequestGroup, age_s: float) -> BatchBacklog:
    return BatchBacklog(
        deadline_in_s=group.deadline_in_ms / 1e3 - age_s if group.HasField("deadline_in_ms") else NEVER_S,
        requests=group.requests,
        prompt_tokens=group.prompt_tokens,
    )


def _itl_slo_s(slo: types_pb2.Slo) -> float:
    return slo.itl_ms / 1e3 if slo.HasField("itl_ms") else NEVER_S
